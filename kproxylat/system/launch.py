"""Start of virtme-run, such that QEMU takes its process, dies with the parent, and can do no harm by files.

A script that imports nothing of kproxylat: ``PYTHON launch.py VIRTME_RUN ARGUMENT...``. Its Python is the one that has
virtme. virtme-run forks QEMU and waits for it; a SIGKILL would leave that QEMU, and a file ``virtme_ret*``.

Root in the guest writes to the shared directory as the user who runs QEMU. A seccomp filter therefore denies QEMU what
would make such a file dangerous on the host: setuid and setgid bits, devices, and extended attributes (capabilities).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import runpy
import stat
import struct
import sys
import tempfile
from pathlib import Path

MAX_FILE = 4 << 30
"""Size that a file of the guest cannot exceed, in bytes."""
_SPECIAL = stat.S_ISUID | stat.S_ISGID
_DEVICE = stat.S_IFCHR & stat.S_IFBLK
"""The bit that character and block devices share; regular files, pipes, sockets and directories lack it."""
DENIED = {
    **{"open": (2, 2, _SPECIAL), "creat": (85, 1, _SPECIAL), "openat": (257, 3, _SPECIAL)},
    **{"chmod": (90, 1, _SPECIAL), "fchmod": (91, 1, _SPECIAL)},
    **{"fchmodat": (268, 2, _SPECIAL), "fchmodat2": (452, 2, _SPECIAL)},
    **{"mknod": (133, 1, _SPECIAL | _DEVICE), "mknodat": (259, 2, _SPECIAL | _DEVICE)},
    **{"setxattr": (188, 0, 0), "lsetxattr": (189, 0, 0), "fsetxattr": (190, 0, 0), "setxattrat": (463, 0, 0)},
    # Their arguments lie in memory, where a filter cannot look; QEMU does without them.
    **{"openat2": (437, 0, 0), "io_uring_setup": (425, 0, 0)},
}
"""System call of x86-64 -> its number, an argument, and the bits of it that are denied (0: the whole call)."""
_ARCHITECTURE, _X32 = 0xC000003E, 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2


def find_python(runner: str) -> str | None:
    """Return the Python that the first lines of a program name, in pip's or Debian's form; None without one."""
    with Path(runner).open("rb") as file:
        head = file.read(1000).decode(errors="replace")
    match = re.match(r"""#!(?:/usr/bin/env |/bin/sh\n'''exec' "?)?([^"\n]*?python[\d.]*)""", head)
    return match[1].strip() if match else None


def build_filter() -> bytes:
    """Return the filter as a BPF program (kernel, Documentation/userspace-api/seccomp_filter.rst)."""
    deny = (_RETURN, 0, 0, _ERROR | errno.EPERM)
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCHITECTURE), deny]
    steps += [(_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, _X32), deny]
    for number, argument, bits in DENIED.values():
        if bits:
            steps += [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, 16 + 8 * argument), (_HAS_BITS, 0, 1, bits)]
            steps += [deny, (_RETURN, 0, 0, _ALLOW)]
        else:
            steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)]
    steps.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def limit() -> None:
    """Limit this process, and what it executes: the filter, and the size of files.

    :raises OSError: the kernel has no seccomp.
    """
    program = build_filter()
    buffer = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HP", len(program) // 8, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    for words in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _FILTER, header, 0, 0)):
        if libc.prctl(*words):
            raise OSError(ctypes.get_errno(), "the virtual machine cannot be limited by seccomp")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    size = MAX_FILE if hard == resource.RLIM_INFINITY else min(hard, MAX_FILE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def main() -> None:
    """Run virtme-run, which executes QEMU in this process."""
    make_file = tempfile.mkstemp

    def make_other(*arguments: object, **options: object) -> object:
        # The agent passes statuses on itself.
        if options.get("prefix") == "virtme_ret":
            return os.open(os.devnull, os.O_RDWR), os.devnull
        return make_file(*arguments, **options)  # type: ignore[call-overload]

    tempfile.mkstemp = make_other  # type: ignore[assignment]
    os.fork = lambda: 0
    limit()
    del sys.argv[0]
    # Python put the directory of this script there, whose modules could hide those of virtme.
    sys.path[0] = str(Path(sys.argv[0]).parent)
    if not find_python(sys.argv[0]):
        os.execv(sys.argv[0], sys.argv)  # noqa: S606 - no shell is intended
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
