"""Kernel types (BTF): the offsets of structure members."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache

from kproxylat.errors import MachineError
from kproxylat.system import kernel
from kproxylat.system.kernel import IN_VM, version_numbers


def _read_btf(module: str) -> tuple[bytes, bytes]:
    """Return the type and the string section of a module's BTF (kernel, ``include/uapi/linux/btf.h``)."""
    try:
        data = (kernel.BTF / module).read_bytes()
    except OSError as error:
        raise MachineError(
            f"this kernel has no BTF of {module} ({error.strerror})", f"a kernel with BTF is needed; or: {IN_VM}"
        ) from None
    _, _, _, header, type_at, type_len, string_at, string_len = struct.unpack_from("<HBBIIIII", data)
    types, strings = header + type_at, header + string_at
    return data[types : types + type_len], data[strings : strings + string_len]


def btf_module(module: str) -> str:
    """Return where a module's types and functions are found: under its name, or in vmlinux if it is built in."""
    return module if (kernel.BTF / module).exists() else "vmlinux"


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
    if known is not None and not (kernel.BTF / module).exists():
        return known
    base_strings = _read_btf("vmlinux")[1]
    for source in [each for each in (module, "vmlinux") if (kernel.BTF / each).exists()]:
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
