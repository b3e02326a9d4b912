"""bpftrace: its version and abilities; start it, know when it is ready, stop it, find what it lost."""

from __future__ import annotations

import os
import platform
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

from kproxylat import interrupts
from kproxylat.errors import MachineError, TemplateError
from kproxylat.kernel import IN_VM, btf_module, detect_clock, has_function, release, version_numbers
from kproxylat.modes import Engine, Mode
from kproxylat.proc import Background, find, run
from kproxylat.render import Script

ATTACH_LIMIT_S = 120
STOP_LIMIT_S = 180
OVERHEARD_S = 1.0
"""How long bpftrace may take to close the first of its probes after SIGINT, before it is taken not to have heard it."""
MAX_MAP_KEYS = {"ns": 65536, "instructions": 8192}
"""Keys of a map, by clock: nanoseconds have many distinct values, instructions few; making the maps takes time."""
MIN_VERSION = (0, 17)
KEEP_CHARS = 64 << 20
"""What is kept of standard output: maps of 65,536 keys take 3 MiB each."""
LOG_CHARS = 1 << 30
"""What is passed on to the log at most, should a script print without end; what comes after is kept in memory."""
ATTACHED = re.compile(r"^(__BPFTRACE_NOTIFY_PROBES_ATTACHED|Attached \d+ probes?)\b")
"""The line that says that all probes are attached: on stdout or stderr, asked for by an environment variable up to
0.23; from 0.24 on printed by itself (bpftrace, src/bpftrace.cpp)."""

REMEDIES = {
    "'linux/types.h' file not found": "without this kernel's types (BTF) it takes C headers: "
    "apt-get install linux-libc-dev, or dnf install kernel-headers",
}
"""Part of what bpftrace says when it ends early -> what mends it (0.17 on Linux 5.10)."""

_ERROR = re.compile(r"^\S*:(\d+):\d+(?:-\d+)?: ERROR: (.+)", re.M)
"""A mistake in the script, e.g. ``stdin:3:2-9: ERROR: Unknown function: 'foo'`` (bpftrace, src/log.cpp)."""


@lru_cache
def find_version() -> tuple[str, tuple[int, int]]:
    """Return the installed bpftrace's version, as it says and as numbers.

    :raises MachineError: it is not installed, or too old for fentry probes with a module's name.
    """
    text = run("bpftrace", "--version").strip()
    found = re.search(r"v?(\d+)\.(\d+)", text)
    if found is None:
        raise MachineError(f"bpftrace --version says {text[:80]!r}", "a bpftrace of 0.17 or newer is needed")
    version = int(found[1]), int(found[2])
    if version < MIN_VERSION:
        raise MachineError(f"{text} is too old", "a bpftrace of 0.17 or newer is needed")
    return text.removeprefix("bpftrace ").strip(), version


def probe_words(version: tuple[int, int], kind: str = "fentry") -> tuple[str, str, str]:
    """Return this version's words for entry and exit, and how it writes an argument ("args->", "args." or "arg")."""
    if kind == "kprobe":
        return "kprobe", "kretprobe", "arg"
    return ("fentry", "fexit", "args.") if version >= (0, 21) else ("kfunc", "kretfunc", "args->")


@lru_cache
def find_engine(mode: Mode, wanted: str) -> tuple[Engine, str]:
    """Find the functions that this kernel walks the rules with, and the kind of probe to trace them with.

    :param wanted: "fentry", "kprobe", or "auto": fentry where the kernel has the types (BTF) that it takes.
    :raises MachineError: this kernel lacks the functions, or their arguments are others.
    """
    for kind in ("fentry", "kprobe") if wanted == "auto" else (wanted,):
        problems = []
        for engine in mode.engines:
            problem = _check_typed(engine, mode) if kind == "fentry" else _check_untyped(engine)
            if not problem:
                return engine, kind
            problems.append(problem)
    raise MachineError(problems[0], f"another kernel is needed; or: {IN_VM}")


def _check_typed(engine: Engine, mode: Mode) -> str:
    """Return what keeps an fentry probe from these functions (nothing: "")."""
    for function in engine.functions:
        probe = f"{probe_words(find_version()[1])[0]}:{btf_module(mode.module)}:{function}"
        listed = run("bpftrace", "-lv", probe, ok=(0, 1)).splitlines()
        if not any(line.strip() == probe for line in listed):
            return f"this kernel has no function {function} that fentry can trace"
        taken = [line.split()[-1].lstrip("*") for line in listed if line.startswith("    ") and "retval" not in line]
        if tuple(taken) != engine.layout:
            return f"{function} of this kernel takes ({', '.join(taken)}), not ({', '.join(engine.layout)})"
    return ""


def _check_untyped(engine: Engine) -> str:
    """Return what keeps a kprobe from these functions (nothing: ""). Their arguments go by the kernel's version."""
    if platform.machine() != "x86_64":
        # The script finds a call by where x86-64's instruction call puts the return address.
        return f"kprobes are for x86-64, and this is {platform.machine()}: another place has the return address"
    if version_numbers() < engine.since:
        return f"this kernel ({release()}) is older than {'.'.join(map(str, engine.since))}"
    missing = [each for each in engine.functions if not has_function(each)]
    return f"this kernel has no function {missing[0]} that kprobe can trace" if missing else ""


def find_map_limit(clock: str) -> tuple[str, int]:
    """Return the setting that limits a map's keys, as this version names it, and its value: the user's or ours.

    :param clock: "ns" or "instructions".

    :raises MachineError: the user's is no number.
    """
    name = "BPFTRACE_MAX_MAP_KEYS" if find_version()[1] >= (0, 20) else "BPFTRACE_MAP_KEYS_MAX"
    value = os.environ.get(name, str(MAX_MAP_KEYS[clock]))
    if not (value.isascii() and value.isdecimal() and 0 < int(value[:11]) < 2**31):
        raise MachineError(f"the environment has {name}={value[:20]!r}", "it takes a number, or unset it")
    return name, int(value)


class Tracer:
    """bpftrace at work on one script.

    :param script: the program's text, which goes in on standard input: no file is left by anything.
    :param on_line: receives every line that it prints, on either stream, as it comes; where it returns False, the line
        is not kept in ``stdout``.
    :ivar stdout: the lines of standard output so far, of :data:`KEEP_CHARS` or more the last ones. ``stderr``: those of
        standard error, the first 1,000.
    :ivar forgotten: how many lines of standard output were more than could be kept.
    :ivar unlogged: how many lines came after :data:`LOG_CHARS`.
    :ivar map_limit: how many keys a map may have.
    """

    def __init__(self, script: Script, on_line: Callable[[str], bool | None]) -> None:
        self.stdout: deque[str] = deque()
        self.forgotten = self.unlogged = self._kept = 0
        self.stderr: list[str] = []
        self._script = script
        self._logged = 0
        limit_name, self.map_limit = find_map_limit(detect_clock()[0])
        self._on_line = on_line
        self._attached = threading.Event()
        self._process = Background(
            "bpftrace",
            "-",
            on_out=self._out,
            on_err=self._err,
            env={limit_name: str(self.map_limit), "__BPFTRACE_NOTIFY_PROBES_ATTACHED": "1"},
        )
        self._process.write(script)
        self._process.write(None)

    def _out(self, line: str) -> None:
        if ATTACHED.match(line):
            self._attached.set()
        elif self._log(line):
            self.stdout.append(line)
            self._kept += len(line)
            while self._kept > KEEP_CHARS:
                self._kept -= len(self.stdout.popleft())
                self.forgotten += 1

    def _err(self, line: str) -> None:
        if ATTACHED.match(line):
            self._attached.set()
        elif self._log(line) and len(self.stderr) < 1000:
            self.stderr.append(line)

    def _log(self, line: str) -> bool:
        """Pass a line on, while it is not too much that was wanted; return whether it is to be kept."""
        if self._logged >= LOG_CHARS:
            self.unlogged += 1
            return True
        wanted = self._on_line(line) is not False
        self._logged += len(line) if wanted else 0
        return wanted

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.alive

    @property
    def words(self) -> str:
        """What it said on standard error, for a message: the lines with ERROR, or the last ones."""
        lines = [each.strip() for each in self.stderr if each.strip() and "RLIMIT_MEMLOCK" not in each]
        wanted = [each for each in lines if "ERROR" in each] or lines
        return " / ".join(wanted)[:400] or "(it printed nothing)"

    def wait_attached(self, limit_s: float = ATTACH_LIMIT_S) -> None:
        """Wait until all probes are attached.

        :raises TemplateError: the script does not compile.
        :raises MachineError: it ended, or did not attach within ``limit_s`` seconds.
        """
        waited_s = 0.0
        while not interrupts.wait(self._attached, 0.1):
            waited_s += 0.1
            if not self.alive and not self._attached.is_set():
                self._check_compiled()
                status = self._process.status
                said = f"bpftrace ended before its probes were attached (status {status}): {self.words}"
                raise MachineError(said, next((remedy for sign, remedy in REMEDIES.items() if sign in said), ""))
            if waited_s > limit_s:
                self._process.end()
                raise MachineError(f"bpftrace attached no probes within {limit_s:.0f} s: {self.words}")

    def _check_compiled(self) -> None:
        """Say where in the templates bpftrace found the script wrong."""
        found = _ERROR.findall("".join(self.stderr))
        if found:
            line, message = int(found[0][0]), found[0][1]
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            text = "".join(self._script.split("\n")[line - 1 : line]).strip()
            remedy = f"bpftrace does not compile: {text[:200]}\n  kproxylat render prints the whole script"
            raise TemplateError(f"{self._script.locate(line)}: {message}{more}", remedy)

    def wait(self, limit_s: float | None, enough: threading.Event | None = None) -> None:
        """Let it trace for ``limit_s`` seconds (None: until it ends by itself), or until there is ``enough``."""
        self._process.wait(limit_s, enough)

    def stop(self, limit_s: float = STOP_LIMIT_S) -> None:
        """Let it print its maps and end: SIGINT.

        Up to 0.17 at least, the signal is lost that comes while bpftrace is not in ``epoll_wait``: only its return
        with EINTR ends the loop (src/bpftrace.cpp, poll_perf_events). What has heard it closes its probes; what holds
        as many files as before is asked again. A second signal to one that has heard would end it before it prints.

        :raises MachineError: it had died before, or did not end within ``limit_s`` seconds.
        """
        if not self.alive:
            raise MachineError(f"bpftrace died while tracing (status {self._process.status}): {self.words}")
        opened, waited_s = self._process.count_files(), 0.0
        while self._process.count_files() >= opened and waited_s < limit_s:
            self._process.signal(signal.SIGINT)
            step_s = min(OVERHEARD_S, limit_s - waited_s)
            waited_s += step_s
            if self._process.wait(step_s):
                break
        if not self._process.wait(limit_s - waited_s):
            self._process.end()
            raise MachineError(f"bpftrace did not end within {limit_s:.0f} s of SIGINT: {self.words}")
        if self._process.status != 0:
            raise MachineError(f"bpftrace failed at its end (status {self._process.status}): {self.words}")

    def end(self) -> None:
        """Make sure that it is gone."""
        self._process.end()


@contextmanager
def trace(script: Script, on_line: Callable[[str], bool | None]) -> Iterator[Tracer]:
    """Start bpftrace and wait until its probes are attached; end it when the block is left.

    :raises MachineError: as :meth:`Tracer.wait_attached`.
    """
    find("bpftrace")
    tracer = Tracer(script, on_line)
    try:
        tracer.wait_attached()
        yield tracer
    finally:
        tracer.end()


def count_lost(text: str) -> int:
    """Return how many events bpftrace says it lost.

    :param text: what it printed on both streams.

    Samples: ``Lost 3 events`` (up to 0.23, stdout), ``WARNING: Total lost event count: 3`` (0.27, stderr).
    """
    totals = [int(each) for each in re.findall(r"^WARNING: Total lost event count: (\d+)", text, re.M)]
    return totals[-1] if totals else sum(int(each) for each in re.findall(r"^Lost (\d+) events", text, re.M))
