"""What this host's kernel has: release, clock, modules, types."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from kproxylat.errors import CommandError, MachineError
from kproxylat.system import interrupts
from kproxylat.system.processes import run

ROOT = Path("/")
BTF = Path("/sys/kernel/btf")
RTC = Path("/sys/class/rtc/rtc0/since_epoch")
CONNTRACK = Path("/proc/sys/net/netfilter")
IN_VM = "kproxylat run --lab --vm measures in a virtual machine"
"""The remedy for what this machine cannot have, whatever command met it."""


def detect_clock() -> tuple[str, bool]:
    """Return the unit that this kernel's clock counts in ("ns" or "instructions"), and whether it is emulated.

    The virtual machines of :mod:`kproxylat.system.virtual_machine` say so on the kernel's command line.
    """
    options = dict(word.split("=", 1) for word in Path("/proc/cmdline").read_text().split() if "=" in word)
    return options.get("kproxylat.clock", "ns"), options.get("kproxylat.accelerator") == "tcg"


def user_clock_s() -> float:
    """Return the seconds of a clock that passes as the user's does.

    That of a machine that counts instructions stands still in between. Its RTC is the host's (QEMU, -rtc clock=host).
    """
    return float(RTC.read_text()) if detect_clock()[0] == "instructions" else time.monotonic()


def set_clock() -> None:
    """Set the clock of a machine that counts instructions, which falls behind, to the user's: logs are named by it."""
    if detect_clock()[0] == "instructions":
        time.clock_settime(time.CLOCK_REALTIME, user_clock_s())


def detect_mitigations() -> dict[str, str]:
    """Return the CPU vulnerabilities and what the kernel does about each."""
    return {
        each.name: each.read_text().strip()
        for each in sorted((ROOT / "sys/devices/system/cpu/vulnerabilities").glob("*"))
    }


def release() -> str:
    """Return the running kernel's release, e.g. ``6.1.0-56-amd64``."""
    return platform.release()


def version_numbers() -> tuple[int, int]:
    """Return the running kernel's version, e.g. ``(6, 1)``."""
    found = re.match(r"(\d+)\.(\d+)", release())
    return (int(found[1]), int(found[2])) if found else (0, 0)


def has_function(name: str) -> bool:
    """Tell whether the kernel, or a module that is loaded, has a function that a kprobe can be put on."""
    # A line of /proc/kallsyms: address, type, name, and the module's after a tab.
    return re.search(rf" [tT] {re.escape(name)}[\t\n]", Path("/proc/kallsyms").read_text()) is not None


CAPABILITIES = {"NET_ADMIN": 12, "SYS_ADMIN": 21, "PERFMON": 38, "BPF": 39}
"""What root needs of its capabilities, by number (kernel, include/uapi/linux/capability.h); what some runs need beside
them is in docs/rights.md."""
NET_RAW = {"NET_RAW": 13}
"""What iptables-legacy and hping3 need beside them, for their raw sockets."""


def check_root(capabilities: Mapping[str, int] = CAPABILITIES) -> None:
    """Make sure that we are root (bpftrace before 0.25 runs for nobody else) and have the capabilities it takes.

    :raises MachineError: we are not, or lack some.
    """
    if os.geteuid() != 0:
        raise MachineError("tracing and network namespaces need root", f"run it with sudo; or: {IN_VM}")
    held = int((ROOT / "proc/self/status").read_text().partition("CapEff:")[2].split()[0], 16)
    lacking = [f"CAP_{name}" for name, number in capabilities.items() if not held >> number & 1]
    if lacking:
        raise MachineError(f"this root lacks {', '.join(lacking)}", f"give it these capabilities; or: {IN_VM}")


FUNCTIONS = {
    "dummy": "dummy_xmit",
    "ip6_tables": "ip6t_do_table",
    "ip6table_nat": "ip6table_nat_table_init",
    "ip_tables": "ipt_do_table",
    "ip_vs": "ip_vs_conn_in_get",
    "ip_vs_rr": "ip_vs_rr_schedule",
    "iptable_nat": "iptable_nat_table_init",
    "nf_conntrack": "nf_conntrack_in",
    "nf_tables": "nft_do_chain",
    "nfnetlink_acct": "nfnl_acct_find_get",
    "nft_compat": "nft_target_eval_xt",
    "pktgen": "pktgen_thread_worker",
    "xt_nfacct": "nfacct_mt",
    "xt_set": "set_match_v4",
}
"""Module -> a function of its own, by which it is known where it is built in."""


def has_module(name: str) -> bool:
    """Whether a module is loaded, or built in."""
    return (ROOT / "sys/module" / name).exists() or _is_built_in(name, ROOT)


@lru_cache
def _is_built_in(name: str, root: Path) -> bool:
    """Whether the kernel's list of what is built in has a module (it may not be installed), or the kernel its function.

    A module that is built in and has no parameters is not in /sys/module.
    """
    listed, symbols = root / "lib/modules" / release() / "modules.builtin", root / "proc/kallsyms"
    if listed.exists() and re.search(rf"/{name}\.ko$", listed.read_text().replace("-", "_"), re.M):
        return True
    # A module's symbol has the module's name after it.
    function = rf" [tT] {FUNCTIONS.get(name, '(no function)')}\n"
    return symbols.exists() and re.search(function, symbols.read_text()) is not None


def load_module(name: str) -> bool:
    """Load a kernel module, if it is not there yet.

    :return: whether it was we who loaded it.
    :raises MachineError: this kernel does not have it.
    """
    if has_module(name):
        return False
    try:
        run("modprobe", name)
    except CommandError as error:
        raise MachineError(
            f"kernel module {name} cannot be loaded: {' '.join(error.output.split())[:120]}",
            f"install this kernel's modules (linux-modules-extra-* or kernel-modules-extra); or: {IN_VM}",
        ) from None
    return True


def unload_module(name: str) -> None:
    """Unload a kernel module that :func:`load_module` loaded; another user of it may keep it."""
    with interrupts.shielded():
        run("modprobe", "-r", "-q", name, ok=(0, 1))


def conntrack_room(netns: str | None) -> int:
    """Return how many more connections the kernel will track in a network namespace."""
    files = [str(CONNTRACK / "nf_conntrack_max"), str(CONNTRACK / "nf_conntrack_count")]
    limit, count = (int(each) for each in re.findall(r"\d+", run("cat", *files, netns=netns)))
    return limit - count


def read_path(path: str) -> str:
    return (ROOT / path).read_text().strip()


def path_exists(path: str) -> bool:
    """Whether a path exists; one that this user may not see raises PermissionError."""
    return (ROOT / path).exists()


def see_tracefs() -> str:
    """The file system where bpftrace looks functions up."""
    for each in ("sys/kernel/tracing", "sys/kernel/debug/tracing"):
        if path_exists(f"{each}/available_filter_functions"):
            return f"/{each}"
    raise MachineError("tracefs is not mounted")


def read_drop_reasons() -> dict[int, str]:
    """Return the reasons for which this kernel frees packets (enum skb_drop_reason), by number; before 5.17 none.

    Sample, of the format of tracepoint skb:kfree_skb: ``... __print_symbolic(REC->reason, { 2, "NOT_SPECIFIED" }, ...``

    :raises MachineError: tracefs is not mounted.
    """
    path = f"{see_tracefs().removeprefix('/')}/events/skb/kfree_skb/format"
    found = re.findall(r'{ (\w+), "(\w+)" }', read_path(path)) if path_exists(path) else []
    return {int(number, 0): name for number, name in found if number[0].isdigit()}
