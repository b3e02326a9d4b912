"""Programs that we run: the only importer of ``sh``.

Commands are lists of words; none ever meets a shell. Every child dies with us (``setpriv --pdeathsig``), so that
not even SIGKILL leaves a tracer or a sender behind.
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ctypes import CDLL, get_errno
from pathlib import Path
from typing import Any, TypeVar

import sh

from kproxylat.errors import CommandError, MachineError
from kproxylat.system import interrupts

Answer = TypeVar("Answer")
_CLONE_NEWNET = 0x40000000
"""Kernel, include/uapi/linux/sched.h."""
_DIRECTORIES = [
    *os.environ.get("PATH", "").split(os.pathsep),
    "/usr/local/sbin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
]
PATH = os.pathsep.join(each for each in _DIRECTORIES if each.startswith("/"))
"""Where programs are looked for: PATH, and the directories that an ordinary user's PATH leaves out; never the current
directory, which an empty or relative entry would mean."""

_IPTABLES = {
    f"{ip}tables{which}": package
    for ip in ("ip", "ip6")
    for package, names in {
        "iptables-nft": ("", "-nft", "-nft-restore", "-nft-save"),
        "iptables-legacy": ("-legacy", "-legacy-restore", "-legacy-save"),
    }.items()
    for which in names
}
"""Program -> the package that holds it on systems with dnf; with apt it is iptables."""
PACKAGES = {
    "bpftrace": "bpftrace",
    "conntrack": "conntrack",
    "grep": "grep",
    "hping3": "hping3",
    "ip": "iproute2",
    "ipset": "ipset",
    "ipvsadm": "ipvsadm",
    "modprobe": "kmod",
    "nfacct": "nfacct",
    "nft": "nftables",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "sysctl": "procps",
    "qemu-system-x86_64": "qemu-system-x86",
    **dict.fromkeys(_IPTABLES, "iptables"),
}
"""Program -> the Debian package that holds it."""
_DNF_PACKAGES = {
    "conntrack": "conntrack-tools",
    "ip": "iproute",
    "nfacct": "/usr/sbin/nfacct",
    "sysctl": "procps-ng",
    **_IPTABLES,
}
"""The same on systems with dnf, where the package has another name; dnf takes a file's path, too."""
_PIP_PACKAGES = {"virtme-run": "'kproxylat[vm]'"}
"""Program -> the Python package that holds it."""

MAX_LINE = 1 << 20
"""A longer line is read in pieces, so that a program that prints without end does not fill our memory."""

CLEAN_UP_LIMIT_S = 30.0
"""How long a program may take while no signal can end it, as in the clean-up: one that hangs would need a SIGKILL to
us, and the rest of the clean-up would be skipped."""

_PIPES: dict[str, Any] = {"_tty_out": False, "_tty_in": False, "_truncate_exc": False, "_new_session": True}
"""Plain pipes, and a session of its own: Ctrl-C on the terminal reaches us alone, and we end our children."""


def install(*programs: str) -> tuple[str, str]:
    """Return the commands that install programs: with apt, and with dnf."""
    pip = [f"pip install {_PIP_PACKAGES[each]}" for each in programs if each in _PIP_PACKAGES]
    others = [each for each in programs if each not in _PIP_PACKAGES]
    apt = " ".join(dict.fromkeys(PACKAGES.get(each, each) for each in others))
    dnf = " ".join(dict.fromkeys(_DNF_PACKAGES.get(each, PACKAGES.get(each, each)) for each in others))
    managers = ("apt-get", apt), ("dnf", dnf)
    first, second = (" && ".join([f"{name} install {words}"] * bool(words) + pip) for name, words in managers)
    return first, second


def has_apt() -> bool:
    """Whether packages are installed with apt here, rather than with dnf."""
    return not shutil.which("dnf", path=PATH) or bool(shutil.which("apt-get", path=PATH))


def find(program: str) -> str:
    """Return a program's path.

    :raises MachineError: it is not installed; the remedy names the package.
    """
    path = shutil.which(program, path=PATH)
    if path is None:
        raise MachineError(f"{program} not found", install(program)[0 if has_apt() else 1])
    return path


def _command(argv: tuple[str, ...], netns: str | None) -> tuple[sh.Command, list[str]]:
    """Put the words together: die with us, enter the namespace, run the program."""
    words = ["--pdeathsig", "KILL"]
    if netns is not None:
        words += [find("nsenter"), f"--net={netns_path(netns)}"]
    return sh.Command(find("setpriv")), [*words, find(argv[0]), *argv[1:]]


def netns_path(netns: str) -> Path:
    """Return the file that stands for a network namespace: of a name of ip(8)'s, or a path itself."""
    return Path("/run/netns", netns)


def call_inside(netns: str | None, work: Callable[[], Answer]) -> Answer:
    """Call a function inside of a network namespace, in a thread of its own; sockets that it opens belong there.

    :param netns: None: ours.
    :raises MachineError: the namespace cannot be entered. Whatever else ``work`` raises.
    """
    if netns is None:
        return work()

    def enter() -> Answer:
        # os.setns() is there from Python 3.12 on.
        with netns_path(netns).open() as file:
            if CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
                raise MachineError(f"network namespace {netns} cannot be entered: {os.strerror(get_errno())}")
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(enter).result()


def run(*argv: str, netns: str | None = None, stdin: str = "", ok: tuple[int, ...] = (0,)) -> str:
    """Run a program to its end. Where no signal can end the waiting, it has :data:`CLEAN_UP_LIMIT_S` seconds.

    :param argv: the program and its arguments.
    :param netns: the network namespace it runs in, a name of ip(8)'s or a path (None: ours).
    :param stdin: what it reads.
    :param ok: exit statuses that are no failure.
    :return: its standard output.
    :raises CommandError: any other exit status; carries what the program said.
    :raises MachineError: the program is not installed, or did not end within its limit and was killed.
    """
    limit_s = CLEAN_UP_LIMIT_S if interrupts.is_deaf() else None
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
        # Its exit status cannot be asked for: one that SIGKILL does not end has none.
        raise MachineError(f"{' '.join(argv)[:120]} did not end within {limit_s:g} s and was killed")
    if process.status not in ok:
        raise CommandError(list(argv), process.status, "".join(err or out))
    return "".join(out)


def _read_lines(reader: int, take: Callable[[str], None]) -> None:
    """Read a pipe to its end, line by line; a line without an end comes in pieces of 1 Mi characters."""
    with os.fdopen(reader, encoding="utf-8", errors="replace", newline="\n") as stream:
        while line := stream.readline(MAX_LINE):
            take(line)


class Background:
    """A program that runs beside us.

    :param argv: the program and its arguments.
    :param on_out: called with every line of its standard output (newline included), from another thread.
    :param on_err: the same for standard error.
    :param env: its environment beyond ours.
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
        # Pipes of our own: sh gives up on output that is not read within 2 s of the program's end.
        streams = [(os.pipe(), take) for take in (on_out, on_err)]
        writers = [os.fdopen(writer, "wb", buffering=0) for (_, writer), _ in streams]
        self._readers = [
            threading.Thread(target=_read_lines, args=(reader, take), daemon=True) for (reader, _), take in streams
        ]
        self._process = command(
            *words,
            _bg=True,
            _bg_exc=False,
            _in=self._stdin,
            _out=writers[0],
            _err=writers[1],
            _env={**os.environ, **(env or {})},
            **_PIPES,
        )
        interrupts.RUNNING[id(self)] = " ".join(argv)[:120]
        for writer in writers:
            writer.close()
        for thread in (*self._readers, threading.Thread(target=self._await, daemon=True)):
            thread.start()
        self.pid: int = self._process.pid

    def _await(self) -> None:
        """Note the end, and that all output is read, at once: sh itself looks only once a second."""
        with suppress(sh.ErrorReturnCode):
            self._process.wait()
        for thread in self._readers:
            thread.join()
        interrupts.RUNNING.pop(id(self), None)
        self._ended.set()

    @property
    def alive(self) -> bool:
        """Whether it still runs (or its output is still being read)."""
        return not self._ended.is_set()

    @property
    def status(self) -> int:
        """Its exit status; minus the signal's number if a signal ended it. Only after its end."""
        try:
            return int(self._process.exit_code)
        except sh.ErrorReturnCode as error:
            return int(error.exit_code)

    def write(self, line: str | None) -> None:
        """Send a line to its standard input; None closes it."""
        self._stdin.put(line)

    def signal(self, signum: int) -> None:
        """Send it a signal; nothing happens where it has ended."""
        if self.alive:
            try:
                self._process.signal(signum)
            except ProcessLookupError:
                return

    def count_files(self) -> int:
        """Return how many files it holds open (0: it has ended)."""
        try:
            return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))
        except OSError:
            return 0

    def wait(self, limit_s: float | None, other: threading.Event | None = None) -> bool:
        """Wait for its end, at most ``limit_s`` seconds (None: as long as it takes).

        :param other: an event that ends the waiting, too.
        :return: whether it has ended.
        """
        return interrupts.wait(self._ended, limit_s, other)

    def end(self, limit_s: float = 2.0) -> None:
        """Make sure that it and what it started are gone: SIGTERM, and SIGKILL after ``limit_s`` seconds."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            if not self.alive:
                break
            # Where all have ended already, the last of their output may still be on its way to us.
            with suppress(ProcessLookupError):
                self._process.signal_group(signum)
            with interrupts.shielded():
                self.wait(limit_s)
        self._stdin.put(None)
