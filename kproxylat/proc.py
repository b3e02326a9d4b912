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
import time
from collections.abc import Callable, Mapping
from typing import Any

import sh

from kproxylat.errors import CommandError, MachineError

PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
"""Where programs are looked for: PATH, and the directories that an ordinary user's PATH leaves out."""

PACKAGES = {
    "bpftrace": "bpftrace",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "iptables-legacy": "iptables",
    "iptables-legacy-restore": "iptables",
    "iptables-nft": "iptables",
    "iptables-nft-restore": "iptables",
    "modprobe": "kmod",
    "nfacct": "nfacct",
    "nft": "nftables",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "sysctl": "procps",
    "virtme-run": "kproxylat's extra vm (pip install 'kproxylat[vm]')",
    "qemu-system-x86_64": "qemu-system-x86",
}
"""Program -> the Debian package that holds it."""


_PIPES: dict[str, Any] = {"_tty_out": False, "_tty_in": False, "_truncate_exc": False, "_new_session": True}
"""Plain pipes, and a session of its own: Ctrl-C on the terminal reaches us alone, and we end our children."""


def find(program: str) -> str:
    """Return a program's path.

    :raises MachineError: it is not installed; the remedy names the package.
    """
    path = shutil.which(program, path=PATH)
    if path is None:
        package = PACKAGES.get(program, program)
        install = f"install {package}" if " " in package else f"apt-get install {package}"
        raise MachineError(f"{program} not found", install)
    return path


def _command(argv: tuple[str, ...], netns: str | None) -> tuple[sh.Command, list[str]]:
    """Put the words together: die with us, enter the namespace, run the program."""
    words = ["--pdeathsig", "KILL"]
    if netns is not None:
        words += [find("nsenter"), f"--net=/run/netns/{netns}"]
    return sh.Command(find("setpriv")), [*words, find(argv[0]), *argv[1:]]


def run(*argv: str, netns: str | None = None, stdin: str = "", ok: tuple[int, ...] = (0,)) -> str:
    """Run a program to its end.

    :param argv: the program and its arguments.
    :param netns: the network namespace it runs in (None: ours).
    :param stdin: what it reads.
    :param ok: exit statuses that are no failure.
    :return: its standard output.
    :raises CommandError: any other exit status; carries what the program said.
    :raises MachineError: the program is not installed.
    """
    command, words = _command(argv, netns)
    try:
        done = command(*words, _in=stdin, _ok_code=list(ok), _return_cmd=True, _decode_errors="replace", **_PIPES)
    except sh.ErrorReturnCode as error:
        said = (error.stderr or error.stdout).decode(errors="replace")
        raise CommandError(list(argv), error.exit_code, said) from None
    return str(done.stdout.decode(errors="replace"))


def _read_lines(reader: int, take: Callable[[str], None]) -> None:
    """Read a pipe to its end, line by line."""
    with os.fdopen(reader, encoding="utf-8", errors="replace", newline="\n") as stream:
        for line in stream:
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
            _done=lambda *_: self._ended.set(),
            **_PIPES,
        )
        for writer in writers:
            writer.close()
        for thread in self._readers:
            thread.start()
        self.pid: int = self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs (or its output is still being read)."""
        return not self._ended.is_set() or any(thread.is_alive() for thread in self._readers)

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

    def wait(self, limit_s: float | None) -> bool:
        """Wait for its end, at most ``limit_s`` seconds (None: as long as it takes).

        :return: whether it has ended.
        """
        started_s = time.monotonic()
        self._ended.wait(limit_s)
        for thread in self._readers:
            thread.join(None if limit_s is None else max(limit_s - (time.monotonic() - started_s), 0))
        return not self.alive

    def end(self, limit_s: float = 2.0) -> None:
        """Make sure that it and what it started are gone: SIGTERM, and SIGKILL after ``limit_s`` seconds."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            if not self.alive:
                break
            try:
                self._process.signal_group(signum)
            except ProcessLookupError:
                break
            self.wait(limit_s)
        self._stdin.put(None)
