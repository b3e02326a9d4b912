"""The state of a sweep on disk: the runs that are measured."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from datetime import datetime
from itertools import count
from math import isfinite
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from kproxylat.console import leave_out
from kproxylat.results import Result
from kproxylat.results_json import from_json, load_json
from kproxylat.system.files import append, explain_errors, make_directory, read_own, save_file

STATE_FORMAT = 2
"""Format of a state file. Other formats are not resumed; those of the first, which has no number, had texts as keys."""


class Key(NamedTuple):
    """The key of a run in a sweep's state; in the file it is a JSON list.

    :param series: mode and backend. ``services``: number of Services. ``repeat``: number of the repeat, from 0 on.
    """

    series: str
    services: int
    repeat: int

    def __str__(self) -> str:
        return f"{self.series} {self.services} {self.repeat}"


class State:
    """What of a sweep is measured already, on disk.

    :param directory: where logs and results lie.
    :param options: what must be the same for a run to count.
    :param seed: which must be the same, too (None: whichever was taken, else as ``shuffle`` says a new one, or none).
    :param fresh: leave older states alone.
    :raises MachineError: the directory cannot be written.
    """

    def __init__(
        self, directory: Path, options: dict[str, Any], seed: int | None, fresh: bool, shuffle: bool = False
    ) -> None:
        make_directory(directory)
        self.results: dict[Key, Result] = {}
        self.seconds: dict[Key, float] = {}
        for path in () if fresh else sorted(directory.glob("sweep_*.state"), reverse=True):
            if self._read(path, options, seed):
                return
        if seed is None and shuffle:
            seed = Random().getrandbits(32)  # noqa: S311 - chance for an order
        self.seed = seed
        self.path = _new_path(directory, ".state")
        save_file(self.path, json.dumps({"format": STATE_FORMAT, "options": options, "seed": seed}))

    def _read(self, path: Path, options: dict[str, Any], seed: int | None) -> bool:
        """Take over a state of the same options, with what it names and is still there, whole; its end may be torn."""
        try:
            head, *lines = read_own(path).decode(errors="backslashreplace").splitlines()
            begun = load_json(head)
            if begun["format"] != STATE_FORMAT or begun["options"] != options or seed not in (None, begun["seed"]):
                return False
            self.path, self.seed = path, begun["seed"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            leave_out(f"{path}: line 1: not the head of a sweep's state: {error}")
            return False
        for number, line in enumerate(lines, 2):
            run = _read_line(line)
            if run is None:
                # A killed run leaves the beginning of a line.
                if not line.startswith('{"point": ') or line.endswith("}"):
                    leave_out(f"{path}: line {number}: not a run; it is measured again")
                continue
            key, seconds, name = run
            try:
                self.results[key] = from_json((path.parent / name).read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                leave_out(f"{path.parent / name}: {error}; it is measured again")
                continue
            self.seconds[key] = seconds
        return True

    def add(self, key: Key, result: Result, seconds: float) -> None:
        """Note a run that is measured and saved."""
        self.results[key], self.seconds[key] = result, seconds
        if not result.run.cut_short and result.run.log:
            name = Path(result.run.log).with_suffix(".json").name
            with explain_errors(self.path):
                append(self.path, json.dumps({"point": key, "seconds": round(seconds, 1), "result": name}))

    def close(self, keys: Iterable[Key], text: str) -> Path:
        """Save the sweep's document, and forget the runs that are in it; also lines that cannot be read."""
        path = _new_path(self.path.parent, ".json")
        finished = set(keys)
        save_file(path, text + "\n")
        with explain_errors(self.path):
            head, *lines = read_own(self.path).decode(errors="backslashreplace").splitlines()
            unfinished = [line for line in lines if (run := _read_line(line)) and run[0] not in finished]
            self.path.unlink()
        if unfinished:
            save_file(self.path, "\n".join([head, *unfinished]))
        return path


def _read_line(line: str) -> tuple[Key, float, str] | None:
    """Return a run's key, its seconds and its result's file name from a line of a state; None for an invalid line."""
    try:
        run = load_json(line)
        series, services, repeat = run["point"]
        key, seconds = Key(str(series), int(services), int(repeat)), float(run["seconds"])
        is_possible = isfinite(seconds) and min(seconds, key.services, key.repeat) >= 0
        return (key, seconds, Path(run["result"]).name) if is_possible else None
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def _new_path(directory: Path, suffix: str) -> Path:
    """Name a file after the time; another one, where a sweep of the same second has that name, or its table."""
    stamp = f"sweep_{datetime.now().astimezone():%Y%m%d_%H%M%S}"
    paths = (directory / f"{stamp}{f'_{number}' if number > 1 else ''}{suffix}" for number in count(1))
    return next(path for path in paths if not any(map(os.path.lexists, (path, path.with_suffix(".csv")))))
