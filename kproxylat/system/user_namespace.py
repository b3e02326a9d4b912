"""Root without root: a user namespace in which an ordinary user may make network namespaces and load their rules."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from kproxylat.errors import CommandError, MachineError
from kproxylat.system.processes import CLONE_NEWNET, run

_KEPT = ("/run/user", "/run/media")
"""Places below /run where users have files."""
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
"""Kernel, include/uapi/linux/sched.h."""


def enter_user_namespace() -> None:
    """Let an ordinary user be root of new user, mount and network namespaces, with an empty /run; root stays root.

    The process must have one thread (unshare(2)). Files that it makes still belong to the user.

    :raises MachineError: the kernel refuses; the remedy names what may forbid it.
    """
    if os.geteuid() == 0:
        return
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        # user_namespaces(7): without privileges the group can be mapped only after setgroups(2) is given up.
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", name).write_text(text)
        # The names of network namespaces, and the lock, lie below /run, which is the real root's.
        kept = {place: os.open(place, os.O_PATH) for place in _KEPT if Path(place).is_dir()}
        run("mount", "-t", "tmpfs", "tmpfs", "/run")
        for place, descriptor in kept.items():
            Path(place).mkdir()
            # Else mount(8) writes the path out, which is covered now.
            run("mount", "--no-canonicalize", "--rbind", f"/proc/{os.getpid()}/fd/{descriptor}", place)
            os.close(descriptor)
    except (OSError, CommandError) as error:
        raise MachineError(
            f"not root, and this kernel gives ordinary users no namespaces of their own: {error}",
            "sudo kproxylat ...; or allow them: kernel.unprivileged_userns_clone=1, user.max_user_namespaces > 0, "
            "kernel.apparmor_restrict_unprivileged_userns=0; in a container: CAP_NET_ADMIN and CAP_SYS_ADMIN",
        ) from None
