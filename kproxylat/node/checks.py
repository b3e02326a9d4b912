"""What this machine has of what a measurement takes: each function looks at one thing, and changes nothing.

Each returns what it found in a few words, and raises MachineError where the thing is missing, OddError where it is
there but strange.
"""

from __future__ import annotations

import os

from kproxylat.errors import CommandError, MachineError
from kproxylat.node import lock, network, node
from kproxylat.system import btf, kernel, virtual_machine
from kproxylat.system.kernel import path_exists, read_path
from kproxylat.system.processes import find, run

DEFAULT_FLOWS = 20_100
"""What conntrack must hold in a run on a node at the defaults: 10,000 pps for 2 s, since they are removed each second,
and the warm-up."""
INITIAL = {"user": 0xEFFFFFFD, "pid": 0xEFFFFFFC}
"""Inodes of the initial namespaces (kernel, include/linux/proc_ns.h)."""


class OddError(MachineError):
    """Something is odd, or cannot be seen, but need not be in the way."""


def see_rights() -> str:
    """The rights of this process."""
    kernel.check_root()
    return "root, with what it takes"


def see_raw_sockets() -> str:
    """The right to raw sockets."""
    kernel.check_root(kernel.NET_RAW)
    return "CAP_NET_RAW"


def see_hping3() -> str:
    """The generator hping3, and the right that it takes."""
    return f"{find('hping3')}, {see_raw_sockets()}"


def see_release() -> str:
    """The kernel's release."""
    found, version = kernel.release(), kernel.version_numbers()
    if version < (4, 9):
        raise MachineError(f"{found}: BPF can trace from 4.9 on")
    if version < (5, 11) and version not in btf.UNTYPED:
        raise OddError(f"{found}: modules have types (BTF) from 5.11 on; of older kernels we know those of 5.10 only")
    return found


def see_btf() -> str:
    """Type information, of the kernel and of its modules."""
    if not path_exists("sys/kernel/btf/vmlinux"):
        raise MachineError("no BTF (CONFIG_DEBUG_INFO_BTF)")
    loaded = (
        {line.split()[0] for line in read_path("proc/modules").splitlines()} if path_exists("proc/modules") else set()
    )
    typed = {each.name for each in (kernel.ROOT / "sys/kernel/btf").iterdir()}
    if loaded and not loaded & typed:
        if kernel.version_numbers() in btf.UNTYPED:
            raise OddError("of the kernel, not of its modules: probes are kprobes, with offsets of Debian's kernel")
        raise MachineError("none of the loaded modules has BTF (CONFIG_DEBUG_INFO_BTF_MODULES)")
    return f"of the kernel and of {len(loaded & typed)} of {len(loaded)} loaded modules"


def see_tracing() -> str:
    """Function tracing: fentry and fexit patch a function's ftrace call site."""
    if not path_exists("proc/sys/kernel/ftrace_enabled"):
        raise MachineError("no function tracing (CONFIG_FUNCTION_TRACER)")
    if read_path("proc/sys/kernel/ftrace_enabled") == "0":
        raise MachineError("function tracing is switched off (kernel.ftrace_enabled=0)")
    return "on"


def see_kprobes() -> str:
    """Kprobes."""
    if not path_exists("sys/bus/event_source/devices/kprobe"):
        raise MachineError("no kprobes (CONFIG_KPROBE_EVENTS)")
    return "on"


def see_lockdown() -> str:
    """Lockdown: in state confidentiality BPF may not read the kernel's memory."""
    state = read_path("sys/kernel/security/lockdown") if path_exists("sys/kernel/security/lockdown") else "[none]"
    if "[confidentiality]" in state:
        raise MachineError("the kernel is locked down: confidentiality")
    return state[state.index("[") + 1 : state.index("]")]


def see_module(*names: str) -> str:
    """Modules, loaded or to be loaded."""
    absent = []
    for name in names:
        if not kernel.has_module(name):
            try:
                run("modprobe", "--dry-run", "--quiet", name)
            except CommandError:
                absent.append(name)
    if absent:
        raise MachineError(f"this kernel has no module {', '.join(absent)}")
    return ", ".join(names)


def see_clock_source() -> str:
    """What nanoseconds are read from."""
    source = read_path("sys/devices/system/clocksource/clocksource0/current_clocksource")
    if source in ("hpet", "acpi_pm", "jiffies", "pit"):
        raise OddError(source)
    return source


def see_mitigations() -> str:
    """What the kernel does about the CPU's vulnerabilities, which costs time."""
    found = kernel.detect_mitigations()
    bare = [name for name, state in found.items() if state.startswith("Vulnerable")]
    if bare:
        raise OddError(f"none against {', '.join(bare)}")
    return f"against all of {len(found)} known vulnerabilities that concern this CPU"


def see_iptables() -> str:
    """The backend that the command iptables stands for."""
    return run("iptables", "--version").strip()


def see_conntrack_room() -> str:
    """How many more flows conntrack takes."""
    if not path_exists("proc/sys/net/netfilter/nf_conntrack_max"):
        return "not loaded yet"
    room = kernel.conntrack_room(None)
    if room < DEFAULT_FLOWS:
        raise OddError(f"room for {room:,} more flows; a run on this node takes {DEFAULT_FLOWS:,} by default")
    return f"room for {room:,} more flows"


def see_leftovers() -> str:
    """What an interrupted run left."""
    found = network.find_leftovers() + ([str(lock.LOCK)] if lock.LOCK.exists() else [])
    if found:
        raise OddError(f"{', '.join(found)}, of a run that is under way, was interrupted, or kept its lab")
    return "none"


def see_user_namespace() -> str:
    """The user namespace: root of another one has no rights over the kernel."""
    if (kernel.ROOT / "proc/self/ns/user").stat().st_ino != INITIAL["user"]:
        raise MachineError("in a user namespace, whose root may not trace")
    return "the first one"


def see_surroundings() -> str:
    """Signs of a container, and file systems that are not mounted."""
    odd = ["process ids of its own"] if (kernel.ROOT / "proc/self/ns/pid").stat().st_ino != INITIAL["pid"] else []
    odd += [f"/{each}" for each in (".dockerenv", "run/.containerenv") if path_exists(each)]
    odd += [f"no /{each}" for each in ("sys/kernel/debug/tracing", "sys/fs/bpf") if not path_exists(each)]
    odd += [] if os.access(kernel.ROOT / "proc/sys/net", os.W_OK) or os.geteuid() else ["a read-only /proc/sys"]
    if odd:
        raise OddError(", ".join(odd))
    return "no container"


def see_node_containers() -> str:
    """Nodes that run as containers on this machine, as those of kind, minikube and k3d."""
    return ", ".join(node.find_containers()) or "none"


def see_virtual_machine() -> str:
    """What ``--vm`` would boot."""
    find("qemu-system-x86_64")
    virtual_machine.find_runner()
    return (
        f"{virtual_machine.find_kernel(None, None).name}{', with KVM' if virtual_machine.has_kvm() else ', emulated'}"
    )
