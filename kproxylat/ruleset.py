"""Rulesets from elsewhere: read, checked, and made into the commands that load them into the lab's node.

FILE is what ``kproxylat capture`` wrote, or what iptables-save, ``nft list ruleset`` or ``ipvsadm -Sn`` printed, or a
directory of such texts; each may be compressed by gzip. Nothing in it is believed: only ``iptables-*-restore``,
``nft -f``, ``ipset restore`` and ``ipvsadm --restore`` ever read it, in a namespace of ours, and whatever would let one
of these read a file or run a program is refused.
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

from kproxylat.clusterips import (
    count_left_out,
    find_cluster_cidr,
    find_others,
    parse_iptables,
    parse_ipvsadm,
    parse_nft,
)
from kproxylat.errors import CommandError, MachineError, RulesetError, UsageError
from kproxylat.lab import ADDRESSES, Service, render_ruleset
from kproxylat.model import Destination
from kproxylat.modes import Mode, find_mode
from kproxylat.proc import run
from kproxylat.rulecheck import CHECKS, KINDS, find_backend, sniff

SCHEMA = "kproxylat-ruleset/1"
MAX_BYTES = 256 << 20
_IPV6 = re.compile(r"-d [\da-f:]+/128 .*-j KUBE-SV|^table ip6 kube-proxy|^-A -[tu] \[", re.M)
"""A Service of IPv6, as each of the tools prints it."""


@dataclass(frozen=True)
class Ruleset:
    """The rules of one node, and the Services that they hold.

    :param mode: kube-proxy's, on the backend that it is to be loaded on.
    :param texts: by kind (:data:`KINDS`), what the tools are given.
    :param services: in the order of the rules. ``cluster_cidr``: where pods are, if the rules say so.
    :param notes: what was left out or added, a sentence each.
    :param rewritten: whether the texts are another mode's, and the rules are to be what kube-proxy would write in this.
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
        """The Services that can be measured: those of TCP and UDP that have an endpoint."""
        live = (each for each in self.services if each.endpoints and each.protocol != "sctp")
        return {Destination(each.ip, each.port, each.protocol): each for each in live}

    @property
    def digest(self) -> dict[str, str]:
        """A number for each text, the same for the same text."""
        return {kind: sha256(text.encode()).hexdigest() for kind, text in self.texts.items()}

    def find(self, text: str, protocol: str = "") -> Destination:
        """Return the Service of an address ``IP:PORT``.

        :param protocol: "" takes UDP where it has both.
        :raises UsageError: no Service with an endpoint has it.
        """
        found = [each for each in self.targets if f"{each.ip}:{each.port}" == text and protocol in ("", each.protocol)]
        if not found:
            some = ", ".join(f"{each.ip}:{each.port}" for each in list(self.targets)[:3])
            raise UsageError(
                f"{self.source} has no Service {text}{f'/{protocol}' if protocol else ''} with an endpoint",
                f"it has {len(self.targets)}, such as {some}; --every-service measures all of them",
            )
        return max(found, key=lambda each: each.protocol)

    def find_sources(self, endpoints: Iterable[str]) -> IPv4Network | None:
        """Find the largest part of clusterCIDR with none of these endpoints, the last one; None where there is none.

        Where the rules name no clusterCIDR they masquerade none: any part of the lab's will do.
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
        """Return the same Services in another mode or on another backend, without what else the rules hold."""
        lacking = ", ".join(
            f"{what} ({count} line{'s' * (count > 1)})" for what, count in count_left_out(self.texts).items()
        )
        notes = (f"rewritten rules leave out what the captured ones pay for: {lacking}",) if lacking else ()
        cidr = self.cluster_cidr or IPv4Network(ADDRESSES[4].cluster_cidr)
        return replace(self, mode=mode, rewritten=True, cluster_cidr=cidr, notes=(*self.notes, *notes))

    def _render(self) -> list[tuple[tuple[str, ...], str]]:
        addresses = [int(IPv4Address(each.ip)) for each in self.services]
        pods = {int(IPv4Address(ip)) for each in self.services for ip, _ in each.pairs}
        length = 32 - (min(addresses) ^ max(addresses)).bit_length()
        # The smallest network that has all ClusterIPs: kube-proxy drops what goes to others of the Service CIDR. Its
        # rule sees packets that are translated, so that no endpoint may be in it.
        while length < 32 and any(each >> (32 - length) == min(addresses) >> (32 - length) for each in pods):
            length += 1
        portals = IPv4Network((min(addresses), length), strict=False)
        cidr = str(self.cluster_cidr or ADDRESSES[4].cluster_cidr)
        return render_ruleset(
            self.mode, self.services, replace(ADDRESSES[4], cluster_cidr=cidr, service_cidr=str(portals))
        )

    def commands(self) -> list[tuple[tuple[str, ...], str]]:
        """Return the commands that load it, each with what it reads, as :func:`kproxylat.lab.render_ruleset` does."""
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
        # Of mode ipvs, what is missing is what kube-proxy would write.
        made = {argv[0]: (argv, text) for argv, text in self._render()}
        rules = (
            [*before, (("iptables-nft-restore",), saved)] if saved else [made["ipset"], made["iptables-nft-restore"]]
        )
        return [made["sysctl"], made["ip"], *rules, (("ipvsadm", "--restore"), self.texts["ipvsadm"])]

    def load(self, netns: str) -> None:
        """Load it into a network namespace.

        :raises MachineError: a tool refuses its part; carries the tool's words, and the line that they name.
        """
        for argv, text in self.commands():
            try:
                run(*argv, netns=netns, stdin=text)
            except CommandError as error:
                said = " ".join(error.output.split())[:300] or f"(nothing; status {error.status})"
                number = re.search(r"line:?\s+(\d+)|stdin:(\d+)|^(\d+):", error.output, re.I)
                lines = text.split("\n")
                at = int(next(filter(None, number.groups()))) if number else 0
                quoted = lines[at - 1].strip()[:200] if 0 < at <= len(lines) else "it names no line"
                raise MachineError(f"{self.source} does not load: {argv[0]} says: {said}", f"there: {quoted}") from None


def read_ruleset(path: Path, mode: str | None = None, backend: str | None = None) -> Ruleset:
    """Read a ruleset, and check it.

    :param mode: the wanted one, where a directory holds several. ``backend``: of mode iptables, to load it on another
        backend than the one it comes from.
    :raises RulesetError: it is no ruleset of kube-proxy's, or has a line that is not believed.
    :raises UsageError: it is not of this mode or backend, or several are in it.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist", "name a ruleset's file, or a directory of them")
    files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
    found: list[Ruleset] = []
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
            problem = f"{file} holds rules of mode ipvs, whose Services are elsewhere"
            raise RulesetError(problem, "name a directory with this text and that of ipvsadm -Sn, or a capture")
        if not is_ipvs or ipvs:
            backend_of = find_backend(text)
            row = find_mode("ipvs", None) if is_ipvs else find_mode("iptables", backend_of or backend or "nft")
            notes = () if backend_of or is_ipvs or backend else ("it does not say its backend: nft is taken",)
            found.append(build(str(file), row, parts, notes))
    if ipvs and not any(each.mode.name == "ipvs" for each in found):
        found.append(build(str(path), find_mode("ipvs", None), {"ipvsadm": ipvs}))
    found += [build(str(file), find_mode("nftables", None), {"nft": text}) for file, text in texts["nft"]]
    return _choose(path, found, mode, backend, ipv6)


def _choose(path: Path, found: Sequence[Ruleset], mode: str | None, backend: str | None, ipv6: bool) -> Ruleset:
    """Return the one that is meant, of those that have Services.

    :param ipv6: whether there are Services of IPv6.
    """
    live = [each for each in found if each.targets]
    if not live and ipv6:
        problem = f"{path} holds no Service of IPv4 with an endpoint, and IPv6's rules cannot be replayed"
        raise RulesetError(problem, "sweep --lab --family 6 measures IPv6's lookups, with the lab's own rules")
    if not live:
        what = "no Service with an endpoint is in its rules" if found else "no rules are in it"
        raise RulesetError(
            f"{path} is no ruleset of kube-proxy's: {what}",
            "it takes what kproxylat capture, iptables-save, nft list ruleset or ipvsadm -Sn print",
        )
    wanted = [each for each in live if mode in (None, each.mode.name)]
    if len(wanted) > 1:
        wanted = [each for each in wanted if backend in (None, each.mode.backend)] or wanted
    names = ", ".join(f"{each.mode.name}/{each.mode.backend}" for each in live)
    if not wanted:
        raise UsageError(f"{path} holds no rules of mode {mode}, but of {names}", "leave --mode out, or name that one")
    if len(wanted) > 1:
        raise UsageError(f"{path} holds several rulesets: {names}", "pass --mode and --backend, or the file itself")
    return replace(wanted[0], mode=find_mode(wanted[0].mode.name, backend or wanted[0].mode.backend))


def _read_text(file: Path) -> str:
    """Read a text, also compressed.

    :raises RulesetError: it cannot be read, or is none.
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
        raise RulesetError(f"{file} cannot be read: {reason}", "--ruleset takes a file of text") from None
    if len(data) > MAX_BYTES:
        raise RulesetError(f"{file} is larger than {MAX_BYTES >> 20} MiB", "name a ruleset")
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _read_capture(path: Path, text: str) -> Ruleset:
    """Read what :mod:`kproxylat.capture` writes."""
    try:
        data = json.loads(text)
        known = data.get("schema") == SCHEMA
        texts = {kind: "\n".join([*data["texts"].get(kind, ()), ""]) for kind in KINDS} if known else {}
        row = find_mode(data["mode"], data["backend"]) if known else None
    except (ValueError, LookupError, TypeError, AttributeError):
        row, texts = None, {}
    if row is None:
        raise RulesetError(
            f"{path} is JSON, but no ruleset of schema {SCHEMA}",
            "it takes what kproxylat capture wrote, or texts of iptables-save, nft list ruleset, ipvsadm -Sn",
        )
    return build(str(path), row, texts)


PARSERS = {
    "iptables": ("iptables-save", parse_iptables),
    "nftables": ("nft", parse_nft),
    "ipvs": ("ipvsadm", parse_ipvsadm),
}
"""Mode -> the kind of text that has its Services, and who reads them."""


def build(source: str, mode: Mode, texts: dict[str, str], notes: Iterable[str] = ()) -> Ruleset:
    """Check the texts, leave out of them what is not IPv4's, and read the Services.

    :raises RulesetError: a line that is not believed.
    """
    kept, said = {}, list(notes)
    for kind, text in texts.items():
        if text.strip():
            kept[kind] = CHECKS[kind](source, text, said)
    if "iptables-save" in kept:
        there = set(re.findall(r"^create (\S+)", kept.get("ipset", ""), re.M))
        missing = sorted(set(re.findall(r"--match-set (\S+)", kept["iptables-save"])) - there)
        if missing:
            said.append(f"sets that it names and does not hold are made empty: {', '.join(missing)}")
            kept["ipset"] = "\n".join([kept.get("ipset", ""), *(f"create {each} hash:ip" for each in missing), ""])
            CHECKS["ipset"](source, kept["ipset"], [])
    for name in re.findall(r"--nfacct-name\s+(\S+)", kept.get("iptables-save", "")):
        if not re.fullmatch(r"[\w.-]{1,31}", name) or name.startswith("-"):
            raise RulesetError(
                f"{source} names an nfacct object {name[:40]!r}", "its names have letters, digits and _ . -"
            )
    if re.search(r"^:FORWARD DROP", kept.get("iptables-save", ""), re.M):
        said.append("its chain FORWARD drops what no rule accepts")
    kind, parse = PARSERS[mode.name]
    services: dict[tuple[str, int, str], Service] = {}
    for each in parse(kept.get(kind, "")):
        if _is_address(each.ip, each.port, *each.endpoints):
            services.setdefault((each.ip, each.port, each.protocol), each)
    others, told_by = find_others(kept, services.values())
    if others:
        some = f"{min(others)}{f' and {len(others) - 1} more' if others - {min(others)} else ''}"
        said.append(f"addresses that are no ClusterIPs are not measured: {some}")
    if mode.name == "ipvs" and not told_by:
        said.append("without ipset save's text LoadBalancers' addresses are taken for ClusterIPs")
    services = {key: each for key, each in services.items() if each.ip not in others}
    cidr = find_cluster_cidr(kept.get("nft" if kind == "nft" else "iptables-save", ""))
    return Ruleset(source, mode, kept, tuple(services.values()), cidr, tuple(said))


def _is_address(ip: str, port: int, *endpoints: str) -> bool:
    try:
        return all(
            IPv4Address(address) and 0 < int(number) < 65536
            for address, _, number in (each.rpartition(":") for each in (f"{ip}:{port}", *endpoints))
        )
    except ValueError:
        return False
