"""bpftrace: its version and abilities; start it, know when it is ready, stop it, find what it lost."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

from kproxylat.errors import MachineError, TemplateError
from kproxylat.kernel import detect_clock
from kproxylat.modes import Mode
from kproxylat.proc import Background, find, run

ATTACH_LIMIT_S = 120
STOP_LIMIT_S = 60
MAX_MAP_KEYS = {"ns": 65536, "instructions": 8192}
"""Keys of a map, by clock: nanoseconds have many distinct values, instructions few; making the maps takes time."""
MIN_VERSION = (0, 17)
ATTACHED = re.compile(r"^(__BPFTRACE_NOTIFY_PROBES_ATTACHED|Attached \d+ probes?)\b")
"""The line that says that all probes are attached: on stdout or stderr, asked for by an environment variable up to
0.23; from 0.24 on printed by itself (bpftrace, src/bpftrace.cpp)."""


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


def probe_words(version: tuple[int, int]) -> tuple[str, str, str]:
    """Return this version's words for fentry and fexit, and how it writes an argument ("args->" or "args.")."""
    return ("fentry", "fexit", "args.") if version >= (0, 21) else ("kfunc", "kretfunc", "args->")


@lru_cache
def check_function(mode: Mode, module: str) -> None:
    """Make sure that the engine's function can be traced and has the arguments that we expect.

    :raises MachineError: this kernel lacks it, or its arguments are others.
    """
    entry = probe_words(find_version()[1])[0]
    probe = f"{entry}:{module}:{mode.engine}"
    listed = run("bpftrace", "-lv", probe, ok=(0, 1)).splitlines()
    if not any(line.strip() == probe for line in listed):
        raise MachineError(
            f"this kernel has no function {mode.engine} that can be traced", "another kernel is needed: try --lab --vm"
        )
    names = tuple(line.split()[-1].lstrip("*") for line in listed if line.startswith("    ") and "retval" not in line)
    if names != mode.layout:
        raise MachineError(
            f"{mode.engine} of this kernel takes ({', '.join(names)}), not ({', '.join(mode.layout)})",
            "this kernel is not supported yet: try --lab --vm",
        )


def find_map_limit(clock: str) -> tuple[str, int]:
    """Return the setting that limits a map's keys, as this version names it, and its value: the user's or ours.

    :param clock: "ns" or "instructions".

    :raises MachineError: the user's is no number.
    """
    name = "BPFTRACE_MAX_MAP_KEYS" if find_version()[1] >= (0, 20) else "BPFTRACE_MAP_KEYS_MAX"
    value = os.environ.get(name, str(MAX_MAP_KEYS[clock]))
    if not value.isdecimal():
        raise MachineError(f"the environment has {name}={value[:20]!r}", "it takes a number, or unset it")
    return name, int(value)


class Tracer:
    """bpftrace at work on one script.

    :param script: the program's text, which goes in on standard input: no file is left by anything.
    :param on_line: receives every line that it prints, on either stream, as it comes.
    :ivar stdout: the lines of standard output so far. ``stderr``: those of standard error, the first 1,000.
    :ivar map_limit: how many keys a map may have.
    """

    def __init__(self, script: str, on_line: Callable[[str], None]) -> None:
        self.stdout: list[str] = []
        self.stderr: list[str] = []
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
        else:
            self._on_line(line)
            self.stdout.append(line)

    def _err(self, line: str) -> None:
        if ATTACHED.match(line):
            self._attached.set()
        else:
            self._on_line(line)
            if len(self.stderr) < 1000:
                self.stderr.append(line)

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
        while not self._attached.wait(0.1):
            waited_s += 0.1
            if not self.alive and not self._attached.is_set():
                said = f"bpftrace ended before its probes were attached (status {self._process.status}): {self.words}"
                if re.search(r"^\S+:\d+:\d+(-\d+)?: ERROR", "".join(self.stderr), re.M):
                    raise TemplateError(said, "the script does not compile: see `kproxylat render`")
                raise MachineError(said)
            if waited_s > limit_s:
                self._process.end()
                raise MachineError(f"bpftrace attached no probes within {limit_s:.0f} s: {self.words}")

    def wait(self, limit_s: float | None) -> None:
        """Let it trace for ``limit_s`` seconds (None: until it ends by itself)."""
        self._process.wait(limit_s)

    def stop(self, limit_s: float = STOP_LIMIT_S) -> None:
        """Let it print its maps and end: SIGINT.

        :raises MachineError: it had died before, or did not end within ``limit_s`` seconds.
        """
        if not self.alive:
            raise MachineError(f"bpftrace died while tracing (status {self._process.status}): {self.words}")
        self._process.signal(signal.SIGINT)
        if not self._process.wait(limit_s):
            self._process.end()
            raise MachineError(f"bpftrace did not end within {limit_s:.0f} s of SIGINT: {self.words}")
        if self._process.status != 0:
            raise MachineError(f"bpftrace failed at its end (status {self._process.status}): {self.words}")

    def end(self) -> None:
        """Make sure that it is gone."""
        self._process.end()


@contextmanager
def trace(script: str, on_line: Callable[[str], None]) -> Iterator[Tracer]:
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
