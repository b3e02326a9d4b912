"""Run logs in the form of the old scripts: ``logs/ebpf/ebpf_<mode>_<YYYYmmdd_HHMMSS>*.log``.

A log holds the old header, bpftrace's unchanged text, and the FINAL REPORT; the result lies beside it as ``.json``.
Raw output goes to disk first and is parsed second.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from kproxylat import __version__
from kproxylat.errors import MachineError
from kproxylat.logs.record import render_facts, render_record
from kproxylat.modes import Mode
from kproxylat.results import Probe, Result
from kproxylat.results_json import to_json
from kproxylat.system import kernel
from kproxylat.system.files import give_to_user, make_directory, write_new
from kproxylat.trace.engine import find_version
from kproxylat.trace.histogram import draw_buckets

RULE = "============================================"
WIDE_RULE = "===================================================="


class RunLog:
    """A log that is being written. No log or result is ever overwritten.

    :param directory: the directory of the log; created if it does not exist.
    :param mode: the middle of the file's name.
    :param started: the end of the old scripts' file names.
    :param facts: more words for the end of the name.
    :raises MachineError: the directory or the file cannot be written.
    """

    def __init__(self, directory: Path, mode: str, started: datetime, *facts: str) -> None:
        stem = "_".join(("ebpf", mode, f"{started:%Y%m%d_%H%M%S}", *facts))
        self.error: OSError | None = None
        make_directory(directory)
        try:
            for number in range(1000):
                self.path = directory / f"{stem}{f'_{number}' if number else ''}.log"
                if os.path.lexists(self.path.with_suffix(".json")):
                    continue
                try:
                    # "x" follows no symbolic link: the directory may be another user's.
                    self._file = self.path.open("x", encoding="utf-8", buffering=1)
                    break
                except FileExistsError:
                    continue
            else:
                raise FileExistsError(f"1,000 logs named {stem}")
        except OSError as error:
            raise MachineError(
                f"no log can be written in {directory}: {error.strerror or error}", "pass another --output-dir"
            ) from None
        give_to_user(self._file.fileno())

    def write(self, text: str) -> None:
        """Append lines or parts of lines. A full disk does not stop the run: ``error`` keeps the first failure."""
        try:
            self._file.write(text)
        except ValueError:
            # A program that is being ended may still print after the log was closed.
            if not self._file.closed:
                raise
        except OSError as error:
            self.error = self.error or error

    def save(self, result: Result) -> MachineError | None:
        """Append the record, close the log and write the result beside it.

        :return: the error if the result or a part of the log could not be written; the result can still be shown.
        """
        path = self.path.with_suffix(".json")
        self.write("\n" + render_record(result))
        try:
            self._file.close()
            write_new(path, to_json(result) + "\n")
        except OSError as error:
            self.error = self.error or error
        if not self.error:
            return None
        return MachineError(
            f"the result could not be saved whole in {path.parent}: {self.error.strerror}", "make room there"
        )

    def close(self) -> None:
        """Close the log; ``error`` keeps a failure."""
        try:
            self._file.close()
        except OSError as error:
            self.error = self.error or error


def log_header(mode: Mode, facts: Mapping[str, object], started: datetime, bpftrace: str | None = None) -> str:
    """Render the old scripts' header, followed by our own lines (versions, clock).

    :param facts: the old scripts' lines: name -> value.
    :param bpftrace: its version, or what stands in its place (None: it is looked up).
    :param started: when the run started.
    """
    clock, emulated = kernel.detect_clock()
    facts = {
        "Timestamp": f"{started:%Y-%m-%d %H:%M:%S}",
        **facts,
        "Clock": f"{clock}{' (emulated)' if emulated else ''}",
        "Kernel": kernel.release(),
        "bpftrace": bpftrace or find_version()[0],
        "kproxylat": render_facts(mode, __version__, clock),
    }
    body = "".join(f"{name}: {value}\n" for name, value in facts.items())
    return f"{RULE}\n  eBPF Kube-Proxy Latency Experiment\n{RULE}\n{body}{RULE}\n"


def render_report(mode: Mode, probe: Probe | None) -> str:
    """Render the old FINAL REPORT of one probe.

    :param mode: the mode, which names the report's section.
    :param probe: the probe of the lookup, if there is one.
    :return: the report, in whole microseconds, or in instructions on the instruction clock.
    """
    title, prefix = mode.report
    head = f"\n{WIDE_RULE}\n  FINAL REPORT\n{WIDE_RULE}\n\n--- {title} MODE ---\n"
    if probe is None or not probe.count or probe.min is None or probe.max is None or probe.mean is None:
        return f"{head}No {title.lower()} traffic observed.\n"
    unit, scale = ("us", 1000) if probe.unit == "ns" else (probe.unit, 1)
    figures = {"Min": probe.min, "Avg": probe.mean, "Max": probe.max}
    lines = [f"Total invocations: {probe.count}"]
    lines += [f"{name} latency: {round(value / scale)} {unit}" for name, value in figures.items()]
    values: Counter[int] = Counter()
    for value, count in (probe.values or {}).items():
        values[int(value) // scale] += count
    if values:
        lines += ["", "Latency distribution (logarithmic buckets):", f"@{prefix}_latency_{unit}:"]
        lines += _histogram(values, lambda value: (1 << value.bit_length() >> 1, 1 << value.bit_length()))
    if values and unit == "us":
        lines += ["", "Latency distribution (linear 0-100us, 5us buckets):", f"@{prefix}_latency_linear:"]
        lines += _histogram(values, lambda value: (value // 5 * 5, value // 5 * 5 + 5) if value < 100 else (100, None))
    return head + "\n".join(lines) + "\n"


def _histogram(values: Mapping[int, int], bounds: Callable[[int], tuple[int, int | None]]) -> list[str]:
    counts: Counter[tuple[int, int | None]] = Counter()
    for value, count in values.items():
        counts[bounds(value)] += count
    return draw_buckets((*edges, count) for edges, count in sorted(counts.items(), key=lambda item: item[0][0]))
