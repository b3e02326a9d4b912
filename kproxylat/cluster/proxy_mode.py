"""kube-proxy's mode and the backend that translates, decided from every source that can be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from kproxylat.cluster.api import Api
from kproxylat.cluster.metrics import count_nat_rules
from kproxylat.cluster.proxy_config import Configured, read_configured
from kproxylat.errors import MachineError
from kproxylat.modes import Mode, find_mode, mode_names, only_backend
from kproxylat.node.live_rules import LiveRules, probe, read_live_rules, read_proxy
from kproxylat.node.node import Node

CERTAIN, LIKELY, AMBIGUOUS, UNKNOWN, NONE = "certain", "likely", "ambiguous", "unknown", "none"
CLEAN_UP = (
    "run kube-proxy --cleanup on the node, with the iptables backend to remove first in PATH; then restart kube-proxy"
)
"""How to remove rules that stay although kube-proxy was restarted: at its start, kube-proxy removes nftables' rules in
modes iptables and ipvs, and those of iptables and ipvs in mode nftables, on its own iptables backend (Kubernetes,
cmd/kube-proxy/app/server_linux.go, platformCleanup)."""
SETTLE = "sudo kproxylat mode show --send-packet"
ASK_NODE = "on a node: curl http://localhost:10249/proxyMode"


@dataclass
class Evidence(Configured):
    """The answers of all sources: kube-proxy's configuration in the API, and those of the node.

    :param running: kube-proxy's answer to /proxyMode (None: no answer).
    :param rules: the rules in the node's kernel (None: they could not be read).
    :param counted: names of the rules that counted a packet to a Service that all of them hold (None: no packet was
        sent).
    :param written: number of rules that kube-proxy keeps in table nat, by its metrics (None: not asked).
    """

    running: str | None = None
    rules: tuple[LiveRules, ...] | None = None
    counted: frozenset[str] | None = None
    written: int | None = None

    @property
    def sources(self) -> list[tuple[str, str]]:
        """The sources, with their answers."""
        answers = [("running kube-proxy (/proxyMode)", self.running)] if self.running else []
        answers += [(setting.source, setting.mode) for setting in self.settings]
        if self.rules is not None:
            texts = [f"{rules} ({rules.rules} rules, {len(rules.services)} Service ports)" for rules in self.rules]
            answers.append(("this kernel's rules", "; ".join(texts) or "no Service rules"))
        if self.counted is not None:
            counted = ", ".join(sorted(self.counted)) or "none of the rules that have counters"
            answers.append(("rules that counted a packet sent", counted))
        notes: dict[str, Sequence[str]] = {
            "instead of kube-proxy": self.replacements,
            "can replace kube-proxy": self.candidates,
            "switched off": self.disabled,
            "no configuration": self.problems,
        }
        return answers + [(source, "; ".join(texts)) for source, texts in notes.items() if texts]

    @property
    def live(self) -> LiveRules | None:
        """The rules that the running kube-proxy writes; None if it does not run, or its mode has rules on two backends.

        Of two backends, kube-proxy writes the one that has as many rules as its metrics say.
        """
        own = [rules for rules in self.rules or () if rules.mode == self.running]
        if len(own) > 1:
            own = [rules for rules in own if rules.owned == self.written]
        return own[0] if len(own) == 1 else None


@dataclass(frozen=True)
class Finding:
    """The mode and backend whose rules translate packets, how certain they are, and the rules that kube-proxy writes.

    :param mode: kube-proxy's mode, or that of leftover rules that translate first; None if it is unknown or no
        kube-proxy runs.
    :param backend: the backend that translates; None likewise.
    :param sure: "certain", "likely", "ambiguous", "unknown" (no source has an answer), or "none" (no kube-proxy).
    :param reason: the reason, in one sentence.
    :param settle: what to do to find out more; "" if nothing helps.
    :param warnings: disagreements of the sources, and leftover rules.
    :param live: mode and backend of the rules that kube-proxy writes, such as "iptables on nft"; None if unknown.
    """

    mode: str | None
    backend: str | None
    sure: str
    reason: str
    settle: str = ""
    warnings: tuple[str, ...] = ()
    live: str | None = None

    @property
    def translates(self) -> str | None:
        """Mode and backend of the rules that translate packets, such as "iptables on nft"; None if unknown."""
        return str(LiveRules(self.mode, self.backend, 0)) if self.mode and self.backend else None

    @property
    def removal(self) -> str:
        """How to remove leftover rules; "" if there are none."""
        if not any("left behind" in warning for warning in self.warnings):
            return ""
        return f"kube-proxy removes leftover rules when it starts; if they stay, {CLEAN_UP}"


def decide(evidence: Evidence) -> Finding:
    """Decide on mode and backend by the evidence alone.

    The running kube-proxy's answer decides the mode. If only one backend holds rules, it is the one that translates.
    Rules outlive a switch of mode or backend, so several backends can hold some. Then the one registered last
    translates, and only counters that increase when a packet is sent show which one that is.
    """
    configured = sorted({setting.mode for setting in evidence.settings})
    warnings: list[str] = []
    if evidence.running and configured and configured != [evidence.running]:
        names = " and ".join(configured)
        warnings.append(f"kube-proxy is set to {names} but runs {evidence.running}: was it restarted since?")
    elif len(configured) > 1:
        warnings.append(f"the API's sources disagree: {', '.join(configured)}")
    if evidence.replacements and (evidence.running or evidence.rules):
        warnings.append(f"besides kube-proxy, the cluster runs {', '.join(evidence.replacements)}")
    finding = _choose_finding(evidence, configured, warnings)
    live = str(evidence.live) if evidence.live else None
    return replace(finding, warnings=tuple(dict.fromkeys(warnings)), live=live)


def _choose_finding(evidence: Evidence, configured: list[str], warnings: list[str]) -> Finding:
    """Decide, without the warnings, and add more of these to the list; the functions that it calls do so, too."""
    if evidence.running:
        return _decide_running(evidence.running, evidence, warnings)
    if not evidence.rules:
        return _decide_configured(configured, evidence, warnings)
    if len(evidence.rules) > 1:
        return _choose_rules(evidence.rules, evidence, warnings)
    [only] = evidence.rules
    reason = f"the kernel holds only rules of {only}"
    if configured and only.mode not in configured:
        warnings.append(f"kube-proxy is set to {', '.join(configured)}, but the rules are those of {only}")
        return Finding(
            only.mode, only.backend, LIKELY, f"{reason}, although kube-proxy is set to another mode", ASK_NODE
        )
    return Finding(only.mode, only.backend, CERTAIN if configured == [only.mode] else LIKELY, reason)


def _decide_running(mode: str, evidence: Evidence, warnings: list[str]) -> Finding:
    """Decide, given the mode that the running kube-proxy reports."""
    rules = evidence.rules or ()
    own = [live for live in rules if live.mode == mode]
    leftovers = [live for live in rules if live.mode != mode]
    report = f"the running kube-proxy reports {mode}"
    if not own:
        backend = only_backend(mode)
        problem = "this kernel has none of its rules"
        if evidence.rules is None:
            problem = "this kernel's rules could not be read"
        warnings += [f"rules of {leftover} were left behind" for leftover in leftovers]
        settle = "" if backend else "on the node, as root: kproxylat mode show"
        return Finding(mode, backend, LIKELY, f"{report}; {problem}", settle)
    if len(own) > 1:
        return _choose_rules(own, evidence, warnings)
    if not leftovers:
        return Finding(mode, own[0].backend, CERTAIN, f"{report}, and the kernel holds only its rules")
    if evidence.counted is not None:
        return _choose_rules(rules, evidence, warnings)
    warnings += [f"rules of {leftover} were left behind, and may translate before its own" for leftover in leftovers]
    return Finding(mode, own[0].backend, LIKELY, f"{report}, and the kernel holds its rules", SETTLE)


def _choose_rules(rules: Sequence[LiveRules], evidence: Evidence, warnings: list[str]) -> Finding:
    """Decide between the rules of several backends by their counters."""
    running, counted = evidence.running, evidence.counted
    names = " and ".join(map(str, rules))
    written = evidence.live
    own = [live for live in rules if live.mode == running]
    if written:
        left = [live for live in own if live != written]
        warnings += [f"rules of {live} were left behind: kube-proxy writes {written}" for live in left]
    elif len(own) > 1:
        both = " and ".join(map(str, own))
        warnings.append(f"{both} both hold rules; kube-proxy writes one of them, the other was left behind")
    active = [live for live in rules if counted and str(live) in counted]
    uncounted = [live for live in rules if all(packets is None for packets in live.services.values())]
    if len(active) == 1:
        reason = f"of the rules of {names}, those of {active[0]} counted a packet sent"
    elif counted is not None and not active and len(uncounted) == 1:
        active = uncounted
        reason = f"no other rules counted a packet sent, and those of {active[0]} have no counters"
    else:
        result = "" if counted is None else ", and their counters do not show which of them translate"
        mode = running or (rules[0].mode if len({live.mode for live in rules}) == 1 else None)
        settle = SETTLE if counted is None else CLEAN_UP
        return Finding(mode, only_backend(mode), AMBIGUOUS, f"the kernel holds the rules of {names}{result}", settle)
    mode = active[0].mode
    if running and mode != running:
        warnings.append(f"kube-proxy runs in mode {running}, but rules of {active[0]}, left behind, translate first")
    elif written and active[0] != written:
        warnings.append(f"kube-proxy writes {written}, but rules of {active[0]}, left behind, translate first")
    warnings += [f"rules of {live} were left behind" for live in rules if live != active[0] and live.mode != running]
    return Finding(mode, active[0].backend, CERTAIN, reason)


def _decide_configured(configured: list[str], evidence: Evidence, warnings: list[str]) -> Finding:
    """Decide without an answer of kube-proxy and without rules in the kernel."""
    # Where the node's kernel has no Service rules, a program that can replace kube-proxy does.
    is_empty = evidence.rules == () and evidence.has_node
    replacements = [*evidence.replacements, *(evidence.candidates if is_empty else ())]
    problems = [*evidence.problems, *evidence.disabled]
    if not evidence.workloads and (replacements or (evidence.disabled and not configured)):
        instead = f", but {', '.join(replacements)}" if replacements else ""
        notes = f" ({'; '.join(problems)})" if problems else ""
        return Finding(None, None, NONE, f"the cluster has no kube-proxy{instead}{notes}")
    problem = "could not be read" if evidence.rules is None else "has no Service rules: is it a node's?"
    if not configured:
        known = [*problems, *(f"{candidate} can replace kube-proxy" for candidate in evidence.candidates)]
        reason = "; ".join(known) or "no source knows of a kube-proxy"
        return Finding(None, None, UNKNOWN, f"{reason}; this kernel {problem}", ASK_NODE)
    reason = f"kube-proxy is set to {' and '.join(configured)}"
    if len(configured) > 1:
        return Finding(None, None, AMBIGUOUS, reason, ASK_NODE)
    if not evidence.workloads:
        warnings.append("no DaemonSet, pod or node that runs kube-proxy was found")
    [mode] = configured
    return Finding(mode, only_backend(mode), LIKELY, f"{reason}; this kernel {problem}", ASK_NODE)


def gather(open_api: Callable[[], Api] | None, send_packet: bool = False, node: Node | None = None) -> Evidence:
    """Ask every source that permits it: kube-proxy, the kernel and the API.

    :param open_api: connects to the API (None: do not ask the API).
    :param send_packet: if several backends hold rules, open a connection to a Service: see
        :func:`kproxylat.node.live_rules.probe`.
    :param node: the node whose kernel and kube-proxy are asked (None: this machine).
    :raises UsageError: the command line names a context or a file that does not exist.
    """
    node = node or Node()
    running, rules, counted, written = None, None, None, None
    configured = Configured()
    unasked: list[str] = []

    @contextmanager
    def asking(source: str) -> Iterator[None]:
        try:
            yield
        except MachineError as error:
            unasked.append(f"{source}: {error}")

    with asking("/proxyMode"):
        answer = read_proxy("/proxyMode", netns=node.netns).strip()
        if answer in mode_names():
            running = answer
        else:
            unasked.append(f"/proxyMode: port 10249 answers {answer[:40]!r}, which is not a mode")
    with asking("this kernel's rules"):
        rules = read_live_rules(node.netns)
    if running and sum(live.mode == running for live in rules or ()) > 1:
        with asking("/metrics"):
            written = count_nat_rules(read_proxy("/metrics", netns=node.netns))
    if send_packet and rules and len(rules) > 1:
        with asking("--send-packet"):
            counted = probe(rules, node.netns)
    if open_api:
        with asking("the cluster's API"):
            configured = read_configured(open_api(), node.name)
    known = vars(configured) | {"unasked": [*unasked, *configured.unasked]}
    return Evidence(**known, running=running, rules=rules, counted=counted, written=written)


def detect_mode(
    open_api: Callable[[], Api] | None, mode: str | None, backend: str | None, node: Node | None = None
) -> tuple[Mode, tuple[str, ...]]:
    """Return the row of MODES for the rules that this node's packets meet.

    :param open_api: connects to the API (None: do not ask the API).
    :param mode: the mode of the command line (None: detect it).
    :param backend: the backend of the command line (None: detect it).
    :param node: the node (None: this machine).
    :return: the row, and warnings on disagreements of the sources.
    :raises MachineError: mode or backend is ambiguous, no kube-proxy runs, or its mode cannot be measured.
    """
    evidence = gather(open_api, node=node)
    finding = decide(evidence)
    name = mode or finding.mode
    if finding.sure == AMBIGUOUS and not (name and backend):
        raise MachineError(f"ambiguous: {finding.reason}", f"settle it: {finding.settle}; or pass --mode and --backend")
    if mode and finding.mode and mode != finding.mode:
        raise MachineError(
            f"--mode {mode} was passed, but {finding.reason}", "leave out --mode, or: kproxylat mode set"
        )
    if name is None:
        unasked = f" (not asked: {'; '.join(evidence.unasked)})" if evidence.unasked else ""
        raise MachineError(finding.reason + unasked, "pass --target, --mode and --backend")
    if name not in mode_names():
        raise MachineError(f"kube-proxy is in mode {name}, which cannot be measured yet", "kproxylat mode set nftables")
    backend = backend or finding.backend or only_backend(name)
    if backend is None:
        raise MachineError(f"mode {name} on an unknown backend: {finding.reason}", "pass --backend legacy or nft")
    return find_mode(name, backend), finding.warnings
