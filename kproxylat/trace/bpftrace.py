"""bpftrace: its version and abilities, and a run of it from its start to the events that it lost."""

from __future__ import annotations

import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from kproxylat.console import waiting
from kproxylat.errors import MachineError, TemplateError
from kproxylat.system import interrupts
from kproxylat.system.kernel import detect_clock
from kproxylat.system.processes import Background, find
from kproxylat.trace.engine import find_map_limit
from kproxylat.trace.script import Script

ATTACH_S = 4
ATTACH_LIMIT_S = 120
STOP_LIMIT_S = 180
OVERHEARD_S = 1.0
"""Time for bpftrace to close its first probe after SIGINT; after this time, the signal counts as lost."""
KEEP_CHARS = 64 << 20
"""Limit of the lines of stdout in memory; a map of 65,536 keys takes 3 MiB."""
LOG_CHARS = 1 << 30
"""Limit of the lines in the log, for a script that prints without end; later lines are only in memory."""
ATTACHED = re.compile(r"^(__BPFTRACE_NOTIFY_PROBES_ATTACHED|Attached \d+ probes?)\b")
"""The line that confirms that all probes are attached, on stdout or stderr. Up to 0.23 an environment variable requests
it; 0.24 and later print it anyway (bpftrace, src/bpftrace.cpp)."""

REMEDIES = {
    "'linux/types.h' file not found": "without this kernel's types (BTF) bpftrace needs C headers: "
    "apt-get install linux-libc-dev, or dnf install kernel-headers",
}
"""Part of bpftrace's error -> remedy (0.17 on Linux 5.10)."""

_ERROR = re.compile(r"^\S*:(\d+):\d+(?:-\d+)?: ERROR: (.+)", re.M)
"""An error in the script, e.g. ``stdin:3:2-9: ERROR: Unknown function: 'foo'`` (bpftrace, src/log.cpp)."""


FILES = "/proc/{}/fdinfo"
_MISSES = re.compile(r"^(?:recursion_misses|missed):\s*(\d+)", re.M)
"""Calls that the kernel did not pass to a BPF program (kernel, kernel/bpf/syscall.c, bpf_prog_show_fdinfo; since 5.12),
or to a link of kprobes (kernel/trace/bpf_trace.c)."""


class LineBuffer:
    """Buffer between bpftrace and the log, which limits both the log and the lines in memory.

    :param on_line: receives each line for the log, up to :data:`LOG_CHARS`; where it returns False, the line is neither
        kept nor counted.
    :ivar stdout: the last lines of stdout, up to :data:`KEEP_CHARS`.
    :ivar stderr: the first 1,000 lines of stderr.
    :ivar forgotten: how many lines of stdout the buffer dropped.
    :ivar unlogged: how many lines came after :data:`LOG_CHARS`.
    """

    def __init__(self, on_line: Callable[[str], bool | None]) -> None:
        self.stdout: deque[str] = deque()
        self.stderr: list[str] = []
        self.forgotten = self.unlogged = 0
        self._on_line = on_line
        self._kept_chars = self._logged_chars = 0

    def add_out(self, line: str) -> None:
        """Add a line of stdout."""
        if not self._log(line):
            return
        self.stdout.append(line)
        self._kept_chars += len(line)
        while self._kept_chars > KEEP_CHARS:
            self._kept_chars -= len(self.stdout.popleft())
            self.forgotten += 1

    def add_err(self, line: str) -> None:
        """Add a line of stderr."""
        if self._log(line) and len(self.stderr) < 1000:
            self.stderr.append(line)

    def _log(self, line: str) -> bool:
        """Log a line within the limit; return whether to keep it."""
        if self._logged_chars >= LOG_CHARS:
            self.unlogged += 1
            return True
        if self._on_line(line) is False:
            return False
        self._logged_chars += len(line)
        return True


class Tracer(LineBuffer):
    """One run of bpftrace, with its output so far.

    :param script: the program's text; it goes in on stdin, so no file is left behind.
    :param on_line: see :class:`LineBuffer`; called from the threads that read the output.
    :ivar map_limit: how many keys a map may have.
    :ivar skipped: after :meth:`stop`, how many calls the kernel did not pass to the script; None if it does not count.
    """

    def __init__(self, script: Script, on_line: Callable[[str], bool | None]) -> None:
        super().__init__(on_line)
        self._script = script
        limit_name, self.map_limit = find_map_limit(detect_clock()[0])
        self.skipped: int | None = None
        self._attached = threading.Event()
        self._process = Background(
            "bpftrace",
            "-",
            on_out=partial(self._receive, self.add_out),
            on_err=partial(self._receive, self.add_err),
            env={limit_name: str(self.map_limit), "__BPFTRACE_NOTIFY_PROBES_ATTACHED": "1"},
        )
        self._process.write(script)
        self._process.write(None)

    def _receive(self, add: Callable[[str], None], line: str) -> None:
        if ATTACHED.match(line):
            self._attached.set()
        else:
            add(line)

    @property
    def pid(self) -> int:
        """The process id of bpftrace."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether bpftrace still runs."""
        return self._process.alive

    @property
    def words(self) -> str:
        """The lines of stderr for a message: those with ERROR, or else all; 400 characters."""
        lines = [line.strip() for line in self.stderr if line.strip() and "RLIMIT_MEMLOCK" not in line]
        errors = [line for line in lines if "ERROR" in line]
        return " / ".join(errors or lines)[:400] or "(it printed nothing)"

    def wait_attached(self, limit_s: float = ATTACH_LIMIT_S) -> None:
        """Wait until all probes are attached.

        :raises TemplateError: the script does not compile.
        :raises MachineError: bpftrace ended, or did not attach within ``limit_s`` seconds.
        """
        waited_s = 0.0
        while not interrupts.wait(self._attached, 0.1):
            waited_s += 0.1
            if not self.alive and not self._attached.is_set():
                self._check_compiled()
                status = self._process.status
                message = f"bpftrace ended before its probes were attached (status {status}): {self.words}"
                raise MachineError(message, next((remedy for part, remedy in REMEDIES.items() if part in message), ""))
            if waited_s > limit_s:
                self._process.end()
                raise MachineError(f"bpftrace attached no probes within {limit_s:.0f} s: {self.words}")

    def _check_compiled(self) -> None:
        """Raise the script's first error, with the line of the template that it comes from."""
        errors = _ERROR.findall("".join(self.stderr))
        if errors:
            line, message = int(errors[0][0]), errors[0][1]
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            text = "".join(self._script.split("\n")[line - 1 : line]).strip()
            remedy = f"bpftrace does not compile: {text[:200]}\n  kproxylat render prints the whole script"
            raise TemplateError(f"{self._script.locate(line)}: {message}{more}", remedy)

    def wait(self, limit_s: float | None, enough: threading.Event | None = None) -> None:
        """Wait for ``limit_s`` seconds (None: no limit), or until bpftrace ends or the event ``enough`` is set."""
        self._process.wait(limit_s, enough)

    def stop(self, limit_s: float = STOP_LIMIT_S, detach_s: float = STOP_LIMIT_S) -> None:
        """Make bpftrace print its maps and end, by SIGINT.

        In 0.17 and before, bpftrace loses a signal that comes outside ``epoll_wait``: the loop ends only when that
        returns EINTR (src/bpftrace.cpp, poll_perf_events). After a signal that it has received, bpftrace closes its
        probes. As long as it holds as many files as before, it gets the signal again. A second signal after a received
        one would end it before it prints.

        :param detach_s: after this time bpftrace is killed if it has not begun to close its probes.
        :raises MachineError: bpftrace had died before, did not end within ``limit_s`` seconds, or failed.
        """
        if not self.alive:
            raise MachineError(f"bpftrace died while tracing (status {self._process.status}): {self.words}")
        self.skipped = self._count_skipped()
        opened, waited_s = self._process.count_files(), 0.0
        ends_s = min(limit_s, detach_s)
        while self._process.count_files() >= opened and waited_s < ends_s:
            self._process.signal(signal.SIGINT)
            step_s = min(OVERHEARD_S, ends_s - waited_s)
            waited_s += step_s
            if self._process.wait(step_s):
                break
        if self._process.count_files() < opened:
            ends_s = limit_s
        if not self._process.wait(ends_s - waited_s):
            self._process.end()
            raise MachineError(f"bpftrace did not end within {ends_s:.0f} s of SIGINT: {self.words}")
        self.check_end()

    def check_end(self) -> None:
        """Raise MachineError if bpftrace, which has ended, failed: a script may end itself."""
        if self._process.status != 0:
            raise MachineError(f"bpftrace failed at its end (status {self._process.status}): {self.words}")

    def _count_skipped(self) -> int | None:
        """Add up what the kernel says of the files that bpftrace holds open, its programs and links among them."""
        misses: list[str] = []
        with suppress(OSError):
            for file in Path(FILES.format(self._process.pid)).iterdir():
                misses += _MISSES.findall(file.read_text())
        return sum(map(int, misses)) if misses else None

    def end(self) -> None:
        """End bpftrace if it still runs."""
        self._process.end()


@contextmanager
def trace(script: Script, on_line: Callable[[str], bool | None]) -> Iterator[Tracer]:
    """Start bpftrace and wait until its probes are attached; end it at the end of the block.

    :param script: see :class:`Tracer`.
    :param on_line: see :class:`Tracer`.
    :raises TemplateError: the script does not compile.
    :raises MachineError: bpftrace is not installed, ended, or did not attach in time.
    """
    find("bpftrace")
    tracer = Tracer(script, on_line)
    try:
        with waiting("attaching the probes", ATTACH_S):
            tracer.wait_attached()
        yield tracer
    finally:
        tracer.end()


def count_lost(text: str) -> int:
    """Return how many events bpftrace reports as lost.

    :param text: the output on both streams.

    Samples: ``Lost 3 events`` (up to 0.23, stdout), ``WARNING: Total lost event count: 3`` (0.27, stderr).
    """
    totals = re.findall(r"^WARNING: Total lost event count: (\d+)", text, re.M)
    return int(totals[-1]) if totals else sum(map(int, re.findall(r"^Lost (\d+) events", text, re.M)))
