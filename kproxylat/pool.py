"""Virtual machines that share a sweep's runs: on the instruction clock as many as there are processors, since what they
count does not depend on how long it takes."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kproxylat import interrupts
from kproxylat.errors import BOOKS_OPEN, BUG, Interrupted, KproxylatError, MachineError
from kproxylat.files import make_directory
from kproxylat.model import from_json
from kproxylat.plan import Options
from kproxylat.screen import say
from kproxylat.sweep import Done, Ended, Run, title
from kproxylat.vm import Machine, boot

MEMORY_KIB = 3 << 20
"""What a machine may take: the guest's 2 GiB, and what QEMU keeps of translated code."""


class RunError(KproxylatError):
    """A run in a machine failed.

    :param text: what it printed on stderr. ``status``: its exit status.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(*_read_error(text, status))
        self.exit_code = status if status in (1, 2, BUG) else 1


def _read_error(text: str, status: int) -> tuple[str, str]:
    """Return the message and the remedy with which a command ended."""
    found = re.search(r"^kproxylat: (.*)\n(?:  (.*)\n)?\Z", text, re.M)
    return (found[1], found[2] or "") if found else (f"a run ended with status {status}: {text[-300:]}", "")


@dataclass
class _Series:
    """Runs of one mode and backend, the fewest Services first, so that the rules of one grow to those of the next."""

    runs: list[Run]
    begun: bool = False


@dataclass
class _Worker:
    """A machine, the series that it measures, and its run under way: since when, and what it said."""

    machine: Machine
    series: _Series | None = None
    run: Run | None = None
    begun_s: float = 0
    said: dict[str, str] = field(default_factory=dict)

    def choose(self, every: list[_Series]) -> Run | None:
        """Take the next run: of the own series, whose rules stand here; else of the first one that nobody has begun;
        else of the one that keeps its own machine busy the longest, but for the last, which grows faster there.
        """
        if not self.series or not self.series.runs:
            self.series = next((each for each in every if not each.begun), None)
        if self.series:
            self.series.begun = True
            return self.series.runs.pop(0)
        most = max(every, key=lambda each: len(each.runs))
        return most.runs.pop(0) if len(most.runs) > 1 else None


class Pool:
    """Virtual machines, booted when they are needed, each of which takes one series after another.

    :param order: returns the command line that measures a point and prints its result as JSON.
    :raises MachineError: as :class:`kproxylat.vm.Machine`.
    """

    def __init__(self, clock: str, image: Path | None, output_dir: Path, order: Callable[[Options], list[str]]) -> None:
        make_directory(output_dir)
        self._order = order
        self._said = threading.Event()
        self._make: Callable[[], Machine] = lambda: Machine(clock, output_dir, image)
        self._first = self._make()
        self.at_once = count_machines() if clock == "instructions" else 1

    def describe(self) -> dict[str, Any]:
        """As :class:`kproxylat.sweep.Place` says."""
        first = self._first
        return {"clock": [first.clock, not first.kvm], "kernel": first.image.name.removeprefix("vmlinuz-")}

    def measure(self, runs: Sequence[Run], begin: Callable[[Run], None]) -> Iterator[Done]:
        """As :class:`kproxylat.sweep.Place` says."""
        self.at_once = min(self.at_once, len(runs))
        with interrupts.deferred(), ExitStack() as stack:
            machines = [self._first, *(self._make() for _ in range(self.at_once - 1))][: self.at_once]
            for machine in machines:
                machine.said = self._said
            if machines:
                boot(machines, stack)
            for machine in machines:
                # Else each run would load it, and remove it at its end.
                machine.run(["modprobe", "--quiet", "pktgen"], sys.stdout, sys.stderr, program=True)
            workers = [_Worker(each) for each in machines]
            series = _split(runs)
            interrupt: Interrupted | None = None
            ended = False
            while True:
                for each in workers:
                    following = None if each.run or interrupt or ended else each.choose(series)
                    if following:
                        each.run, each.begun_s, each.said = following, time.monotonic(), {}
                        begin(following)
                        mode = following[0].mode
                        each.machine.order(self._order(following[0]), mode=(mode.name, mode.backend))
                if not any(each.run for each in workers):
                    break
                try:
                    interrupts.wait(self._said, 0.5)
                except Interrupted as caught:
                    interrupt = caught
                    for each in workers:
                        each.machine.signal(caught.exit_code - 128)
                self._said.clear()
                for each in workers:
                    for done in self._listen(each):
                        ended = ended or done.ended is not None
                        yield done
        if interrupt and not ended:
            raise interrupt

    def _listen(self, worker: _Worker) -> Iterator[Done]:
        """Hear what a machine has said; its run may have ended with that."""
        for event in worker.machine.take():
            for stream, text in event.items():
                if stream == "status":
                    done = self._end(worker, text)
                    if done:
                        yield done
                    continue
                worker.said[stream] = worker.said.get(stream, "") + text
                if stream == "err" and self.at_once == 1:
                    print(text, end="", file=sys.stderr, flush=True)

    def _end(self, worker: _Worker, status: int) -> Done | None:
        """Take the result of a run that has ended; one that a signal ended early has none."""
        run, out, err = worker.run, worker.said.get("out", ""), worker.said.get("err", "")
        worker.run = None
        if status > 128 and not out:
            return None
        if not run or (status not in (0, BOOKS_OPEN) and not out):
            raise RunError(err, status)
        ended: Ended = None
        if status > 128:
            ended = Interrupted(status - 128)
        elif status not in (0, BOOKS_OPEN):
            ended = MachineError(*_read_error(err, status))
        result, took_s = from_json(out), time.monotonic() - worker.begun_s
        if self.at_once > 1:
            middle = result.lookup.middle if result.lookup else None
            figure = "no lookup" if middle is None or not result.lookup else f"{middle:,.0f} {result.lookup.unit}"
            for words in (f"{figure}, {took_s:.0f} s", *(f"warning: {each}" for each in result.quality.warnings)):
                say(f"      {title(run[0])}: {words}")
        return Done(run, result, ended, took_s)


def _split(runs: Sequence[Run]) -> list[_Series]:
    """Sort runs into series, the longest first, so that it is not the last one, when the other machines are idle."""
    series: dict[tuple[str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda each: (each[0].services or 0, each[1])):
        series.setdefault((run[0].mode.name, run[0].mode.backend), []).append(run)
    slowest_first = sorted(series.values(), key=lambda part: part[0][0].mode.loading_cost, reverse=True)
    return [_Series(part) for part in slowest_first]


def count_machines() -> int:
    """Return for how many machines there are processors and memory."""
    free = re.search(r"^MemAvailable: +(\d+)", Path("/proc/meminfo").read_text(), re.M)
    return max(1, min(len(os.sched_getaffinity(0)), int(free[1]) // MEMORY_KIB if free else 1))
