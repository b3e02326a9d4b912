"""The requirements of a measurement: table CHECKS, with the consequence and the remedy of a failed check in each row.

``kproxylat doctor`` shows all rows. A measurement stops at the first failed check that it needs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from kproxylat.errors import MachineError
from kproxylat.modes import MODES, Mode
from kproxylat.node import checks
from kproxylat.node.checks import SuspiciousError
from kproxylat.results import SCHEMA
from kproxylat.system import kernel
from kproxylat.system.processes import find, has_apt, install
from kproxylat.trace.engine import find_engine, find_version

_KERNEL = "apt-get install linux-image-amd64", "dnf install kernel-core"
_MODULES = (
    "apt-get install linux-image-amd64 # Ubuntu: linux-modules-extra-$(uname -r)",
    "dnf install kernel-modules kernel-modules-extra",
)


@dataclass(frozen=True)
class Check:
    """A requirement.

    :param look: the check, a function as in :mod:`kproxylat.node.checks`.
    :param breaks: what does not work without it.
    :param use: which measurements need it: "trace" (all that trace), "send time" (those that don't), "fentry" or
        "kprobe" (those with such probes), "run" (those that send), "node" (those outside the lab), a generator's module
        or program, or "" (none: a failure is only a warning).
    :param apt: the remedy on a system with apt; ``dnf``: on one with dnf, if it differs.
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
    :param breaks: as in :class:`Check`; so are ``name``, ``apt`` and ``dnf``.
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


def _check_engine(mode: Mode) -> str:
    modules = checks.check_modules(*mode.modules)
    # The functions of a module can be looked up once it is loaded.
    if os.geteuid() == 0 and kernel.has_module(mode.module):
        find_engine(mode, "auto")
    return modules


def _check_tools(mode: Mode) -> str:
    return ", ".join(Path(find(tool)).name for tool in mode.tools)


def _program(name: str, use: str, breaks: str) -> Check:
    return Check(name, partial(find, name), breaks, use, *install(name))


def _list_checks(mode: Mode) -> Iterator[Check]:
    name, option = f"{mode.name} on {mode.backend}", f"--mode {mode.name} --backend {mode.backend}"
    yield Check(f"{name}: kernel", partial(_check_engine, mode), option, "trace", *_MODULES, mode, in_vm=True)
    yield Check(f"{name}: tools", partial(_check_tools, mode), option, "run", *install(*mode.tools), mode)
    if mode.raw_sockets:
        yield Check(f"{name}: rights", checks.check_raw_sockets, option, "run", _SUDO, mode=mode, in_vm=True)


_ALL = "every measurement"
_check_pktgen = partial(checks.check_modules, "pktgen")
_MAX_FLOWS = "sysctl -w net.netfilter.nf_conntrack_max=1048576"
_SUDO = "sudo kproxylat ..."
_PRIVILEGED = "docker run --privileged --userns=host --pid=host --network=host ..."
_MITIGATE = (
    "sed -i s/mitigations=off// /etc/default/grub && update-grub && reboot",
    "grubby --update-kernel=ALL --remove-args=mitigations=off && reboot",
)
_FTRACE = "sysctl -w kernel.ftrace_enabled=1"
_TSC = "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource"
CHECKS: tuple[Check, ...] = (
    Check("rights", checks.check_rights, _ALL, "trace", _SUDO, in_vm=True),
    Check("bpftrace", _check_bpftrace, _ALL, "trace", *install("bpftrace")),
    Check("rights to send", checks.check_sending_rights, "run --probe none", "send time", _SUDO, in_vm=True),
    _program("setpriv", "run", "running any program"),
    _program("modprobe", "run", "loading the kernel's modules"),
    _program("ip", "run", "namespaces and links"),
    _program("nft", "run", "counting what arrives"),
    _program("nsenter", "run", "working inside namespaces"),
    _program("sysctl", "run", "forwarding on the node of a lab"),
    _program("grep", "run", "reading the kernel's drop counters"),
    _program("conntrack", "node", "removing the connections of a run from a node"),
    Check("kernel", checks.check_release, _ALL, "trace", *_KERNEL, in_vm=True),
    Check("BTF", checks.check_btf, _ALL, "trace", *_KERNEL, in_vm=True),
    Check("function tracing", checks.check_tracing, "--probe fentry, the default", "fentry", _FTRACE, in_vm=True),
    Check("tracefs", kernel.find_tracefs, _ALL, "trace", "mount -t tracefs none /sys/kernel/tracing", in_vm=True),
    Check("kprobes", checks.check_kprobes, "--probe kprobe, and kernel 5.10", "kprobe", *_KERNEL, in_vm=True),
    Check("lockdown", checks.check_lockdown, _ALL, "trace", "mokutil --disable-validation", in_vm=True),
    Check("user namespace", checks.check_user_namespace, _ALL, "trace", _PRIVILEGED, in_vm=True),
    Check("pktgen", _check_pktgen, "sending, except from sockets", "pktgen", *_MODULES, in_vm=True),
    Check("hping3", checks.check_hping3, "--generator hping3", "hping3", *install("hping3")),
    *(check for mode in MODES for check in _list_checks(mode)),
    Check("iptables", checks.check_iptables, "finding the default backend of this system", "", *install("iptables")),
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
    Check("node containers", checks.check_node_containers, "these nodes", "", "kproxylat run --node-container NAME"),
    Check("virtual machine", checks.check_virtual_machine, "--vm", "", *install("qemu-system-x86_64", "virtme-run")),
)


def _look(check: Check) -> tuple[str, str]:
    """Return the state and the description of a check."""
    try:
        return "ok", check.look()
    except (SuspiciousError, PermissionError) as error:
        return "warning", str(error)
    except (MachineError, OSError) as error:
        return "missing" if check.use else "warning", str(error)


def examine() -> list[Finding]:
    """Return the results of all checks. Nothing is changed, and no module is loaded."""
    return [Finding(check.name, *_look(check), check.breaks, check.apt, check.dnf or check.apt) for check in CHECKS]


def possible_modes(findings: Iterable[Finding]) -> list[str]:
    """Return the modes, as ``MODE on BACKEND``, that this machine's own kernel can measure in the lab."""
    missing = {finding.name for finding in findings if finding.state == "missing"}
    uses = "trace", "run", default_probe()
    lacking = {check.mode for check in CHECKS if check.name in missing and check.use in uses}
    return [f"{mode.name} on {mode.backend}" for mode in MODES if not lacking & {None, mode}]


def require(mode: Mode, *uses: str) -> None:
    """Check the requirements of a measurement.

    :param mode: the mode to measure.
    :param uses: the kinds of :attr:`Check.use` that apply.
    :raises MachineError: something is missing; the remedy is for this system.
    """
    for check, message in _find_missing([mode], uses):
        command = check.dnf if check.dnf and not has_apt() else check.apt
        raise MachineError(message, command + (f"; or: {kernel.IN_VM}" if check.in_vm else ""))


def _find_missing(modes: Iterable[Mode], uses: Sequence[str]) -> Iterator[tuple[Check, str]]:
    """Yield each failed check that modes need, with its message."""
    own = (check for mode in dict.fromkeys(modes) for check in _list_checks(mode))
    for check in (*(check for check in CHECKS if check.mode is None), *own):
        if check.use in uses:
            state, message = _look(check)
            if state == "missing":
                yield check, message


def default_probe() -> str:
    """Return the default kind of probe: "fentry", or "kprobe" on a kernel whose modules have no types."""
    try:
        checks.check_btf()
    except SuspiciousError:
        return "kprobe"
    except (MachineError, OSError):
        pass
    return "fentry"


def missing_to_trace(modes: Iterable[Mode] = (), probe: str = "auto") -> list[str]:
    """Return the names of the requirements for tracing and sending that only a virtual machine meets.

    :param modes: the modes to trace.
    :param probe: the kind of probe: "fentry", "kprobe" or "auto"; "none" traces nothing.
    """
    uses: tuple[str, ...] = ("trace", "run", "pktgen", default_probe() if probe == "auto" else probe)
    if probe == "none":
        uses = ("send time", "run")
    return [check.name for check, _ in _find_missing(modes, uses) if check.in_vm]


def to_json(findings: Iterable[Finding], modes: Iterable[str]) -> str:
    """Return the findings as a JSON document: ``{"schema": ..., "possible": [MODE, ...], "checks": [...]}``."""
    document = {"schema": SCHEMA, "possible": list(modes), "checks": [asdict(finding) for finding in findings]}
    return json.dumps(document, indent=2)
