"""What this host's kernel has: release, clock, modules, types."""

from __future__ import annotations

import os
import platform
import re
import struct
import time
from collections.abc import Iterator, Mapping
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


def _read_btf(module: str) -> tuple[bytes, bytes]:
    """Return the type and the string section of a module's BTF (kernel, ``include/uapi/linux/btf.h``)."""
    try:
        data = (BTF / module).read_bytes()
    except OSError as error:
        raise MachineError(
            f"this kernel has no BTF of {module} ({error.strerror})", f"a kernel with BTF is needed; or: {IN_VM}"
        ) from None
    _, _, _, header, type_at, type_len, string_at, string_len = struct.unpack_from("<HBBIIIII", data)
    types, strings = header + type_at, header + string_at
    return data[types : types + type_len], data[strings : strings + string_len]


def btf_module(module: str) -> str:
    """Return where a module's types and functions are found: under its name, or in vmlinux if it is built in."""
    return module if (BTF / module).exists() else "vmlinux"


# A type: name, kind and number of members, size; then 12 bytes a member (kernel, Documentation/bpf/btf.rst).
_BTF_STRUCT = 4

UNTYPED: dict[tuple[int, int], dict[str, int]] = {
    (5, 10): {
        "nf_conn.tuplehash": 16,
        "xt_table.name": 56,
        "nft_chain.table": 64,
        "nft_chain.name": 88,
        "nft_table.name": 240,
        "nft_pktinfo.xt": 16,
        "xt_action_param.state": 16,
    },
}
"""Offsets of kernels whose modules have no BTF (before 5.11), by offsetof() from Debian's headers for amd64; others'
builds may differ: then names of tables come out wrong, no filter matches, and the books don't close."""


def _find_word(data: bytes, word: int) -> Iterator[int]:
    """Find where 32 bits stand; going through a kernel's 100,000 types one by one would take a second."""
    wanted = struct.pack("<I", word)
    at = data.find(wanted)
    while at >= 0:
        if at % 4 == 0 and at + 12 <= len(data):
            yield at
        at = data.find(wanted, at + 1)


@lru_cache
def struct_offset(module: str, name: str, member: str) -> int:
    """Return the byte offset of a struct's member in the running kernel.

    :param module: the module whose BTF has the struct, or else vmlinux has it, or else :data:`UNTYPED`.
    :raises MachineError: none has it.
    """
    known = UNTYPED.get(version_numbers(), {}).get(f"{name}.{member}")
    if known is not None and not (BTF / module).exists():
        return known
    base_strings = _read_btf("vmlinux")[1]
    for source in [each for each in (module, "vmlinux") if (BTF / each).exists()]:
        types, strings = _read_btf(source)
        if source != "vmlinux":
            # A module's names continue those of vmlinux ("split BTF").
            strings = base_strings + strings
        name_at, member_at = (strings.find(b"\0" + each.encode() + b"\0") + 1 for each in (name, member))
        for at in _find_word(types, name_at) if name_at and member_at else ():
            info = struct.unpack_from("<I", types, at + 4)[0]
            members = info & 0xFFFF if info >> 24 & 0x1F == _BTF_STRUCT else 0
            rows = types[at + 12 : at + 12 + 12 * members]
            for found_at, _, offset in struct.iter_unpack("<III", rows[: len(rows) // 12 * 12]):
                if found_at == member_at:
                    return int(offset & 0xFFFFFF if info >> 31 else offset) // 8
    raise MachineError(f"struct {name} of this kernel's {module} has no member {member}", "please report this kernel")


def conntrack_room(netns: str | None) -> int:
    """Return how many more connections the kernel will track in a network namespace."""
    files = [str(CONNTRACK / "nf_conntrack_max"), str(CONNTRACK / "nf_conntrack_count")]
    limit, count = (int(each) for each in re.findall(r"\d+", run("cat", *files, netns=netns)))
    return limit - count
