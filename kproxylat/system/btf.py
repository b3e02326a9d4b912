"""Kernel types (BTF): the offsets of the members of structs."""

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
            f"no BTF of {module} in this kernel ({error.strerror})", f"boot a kernel with BTF; or: {IN_VM}"
        ) from None
    _, _, _, header, type_at, type_len, string_at, string_len = struct.unpack_from("<HBBIIIII", data)
    types, strings = header + type_at, header + string_at
    return data[types : types + type_len], data[strings : strings + string_len]


def btf_module(module: str) -> str:
    """Return the name of the BTF that has the types and functions of a module: its own, or vmlinux if built in."""
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
"""Offsets for kernels whose modules have no BTF (before 5.11), by offsetof() from Debian's headers for amd64. In other
builds they may differ: then table names are wrong, no filter matches, and the packet accounting does not balance."""


def _find_word(data: bytes, word: int) -> Iterator[int]:
    """Yield the positions of a 32-bit word; decoding the 100,000 types of a kernel one by one would take a second."""
    pattern = struct.pack("<I", word)
    position = data.find(pattern)
    while position >= 0:
        if position % 4 == 0 and position + 12 <= len(data):
            yield position
        position = data.find(pattern, position + 1)


@lru_cache
def struct_offset(module: str, name: str, member: str) -> int:
    """Return the byte offset of a member of a struct in the running kernel.

    :param module: the module that defines the struct; its BTF is searched first, then that of vmlinux. A module
        without BTF has its offsets in :data:`UNTYPED`.
    :raises MachineError: the struct or the member was not found, or the kernel has no BTF.
    """
    known = UNTYPED.get(version_numbers(), {}).get(f"{name}.{member}")
    if known is not None and not (kernel.BTF / module).exists():
        return known
    base_strings = _read_btf("vmlinux")[1]
    for source in dict.fromkeys((btf_module(module), "vmlinux")):
        types, strings = _read_btf(source)
        if source != "vmlinux":
            # The strings of a module continue those of vmlinux ("split BTF").
            strings = base_strings + strings
        name_at, member_at = (strings.find(b"\0" + word.encode() + b"\0") + 1 for word in (name, member))
        for position in _find_word(types, name_at) if name_at and member_at else ():
            info = struct.unpack_from("<I", types, position + 4)[0]
            members = info & 0xFFFF if info >> 24 & 0x1F == _BTF_STRUCT else 0
            rows = types[position + 12 : position + 12 + 12 * members]
            for text_at, _, offset in struct.iter_unpack("<III", rows[: len(rows) // 12 * 12]):
                if text_at == member_at:
                    return int(offset & 0xFFFFFF if info >> 31 else offset) // 8
    raise MachineError(f"{name}.{member} not found in the BTF of {module}", "please report this kernel")
