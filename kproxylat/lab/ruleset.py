"""A reader of rulesets from other nodes, and the commands that load them into the lab's node.

FILE is the output of ``kproxylat capture``, iptables-save, ``nft list ruleset`` or ``ipvsadm -Sn``, or a directory of
such files; gzip is allowed. The content is untrusted: lab/ruleset_check parses it, and the texts for
``iptables-*-restore``, ``nft -f``, ``ipset restore`` and ``ipvsadm --restore`` are written from what was understood.
The tools run in a namespace of kproxylat's, without root's rights to files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from kproxylat.errors import CommandError, MachineError, RulesetError, UsageError
from kproxylat.lab.pod import Pod, imitate_pod
from kproxylat.lab.rules import CONFINED, Command, render_ruleset
from kproxylat.lab.ruleset_check import CHECKS, KINDS, find_backend, name_other_form, read_text, sniff
from kproxylat.lab.ruleset_services import (
    count_left_out,
    find_cluster_cidr,
    find_foreign,
    find_names,
    find_refusals,
    find_release,
    find_untracked,
    parse_iptables,
    parse_ipvsadm,
    parse_nft,
    select_valid,
)
from kproxylat.lab.services import ADDRESSES, Service
from kproxylat.modes import CHAIN, LOCK_WAIT, MAP, MODES, SERVERS, Mode, RuleForm, find_mode
from kproxylat.results import IpNetwork, Target
from kproxylat.results_json import load_json
from kproxylat.system import kernel
from kproxylat.system.processes import run

SCHEMA = "kproxylat-ruleset/1"
_REMEDY = "pass the output of kproxylat capture, iptables-save, nft list ruleset or ipvsadm -Sn"
_IPV6 = re.compile(r"/128 -p |^table ip6 kube-proxy|^-A -[tu] \[", re.M)
"""A Service of IPv6, as iptables-save, nft or ipvsadm prints it."""
_HEAD = 40
"""Characters that tell nft's JSON from a capture."""
_NO_MODPROBE = "--modprobe=/bin/false"
_SERVICE_RULE = re.compile(r"^(?:\[\d+:\d+\] )?-A KUBE-SERVICES .*-j KUBE-SV[CL]-", re.M)


@dataclass(frozen=True)
class Ruleset:
    """The rules of one node, and their Services.

    :param source: the file or directory, for messages.
    :param mode: kube-proxy's mode, on the backend to load the rules on.
    :param texts: kind (:data:`KINDS`) -> text for the tool.
    :param services: the Services in the order of the rules.
    :param cluster_cidr: the network of the pods; None if the rules do not name it.
    :param notes: sentences on what was left out or added.
    :param left_out: Services with an endpoint that cannot be measured -> the reason.
    :param rewritten: whether to load, instead of the texts, the rules that kube-proxy writes in this mode for the
        same Services.
    """

    source: str
    mode: Mode
    texts: dict[str, str] = field(repr=False)
    services: tuple[Service, ...] = field(repr=False)
    cluster_cidr: IpNetwork | None = None
    notes: tuple[str, ...] = ()
    rewritten: bool = False
    release: str = ""
    left_out: dict[Target, str] = field(default_factory=dict, repr=False)

    @property
    def targets(self) -> dict[Target, Service]:
        """The Services that can be measured: with TCP or UDP and an endpoint."""
        return {
            target: service
            for service in self.services
            if (target := Target(service.ip, service.port, service.protocol)) not in self.left_out
            and service.endpoints
            and service.protocol != "sctp"
        }

    @property
    def digest(self) -> dict[str, str]:
        """Kind -> the text's SHA-256."""
        return {kind: sha256(text.encode()).hexdigest() for kind, text in self.texts.items()}

    @cached_property
    def pod(self) -> Pod:
        """A pod's packets, as these rules tell them from others."""
        texts = () if self.rewritten else (self.texts.get(kind, "") for kind in ("iptables-save", "nft"))
        return imitate_pod(texts, self.services, self.cluster_cidr)

    @property
    def pods(self) -> IpNetwork:
        """The network of the pods, which the rules of kube-proxy or of a CNI name; else the lab's."""
        return self.cluster_cidr or self.pod.network

    def find(self, text: str, protocol: str = "") -> Target:
        """Return the Service with an address ``IP:PORT``.

        :param protocol: "" prefers UDP over TCP.
        :raises UsageError: no Service with an endpoint has this address.
        """
        targets = {target: service.address for target, service in self.targets.items()}
        matches = [target for target in targets if targets[target] == text and protocol in ("", target.protocol)]
        for target, reason in self.left_out.items():
            if not matches and str(target).startswith(text) and protocol in ("", target.protocol):
                raise UsageError(f"{target} cannot be measured: {reason}", "name another Service")
        if not matches:
            examples = ", ".join([*targets.values()][:3])
            raise UsageError(
                f"{self.source} has no Service {text}{f'/{protocol}' if protocol else ''} with an endpoint",
                f"it has {len(targets)}, such as {examples}; --every-service measures all of them",
            )
        return max(matches, key=lambda target: target.protocol or "")

    def rewrite(self, mode: Mode, release: str = "") -> Ruleset:
        """Return a ruleset of the same Services in another mode or on another backend, without its other rules.

        :param release: kube-proxy's ("": the default one).
        """
        lacking = ", ".join(
            f"{part} ({count} line{'s' * (count > 1)})" for part, count in count_left_out(self.texts).items()
        )
        notes = (f"rewritten rules leave out what the captured ones pay for: {lacking}",) if lacking else ()
        return replace(
            self, mode=mode, release=release, rewritten=True, cluster_cidr=self.pods, notes=(*self.notes, *notes)
        )

    def _render(self) -> list[Command]:
        addresses = [int(IPv4Address(service.ip)) for service in self.services]
        pods = {int(IPv4Address(ip)) for service in self.services for ip, _ in service.pairs}
        length = 32 - (min(addresses) ^ max(addresses)).bit_length()
        # kube-proxy drops packets to unused addresses of the Service CIDR. Take the smallest network that holds all
        # ClusterIPs, and no endpoint: the dropping rule sees translated packets.
        while length < 32 and any(pod >> (32 - length) == min(addresses) >> (32 - length) for pod in pods):
            length += 1
        portals = IPv4Network((min(addresses), length), strict=False)
        cluster = replace(ADDRESSES[4], cluster_cidr=str(self.pods), service_cidr=str(portals))
        return render_ruleset(self.mode, self.services, cluster, release=self.release)

    def commands(self) -> list[Command]:
        """Return the commands that load the rules."""
        if self.rewritten:
            return self._render()
        if self.mode.form == MAP:
            return [(("nft", "-f", "-"), self.texts["nft"])]
        saved, sets = self.texts.get("iptables-save", ""), self.texts.get("ipset", "")
        names = find_names("--nfacct-name", saved)
        before: list[Command] = [(("nfacct", "add", name), "") for name in names]
        before += [(("ipset", "restore"), sets)] if sets else []
        if self.mode.form == CHAIN:
            return [*before, ((f"{self.mode.iptables}-restore", LOCK_WAIT, _NO_MODPROBE), saved)]
        # Replace missing texts by the rules that kube-proxy writes.
        rendered = {argv[0]: (argv, text) for argv, text in self._render()}
        if saved:
            rules = [*before, (("iptables-nft-restore", _NO_MODPROBE), saved)]
        else:
            rules = [rendered["ipset"], rendered["iptables-nft-restore"]]
        return [rendered["sysctl"], rendered["ip"], *rules, (("ipvsadm", "--restore"), self.texts["ipvsadm"])]

    def load(self, netns: str) -> None:
        """Load the rules into a network namespace.

        :raises MachineError: a tool refuses its input; quotes the tool's message and the line that it names.
        """
        for argv, text in self.commands():
            # Without real root, in a user namespace, there is no other user to become.
            free = argv[0] in ("ip", "sysctl") or not kernel.is_initial_user_namespace()
            confined = () if free else CONFINED
            try:
                run(*confined, *argv, netns=netns, stdin=text)
            except CommandError as error:
                message = " ".join(error.output.split())[:300] or f"(nothing; status {error.status})"
                match = re.search(r"line:?\s+(\d+)|stdin:(\d+)|^(\d+):", error.output, re.I)
                number = int(match[match.lastindex or 0]) if match else 0
                lines = text.split("\n")
                quoted = lines[number - 1].strip()[:200] if 0 < number <= len(lines) else "unknown"
                problem = f"cannot load {self.source}: {argv[0]}: {message}"
                raise MachineError(problem, f"the line: {quoted}") from None


def read_ruleset(path: Path, mode: str | None = None, backend: str | None = None) -> Ruleset:
    """Read and check a ruleset.

    :param mode: chooses one of a directory's rulesets.
    :param backend: chooses one, too; or another backend to load rules of mode iptables on.
    :raises RulesetError: the path holds no ruleset of kube-proxy's, or an unsafe line.
    :raises UsageError: the path does not exist, holds no ruleset of this mode, or holds several.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist", "name the file of a ruleset, or a directory of such files")
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    texts: dict[str, list[tuple[str, str]]] = {kind: [] for kind in KINDS}
    problems: list[RulesetError] = []
    ipv6 = False
    for file in files:
        text = read_text(file)
        ipv6 = ipv6 or bool(_IPV6.search(text))
        is_json = text.lstrip()[:1] == "{"
        if not is_json and (kind := sniff(text)):
            texts[kind].append((str(file), text))
        elif problem := name_other_form(str(file), text[:_HEAD] if is_json else text):
            problems.append(problem)
        elif is_json and not path.is_dir():
            return _choose(path, [_read_capture(path, text)], mode, backend, False)
    rulesets = list(_build_all(path, texts, backend, problems))
    if problems and not any(ruleset.targets for ruleset in rulesets) and not ipv6:
        raise problems[0]
    return _choose(path, rulesets, mode, backend, ipv6)


def _build_all(
    path: Path, texts: Mapping[str, list[tuple[str, str]]], backend: str | None, problems: list[RulesetError]
) -> Iterator[Ruleset]:
    """Build a ruleset of each file that holds rules, together with the sets and virtual servers of other files.

    :param texts: kind -> (file, text) of all files.
    :param backend: the backend of rules that do not name it.
    :param problems: gets an error for each file whose rules are not kube-proxy's as they are in use.
    """
    sets, servers = ("\n".join(text for _, text in texts[kind]) for kind in ("ipset", "ipvsadm"))
    with_rules = False
    for source, text in texts["iptables-save"]:
        parts = {"iptables-save": text, "ipset": sets}
        # After a switch from mode ipvs, rules that name its sets stay.
        if _SERVICE_RULE.search(text) or "--match-set KUBE-CLUSTER-IP" not in text:
            named = find_backend(text)
            notes = () if named or backend else ("it does not name its backend: nft is assumed",)
            ruleset = build(source, _find_row(CHAIN, named or backend or None), parts, notes)
            if ruleset.services and not re.search(r"^(?:\[\d+:\d+\] )?-A .*-j KUBE-SERVICES$", text, re.M):
                problem = (
                    f"{source} is a part of the rules: none leads to chain KUBE-SERVICES, as in kube-proxy's input"
                )
                problems.append(RulesetError(problem, "run iptables-save, and pass all"))
                continue
            yield ruleset
        elif servers:
            with_rules = True
            yield build(source, _find_row(SERVERS), {**parts, "ipvsadm": servers})
        else:
            problem = f"{source} holds the iptables rules of mode ipvs, which do not hold the Services"
            raise RulesetError(problem, "name a directory with this file and the output of ipvsadm -Sn, or a capture")
    if servers and not with_rules:
        yield build(str(path), _find_row(SERVERS), {"ipvsadm": servers})
    for source, text in texts["nft"]:
        if re.search(r"^\s+chain KUBE-SERVICES \{", text, re.M) and "table ip kube-proxy" not in text:
            problem = f"{source} is nft's list of rules that iptables-nft wrote, which nft cannot load"
            problems.append(RulesetError(problem, "run iptables-nft-save"))
            continue
        yield build(source, _find_row(MAP), {"nft": text})


def _find_row(form: RuleForm, backend: str | None = None) -> Mode:
    """Return the mode of a form; without a backend, on that of current distributions."""
    return find_mode(next(row.name for row in MODES if row.form == form), backend, usual=True)


def _choose(path: Path, rulesets: Sequence[Ruleset], mode: str | None, backend: str | None, ipv6: bool) -> Ruleset:
    """Return the ruleset with Services that mode and backend choose.

    :param ipv6: whether the texts hold Services of IPv6.
    """
    usable = [ruleset for ruleset in rulesets if ruleset.targets]
    if not usable and ipv6:
        problem = f"{path} holds no Service of IPv4 with an endpoint, and kproxylat cannot replay rules of IPv6"
        raise RulesetError(problem, "sweep --lab --family 6 measures lookups of IPv6, with the lab's own rules")
    if not usable:
        lacking = "holds no Service with an endpoint" if rulesets else "holds no rules"
        raise RulesetError(f"{path} is not a ruleset of kube-proxy's: it {lacking}", _REMEDY)
    names = ", ".join(f"{ruleset.mode.name}/{ruleset.mode.backend}" for ruleset in usable)
    choices = [ruleset for ruleset in usable if mode in (None, ruleset.mode.name)]
    if len(choices) > 1:
        choices = [ruleset for ruleset in choices if backend in (None, ruleset.mode.backend)] or choices
    if not choices:
        raise UsageError(f"{path} holds no rules of mode {mode}, but of {names}", "leave --mode out, or name that one")
    if len(choices) > 1:
        raise UsageError(f"{path} holds several rulesets: {names}", "pass --mode and --backend, or the file itself")
    [ruleset] = choices
    return replace(ruleset, mode=find_mode(ruleset.mode.name, backend or ruleset.mode.backend))


def _read_capture(path: Path, text: str) -> Ruleset:
    """Read the document of :mod:`kproxylat.lab.capture`."""
    try:
        data = load_json(text)
        if data["schema"] != SCHEMA:
            raise ValueError(data["schema"])
        texts = {kind: "\n".join([*data["texts"].get(kind, ()), ""]) for kind in KINDS}
        "".join(texts.values()).encode()
        row = find_mode(data["mode"], data["backend"])
    except (ValueError, LookupError, TypeError, AttributeError):
        raise RulesetError(f"{path} is JSON, but not a ruleset of schema {SCHEMA}", _REMEDY) from None
    return build(str(path), row, texts)


PARSERS = {CHAIN.tool: parse_iptables, MAP.tool: parse_nft, SERVERS.tool: parse_ipvsadm}
"""Kind of text that holds Services -> its parser."""


def build(source: str, mode: Mode, texts: dict[str, str], notes: Iterable[str] = ()) -> Ruleset:
    """Check the texts, keep the parts for IPv4, and parse the Services.

    :param source: the file or directory, for messages.
    :param texts: kind (:data:`KINDS`) -> text.
    :param notes: the first notes of the ruleset.
    :raises RulesetError: a line is unsafe.
    """
    added = list(notes)
    kept = {kind: CHECKS[kind](source, text, added) for kind, text in texts.items() if text.strip()}
    if "iptables-save" in kept:
        _add_sets(kept, added)
    services: dict[Target, Service] = {}
    for service in select_valid(PARSERS[mode.form.tool](kept.get(mode.form.tool, ""))):
        services.setdefault(Target(service.ip, service.port, service.protocol), service)
    foreign, certain = find_foreign(kept, services.values())
    if foreign:
        examples = f"{min(foreign)}{f' and {len(foreign) - 1} more' if len(foreign) > 1 else ''}"
        added.append(f"addresses that are not ClusterIPs are not measured: {examples}")
    if mode.form == SERVERS and not certain:
        added.append("without the output of ipset save, addresses of LoadBalancers are treated as ClusterIPs")
    cluster_ips = tuple(service for service in services.values() if service.ip not in foreign)
    cidr = find_cluster_cidr(kept.get("nft" if mode.form == MAP else "iptables-save", ""))
    ruleset = Ruleset(source, mode, kept, cluster_ips, cidr)
    left_out = find_untracked(kept, ruleset.targets.values())
    if left_out:
        names = ", ".join(map(str, [*left_out][:3])) + (" and more" if len(left_out) > 3 else "")
        added.append(f"Services whose packets a NOTRACK rule takes out of conntrack are not measured: {names}")
    added += find_refusals(kept)
    if release := find_release(kept.get("nft", "")):
        added.append(f"the form of the rules is that of kube-proxy {release}")
    return replace(ruleset, notes=tuple(added), left_out=left_out)


def _add_sets(texts: dict[str, str], notes: list[str]) -> None:
    """Add the sets that iptables' rules name and the texts lack."""
    saved, sets = texts["iptables-save"], texts.get("ipset", "")
    existing = re.findall(r"^create (\S+)", sets, re.M)
    missing = sorted(set(find_names("--match-set", saved)).difference(existing))
    if missing:
        notes.append(f"sets that rules name and the file does not hold are created empty: {', '.join(missing)}")
        texts["ipset"] = "\n".join([sets, *(f"create {name} hash:ip" for name in missing), ""])
