"""The running kernel: release, clock, modules, capabilities, packet-drop reasons."""

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
INITIAL_USER = 0xEFFFFFFD
"""Inode of the initial user namespace (kernel, include/linux/proc_ns.h)."""


def name_remedies(machine: str) -> tuple[str, str]:
    """Return the remedy for anything that a machine of this architecture cannot provide, and its kernel's package."""
    if machine == "x86_64":
        vm = "add --vm (run, sweep: --lab --vm) to measure in a virtual machine; run, sweep: or --probe none"
        return vm, "linux-image-amd64"
    return "use an x86-64 machine, where --vm works", f"linux-image-{'arm64' if machine == 'aarch64' else machine}"


IN_VM, PACKAGE = name_remedies(platform.machine())
"""The remedy for anything that this machine cannot provide; the Debian package of its kernel."""


def detect_clock() -> tuple[str, bool]:
    """Return the unit of the kernel's clock ("ns" or "instructions"), and whether the machine is emulated.

    :mod:`kproxylat.system.virtual_machine` passes both on the kernel command line.
    """
    options = dict(word.split("=", 1) for word in Path("/proc/cmdline").read_text().split() if "=" in word)
    return options.get("kproxylat.clock", "ns"), options.get("kproxylat.accelerator") == "tcg"


def user_clock_s() -> float:
    """Return the seconds of a clock that advances as the user's clock does.

    On the instruction clock that is the RTC, which follows the host (QEMU, ``-rtc clock=host``).
    """
    return float(RTC.read_text()) if detect_clock()[0] == "instructions" else time.monotonic()


def set_clock() -> None:
    """Set the instruction clock, which falls behind, to the time of the host: the names of logs hold the time."""
    if detect_clock()[0] == "instructions":
        time.clock_settime(time.CLOCK_REALTIME, user_clock_s())


def describe_processor() -> str:
    """Describe the processor: its model (arm64: implementer and part), and the sizes of its caches; "" if unknown.

    An arm64 kernel has no size of a cache that the firmware does not describe.
    """
    cpuinfo = ROOT / "proc/cpuinfo"
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    models = dict.fromkeys(re.findall(r"^(?:model name|CPU implementer|CPU part)\s*: (.*)", text, re.M))
    files = sorted((ROOT / "sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    sizes = [f"L{(size.parent / 'level').read_text().strip()} {size.read_text().strip()}" for size in files]
    return f"{' '.join(models)}, caches {', '.join(sizes) or 'unknown'}" if models else ""


def detect_mitigations() -> dict[str, str]:
    """Return each vulnerability of the CPU -> what the kernel does about it (Documentation/admin-guide/hw-vuln)."""
    files = sorted((ROOT / "sys/devices/system/cpu/vulnerabilities").glob("*"))
    return {file.name: file.read_text().strip() for file in files}


def release() -> str:
    """Return the release of the running kernel, e.g. ``6.1.0-56-amd64``."""
    return platform.release()


def version_numbers() -> tuple[int, int]:
    """Return the version of the running kernel, e.g. ``(6, 1)``; ``(0, 0)`` if its release has none."""
    version = re.match(r"(\d+)\.(\d+)", release())
    return (int(version[1]), int(version[2])) if version else (0, 0)


def has_function(name: str) -> bool:
    """Return whether the kernel, or a loaded module, has a function, so that a kprobe can attach to it."""
    # A line of /proc/kallsyms: address, type, name; of a module's symbol also a tab and the module.
    return re.search(rf" [tT] {re.escape(name)}[\t\n]", Path("/proc/kallsyms").read_text()) is not None


CAPABILITIES = {"NET_ADMIN": 12, "SYS_ADMIN": 21}
"""Capabilities that every run needs -> their numbers (kernel, include/uapi/linux/capability.h). SYS_ADMIN includes BPF
and PERFMON, which alone do not suffice: cluster/job.py has the reason. docs/rights.md has those that only some need."""
NET_RAW = {"NET_RAW": 13}
"""The capability that iptables-legacy and hping3 need in addition, for their raw sockets."""
SYS_MODULE = {"SYS_MODULE": 16}
"""The capability that loads modules, which pods lack."""


def check_root(capabilities: Mapping[str, int] = CAPABILITIES) -> None:
    """Check that this process is root, which bpftrace before 0.25 requires, and has capabilities.

    :raises MachineError: it is not root, or a capability is missing.
    """
    if os.geteuid() != 0:
        raise MachineError("tracing and network namespaces need root", f"use sudo; or: {IN_VM}")
    if missing := list_lacking(capabilities):
        raise MachineError(f"root lacks {', '.join(missing)}", f"add these capabilities; or: {IN_VM}")


def list_lacking(capabilities: Mapping[str, int]) -> list[str]:
    """Return the capabilities that this process lacks, as CAP_NAME."""
    held = int((ROOT / "proc/self/status").read_text().partition("CapEff:")[2].split()[0], 16)
    return [f"CAP_{name}" for name, number in capabilities.items() if not held >> number & 1]


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
    "veth": "veth_xmit",
    "xt_nfacct": "nfacct_mt",
    "xt_set": "set_match_v4",
}
"""Module -> one of its functions, by which :func:`has_module` recognises a built-in module."""


def has_module(name: str) -> bool:
    """Return whether a module is loaded or built in."""
    return (ROOT / "sys/module" / name).exists() or _is_built_in(name, ROOT)


@lru_cache
def _is_built_in(name: str, root: Path) -> bool:
    """Look in the list of built-in modules, which may not be installed, and for the module's function.

    A built-in module without parameters is not in /sys/module.
    """
    listing, symbols = root / "lib/modules" / release() / "modules.builtin", root / "proc/kallsyms"
    if listing.exists() and re.search(rf"/{name}\.ko$", listing.read_text().replace("-", "_"), re.M):
        return True
    # Without a module's name behind it, the symbol is the kernel's own.
    function = rf" [tT] {FUNCTIONS.get(name, '(no function)')}\n"
    return symbols.exists() and re.search(function, symbols.read_text()) is not None


def load_module(name: str) -> None:
    """Load a kernel module, unless it is loaded or built in.

    :raises MachineError: modprobe(8) cannot load it.
    """
    if has_module(name):
        return
    try:
        run("modprobe", name)
    except CommandError as error:
        raise MachineError(
            f"kernel module {name} cannot be loaded: {' '.join(error.output.split())[:120]}",
            f"install this kernel's modules (linux-modules-extra-* or kernel-modules-extra); or: {IN_VM}",
        ) from None


def unload_module(name: str) -> None:
    """Unload a kernel module, unless something else uses it."""
    with interrupts.shielded():
        run("modprobe", "-r", "-q", name, ok=(0, 1))


def conntrack_room(netns: str | None) -> int:
    """Return how many more connections the kernel can track in a network namespace.

    :raises CommandError: nf_conntrack is not loaded.
    """
    files = [str(CONNTRACK / "nf_conntrack_max"), str(CONNTRACK / "nf_conntrack_count")]
    limit, count = map(int, run("cat", *files, netns=netns).split())
    return limit - count


def is_initial_user_namespace() -> bool:
    """Return whether root of this process's user namespace is root of the machine."""
    return (ROOT / "proc/self/ns/user").stat().st_ino == INITIAL_USER


def read_path(path: str) -> str:
    """Return the text of a file below :data:`ROOT`, stripped.

    :param path: the path, without a leading slash.
    :raises OSError: the file cannot be read.
    """
    return (ROOT / path).read_text().strip()


def path_exists(path: str) -> bool:
    """Return whether a path below :data:`ROOT` exists.

    :raises PermissionError: this user cannot look.
    """
    return (ROOT / path).exists()


def find_tracefs() -> str:
    """Return the path of tracefs, where bpftrace looks functions up.

    :raises MachineError: tracefs is not mounted.
    """
    for path in ("sys/kernel/tracing", "sys/kernel/debug/tracing"):
        if path_exists(f"{path}/available_filter_functions"):
            return f"/{path}"
    raise MachineError("tracefs is not mounted")


def read_drop_reasons() -> dict[int, str]:
    """Return number -> reason for which this kernel drops packets (enum skb_drop_reason); empty before Linux 5.17.

    Sample of the format of tracepoint skb:kfree_skb: ``... __print_symbolic(REC->reason, { 2, "NOT_SPECIFIED" }, ...``

    :raises MachineError: tracefs is not mounted.
    """
    path = f"{find_tracefs().removeprefix('/')}/events/skb/kfree_skb/format"
    pairs = re.findall(r'{ (\w+), "(\w+)" }', read_path(path)) if path_exists(path) else []
    return {int(number, 0): name for number, name in pairs if number[0].isdigit()}
