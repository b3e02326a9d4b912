"""Checks of this machine for a measurement.

Each function checks one thing and changes nothing. It returns a short description; it raises MachineError if the thing
is missing, and SuspiciousError if it is present but may cause trouble.
"""

from __future__ import annotations

import os

from kproxylat.errors import CommandError, MachineError
from kproxylat.node import lock, network
from kproxylat.system import btf, kernel, virtual_machine
from kproxylat.system.kernel import path_exists, read_path
from kproxylat.system.processes import run

DEFAULT_FLOWS = 20_100
"""Connections of a run on a node with the defaults: 10,000 pps for 2 s, since they are removed each second, and the
warm-up."""
INITIAL_PID = 0xEFFFFFFC
"""Inode of the initial namespace of processes (kernel, include/linux/proc_ns.h)."""


class SuspiciousError(MachineError):
    """Something looks wrong, or cannot be checked, but does not prevent a measurement."""


def check_rights() -> str:
    """Check that this process is root, if only of its user namespace, with the capabilities of every run."""
    kernel.check_root()
    return "root, with the capabilities needed"


def check_sending_rights() -> str:
    """Check the rights to make network namespaces, as root or by a user namespace of one's own."""
    if os.geteuid() != 0:
        try:
            run("unshare", "--user", "--map-root-user", "--net", "--mount", "true")
        except MachineError:
            pass
        else:
            return "an ordinary user, who may make namespaces: for a lab"
    return check_rights()


def check_raw_sockets() -> str:
    """Check the right to open raw sockets."""
    kernel.check_root(kernel.NET_RAW)
    return "CAP_NET_RAW"


def check_release() -> str:
    """Check the release of the kernel: BPF traces since 4.9, and modules have types since 5.11."""
    release, version = kernel.release(), kernel.version_numbers()
    if version < (4, 9):
        raise MachineError(f"{release}: BPF can trace since 4.9")
    if version < (5, 11) and version not in btf.UNTYPED:
        raise SuspiciousError(
            f"{release}: modules have types (BTF) since 5.11; of older kernels only 5.10 is supported"
        )
    return release


def check_btf() -> str:
    """Check the type information of the kernel and of its modules."""
    if not path_exists("sys/kernel/btf/vmlinux"):
        raise MachineError("no BTF (CONFIG_DEBUG_INFO_BTF)")
    lines = read_path("proc/modules").splitlines() if path_exists("proc/modules") else []
    loaded = {line.split()[0] for line in lines}
    typed = loaded & {path.name for path in (kernel.ROOT / "sys/kernel/btf").iterdir()}
    if loaded and not typed:
        if kernel.version_numbers() in btf.UNTYPED:
            raise SuspiciousError("of the kernel only: probes are kprobes, with offsets of Debian's kernel")
        raise MachineError("none of the loaded modules has BTF (CONFIG_DEBUG_INFO_BTF_MODULES)")
    return f"of the kernel and of {len(typed)} of {len(loaded)} loaded modules"


def check_lockdown() -> str:
    """Check lockdown: in the state "confidentiality" BPF cannot read kernel memory."""
    state = read_path("sys/kernel/security/lockdown") if path_exists("sys/kernel/security/lockdown") else "[none]"
    if "[confidentiality]" in state:
        raise MachineError("the kernel is locked down: confidentiality")
    return state[state.index("[") + 1 : state.index("]")]


OPTIONS = {
    "dummy": "CONFIG_DUMMY",
    "ip6_tables": "CONFIG_IP6_NF_IPTABLES_LEGACY, before 6.17 CONFIG_IP6_NF_IPTABLES",
    "ip6table_nat": "CONFIG_IP6_NF_NAT",
    "ip_tables": "CONFIG_IP_NF_IPTABLES_LEGACY, before 6.17 CONFIG_IP_NF_IPTABLES",
    "ip_vs": "CONFIG_IP_VS",
    "ip_vs_rr": "CONFIG_IP_VS_RR",
    "iptable_nat": "CONFIG_IP_NF_NAT",
    "nf_conntrack": "CONFIG_NF_CONNTRACK",
    "nf_tables": "CONFIG_NF_TABLES",
    "nfnetlink_acct": "CONFIG_NETFILTER_NETLINK_ACCT",
    "nft_compat": "CONFIG_NFT_COMPAT",
    "pktgen": "CONFIG_NET_PKTGEN",
    "veth": "CONFIG_VETH",
    "xt_nfacct": "CONFIG_NETFILTER_XT_MATCH_NFACCT",
    "xt_set": "CONFIG_NETFILTER_XT_SET",
}
"""Module -> the option that builds it (kernel, net/ipv4/netfilter/Kconfig and others). Since 6.17 the legacy tables
also need CONFIG_NETFILTER_XTABLES_LEGACY, which is off by default."""


def check_namespaces() -> str:
    """Check that the kernel has network namespaces."""
    if not path_exists("proc/self/ns/net"):
        raise MachineError("no network namespaces (CONFIG_NET_NS)")
    return "on"


class UnloadedError(MachineError):
    """A module is not loaded, and this process may not load it."""


def check_rules(*names: str) -> str:
    """Check that the modules of a mode's rules are loaded, or that a run can load them."""
    if not kernel.is_initial_user_namespace():
        _check_loaded(*names)
    return check_modules(*names)


def check_modules(*names: str) -> str:
    """Check that modules are loaded, or can be."""
    absent = [name for name in names if not kernel.has_module(name)]
    missing = [] if not absent or _can_load(*absent) else [name for name in absent if not _can_load(name)]
    if missing:
        if os.geteuid() == 0 and kernel.list_lacking(kernel.SYS_MODULE):
            _check_loaded(*missing)
        options = "; ".join(OPTIONS[name] for name in missing)
        raise MachineError(f"module not found for this kernel: {', '.join(missing)} ({options})")
    return ", ".join(names)


def _check_loaded(*names: str) -> None:
    for name in names:
        if not kernel.has_module(name):
            remedy = f"modprobe {name} # as root on the node; or, in a pod: pass --load-modules" + (
                "; or: pass --generator sockets" if name == "pktgen" else ""
            )
            raise UnloadedError(f"module {name} is not loaded, and only root of the machine can", remedy)


def _can_load(*names: str) -> bool:
    try:
        run("modprobe", "--dry-run", "--quiet", "--all", *names)
    except CommandError:
        return False
    return True


def check_clock_source() -> str:
    """Check the clock source, from which nanoseconds are read."""
    source = read_path("sys/devices/system/clocksource/clocksource0/current_clocksource")
    if source in ("hpet", "acpi_pm", "jiffies", "pit"):
        raise SuspiciousError(source)
    return source


def check_mitigations() -> str:
    """Check that the kernel mitigates the vulnerabilities of the CPU, which costs time."""
    states = kernel.detect_mitigations()
    vulnerable = [name for name, state in states.items() if state.startswith("Vulnerable")]
    if vulnerable:
        raise SuspiciousError(f"none against {', '.join(vulnerable)}")
    return f"against all {len(states)} known vulnerabilities of this CPU"


def check_conntrack_room() -> str:
    """Check how many more connections conntrack can hold."""
    if not path_exists("proc/sys/net/netfilter/nf_conntrack_max"):
        return "not loaded yet"
    room = kernel.conntrack_room(None)
    if room < DEFAULT_FLOWS:
        raise SuspiciousError(f"room for {room:,} more flows; a run on this node needs {DEFAULT_FLOWS:,} by default")
    return f"room for {room:,} more flows"


def check_leftovers() -> str:
    """Check for leftovers of an interrupted run."""
    leftovers = network.find_leftovers() + ([str(lock.LOCK)] if lock.LOCK.exists() else [])
    if leftovers:
        raise SuspiciousError(f"{', '.join(leftovers)}: a run is under way, was interrupted, or kept its lab")
    return "none"


def check_user_namespace() -> str:
    """Check the user namespace: root of another one has no rights over the kernel."""
    if not kernel.is_initial_user_namespace():
        raise MachineError("not the initial user namespace: root cannot trace here")
    return "the initial one"


def check_surroundings() -> str:
    """Check for signs of a container, and for file systems that are not mounted."""
    signs = ["its own process ids"] if (kernel.ROOT / "proc/self/ns/pid").stat().st_ino != INITIAL_PID else []
    signs += [f"/{path}" for path in (".dockerenv", "run/.containerenv") if path_exists(path)]
    signs += [f"no /{path}" for path in ("sys/kernel/debug/tracing", "sys/fs/bpf") if not path_exists(path)]
    # The directories of /proc/sys are read-only for root, too.
    if os.geteuid() == 0 and not os.access(kernel.ROOT / "proc/sys/net/ipv4/ip_forward", os.W_OK):
        signs.append("a read-only /proc/sys")
    if signs:
        raise SuspiciousError(", ".join(signs))
    return "no container"


def check_virtual_machine() -> str:
    """Check that ``--vm`` can boot, and return the kernel."""
    virtual_machine.check_host()
    virtual_machine.find_runner()
    accelerator = "with KVM" if virtual_machine.has_kvm() else "emulated"
    return f"vmlinuz-{virtual_machine.find_release(virtual_machine.find_kernel(None, None))}, {accelerator}"


def find_other_kernel() -> str:
    """Return the release of the newest installed kernel that virtual machines boot, too; "" if it runs, or none is."""
    try:
        installed = virtual_machine.find_release(virtual_machine.find_kernel(None, None))
    except MachineError:
        return ""
    return "" if installed == kernel.release() else installed
