"""What several commands have: options, and their end. A dataclass of options stands for its fields in a command.

Longer than 350 lines: the options of run, render and sweep stay together.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kproxylat.cli.places import OnNode
from kproxylat.console import ESSENTIAL, say, show
from kproxylat.errors import BOOKS_OPEN, Interrupted, KproxylatError, UsageError, refuse_options
from kproxylat.modes import mode_names
from kproxylat.system import interrupts

if TYPE_CHECKING:
    from kproxylat.measure import options as measuring
    from kproxylat.modes import Mode
    from kproxylat.results import Result


Family = StrEnum("Family", {"IPV4": "4", "IPV6": "6"})
"""IP family."""
Position = StrEnum("Position", ["FIRST", "MIDDLE", "LAST"])
"""Where the worker's rule stands."""
WorkerPorts = StrEnum("WorkerPorts", ["BOTH", "UDP", "TCP"])
"""Protocols of the lab's worker."""
Origin = StrEnum("Origin", ["POD", "NODE"])
"""Whose packets are sent."""
Kind = StrEnum("Kind", ["AUTO", "FENTRY", "KPROBE", "NONE"])
"""What the probes are."""
Protocol = StrEnum("Protocol", ["TCP", "UDP", "BOTH"])
"""Protocols of the packets that are compared."""
Format = StrEnum("Format", ["TABLE", "JSON", "YAML"])
"""How a result is written to stdout; a command sees JSON for YAML, and kproxylat.cli.program translates."""
ListFormat = StrEnum("ListFormat", ["TABLE", "WIDE", "JSON", "YAML", "NAME"])
"""How a list of objects is written to stdout, as kubectl does."""
DUMMIES = 100
"""Services of the lab, if none are asked for."""
Duration = Annotated[float, typer.Argument(help="Seconds to send for.")]
Rate = Annotated[
    int | None,
    typer.Argument(
        help="Packets per second (run: 10000; sweep: 1000; connections: 1000 in the lab, 100 elsewhere).",
        show_default=False,
    ),
]
CONNECTIONS = {True: 1000, False: 100}
"""Whether it is a lab -> connections per second, if not passed: a cluster's pods have other work."""
Warmup = Annotated[int, typer.Argument(help="Packets sent before the probes attach.")]
InLab = Annotated[bool, typer.Option("--lab", help="On a node made of network namespaces, without a cluster.")]
ModeName = Annotated[str | None, typer.Option("--mode", help=f"kube-proxy's mode: {', '.join(mode_names())}.")]
Backend = Annotated[str | None, typer.Option("--backend", help="In mode iptables: legacy or nft.")]
Services = Annotated[int | None, typer.Option("--services", help=f"Dummy Services in the lab ({DUMMIES}).")]
RulePosition = Annotated[
    Position | None,
    typer.Option("--position", help="Where the target's rule stands in mode iptables (lab: last; node: as it is)."),
]
Ports = Annotated[WorkerPorts | None, typer.Option("--worker-ports", help="Protocols of the lab's worker (both).")]
Target = Annotated[str | None, typer.Option("--target", metavar="IP:PORT", help="ClusterIP and port; [IPv6]:PORT.")]
FamilyOption = Annotated[
    Family | None, typer.Option("--family", help="IPv4 or IPv6: of the lab, or of a Service that has both.")
]
ProtocolOption = Annotated[Protocol, typer.Option("--protocol", help="tcp (its SYNs), udp or both, apart.")]
Source = Annotated[
    str | None,
    typer.Option("--source", metavar="CIDR", help="Free part of clusterCIDR to send from (one of the node's)."),
]
Template = Annotated[Path | None, typer.Option("--template", help="Your own probe script template.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A variable for the template.")]
ProbeKind = Annotated[
    Kind,
    typer.Option(
        "--probe", help="auto: fentry where the kernel has types (BTF); none: no tracing, the sender's clock."
    ),
]
Envelope = Annotated[
    bool,
    typer.Option("--envelope", help="Trace the whole hook (nf_hook_slow) around the engine, too: the rules' share."),
]
WithOverhead = Annotated[
    bool, typer.Option("--overhead", help="Measure what tracing adds, and take the send time: four further bursts.")
]
SendTime = Annotated[
    bool, typer.Option("--send-time", help="After the run, take the send time of further packets, too, untraced.")
]
RulesetFile = Annotated[
    Path | None,
    typer.Option("--ruleset", metavar="FILE", help="Rules for the lab: of capture, iptables-save, nft, ipvsadm."),
]
EveryService = Annotated[
    bool, typer.Option("--every-service", help="Measure all Services of --ruleset, and rank them.")
]
Overwrite = Annotated[bool, typer.Option("--force", help="Replace an existing file that kproxylat did not make.")]
Form = Annotated[Format, typer.Option("--format", "-o", help="How the result is written to stdout.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be measured and what would change, and do nothing.")
]

OutputDir = Annotated[Path, typer.Option("--output-dir", help="Where log and result are saved.")]

LOGS = Path("logs/ebpf")


@dataclass(frozen=True)
class Measured:
    """What run, render and sweep measure: where, with which packets, and how to trace them."""

    lab: InLab = False
    position: RulePosition = None
    worker_ports: Ports = None
    target: Target = None
    origin: Annotated[Origin, typer.Option("--from", help="Whose packets: a pod's, or the node's own.")] = Origin.POD
    generator: Annotated[
        str, typer.Option("--generator", help="Who sends: pktgen (a pod's), sockets (the node's own), hping3 or none.")
    ] = ""
    protocol: Annotated[str, typer.Option("--protocol", help="udp or tcp (default: the generator's).")] = ""
    family: FamilyOption = None
    source: Source = None
    ruleset: RulesetFile = None
    every_service: EveryService = False
    template: Template = None
    settings: Settings = None
    probe: ProbeKind = Kind.AUTO
    envelope: Envelope = False
    others: Annotated[
        bool,
        typer.Option("--others", help="Count other packets' calls, and why packets are freed: each costs a map write."),
    ] = False

    kube_proxy: Annotated[
        str, typer.Option("--kube-proxy", metavar="RELEASE", help="Release whose nftables rules the lab has (1.36).")
    ] = ""
    endpoints: Annotated[
        int | None, typer.Option("--endpoints", metavar="N", help="Endpoints of each of the lab's Services (1).")
    ] = None
    affinity: Annotated[
        bool, typer.Option("--affinity", help="Give the lab's Services session affinity, by client address.")
    ] = False
    node_port: Annotated[
        bool, typer.Option("--node-port", help="Send to a NodePort of the lab's worker, in place of its ClusterIP.")
    ] = False
    first_packet: Annotated[
        bool, typer.Option("--first-packet", help="Open TCP connections, and time each from SYN to SYN-ACK.")
    ] = False
    places: Annotated[
        int | None,
        typer.Option("--places", metavar="N", help="With --first-packet: to N of the lab's Services, evenly spread."),
    ] = None

    def choose_rate(self, rate: int | None, usual: int) -> int:
        """Return the packets a second.

        :param rate: as passed; ``usual``: without connections, if none was passed.
        """
        return rate if rate is not None else CONNECTIONS[self.lab] if self.first_packet else usual

    def enter_namespace(self) -> None:
        """Do without root where a lab is measured and nothing is traced.

        :raises MachineError: as :func:`kproxylat.system.user_namespace.enter_user_namespace`.
        """
        if self.lab and self.probe is Kind.NONE:
            from kproxylat.system.user_namespace import enter_user_namespace

            enter_user_namespace()

    def check(self, node: OnNode, **own: object) -> None:
        """Refuse options that have no effect in this place.

        :param own: further options of the lab's own Services, which a ruleset replaces.
        :raises UsageError: one of them was passed.
        """
        of_services = {
            "worker_ports": self.worker_ports,
            "places": self.places,
            "kube_proxy": self.kube_proxy or None,
            "endpoints": self.endpoints,
            "affinity": self.affinity or None,
            "node_port": self.node_port,
        }
        if self.ruleset and not self.lab:
            raise UsageError("--ruleset is for the lab", "add --lab")
        if self.every_service and not self.ruleset:
            raise UsageError("--every-service is for a --ruleset", "add --lab --ruleset FILE")
        if self.ruleset:
            refuse_options("--ruleset brings its own Services", "", family=self.family, **of_services, **own)
        if not self.lab:
            refuse_options("only the lab makes Services", "add --lab", **of_services)
        if not self.first_packet:
            refuse_options("only connections go to several of them", "add --first-packet", places=self.places)
        if self.places:
            refuse_options("--places are of other Services", "", node_port=self.node_port)
        node.check(self.lab, self.target)

    def build(
        self,
        mode: Mode,
        services: int,
        node: OnNode,
        record: measuring.Record,
        overhead: bool,
        send_time: bool,
        **sending: Any,
    ) -> measuring.Options:
        """Put the options together; a ruleset's are still those of the lab's own Services.

        :param services: the number of the lab's dummy Services.
        :param sending: further fields of :class:`kproxylat.measure.options.Sending`.
        :raises UsageError: an option is invalid.
        """
        from kproxylat.measure import options as measuring
        from kproxylat.traffic.generators import find_generator

        needs_sockets = self.origin is Origin.NODE or self.probe is Kind.NONE or self.first_packet
        generator = find_generator(self.generator or ("sockets" if needs_sockets else "pktgen"))
        family = number(self.family)
        protocol = self.protocol or ("tcp" if self.first_packet else generator.protocols[0])
        target = replace(measuring.WORKER[family or 4], protocol=protocol)
        if self.target is not None:
            target = measuring.parse_destination(self.target, protocol, family)
        if self.places is not None and self.places < 1:
            raise UsageError(f"{self.places} places are not possible", "--places takes 1 or more")
        lab = measuring.Lab(
            services, self.position or "last", self.worker_ports or "both", places=self.places or 0,
            release=self.kube_proxy, endpoints=1 if self.endpoints is None else self.endpoints, affinity=self.affinity,
            node_port=self.node_port,
        )  # fmt: skip
        on_node = measuring.NodeUnderTest(position=self.position, allow=tuple(node.allow or ()))
        source = measuring.parse_source(self.source) if self.source else None
        return measuring.Options(
            mode,
            target,
            where=lab if self.lab else on_node,
            sending=measuring.Sending(
                generator, source=source, origin=self.origin, connects=self.first_packet, **sending
            ),
            tracing=measuring.Tracing(
                self.probe, self.envelope, overhead, send_time, self.others, self.template, read_settings(self.settings)
            ),
            record=record,
        )


def number(family: Family | None) -> int | None:
    """Return an IP family as the number that it is."""
    return int(family) if family else None


def read_settings(words: list[str] | None) -> dict[str, str]:
    """Read ``--set NAME=VALUE``."""
    pairs = [word.partition("=") for word in words or []]
    for name, equals, _ in pairs:
        if not equals:
            raise UsageError(f"--set {name} has no value", "it takes NAME=VALUE")
    return {name: value for name, _, value in pairs}


def refuse_untraced(probe: Kind) -> None:
    """Refuse what only a probe can do.

    :raises UsageError: there is none.
    """
    if probe is Kind.NONE:
        raise UsageError("--probe none: this command has nothing to trace then", "leave it out")


def show_runs(command: str, runs: Sequence[Mapping[str, Any]], form: str, **facts: object) -> None:
    """Print what a command would measure.

    :param runs: previews of its runs. ``facts``: further options of the command.
    :param form: "table" or "json".
    """
    from kproxylat.measure.preview import SCHEMA
    from kproxylat.report.tables import show_preview

    document = {"schema": SCHEMA, "command": command, **facts, "runs": runs}
    if form == Format.JSON:
        show(json.dumps(document, indent=1, default=str))
    else:
        show_preview(document)


def end(results: list[Result], ended: Interrupted | KproxylatError | None) -> None:
    """End with the status that the results deserve."""
    if ended:
        raise ended
    interrupts.check()
    open_books = [each.accounting.difference for each in results if each.accounting and each.accounting.closed is False]
    if open_books:
        say(f"kproxylat: the books don't close: {open_books[0]}", ESSENTIAL)
        sys.exit(BOOKS_OPEN)
