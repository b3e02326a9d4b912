"""Which mode kube-proxy is in and which backend translates: every source asked, and one answer decided from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kproxylat.cluster import Api
from kproxylat.errors import MachineError
from kproxylat.liverules import LiveRules, probe, read_live_rules, read_proxy
from kproxylat.modes import MODES, Mode, find_mode
from kproxylat.nodes import Node
from kproxylat.proxyconfig import Setting, read_configured

PROXY_MODES = ("iptables", "ipvs", "nftables")
BACKENDS = {"nftables": "nft", "ipvs": "ipvs"}
"""The backend of the modes that have only one."""
CERTAIN, LIKELY, AMBIGUOUS, UNKNOWN, NONE = "certain", "likely", "ambiguous", "unknown", "none"
CLEAN_UP = (
    "run kube-proxy --cleanup on the node, with the iptables backend to remove first in PATH; then restart kube-proxy"
)
"""How to remove rules that stay although kube-proxy was restarted: at its start, kube-proxy removes nftables' rules in
modes iptables and ipvs, and those of iptables and ipvs in mode nftables, on its own iptables backend (Kubernetes,
cmd/kube-proxy/app/server_linux.go, platformCleanup)."""
SETTLE = "sudo kproxylat mode show --probe"
ASK_NODE = "on a node: curl http://localhost:10249/proxyMode"


@dataclass(frozen=True)
class Evidence:
    """What the sources say.

    :param running: the answer of /proxyMode (None: none came).
    :param settings: the modes that kube-proxy was told.
    :param rules: what this kernel holds (None: it could not be read).
    :param counted: which of the rules counted a packet sent to a Service of all of them (None: none was sent, or it
        cannot tell).
    :param workloads: how many DaemonSets, pods or node programs run kube-proxy (None: the API was not asked).
    :param replacements: what was found that can stand in for kube-proxy.
    :param unasked: sources that could not be asked, and why.
    """

    running: str | None = None
    settings: tuple[Setting, ...] = ()
    rules: tuple[LiveRules, ...] | None = None
    counted: frozenset[str] | None = None
    workloads: int | None = None
    replacements: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()

    @property
    def sources(self) -> list[tuple[str, str]]:
        """Each source and what it says."""
        said = [("running kube-proxy (/proxyMode)", self.running)] if self.running else []
        said += [(each.source, each.mode) for each in self.settings]
        if self.rules is not None:
            held = [f"{each} ({each.rules} rules, {len(each.services)} Service ports)" for each in self.rules]
            said.append(("this kernel's rules", "; ".join(held) or "no Service rules"))
        if self.counted is not None:
            said.append(
                ("rules that counted a packet sent", ", ".join(sorted(self.counted)) or "none of those that count")
            )
        return said + [("instead of kube-proxy", each) for each in self.replacements]


@dataclass(frozen=True)
class Finding:
    """The answer.

    :param mode: None where it is not known, or there is no kube-proxy; ``backend``: likewise.
    :param sure: "certain", "likely", "ambiguous", "unknown" (nothing was found), or "none" (no kube-proxy).
    :param reason: why, in one sentence.
    :param settle: the command that settles what is not certain.
    :param warnings: where sources disagree, and what was left behind.
    """

    mode: str | None
    backend: str | None
    sure: str
    reason: str
    settle: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def removal(self) -> str:
        """How to remove the rules that were left behind; "" if none were."""
        if not any("left behind" in warning for warning in self.warnings):
            return ""
        return f"kube-proxy removes leftover rules when it starts; if they stay, {CLEAN_UP}"


def decide(evidence: Evidence) -> Finding:
    """Decide, from nothing but the evidence.

    The running kube-proxy's own word settles the mode; rules settle the backend, where only one holds some. Rules
    outlive a switch of mode or backend, so several may: then the one registered last translates, and nothing shows it
    but counters that move while a packet is sent.
    """
    told = sorted({each.mode for each in evidence.settings})
    warnings = []
    if evidence.running and told and told != [evidence.running]:
        warnings.append(f"it was told {' and '.join(told)}, but {evidence.running} runs: was it restarted since?")
    elif len(told) > 1:
        warnings.append(f"the API's sources disagree: {', '.join(told)}")
    if evidence.replacements and (evidence.running or evidence.rules):
        warnings.append(f"beside kube-proxy there is {', '.join(evidence.replacements)}")
    rules = evidence.rules or ()
    if evidence.running:
        return _decide_running(evidence.running, evidence, warnings)
    if len(rules) > 1:
        return _choose(rules, evidence, None, warnings)
    if rules:
        [only] = rules
        if told and only.mode not in told:
            warnings.append(f"kube-proxy was told {', '.join(told)}, but the rules are those of {only}")
            reason = f"the kernel holds the rules of {only} alone, whatever kube-proxy was told"
            return Finding(only.mode, only.backend, LIKELY, reason, ASK_NODE, tuple(warnings))
        sure = CERTAIN if told == [only.mode] else LIKELY
        return Finding(
            only.mode, only.backend, sure, f"the kernel holds the rules of {only} alone", "", tuple(warnings)
        )
    return _decide_told(told, evidence, warnings)


def _decide_running(mode: str, evidence: Evidence, warnings: list[str]) -> Finding:
    """Decide where kube-proxy itself told the mode."""
    rules = evidence.rules or ()
    own = [each for each in rules if each.mode == mode]
    left = [each for each in rules if each.mode != mode]
    says = f"the running kube-proxy says {mode}"
    if not own:
        backend = BACKENDS.get(mode)
        lacking = (
            "this kernel's rules could not be read" if evidence.rules is None else "this kernel has none of its rules"
        )
        warnings += [f"rules of {each} were left behind" for each in left]
        settle = "" if backend else "on the node, as root: kproxylat mode show"
        return Finding(mode, backend, LIKELY, f"{says}; {lacking}", settle, tuple(warnings))
    if len(own) > 1:
        return _choose(own, evidence, mode, warnings)
    if left and evidence.counted is None:
        warnings += [f"rules of {each} were left behind, and may translate before its own" for each in left]
        return Finding(mode, own[0].backend, LIKELY, f"{says}, and its rules are there", SETTLE, tuple(warnings))
    if left:
        return _choose(rules, evidence, mode, warnings)
    return Finding(mode, own[0].backend, CERTAIN, f"{says}, and only its rules are there", "", tuple(warnings))


def _choose(
    rules: tuple[LiveRules, ...] | list[LiveRules], evidence: Evidence, running: str | None, warnings: list[str]
) -> Finding:
    """Choose between rules by what they counted."""
    names = " and ".join(str(each) for each in rules)
    counted = evidence.counted
    hits = [each for each in rules if counted and str(each) in counted]
    mute = [each for each in rules if not any(packets is not None for packets in each.services.values())]
    if counted is not None and not hits and len(mute) == 1:
        hits, reason = mute, f"a packet sent was counted by no other rules, and those of {mute[0]} don't count"
    elif len(hits) == 1:
        reason = f"of the rules of {names}, those of {hits[0]} counted a packet sent"
    else:
        tried = "" if counted is None else ", and a packet sent did not tell"
        reason = f"the kernel holds the rules of {names}{tried}"
        mode = running or (rules[0].mode if len({each.mode for each in rules}) == 1 else None)
        settle = SETTLE if counted is None else CLEAN_UP
        return Finding(mode, BACKENDS.get(mode or ""), AMBIGUOUS, reason, settle, tuple(warnings))
    [found] = hits
    if running and found.mode != running:
        warnings.append(f"kube-proxy runs in mode {running}, but rules of {found}, left behind, translate first")
    warnings += [f"rules of {each} were left behind" for each in rules if each != found and each.mode != running]
    return Finding(found.mode, found.backend, CERTAIN, reason, "", tuple(dict.fromkeys(warnings)))


def _decide_told(told: list[str], evidence: Evidence, warnings: list[str]) -> Finding:
    """Decide where neither kube-proxy nor the kernel says anything."""
    if not evidence.workloads and evidence.replacements:
        reason = f"there is no kube-proxy, but {', '.join(evidence.replacements)}"
        return Finding(None, None, NONE, reason, "", tuple(warnings))
    lacking = "could not be read" if evidence.rules is None else "has no Service rules: is it a node's?"
    if len(told) == 1:
        if evidence.workloads == 0:
            warnings.append("no DaemonSet, pod or node that runs kube-proxy was found")
        reason = f"kube-proxy was told {told[0]}; this kernel {lacking}"
        return Finding(told[0], BACKENDS.get(told[0]), LIKELY, reason, ASK_NODE, tuple(warnings))
    if told:
        return Finding(None, None, AMBIGUOUS, f"kube-proxy was told {' and '.join(told)}", ASK_NODE, tuple(warnings))
    reason = f"no source knows of a kube-proxy; this kernel {lacking}"
    return Finding(None, None, UNKNOWN, reason, ASK_NODE, tuple(warnings))


def gather(open_api: Callable[[], Api] | None, send_probe: bool = False, node: Node | None = None) -> Evidence:
    """Ask every source, as far as it may be asked.

    :param open_api: connects to the API (None leaves it out). Without it there are still kernel and kube-proxy.
    :param send_probe: where several backends hold rules, open a connection to a Service, see :func:`liverules.probe`.
    :param node: whose kernel's rules and kube-proxy (None: this machine's).
    :raises UsageError: the command line names a context or a file that does not exist.
    """
    node = node or Node()
    unasked: list[str] = []
    running, rules, counted, workloads = None, None, None, None
    settings: tuple[Setting, ...] = ()
    replacements: tuple[str, ...] = ()
    try:
        answer = read_proxy("/proxyMode", netns=node.netns).strip()
        if answer in PROXY_MODES:
            running = answer
        else:
            unasked.append(f"/proxyMode: port 10249 answers {answer[:40]!r}, which is no mode")
    except MachineError as error:
        unasked.append(f"/proxyMode: {error}")
    try:
        rules = read_live_rules(node.netns)
    except MachineError as error:
        unasked.append(f"this kernel's rules: {error}")
    try:
        if rules and send_probe and len(rules) > 1:
            counted = probe(rules, node.netns)
    except MachineError as error:
        unasked.append(f"--probe: {error}")
    try:
        if open_api:
            found = read_configured(open_api(), node.name)
            settings, replacements, workloads = tuple(found.settings), tuple(found.replacements), found.workloads
            unasked += found.unasked
    except MachineError as error:
        unasked.append(f"the cluster's API: {error}")
    return Evidence(running, settings, rules, counted, workloads, replacements, tuple(unasked))


def detect_mode(
    open_api: Callable[[], Api] | None, mode: str | None, wanted: str | None, node: Node | None = None
) -> tuple[Mode, tuple[str, ...]]:
    """Return the row of MODES that this node's packets meet.

    :param mode: what the user says kube-proxy's mode is (None: it is detected, too).
    :param wanted: the backend that the user says, likewise.
    :param node: which node (None: this machine).
    :return: the row; and where sources disagree.
    :raises MachineError: it is not clear, there is no kube-proxy, or its mode cannot be measured.
    """
    evidence = gather(open_api, node=node)
    finding = decide(evidence)
    name = mode or finding.mode
    if finding.sure == AMBIGUOUS and not (name and wanted):
        raise MachineError(f"ambiguous: {finding.reason}", f"settle it: {finding.settle}; or pass --mode and --backend")
    if mode and finding.mode and mode != finding.mode:
        raise MachineError(
            f"--mode {mode} was passed, but {finding.reason}", "leave out --mode, or: kproxylat mode set"
        )
    if name is None:
        unasked = f" (not asked: {'; '.join(evidence.unasked)})" if evidence.unasked else ""
        raise MachineError(finding.reason + unasked, "pass --target, --mode and --backend")
    if all(row.name != name for row in MODES):
        raise MachineError(f"kube-proxy is in mode {name}, which cannot be measured yet", "kproxylat mode set nftables")
    backend = wanted or finding.backend or BACKENDS.get(name)
    if backend is None:
        raise MachineError(f"mode {name} on an unknown backend: {finding.reason}", "pass --backend legacy or nft")
    return find_mode(name, backend), finding.warnings
