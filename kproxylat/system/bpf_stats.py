"""The kernel's own account of a program's probes: calls, and time in them (BPF statistics, run_time_ns)."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

_SYSCALL = {"x86_64": 321, "aarch64": 280}
_GET_FD_BY_ID, _ENABLE_STATS = 13, 32
"""Kernel, include/uapi/linux/bpf.h: enum bpf_cmd."""
_PROGRAM = re.compile(r"^prog_id:\s*(\d+)$", re.M)
_USED = re.compile(r"^run_time_ns:\s*(\d+)$\n^run_cnt:\s*(\d+)$", re.M)


class Used(NamedTuple):
    """Calls of probes on all processors together, and the seconds in them."""

    seconds: float = 0
    calls: int = 0


def _bpf(command: int, *words: int) -> int:
    """Make a system call bpf(2) with 32-bit words in its union; return a file descriptor.

    :raises OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = (ctypes.c_uint32 * 32)(*words)
    fd = int(libc.syscall(_SYSCALL.get(platform.machine(), -1), command, ctypes.byref(attributes), 128))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd


@contextmanager
def counting() -> Iterator[bool]:
    """Let the kernel take the time of BPF programs; it stops at the end of the block, also after a SIGKILL.

    :return: whether it does; it needs Linux 5.8 and CAP_SYS_ADMIN.
    """
    try:
        fd = _bpf(_ENABLE_STATS, 0)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(fd)


@contextmanager
def programs_of(pid: int) -> Iterator[list[int]]:
    """Open the BPF programs of a process, so that they can be read after its end; none where the kernel forbids it."""
    fds: list[int] = []
    with ExitStack() as stack:
        try:
            texts = [path.read_text() for path in Path(f"/proc/{pid}/fdinfo").iterdir()]
            for number in {int(match[1]) for text in texts if (match := _PROGRAM.search(text))}:
                fds.append(_bpf(_GET_FD_BY_ID, number))
                stack.callback(os.close, fds[-1])
        except OSError:
            pass
        yield fds


def read_used(fds: Iterable[int]) -> Used:
    """Add up what the opened programs used."""
    matches = [_USED.search(Path(f"/proc/self/fdinfo/{fd}").read_text()) for fd in fds]
    pairs = [(int(match[1]), int(match[2])) for match in matches if match]
    return Used(sum(ns for ns, _ in pairs) / 1e9, sum(calls for _, calls in pairs))
