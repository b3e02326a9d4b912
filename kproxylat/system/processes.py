"""Programs that kproxylat runs; the only importer of ``sh``.

A command is a list of words and never passes through a shell. Every child dies with this process (``setpriv
--pdeathsig``), so that not even SIGKILL leaves a tracer or a sender behind.
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ctypes import CDLL, get_errno
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sh

from kproxylat.console import DETAIL, say
from kproxylat.errors import CommandError, MachineError
from kproxylat.system import interrupts

Answer = TypeVar("Answer")
CLONE_NEWNET = 0x40000000
"""Kernel, include/uapi/linux/sched.h."""
_PR_SET_PDEATHSIG = 1
"""Kernel, include/uapi/linux/prctl.h."""
_LIBC = CDLL(None, use_errno=True)
_DIRECTORIES = [*os.environ.get("PATH", "").split(":"), "/usr/local/sbin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
PATH = os.pathsep.join(directory for directory in _DIRECTORIES if directory.startswith("/"))
"""The search path for programs: PATH, and the directories that the PATH of an ordinary user lacks. Relative and empty
entries are left out, since they would mean the current directory."""

_NFT = [f"{ip}tables{suffix}" for ip in ("ip", "ip6") for suffix in ("", "-nft", "-nft-restore", "-nft-save")]
_LEGACY = [f"{ip}tables-legacy{suffix}" for ip in ("ip", "ip6") for suffix in ("", "-restore", "-save")]
_IPTABLES = dict.fromkeys(_NFT, "iptables-nft") | dict.fromkeys(_LEGACY, "iptables-legacy")
"""Program -> the package that holds it on systems with dnf; with apt it is iptables."""
PACKAGES = {
    **{name: name for name in ("bpftrace", "conntrack", "file", "grep", "hping3", "ipset", "ipvsadm", "nfacct")},
    "busybox": "busybox-static",
    "ip": "iproute2",
    "modprobe": "kmod",
    "nft": "nftables",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "sysctl": "procps",
    "qemu-system-x86_64": "qemu-system-x86",
    **dict.fromkeys(_IPTABLES, "iptables"),
}
"""Program -> the Debian package that holds it."""
_DNF_PACKAGES = {
    "busybox": "busybox",
    "conntrack": "conntrack-tools",
    "ip": "iproute",
    "nfacct": "/usr/sbin/nfacct",
    "sysctl": "procps-ng",
    **_IPTABLES,
}
"""Program -> its package on systems with dnf, where the name differs; dnf also accepts the path of a file."""
_PIP_PACKAGES = {"virtme-run": "virtme-ng"}
"""Program -> the Python package that holds it."""

MAX_LINE = 1 << 20
"""Longer lines are read in pieces, so that endless output does not fill the memory."""

CLEAN_UP_LIMIT_S = 30.0
"""Time limit of a program while signals are ignored, as in the clean-up. A program that hangs could otherwise be ended
only by a SIGKILL to kproxylat, which would skip the rest of the clean-up."""

_PIPES: dict[str, Any] = {"_tty_out": False, "_tty_in": False, "_truncate_exc": False, "_new_session": True}
"""Plain pipes, and a new session: Ctrl-C on the terminal reaches kproxylat alone, which ends its children."""


def install(*programs: str) -> tuple[str, str]:
    """Return the commands that install programs: with apt, and with dnf."""
    return _install("apt-get", PACKAGES, programs), _install("dnf", PACKAGES | _DNF_PACKAGES, programs)


def _install(manager: str, packages: Mapping[str, str], programs: Sequence[str]) -> str:
    pip = [f"pip install {_PIP_PACKAGES[name]}" for name in programs if name in _PIP_PACKAGES]
    names = dict.fromkeys(packages.get(name, name) for name in programs if name not in _PIP_PACKAGES)
    system = [f"{manager} install {' '.join(names)}"] if names else []
    return " && ".join(system + pip)


def has_apt() -> bool:
    """Return whether this system installs packages with apt, rather than with dnf."""
    return not shutil.which("dnf", path=PATH) or bool(shutil.which("apt-get", path=PATH))


def find(*programs: str) -> str:
    """Return the path of the last one of these programs.

    :raises MachineError: one is not installed; the message names all that are not, the remedy their packages.
    """
    paths = {program: shutil.which(program, path=PATH) for program in programs}
    if missing := [program for program, path in paths.items() if not path]:
        form = "the program {} is missing" if len(missing) == 1 else "the programs {} are missing"
        names = ", ".join(f"'{program}'" for program in missing)
        raise MachineError(form.format(names), install(*missing)[0 if has_apt() else 1])
    return str(paths[programs[-1]])


def _command(argv: tuple[str, ...], netns: str | None) -> tuple[sh.Command, list[str]]:
    """Return setpriv(1), and its words: the child dies with this process, enters the namespace, runs the program."""
    words = ["--pdeathsig", "KILL"]
    if netns is not None:
        words += [find("nsenter"), f"--net={netns_path(netns)}"]
    return sh.Command(find("setpriv")), [*words, find(argv[0]), *argv[1:]]


def netns_path(netns: str) -> Path:
    """Return the file of a network namespace.

    :param netns: a name that ip(8) knows, or a path, which is returned.
    """
    return Path("/run/netns", netns)


def call_inside(netns: str | None, work: Callable[[], Answer]) -> Answer:
    """Call a function in a thread inside a network namespace, to which the sockets that it opens then belong.

    :param netns: the namespace (None: the current one, without a thread).
    :return: the result of ``work``, whose exceptions pass, too.
    :raises MachineError: the namespace cannot be entered.
    """
    if netns is None:
        return work()

    def enter() -> Answer:
        # os.setns() exists since Python 3.12.
        with netns_path(netns).open() as file:
            if _LIBC.setns(file.fileno(), CLONE_NEWNET):
                raise MachineError(f"network namespace {netns} cannot be entered: {os.strerror(get_errno())}")
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(enter).result()


def run(
    *argv: str, netns: str | None = None, stdin: str = "", ok: tuple[int, ...] = (0,), limit_s: float | None = None
) -> str:
    """Run a program to its end. While signals are ignored, it has a limit of :data:`CLEAN_UP_LIMIT_S`.

    :param argv: the program and its arguments.
    :param netns: the network namespace to run in, a name that ip(8) knows or a path (None: the current one).
    :param stdin: the text of its standard input.
    :param ok: the exit statuses that mean success.
    :param limit_s: how long it may take; None: without a limit.
    :return: its standard output.
    :raises CommandError: another exit status; carries the output.
    :raises MachineError: the program is not installed, or did not end within the limit and was killed.
    """
    limit_s = CLEAN_UP_LIMIT_S if interrupts.are_ignored() else limit_s
    out: list[str] = []
    err: list[str] = []
    process = Background(*argv, on_out=out.append, on_err=err.append, netns=netns)
    try:
        if stdin:
            process.write(stdin)
        process.write(None)
        ended = process.wait(limit_s)
    finally:
        process.end()
    if not ended:
        # A program that survives SIGKILL has no exit status.
        raise MachineError(f"{' '.join(argv)[:120]} did not end within {limit_s:g} s and was killed")
    if process.status not in ok:
        raise CommandError(list(argv), process.status, "".join(err or out))
    return "".join(out)


def _die_with(parent: int) -> None:
    """In a child, die with the parent, also if it has died since the fork, before setpriv(1) could see to that."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _read_lines(reader: int, take: Callable[[str], None]) -> None:
    with os.fdopen(reader, encoding="utf-8", errors="replace", newline="\n") as stream:
        while line := stream.readline(MAX_LINE):
            take(line)


class Background:
    """A program that runs in the background.

    :param argv: the program and its arguments.
    :param on_out: called from another thread with each line of standard output (newline included, at most
        :data:`MAX_LINE` characters); ``on_err``: the same for standard error.
    :param netns: as in :func:`run`.
    :param env: variables to add to the environment.
    :raises MachineError: the program is not installed.
    """

    def __init__(
        self,
        *argv: str,
        on_out: Callable[[str], None],
        on_err: Callable[[str], None],
        netns: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.argv = list(argv)
        self._ended = threading.Event()
        self._stdin: queue.Queue[str | None] = queue.Queue()
        command, words = _command(argv, netns)
        say(f"+ {f'[{netns}] ' if netns else ''}{' '.join(argv)}", DETAIL)
        # Separate pipes: sh discards output that is not read within 2 s after the end of the program.
        streams = [(os.pipe(), take) for take in (on_out, on_err)]
        writers = [os.fdopen(writer, "wb", buffering=0) for (_, writer), _ in streams]
        self._readers = [
            threading.Thread(target=_read_lines, args=(reader, take), daemon=True) for (reader, _), take in streams
        ]
        # Before it starts: a signal that comes just then names it.
        interrupts.RUNNING[id(self)] = " ".join(argv)[:120]
        try:
            # os.fork() ignores the exception of a signal that comes in its hooks; the next wait() raises it.
            with interrupts.deferred():
                self._process = command(
                    *words,
                    _bg=True,
                    _bg_exc=False,
                    _in=self._stdin,
                    _out=writers[0],
                    _err=writers[1],
                    _env={**os.environ, **(env or {})},
                    _preexec_fn=partial(_die_with, os.getpid()),
                    **_PIPES,
                )
        except BaseException:
            interrupts.RUNNING.pop(id(self), None)
            raise
        for writer in writers:
            writer.close()
        for thread in (*self._readers, threading.Thread(target=self._await, daemon=True)):
            thread.start()
        self.pid: int = self._process.pid

    def _await(self) -> None:
        """Wait for the end and for all output, without delay: sh itself looks only once a second."""
        with suppress(sh.ErrorReturnCode):
            self._process.wait()
        for thread in self._readers:
            thread.join()
        interrupts.RUNNING.pop(id(self), None)
        self._ended.set()

    @property
    def alive(self) -> bool:
        """Whether the program runs, or its output is still being read."""
        return not self._ended.is_set()

    @property
    def status(self) -> int:
        """The exit status; after a signal its negative number. Valid only after the end."""
        try:
            return int(self._process.exit_code)
        except sh.ErrorReturnCode as error:
            return int(error.exit_code)

    def write(self, line: str | None) -> None:
        """Send a line to standard input; None closes it."""
        self._stdin.put(line)

    def signal(self, signum: int) -> None:
        """Send a signal, if the program still runs."""
        if self.alive:
            with suppress(ProcessLookupError):
                self._process.signal(signum)

    def count_files(self) -> int:
        """Return how many files the program holds open; 0 after its end."""
        try:
            return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))
        except OSError:
            return 0

    def wait(self, limit_s: float | None, other: threading.Event | None = None) -> bool:
        """Wait for the end, at most ``limit_s`` seconds (None: without a limit).

        :param other: an event that ends the wait, too.
        :return: whether the program has ended.
        :raises Interrupted: a signal came first.
        """
        return interrupts.wait(self._ended, limit_s, other)

    def end(self, limit_s: float = 2.0) -> None:
        """End the program and its children: by SIGTERM, after ``limit_s`` seconds by SIGKILL."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            if not self.alive:
                break
            # All may have ended, with the last output still unread.
            with suppress(ProcessLookupError):
                self._process.signal_group(signum)
            with interrupts.shielded():
                self.wait(limit_s)
        self._stdin.put(None)
