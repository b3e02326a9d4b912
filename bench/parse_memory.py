"""Peak memory of ``kproxylat parse`` for hostile texts: ``python -m bench.parse_memory [KIND ...]`` (limit 200 MB)."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.support.bulky import KINDS, LIMIT_MB, measure_parse, write_bulky

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        for kind in sys.argv[1:] or KINDS:
            path = Path(directory) / "bulky.gz"
            write_bulky(path, kind)
            for form in ("table", "json", "csv", "openmetrics"):
                peak_mb, status, err = measure_parse(path, form)
                verdict = "" if peak_mb <= LIMIT_MB and status in (0, 1) else "  TOO MUCH"
                print(f"{kind}, {path.stat().st_size:,} bytes, {form}: {peak_mb:.0f} MB, status {status}{verdict}")
