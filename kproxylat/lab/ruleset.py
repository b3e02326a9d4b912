"""A reader of rulesets from other nodes, and the commands that load them into the lab's node.

FILE is the output of ``kproxylat capture``, iptables-save, ``nft list ruleset`` or ``ipvsadm -Sn``, or a directory of
such files; gzip is allowed. The content is untrusted: only ``iptables-*-restore``, ``nft -f``, ``ipset restore`` and
``ipvsadm --restore`` execute it, in a namespace of kproxylat's, and lab/ruleset_check refuses lines that let a
tool read a file or run a program.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from kproxylat.errors import CommandError, MachineError, RulesetError, UsageError
from kproxylat.lab.rules import render_ruleset
from kproxylat.lab.ruleset_check import CHECKS, KINDS, find_backend, sniff
from kproxylat.lab.ruleset_services import (
    count_left_out,
    find_cluster_cidr,
    find_others,
    parse_iptables,
    parse_ipvsadm,
    parse_nft,
)
from kproxylat.lab.services import ADDRESSES, Service
from kproxylat.modes import Mode, find_mode
from kproxylat.results import Destination
from kproxylat.system.processes import run

SCHEMA = "kproxylat-ruleset/1"
MAX_BYTES = 256 << 20
_IPV6 = re.compile(r"-d [\da-f:]+/128 .*-j KUBE-SV|^table ip6 kube-proxy|^-A -[tu] \[", re.M)
"""A Service of IPv6, as iptables-save, nft or ipvsadm prints it."""


@dataclass(frozen=True)
class Ruleset:
    """The rules of one node, and their Services.

    :param source: the file or directory, for messages.
    :param mode: kube-proxy's mode, on the backend to load the rules on.
    :param texts: kind (:data:`KINDS`) -> text for the tool.
    :param services: the Services in the order of the rules.
    :param cluster_cidr: the network of the pods; None if the rules do not name it.
    :param notes: sentences on what was left out or added.
    :param rewritten: whether to load, instead of the texts, the rules that kube-proxy writes in this mode for the
        same Services.
    """

    source: str
    mode: Mode
    texts: dict[str, str] = field(repr=False)
    services: tuple[Service, ...] = field(repr=False)
    cluster_cidr: IPv4Network | None = None
    notes: tuple[str, ...] = ()
    rewritten: bool = False

    @property
    def targets(self) -> dict[Destination, Service]:
        """The Services that can be measured: with TCP or UDP and an endpoint."""
        return {
            Destination(service.ip, service.port, service.protocol): service
            for service in self.services
            if service.endpoints and service.protocol != "sctp"
        }

    @property
    def digest(self) -> dict[str, str]:
        """Kind -> the text's SHA-256."""
        return {kind: sha256(text.encode()).hexdigest() for kind, text in self.texts.items()}

    def find(self, text: str, protocol: str = "") -> Destination:
        """Return the Service with an address ``IP:PORT``.

        :param protocol: "" prefers UDP over TCP.
        :raises UsageError: no Service with an endpoint has this address.
        """
        matches = [
            each for each in self.targets if f"{each.ip}:{each.port}" == text and protocol in ("", each.protocol)
        ]
        if not matches:
            examples = ", ".join(f"{each.ip}:{each.port}" for each in list(self.targets)[:3])
            raise UsageError(
                f"{self.source} has no Service {text}{f'/{protocol}' if protocol else ''} with an endpoint",
                f"it has {len(self.targets)}, such as {examples}; --every-service measures all of them",
            )
        return max(matches, key=lambda target: target.protocol)

    def find_sources(self, endpoints: Iterable[str]) -> IPv4Network | None:
        """Return the largest part of clusterCIDR without any of these endpoints, the last of that size; None if all
        parts hold one.

        Rules that name no clusterCIDR do not masquerade by it: then the lab's serves.
        """
        whole = self.cluster_cidr or IPv4Network(ADDRESSES[4].cluster_cidr)
        numbers = [int(IPv4Address(each)) for each in endpoints]
        for length in range(whole.prefixlen + 1, min(whole.prefixlen + 9, 29)):
            taken = {number >> (32 - length) for number in numbers}
            for part in reversed(list(whole.subnets(new_prefix=length))):
                if int(part.network_address) >> (32 - length) not in taken:
                    return part
        return None

    def rewrite(self, mode: Mode) -> Ruleset:
        """Return a ruleset of the same Services in another mode or on another backend, without its other rules."""
        lacking = ", ".join(
            f"{part} ({count} line{'s' * (count > 1)})" for part, count in count_left_out(self.texts).items()
        )
        notes = (f"rewritten rules leave out what the captured ones pay for: {lacking}",) if lacking else ()
        cidr = self.cluster_cidr or IPv4Network(ADDRESSES[4].cluster_cidr)
        return replace(self, mode=mode, rewritten=True, cluster_cidr=cidr, notes=(*self.notes, *notes))

    def _render(self) -> list[tuple[tuple[str, ...], str]]:
        addresses = [int(IPv4Address(each.ip)) for each in self.services]
        pods = {int(IPv4Address(ip)) for each in self.services for ip, _ in each.pairs}
        length = 32 - (min(addresses) ^ max(addresses)).bit_length()
        # kube-proxy drops packets to unused addresses of the Service CIDR. Take the smallest network that holds all
        # ClusterIPs, and no endpoint: the dropping rule sees translated packets.
        while length < 32 and any(pod >> (32 - length) == min(addresses) >> (32 - length) for pod in pods):
            length += 1
        portals = IPv4Network((min(addresses), length), strict=False)
        cidr = str(self.cluster_cidr or ADDRESSES[4].cluster_cidr)
        return render_ruleset(
            self.mode, self.services, replace(ADDRESSES[4], cluster_cidr=cidr, service_cidr=str(portals))
        )

    def commands(self) -> list[tuple[tuple[str, ...], str]]:
        """Return the commands that load the rules, with their input, as lab/rules does."""
        if self.rewritten:
            return self._render()
        saved, sets = self.texts.get("iptables-save", ""), self.texts.get("ipset", "")
        accounts = sorted(set(re.findall(r"--nfacct-name\s+(\S+)", saved)))
        before: list[tuple[tuple[str, ...], str]] = [(("nfacct", "add", each), "") for each in accounts]
        before += [(("ipset", "restore"), sets)] if sets else []
        if self.mode.name == "iptables":
            return [*before, ((f"iptables-{self.mode.backend}-restore",), saved)]
        if self.mode.name == "nftables":
            return [(("nft", "-f", "-"), self.texts["nft"])]
        # In mode ipvs, replace missing texts by the rules that kube-proxy writes.
        rendered = {argv[0]: (argv, text) for argv, text in self._render()}
        if saved:
            rules = [*before, (("iptables-nft-restore",), saved)]
        else:
            rules = [rendered["ipset"], rendered["iptables-nft-restore"]]
        return [rendered["sysctl"], rendered["ip"], *rules, (("ipvsadm", "--restore"), self.texts["ipvsadm"])]

    def load(self, netns: str) -> None:
        """Load the rules into a network namespace.

        :raises MachineError: a tool refuses its input; quotes the tool's message and the line that it names.
        """
        for argv, text in self.commands():
            try:
                run(*argv, netns=netns, stdin=text)
            except CommandError as error:
                message = " ".join(error.output.split())[:300] or f"(nothing; status {error.status})"
                number = re.search(r"line:?\s+(\d+)|stdin:(\d+)|^(\d+):", error.output, re.I)
                lines = text.split("\n")
                at = int(next(filter(None, number.groups()))) if number else 0
                quoted = lines[at - 1].strip()[:200] if 0 < at <= len(lines) else "unknown"
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
    rulesets: list[Ruleset] = []
    ipv6 = False
    texts: dict[str, list[tuple[Path, str]]] = {kind: [] for kind in KINDS}
    for file in files:
        text = _read_text(file)
        ipv6 = ipv6 or bool(_IPV6.search(text))
        if text.lstrip().startswith("{"):
            if path.is_dir():
                continue
            return _choose(path, [_read_capture(path, text)], mode, backend, False)
        kind = sniff(text)
        if kind:
            texts[kind].append((file, text))
    sets = "\n".join(text for _, text in texts["ipset"])
    ipvs = "\n".join(text for _, text in texts["ipvsadm"])
    for file, text in texts["iptables-save"]:
        is_ipvs = "--match-set KUBE-CLUSTER-IP" in text
        parts = {"iptables-save": text, "ipset": sets} | ({"ipvsadm": ipvs} if is_ipvs else {})
        if is_ipvs and not ipvs:
            problem = f"{file} holds the iptables rules of mode ipvs, which do not hold the Services"
            raise RulesetError(problem, "name a directory with this file and the output of ipvsadm -Sn, or a capture")
        if not is_ipvs or ipvs:
            backend_of = find_backend(text)
            row = find_mode("ipvs", None) if is_ipvs else find_mode("iptables", backend_of or backend or "nft")
            notes = () if backend_of or is_ipvs or backend else ("it does not name its backend: nft is assumed",)
            rulesets.append(build(str(file), row, parts, notes))
    if ipvs and not any(each.mode.name == "ipvs" for each in rulesets):
        rulesets.append(build(str(path), find_mode("ipvs", None), {"ipvsadm": ipvs}))
    rulesets += [build(str(file), find_mode("nftables", None), {"nft": text}) for file, text in texts["nft"]]
    return _choose(path, rulesets, mode, backend, ipv6)


def _choose(path: Path, rulesets: Sequence[Ruleset], mode: str | None, backend: str | None, ipv6: bool) -> Ruleset:
    """Return the ruleset with Services that mode and backend choose.

    :param ipv6: whether the texts hold Services of IPv6.
    """
    usable = [each for each in rulesets if each.targets]
    if not usable and ipv6:
        problem = f"{path} holds no Service of IPv4 with an endpoint, and kproxylat cannot replay rules of IPv6"
        raise RulesetError(problem, "sweep --lab --family 6 measures lookups of IPv6, with the lab's own rules")
    if not usable:
        lacking = "Service with an endpoint" if rulesets else "rule"
        raise RulesetError(
            f"{path} is not a ruleset of kube-proxy's: it holds no {lacking}",
            "pass the output of kproxylat capture, iptables-save, nft list ruleset or ipvsadm -Sn",
        )
    names = ", ".join(f"{each.mode.name}/{each.mode.backend}" for each in usable)
    choices = [each for each in usable if mode in (None, each.mode.name)]
    if len(choices) > 1:
        choices = [each for each in choices if backend in (None, each.mode.backend)] or choices
    if not choices:
        raise UsageError(f"{path} holds no rules of mode {mode}, but of {names}", "leave --mode out, or name that one")
    if len(choices) > 1:
        raise UsageError(f"{path} holds several rulesets: {names}", "pass --mode and --backend, or the file itself")
    [ruleset] = choices
    return replace(ruleset, mode=find_mode(ruleset.mode.name, backend or ruleset.mode.backend))


def _read_text(file: Path) -> str:
    """Return the text of a file, uncompressed.

    :raises RulesetError: the file cannot be read, is too large, or is not text.
    """
    try:
        with file.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if packed else raw
            data = io.BytesIO(stream.read(MAX_BYTES + 1)).getvalue()
        text = data.decode()
    except (OSError, EOFError, ValueError, gzip.zlib.error) as error:  # type: ignore[attr-defined]
        reason = getattr(error, "strerror", None) or error
        raise RulesetError(f"cannot read {file}: {reason}", "pass a text file to --ruleset") from None
    if len(data) > MAX_BYTES:
        raise RulesetError(f"{file} is larger than {MAX_BYTES >> 20} MiB", "pass a ruleset")
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _read_capture(path: Path, text: str) -> Ruleset:
    """Read the document of :mod:`kproxylat.lab.capture`."""
    try:
        data = json.loads(text)
        known = data.get("schema") == SCHEMA
        texts = {kind: "\n".join([*data["texts"].get(kind, ()), ""]) for kind in KINDS} if known else {}
        row = find_mode(data["mode"], data["backend"]) if known else None
    except (ValueError, LookupError, TypeError, AttributeError):
        row, texts = None, {}
    if row is None:
        raise RulesetError(
            f"{path} is JSON, but not a ruleset of schema {SCHEMA}",
            "pass the output of kproxylat capture, iptables-save, nft list ruleset or ipvsadm -Sn",
        )
    return build(str(path), row, texts)


PARSERS = {
    "iptables": ("iptables-save", parse_iptables),
    "nftables": ("nft", parse_nft),
    "ipvs": ("ipvsadm", parse_ipvsadm),
}
"""Mode -> the kind of text that holds its Services, and the parser of that text."""


def build(source: str, mode: Mode, texts: dict[str, str], notes: Iterable[str] = ()) -> Ruleset:
    """Check the texts, keep the parts for IPv4, and parse the Services.

    :param source: the file or directory, for messages.
    :param texts: kind (:data:`KINDS`) -> text.
    :param notes: the first notes of the ruleset.
    :raises RulesetError: a line is unsafe.
    """
    kept, added = {}, list(notes)
    for kind, text in texts.items():
        if text.strip():
            kept[kind] = CHECKS[kind](source, text, added)
    if "iptables-save" in kept:
        sets = set(re.findall(r"^create (\S+)", kept.get("ipset", ""), re.M))
        missing = sorted(set(re.findall(r"--match-set (\S+)", kept["iptables-save"])) - sets)
        if missing:
            added.append(f"sets that rules name and the file does not hold are created empty: {', '.join(missing)}")
            kept["ipset"] = "\n".join([kept.get("ipset", ""), *(f"create {each} hash:ip" for each in missing), ""])
            CHECKS["ipset"](source, kept["ipset"], [])
    for name in re.findall(r"--nfacct-name\s+(\S+)", kept.get("iptables-save", "")):
        if not re.fullmatch(r"[\w.-]{1,31}", name) or name.startswith("-"):
            raise RulesetError(
                f"{source}: invalid name of an nfacct object {name[:40]!r}", "names have letters, digits and _ . -"
            )
    if re.search(r"^:FORWARD DROP", kept.get("iptables-save", ""), re.M):
        added.append("its chain FORWARD drops packets that no rule accepts")
    kind, parse = PARSERS[mode.name]
    services: dict[tuple[str, int, str], Service] = {}
    for service in parse(kept.get(kind, "")):
        if _is_address(service.ip, service.port, *service.endpoints):
            services.setdefault((service.ip, service.port, service.protocol), service)
    others, evidence = find_others(kept, services.values())
    if others:
        examples = f"{min(others)}{f' and {len(others) - 1} more' if len(others) > 1 else ''}"
        added.append(f"addresses that are not ClusterIPs are not measured: {examples}")
    if mode.name == "ipvs" and not evidence:
        added.append("without the output of ipset save, addresses of LoadBalancers are treated as ClusterIPs")
    services = {key: service for key, service in services.items() if service.ip not in others}
    cidr = find_cluster_cidr(kept.get("nft" if kind == "nft" else "iptables-save", ""))
    return Ruleset(source, mode, kept, tuple(services.values()), cidr, tuple(added))


def _is_address(ip: str, port: int, *endpoints: str) -> bool:
    """Return whether a Service's address and endpoints are valid addresses and ports of IPv4."""
    try:
        return all(
            IPv4Address(address) and 0 < int(number) < 65536
            for address, _, number in (each.rpartition(":") for each in (f"{ip}:{port}", *endpoints))
        )
    except ValueError:
        return False
