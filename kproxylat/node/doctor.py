"""What a measurement takes of this machine: table CHECKS, one row each, with what is lost without it and what mends it.

``kproxylat doctor`` shows all rows; a measurement stops at the first that it needs and that fails.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from kproxylat.errors import MachineError
from kproxylat.modes import MODES, Mode
from kproxylat.node import checks as machine
from kproxylat.node.checks import OddError
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
    """One thing to look at.

    :param look: returns what it found; raises MachineError where something is missing, OddError where it is odd.
    :param breaks: what does not work without it.
    :param use: who needs it: "trace" (every measurement), "fentry" or "kprobe" (one by such probes), "run" (one that
        sends), "node" (one outside of the lab), a generator's module or program, or "" (none: it is only a warning).
    :param apt: the command that mends it on a system with apt. ``dnf``: on one with dnf, where it is another.
    :param mode: the one mode that needs it (None: all).
    :param in_vm: whether a virtual machine brings its own.
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
    """What a check found: ``state`` is "ok", "warning" or "missing"; ``apt`` and ``dnf`` are the commands that mend."""

    name: str
    state: str
    found: str
    breaks: str
    apt: str
    dnf: str


def _see_bpftrace() -> str:
    find("bpftrace")
    return find_version()[0]


def _see_engine(mode: Mode) -> str:
    found = machine.see_module(*mode.modules)
    # What is not loaded yet is looked at when it is.
    if os.geteuid() == 0 and kernel.has_module(mode.module):
        find_engine(mode, "auto")
    return found


def _see_tools(mode: Mode) -> str:
    return ", ".join(Path(find(tool)).name for tool in mode.tools)


def _program(name: str, use: str, breaks: str) -> Check:
    return Check(name, partial(find, name), breaks, use, *install(name))


def _of_mode(mode: Mode) -> Iterator[Check]:
    name, option = f"{mode.name} on {mode.backend}", f"--mode {mode.name} --backend {mode.backend}"
    yield Check(f"{name}: kernel", partial(_see_engine, mode), option, "trace", *_MODULES, mode, in_vm=True)
    yield Check(f"{name}: tools", partial(_see_tools, mode), option, "run", *install(*mode.tools), mode)
    if mode.raw_sockets:
        yield Check(f"{name}: rights", machine.see_raw_sockets, option, "run", _SUDO, mode=mode, in_vm=True)


_ALL = "every measurement"
_MAX_FLOWS = "sysctl -w net.netfilter.nf_conntrack_max=1048576"
_SUDO = "sudo kproxylat ..."
_PRIVILEGED = "docker run --privileged --userns=host --pid=host --network=host ..."
_MITIGATE = (
    "sed -i s/mitigations=off// /etc/default/grub && update-grub && reboot",
    "grubby --update-kernel=ALL --remove-args=mitigations=off && reboot",
)
_TSC = "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource"
CHECKS: tuple[Check, ...] = (
    Check("rights", machine.see_rights, _ALL, "trace", _SUDO, in_vm=True),
    Check("bpftrace", _see_bpftrace, _ALL, "trace", *install("bpftrace")),
    _program("setpriv", "trace", "running any program"),
    _program("modprobe", "trace", "loading the kernel's modules"),
    _program("ip", "run", "namespaces and links"),
    _program("nft", "run", "counting what arrives"),
    _program("nsenter", "run", "working inside of namespaces"),
    _program("sysctl", "run", "a lab's node that forwards"),
    _program("grep", "run", "reading the kernel's counters of drops"),
    _program("conntrack", "node", "removing our flows from a node"),
    Check("kernel", machine.see_release, _ALL, "trace", *_KERNEL, in_vm=True),
    Check("BTF", machine.see_btf, _ALL, "trace", *_KERNEL, in_vm=True),
    Check(
        *("function tracing", machine.see_tracing, "--probe fentry, the usual one", "fentry"),
        *("sysctl -w kernel.ftrace_enabled=1",),
        in_vm=True,
    ),
    Check("tracefs", kernel.see_tracefs, _ALL, "trace", "mount -t tracefs none /sys/kernel/tracing", in_vm=True),
    Check("kprobes", machine.see_kprobes, "--probe kprobe, and kernel 5.10", "kprobe", *_KERNEL, in_vm=True),
    Check("lockdown", machine.see_lockdown, _ALL, "trace", "mokutil --disable-validation", in_vm=True),
    Check("user namespace", machine.see_user_namespace, _ALL, "trace", _PRIVILEGED, in_vm=True),
    Check(
        "pktgen", partial(machine.see_module, "pktgen"), "sending, but from sockets", "pktgen", *_MODULES, in_vm=True
    ),
    Check("hping3", machine.see_hping3, "--generator hping3", "hping3", *install("hping3")),
    *(check for mode in MODES for check in _of_mode(mode)),
    Check("iptables", machine.see_iptables, "knowing which backend this system prefers", "", *install("iptables")),
    Check("clock source", machine.see_clock_source, "short times: reading this clock takes microseconds", "", _TSC),
    Check("mitigations", machine.see_mitigations, "comparing with machines that have them", "", *_MITIGATE),
    Check("conntrack room", machine.see_conntrack_room, "runs on this node at the default rate", "", _MAX_FLOWS),
    Check("leftovers", machine.see_leftovers, "nothing: the next run removes them", "", "kproxylat cleanup"),
    Check("surroundings", machine.see_surroundings, "what looks there", "", _PRIVILEGED),
    Check("node containers", machine.see_node_containers, "these nodes", "", "kproxylat run --node-container NAME"),
    Check("virtual machine", machine.see_virtual_machine, "--vm", "", *install("qemu-system-x86_64", "virtme-run")),
)


def _look(check: Check) -> tuple[str, str]:
    """Return a check's state and what it found."""
    try:
        return "ok", check.look()
    except (OddError, PermissionError) as error:
        return "warning", str(error)
    except (MachineError, OSError) as error:
        return "missing" if check.use else "warning", str(error)


def examine() -> list[Finding]:
    """Look at everything; nothing is changed, no module is loaded."""
    return [Finding(check.name, *_look(check), check.breaks, check.apt, check.dnf or check.apt) for check in CHECKS]


def possible_modes(findings: Iterable[Finding]) -> list[str]:
    """Return the modes, ``MODE on BACKEND``, that can be measured on this machine's own kernel, in the lab."""
    missing = {each.name for each in findings if each.state == "missing"}
    wanting = [check for check in CHECKS if check.name in missing and check.use in ("trace", "run", usual_probe())]
    if any(check.mode is None for check in wanting):
        return []
    return [f"{mode.name} on {mode.backend}" for mode in MODES if mode not in [check.mode for check in wanting]]


def require(mode: Mode, *uses: str) -> None:
    """Make sure that there is what measuring a mode takes.

    :param uses: those of :attr:`Check.use` that matter.
    :raises MachineError: something is missing; the remedy is the command that mends it on this system.
    """
    for check in (*(each for each in CHECKS if each.mode is None), *_of_mode(mode)):
        if check.use in uses:
            state, found = _look(check)
            if state == "missing":
                command = check.dnf if check.dnf and not has_apt() else check.apt
                raise MachineError(found, command + (f"; or: {kernel.IN_VM}" if check.in_vm else ""))


def usual_probe() -> str:
    """Return the kind of probe that is used where none is asked for: "fentry", or "kprobe" for want of types."""
    try:
        machine.see_btf()
    except OddError:
        return "kprobe"
    except (MachineError, OSError):
        pass
    return "fentry"


def missing_to_trace(modes: Iterable[Mode] = (), probe: str = "auto") -> list[str]:
    """Return the names of what this machine lacks to trace modes and to send, and a virtual machine brings with it.

    :param probe: the kind of probe: "fentry", "kprobe" or "auto".
    """
    uses = "trace", "run", "pktgen", usual_probe() if probe == "auto" else probe
    checks = [each for each in CHECKS if each.mode is None] + [
        check for mode in dict.fromkeys(modes) for check in _of_mode(mode)
    ]
    return [each.name for each in checks if each.in_vm and each.use in uses and _look(each)[0] == "missing"]


def to_json(findings: Iterable[Finding], modes: Iterable[str]) -> str:
    """Write findings as one JSON document: ``{"schema": ..., "possible": [MODE, ...], "checks": [...]}``."""
    document = {"schema": SCHEMA, "possible": list(modes), "checks": [asdict(each) for each in findings]}
    return json.dumps(document, indent=2, ensure_ascii=False)
