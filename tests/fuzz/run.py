"""Coverage-guided fuzzing of all targets, by hand: ``python -m tests.fuzz.run -max_total_time=1800 CORPUS_DIR``.

It needs the extra ``fuzz`` (atheris). The first byte of an input names the target. The input of each
crash is kept in the current directory. docs/logs.md records the last run.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kproxylat"]):
    from tests.fuzz.targets import SEEDS, TARGETS

NAMES = [*TARGETS]
CRASHES = set[str]()
COUNTS: Counter[str] = Counter()
STARTED_S = time.monotonic()


def run_one(data: bytes) -> None:
    """Hand one input to the target that its first byte names; report the counts now and then."""
    name = NAMES[data[0] % len(NAMES)] if data else NAMES[0]
    COUNTS[name] += 1
    if COUNTS.total() % 10_000 == 0:
        sys.stderr.write(f"{time.monotonic() - STARTED_S:.0f} s: {dict(COUNTS)}\n")
    try:
        TARGETS[name](data[1:])
    except Exception as error:
        # One line of code fails for many inputs: keep the first, and go on.
        place = traceback.extract_tb(error.__traceback__)[-1]
        crash = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno} by {name}"
        if crash not in CRASHES:
            CRASHES.add(crash)
            Path(f"crash-{len(CRASHES)}").write_bytes(data)
            sys.stderr.write(f"crash {len(CRASHES)}: {crash}: {error!s:.200}\n")


def write_seeds(directory: Path) -> None:
    """Write the inputs to begin with."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(NAMES):
        for path in SEEDS[name]:
            (directory / f"{name}-{path.name}").write_bytes(bytes([number]) + path.read_bytes()[:20_000])


if __name__ == "__main__":
    write_seeds(Path(sys.argv[-1]))
    atheris.Setup(sys.argv, run_one)
    atheris.Fuzz()
