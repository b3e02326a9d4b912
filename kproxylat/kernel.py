"""What this host's kernel has: release, clock, modules, types."""

from __future__ import annotations

import os
import platform
import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from kproxylat.errors import CommandError, MachineError
from kproxylat.proc import run

BTF = Path("/sys/kernel/btf")
CONNTRACK = Path("/proc/sys/net/netfilter")


def detect_clock() -> tuple[str, bool]:
    """Return the unit that this kernel's clock counts in ("ns" or "instructions"), and whether it is emulated.

    The virtual machines of :mod:`kproxylat.vm` say so on the kernel's command line.
    """
    options = dict(word.split("=", 1) for word in Path("/proc/cmdline").read_text().split() if "=" in word)
    return options.get("kproxylat.clock", "ns"), options.get("kproxylat.accelerator") == "tcg"


def detect_mitigations() -> dict[str, str]:
    """Return the CPU vulnerabilities and what the kernel does about each."""
    return {
        each.name: each.read_text().strip()
        for each in sorted(Path("/sys/devices/system/cpu/vulnerabilities").glob("*"))
    }


def release() -> str:
    """Return the running kernel's release, e.g. ``6.1.0-56-amd64``."""
    return platform.release()


def check_root() -> None:
    """Make sure that we are root.

    :raises MachineError: we are not.
    """
    if os.geteuid() != 0:
        raise MachineError("tracing and network namespaces need root", "run it with sudo, or with --lab --vm")


def load_module(name: str) -> bool:
    """Load a kernel module, if it is not there yet.

    :return: whether it was we who loaded it.
    :raises MachineError: this kernel does not have it.
    """
    if (Path("/sys/module") / name).exists():
        return False
    try:
        run("modprobe", name)
    except CommandError as error:
        raise MachineError(
            f"kernel module {name} cannot be loaded: {' '.join(error.output.split())[:120]}",
            "install this kernel's modules (linux-modules-extra-* or kernel-modules-extra), or use --lab --vm",
        ) from None
    return True


def unload_module(name: str) -> None:
    """Unload a kernel module that :func:`load_module` loaded; another user of it may keep it."""
    run("modprobe", "-r", "-q", name, ok=(0, 1))


def missing_to_trace() -> str | None:
    """Return what this machine lacks to trace with (None: nothing): root, BPF trampolines, types, pktgen."""
    if os.geteuid() != 0:
        return "root"
    if not (BTF / "vmlinux").exists():
        return "BTF (CONFIG_DEBUG_INFO_BTF)"
    # fentry and fexit patch a function's ftrace call site.
    if not any(Path(each, "available_filter_functions").exists() for each in _tracefs()):
        return "function tracing (CONFIG_FUNCTION_TRACER)"
    try:
        run("modprobe", "--dry-run", "--quiet", "pktgen")
    except (CommandError, MachineError):
        return "the kernel module pktgen"
    return None


def _tracefs() -> tuple[str, str]:
    return ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")


def _read_btf(module: str) -> tuple[bytes, bytes]:
    """Return the type and the string section of a module's BTF (kernel, ``include/uapi/linux/btf.h``)."""
    try:
        data = (BTF / module).read_bytes()
    except OSError as error:
        raise MachineError(
            f"this kernel has no BTF of {module} ({error.strerror})", "a kernel with BTF is needed: try --lab --vm"
        ) from None
    _, _, _, header, type_at, type_len, string_at, string_len = struct.unpack_from("<HBBIIIII", data)
    types, strings = header + type_at, header + string_at
    return data[types : types + type_len], data[strings : strings + string_len]


def btf_module(module: str) -> str:
    """Return where a module's types and functions are found: under its name, or in vmlinux if it is built in."""
    return module if (BTF / module).exists() else "vmlinux"


# Bytes after a type's 12-byte head, by kind: fixed, and per member (kernel, Documentation/bpf/btf.rst).
_BTF_TAIL = {
    1: (4, 0),
    3: (12, 0),
    4: (0, 12),
    5: (0, 12),
    6: (0, 8),
    13: (0, 8),
    14: (4, 0),
    15: (0, 12),
    17: (4, 0),
    19: (0, 12),
}

_BTF_STRUCT = 4


def _btf_structs(types: bytes) -> Iterator[tuple[int, bool, int, int]]:
    """Yield each struct's name (offset of its string), whether offsets hold bit field sizes, and its members' place."""
    at = 0
    while at < len(types):
        name, info, _ = struct.unpack_from("<III", types, at)
        members, kind = info & 0xFFFF, info >> 24 & 0x1F
        if kind == _BTF_STRUCT and members:
            yield name, bool(info >> 31), at + 12, members
        fixed, each = _BTF_TAIL.get(kind, (0, 0))
        at += 12 + fixed + each * members


@lru_cache
def struct_offset(module: str, name: str, member: str) -> int:
    """Return the byte offset of a struct's member in the running kernel.

    :param module: the module whose BTF has the struct, or else vmlinux has it.
    :raises MachineError: neither has it.
    """
    base_strings = _read_btf("vmlinux")[1]
    for source in [each for each in (module, "vmlinux") if (BTF / each).exists()]:
        types, strings = _read_btf(source)
        if source != "vmlinux":
            # A module's names continue those of vmlinux ("split BTF").
            strings = base_strings + strings
        for name_at, is_bits, at, members in _btf_structs(types):
            if strings[name_at : name_at + len(name) + 1] != name.encode() + b"\0":
                continue
            for each in range(members):
                member_at, _, offset = struct.unpack_from("<III", types, at + 12 * each)
                if strings[member_at : member_at + len(member) + 1] == member.encode() + b"\0":
                    return int(offset & 0xFFFFFF if is_bits else offset) // 8
    raise MachineError(f"struct {name} of this kernel's {module} has no member {member}", "please report this kernel")


def conntrack_room(netns: str | None) -> int:
    """Return how many more connections the kernel will track in a network namespace."""
    files = [str(CONNTRACK / "nf_conntrack_max"), str(CONNTRACK / "nf_conntrack_count")]
    limit, count = (int(each) for each in re.findall(r"\d+", run("cat", *files, netns=netns)))
    return limit - count
