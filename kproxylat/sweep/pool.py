"""Virtual machines that share a sweep's runs: one a processor on the instruction clock, whose counts do not depend on
how long a run takes."""

from __future__ import annotations

import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kproxylat.console import say, show
from kproxylat.errors import BOOKS_OPEN, BUG, Interrupted, KproxylatError, MachineError
from kproxylat.measure.options import Options
from kproxylat.results_json import from_json
from kproxylat.sweep.sweep import Done, Ended, Run, name_series, title
from kproxylat.system import interrupts
from kproxylat.system.files import make_directory
from kproxylat.system.virtual_machine import POLL_S, Machine, boot, find_release

MEMORY_KIB = 3 << 20
"""Memory of a machine: the guest's 2 GiB, and QEMU's translated code."""


def _read_error(text: str, status: int) -> tuple[str, str]:
    """Return the message and the remedy at the end of a command's stderr."""
    match = re.search(r"^kproxylat: (.*)\n(?:  (.*)\n)?\Z", text, re.M)
    return (match[1], match[2] or "") if match else (f"a run ended with status {status}: {text[-300:]}", "")


@dataclass
class _Worker:
    """A machine, and the runs that are left of its series."""

    machine: Machine
    runs: list[Run] = field(default_factory=list)

    def choose(self, series: list[list[Run]], workers: Sequence[_Worker]) -> Run | None:
        """Take the next run of this machine's series, whose rules it has loaded; else begin the next series.

        If all are begun, help with the longest one, but leave its last run to its own machine, which loads it faster.
        """
        if not self.runs and series:
            self.runs = series.pop(0)
        if self.runs:
            return self.runs.pop(0)
        longest = max((worker.runs for worker in workers), key=len)
        return longest.pop(0) if len(longest) > 1 else None


class _Echo(io.StringIO):
    """Text that is printed on stderr, too, as it comes."""

    def write(self, text: str) -> int:
        show(text, end="", file=sys.stderr, flush=True)
        return super().write(text)


class Pool:
    """Virtual machines that are booted when they are needed; each measures one series after another.

    :param order: returns the command line that measures a point and prints its result as JSON.
    :raises MachineError: as :class:`kproxylat.system.virtual_machine.Machine`.
    """

    def __init__(self, clock: str, image: Path | None, output_dir: Path, order: Callable[[Options], list[str]]) -> None:
        make_directory(output_dir)
        self._order = order
        self._make: Callable[[], Machine] = lambda: Machine(clock, output_dir, image)
        self._first = self._make()
        self.at_once = count_machines() if clock == "instructions" else 1

    def describe(self) -> dict[str, Any]:
        """As :class:`kproxylat.sweep.sweep.Place` says."""
        first = self._first
        return {"clock": [first.clock, not first.kvm], "kernel": find_release(first.image)}

    def measure(self, runs: Sequence[Run], begin: Callable[[Run], None]) -> Iterator[Done]:
        """As :class:`kproxylat.sweep.sweep.Place` says."""
        if not runs:
            return
        self.at_once = min(self.at_once, len(runs))
        series, cut_short = _split(runs), False
        # The stack ends the machines first, so that no thread waits for one any more.
        with interrupts.deferred(), ThreadPoolExecutor(self.at_once) as threads, ExitStack() as stack:
            machines = [self._first, *(self._make() for _ in range(self.at_once - 1))]
            boot(machines, stack)
            for machine in machines:
                # Otherwise each run would load it, and remove it at its end.
                machine.run(["modprobe", "--quiet", "pktgen"], sys.stdout, sys.stderr, program=True)
            idle = workers = [_Worker(machine) for machine in machines]
            busy: dict[Future[Done | None], _Worker] = {}
            while True:
                for worker in idle:
                    run = None if cut_short or interrupts.pending() else worker.choose(series, workers)
                    if run:
                        begin(run)
                        busy[threads.submit(self._measure, worker.machine, run)] = worker
                if not busy:
                    break
                # With a limit: Python would not handle a signal that came just before an endless wait.
                ended = wait(busy, POLL_S, FIRST_COMPLETED).done
                idle = [busy.pop(future) for future in ended]
                # Results first: an error ends the sweep.
                for future in sorted(ended, key=lambda each: each.exception() is not None):
                    done = future.result()
                    if not done:
                        continue
                    cut_short = cut_short or done.ended is not None
                    if self.at_once > 1:
                        _show(done)
                    yield done
            try:
                interrupts.check()
            except Interrupted:
                if not cut_short:
                    raise

    def _measure(self, machine: Machine, run: Run) -> Done | None:
        """Measure one run, in a thread of its own.

        :return: None if a signal ended it before it had a result.
        :raises KproxylatError: it failed.
        """
        begun_s, mode = time.monotonic(), run[0].mode
        out, err = io.StringIO(), io.StringIO() if self.at_once > 1 else _Echo()
        status = machine.run(self._order(run[0]), out, err, mode=(mode.name, mode.backend))
        text = out.getvalue()
        if not text and (status > 128 or interrupts.pending()):
            return None
        if not text and status not in (0, BOOKS_OPEN):
            error = KproxylatError(*_read_error(err.getvalue(), status))
            error.exit_code = status if status in (1, 2, BUG) else 1
            raise error
        ended: Ended = None
        if status > 128:
            ended = Interrupted(status - 128)
        elif status not in (0, BOOKS_OPEN):
            ended = MachineError(*_read_error(err.getvalue(), status))
        return Done(run, from_json(text), ended, time.monotonic() - begun_s)


def _show(done: Done) -> None:
    """Print a run's figure and warnings in place of its own output, which would mix with that of other machines."""
    lookup = done.result.headline
    middle = lookup.middle if lookup else None
    figure = "no lookup" if middle is None or not lookup else f"{middle:,.0f} {lookup.unit}"
    for text in (f"{figure}, {done.seconds:.0f} s", *(f"warning: {each}" for each in done.result.quality.warnings)):
        say(f"      {title(done.run[0])}: {text}")


def _split(runs: Sequence[Run]) -> list[list[Run]]:
    """Sort runs into series of one mode and backend, the fewest Services first: the rules grow from run to run.

    The longest series comes first: begun last, it would keep one machine busy while the others idle.
    """
    series: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda each: (each[0].where.services or 0, each[1])):
        series.setdefault(name_series(run[0]), []).append(run)
    return sorted(series.values(), key=lambda runs: runs[0][0].mode.loading_cost, reverse=True)


def count_machines() -> int:
    """Return how many machines the processors and the free memory allow."""
    free = re.search(r"^MemAvailable: +(\d+)", Path("/proc/meminfo").read_text(), re.M)
    return max(1, min(len(os.sched_getaffinity(0)), int(free[1]) // MEMORY_KIB if free else 1))
