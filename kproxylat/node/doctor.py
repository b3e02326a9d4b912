"""The requirements of a measurement: table CHECKS, with the consequence and the remedy of a failed check in each row.

``kproxylat doctor`` shows all rows. A measurement stops at the first failed check that it needs.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from kproxylat.errors import MachineError
from kproxylat.modes import MODES, Mode
from kproxylat.node import checks
from kproxylat.node.checks import SuspiciousError
from kproxylat.node.node import find_containers
from kproxylat.results import SCHEMA
from kproxylat.system import kernel
from kproxylat.system.processes import find, has_apt, install, run
from kproxylat.trace.engine import KINDS, check_probes, find_version

_KERNEL = f"apt-get install {kernel.PACKAGE}", "dnf install kernel-core"
_MODULES = (
    f"apt-get install {kernel.PACKAGE} # Ubuntu: linux-modules-extra-$(uname -r)",
    "dnf install kernel-modules kernel-modules-extra",
)


@dataclass(frozen=True)
class Check:
    """A requirement.

    :param look: the check, a function as in :mod:`kproxylat.node.checks`.
    :param breaks: what does not work without it.
    :param use: which measurements need it: "trace" (all that trace), "send time" (those that don't), "fentry" or
        "kprobe" (those with such probes), "run" (those that send), "node" (those outside the lab), "vm" (those in a
        virtual machine), a generator's module or program, or "" (none: a failure is only a warning).
    :param apt: the remedy on a system with apt ("": the error names it); ``dnf``: on one with dnf, if it differs.
    :param mode: the only mode that needs it (None: all).
    :param in_vm: whether a virtual machine meets it by itself.
    """

    name: str
    look: Callable[[], str]
    breaks: str
    use: str
    apt: str
    dnf: str = ""
    mode: Mode | None = None
    in_vm: bool = False


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    :param state: "ok", "warning" or "missing".
    :param found: the description of the check, or the message of its error.
    :param breaks: as in :class:`Check`; so is ``name``.
    :param apt: the remedy on a system with apt; ``dnf``: on one with dnf.
    """

    name: str
    state: str
    found: str
    breaks: str
    apt: str
    dnf: str


def _check_bpftrace() -> str:
    find("bpftrace")
    return find_version()[0]


def _check_hping3() -> str:
    return f"{find('hping3')}, {checks.check_raw_sockets()}"


def _check_iptables() -> str:
    return run("iptables", "--version").strip()


def _list_containers() -> str:
    return ", ".join(find_containers()) or "none"


def _check_tools(mode: Mode) -> str:
    return ", ".join(Path(find(tool)).name for tool in mode.tools)


def _program(name: str, use: str, breaks: str) -> Check:
    return Check(name, partial(find, name), breaks, use, *install(name))


def _name(mode: Mode) -> str:
    return f"{mode.name} on {mode.backend}"


def _list_checks(mode: Mode, probe: str = "auto") -> Iterator[Check]:
    name, option = _name(mode), f"--mode {mode.name} --backend {mode.backend}"
    modules = partial(checks.check_rules, *mode.modules)
    # A kernel without these modules has no rules to look up, traced or not.
    yield Check(f"{name}: kernel", modules, option, "rules", *_MODULES, mode, in_vm=True)
    yield Check(f"{name}: probes", partial(check_probes, mode, probe), option, "trace", "", "", mode, in_vm=True)
    yield Check(f"{name}: tools", partial(_check_tools, mode), option, "run", *install(*mode.tools), mode)
    if mode.raw_sockets:
        yield Check(f"{name}: rights", checks.check_raw_sockets, option, "run", _SUDO, mode=mode, in_vm=True)


_ALL = "every traced measurement"
_check_pktgen = partial(checks.check_modules, "pktgen")
_MAX_FLOWS = "sysctl -w net.netfilter.nf_conntrack_max=1048576"
_SUDO = "sudo kproxylat ..."
_PRIVILEGED = (
    "docker run --rm -it --privileged --userns=host --pid=host --network=host -v /lib/modules:/lib/modules:ro "
    '-v /sys/kernel/debug:/sys/kernel/debug -v "$PWD":/kproxylat -w /kproxylat debian:12'
)
_MITIGATE = (
    "sed -i s/mitigations=off// /etc/default/grub && update-grub && reboot",
    "grubby --update-kernel=ALL --remove-args=mitigations=off && reboot",
)
_TO_BOOT = (
    install("qemu-system-x86_64", "file", "busybox", "virtme-run")
    if platform.machine() == "x86_64"
    else (kernel.IN_VM, "")
)
_TSC = "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource"
CHECKS: tuple[Check, ...] = (
    Check("rights", checks.check_rights, _ALL, "trace", _SUDO, in_vm=True),
    Check("bpftrace", _check_bpftrace, _ALL, "trace", *install("bpftrace")),
    Check("rights to send", checks.check_sending_rights, "run --probe none", "send time", _SUDO, in_vm=True),
    Check("rights on a node", checks.check_rights, "run --probe none on a node", "node", _SUDO),
    Check("network namespaces", checks.check_namespaces, "every lab", "run", *_KERNEL, in_vm=True),
    Check("veth", partial(checks.check_modules, "veth"), "sending", "run", *_MODULES, in_vm=True),
    _program("setpriv", "run", "running any program"),
    _program("modprobe", "run", "loading the kernel's modules"),
    _program("ip", "run", "namespaces and links"),
    _program("nft", "run", "counting what arrives"),
    _program("nsenter", "run", "working inside namespaces"),
    _program("sysctl", "run", "forwarding on the node of a lab"),
    _program("grep", "run", "reading the kernel's drop counters"),
    _program("conntrack", "run", "removing the connections of a run"),
    Check("kernel", checks.check_release, _ALL, "trace", *_KERNEL, in_vm=True),
    Check("BTF", checks.check_btf, _ALL, "trace", *_KERNEL, in_vm=True),
    Check("function tracing", KINDS["fentry"], "--probe fentry, the default", "fentry", "", in_vm=True),
    Check("tracefs", kernel.find_tracefs, _ALL, "trace", "mount -t tracefs none /sys/kernel/tracing", in_vm=True),
    Check("kprobes", KINDS["kprobe"], "--probe kprobe, and kernel 5.10", "kprobe", "", in_vm=True),
    Check("lockdown", checks.check_lockdown, _ALL, "trace", "mokutil --disable-validation", in_vm=True),
    Check("user namespace", checks.check_user_namespace, _ALL, "trace", _PRIVILEGED, in_vm=True),
    Check("pktgen", _check_pktgen, "sending, except from sockets", "pktgen", *_MODULES, in_vm=True),
    Check("hping3", _check_hping3, "--generator hping3", "hping3", *install("hping3")),
    *(check for mode in MODES for check in _list_checks(mode)),
    Check("iptables", _check_iptables, "finding the default backend of this system", "", *install("iptables")),
    Check(
        "clock source",
        checks.check_clock_source,
        "measuring short times: reading this clock takes microseconds",
        "",
        _TSC,
    ),
    Check("mitigations", checks.check_mitigations, "comparing with machines that have them", "", *_MITIGATE),
    Check("conntrack room", checks.check_conntrack_room, "runs on this node at the default rate", "", _MAX_FLOWS),
    Check("leftovers", checks.check_leftovers, "nothing: the next run removes them", "", "kproxylat cleanup"),
    Check("surroundings", checks.check_surroundings, "checks and programs that use them", "", _PRIVILEGED),
    Check("node containers", _list_containers, "these nodes", "", "kproxylat run --node-container NAME"),
    Check("virtual machine", checks.check_virtual_machine, "--vm", "vm", *_TO_BOOT),
)


def _look(check: Check) -> Finding:
    apt, dnf = check.apt, check.dnf or check.apt
    try:
        state, found = "ok", check.look()
    except (SuspiciousError, PermissionError) as error:
        state, found = "warning", str(error)
    except checks.UnloadedError as error:
        state = "missing" if check.use else "warning"
        return Finding(check.name, state, str(error), check.breaks, error.remedy, error.remedy)
    except (MachineError, OSError) as error:
        state, found = "missing" if check.use else "warning", str(error)
        own = getattr(error, "remedy", "")
        if not apt:
            apt, dnf = (own, own) if own and kernel.IN_VM not in own else _KERNEL
    if apt in (_KERNEL[0], _MODULES[0]) and (installed := checks.find_other_kernel()):
        apt = f"reboot # into kernel {installed}, which is installed"
        return Finding(check.name, state, found, check.breaks, apt, apt)
    return Finding(check.name, state, found, check.breaks, apt, dnf)


def examine() -> list[Finding]:
    """Return the results of all checks. Nothing is changed, and no module is loaded."""
    return [_look(check) for check in CHECKS]


CLOCKS = {
    "lookup by bpftrace": ("rules", "trace", "run"),
    "send time (--probe none)": ("rules", "send time", "run"),
    "instructions (--vm)": ("rules", "trace", "run", "vm"),
}
"""Clock -> the uses (:class:`Check`) of a measurement by it. The last one runs in a virtual machine."""


def find_lacking(findings: Iterable[Finding]) -> dict[str, dict[str, list[str]]]:
    """Return for each mode, as ``MODE on BACKEND``, and each clock the names of what it lacks here."""
    missing = {finding.name for finding in findings if finding.state == "missing"}
    return {
        _name(mode): {
            clock: [
                check.name
                for check in CHECKS
                if check.name in missing and check.mode in (None, mode) and check.use in uses
                if not (check.in_vm and "vm" in uses)
            ]
            for clock, uses in CLOCKS.items()
        }
        for mode in MODES
    }


def possible_modes(findings: Iterable[Finding]) -> list[str]:
    """Return the modes, as ``MODE on BACKEND``, that bpftrace can measure on this machine's own kernel in the lab."""
    traced = next(iter(CLOCKS))
    return [name for name, lacking in find_lacking(findings).items() if not lacking[traced]]


def require(mode: Mode, *uses: str, probe: str = "auto") -> None:
    """Check the requirements of a measurement. All missing programs are named at once.

    :param mode: the mode to measure.
    :param uses: the kinds of :attr:`Check.use` that apply, beside those of every mode's rules.
    :param probe: the kind of probe that traces: "fentry", "kprobe" or "auto".
    :raises MachineError: something is missing; the remedy is for this system.
    """
    for check, finding in _find_missing([mode], uses, probe):
        if check.look is _check_bpftrace or _is_program(check):
            programs = [row.name for row in CHECKS if row.use in uses and _is_program(row)]
            find(*(["bpftrace"] if "trace" in uses else []), *programs, *(mode.tools if "run" in uses else ()))
        command = finding.dnf if check.dnf and not has_apt() else finding.apt
        in_vm = check.in_vm and not command.startswith("modprobe") and kernel.IN_VM not in command
        raise MachineError(finding.found, command + (f"; or: {kernel.IN_VM}" if in_vm else ""))


def _is_program(check: Check) -> bool:
    return getattr(check.look, "func", None) is find


def _find_missing(modes: Iterable[Mode], uses: Sequence[str], probe: str) -> Iterator[tuple[Check, Finding]]:
    own = (check for mode in dict.fromkeys(modes) for check in _list_checks(mode, probe))
    for check in (*(check for check in CHECKS if check.mode is None), *own):
        if check.use in (*uses, "rules") and (finding := _look(check)).state == "missing":
            yield check, finding


def missing_to_trace(modes: Iterable[Mode] = MODES, probe: str = "auto") -> list[str]:
    """Return the names of the requirements for tracing and sending that only a virtual machine meets.

    :param modes: the modes to trace.
    :param probe: the kind of probe: "fentry", "kprobe" or "auto"; "none" traces nothing.
    """
    uses = ("send time", "run") if probe == "none" else ("trace", "run", "pktgen")
    return [check.name for check, _ in _find_missing(modes, uses, probe) if check.in_vm]


def to_json(findings: Sequence[Finding], modes: Iterable[str]) -> str:
    """Return the findings as a JSON document: ``{"schema": ..., "possible": [MODE, ...], "checks": [...]}``.

    Its key "lacking" holds the result of :func:`find_lacking`.
    """
    document = {"schema": SCHEMA, "possible": list(modes), "lacking": find_lacking(findings),
                "checks": [asdict(finding) for finding in findings]}  # fmt: skip
    return json.dumps(document, indent=2)
