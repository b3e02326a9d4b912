"""Coverage-guided fuzzing of the parsers, by hand: ``python tests/trace/fuzz_dump.py -max_total_time=600 CORPUS_DIR``.

Needs atheris, which is no dependency. Only the documented errors may come out; docs/logs.md records the last run.
"""

from __future__ import annotations

import io
import sys

import atheris

with atheris.instrument_imports():
    from kproxylat.errors import LogError
    from kproxylat.logs.reader import LogReader
    from kproxylat.trace.dump import parse_dump


def run_one(data: bytes) -> None:
    """Read one input as a dump and as a log."""
    parse_dump(data.decode(errors="backslashreplace"))
    try:
        list(LogReader("fuzz").read(io.BytesIO(data)))
    except LogError:
        return


if __name__ == "__main__":
    atheris.Setup(sys.argv, run_one)
    atheris.Fuzz()
