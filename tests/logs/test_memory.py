"""``parse`` holds to 200 MB, whatever the text: bench/parse_memory.py measures all kinds and forms."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxylat.logs.reader import read_log
from tests.support.bulky import KINDS, LIMIT_MB, measure_parse, write_bulky

pytestmark = pytest.mark.slow

SLOW = {"JSON nested", "JSON too deep", "JSON maps"}
"""Kinds that take a minute."""
DROPPED = {
    "one key", "one key of ends", "one key of brackets", "lines of keys", "a line without end", "tuples",
    "signs of a dialect", "JSON text without line ends", "sections", "long engines",
}  # fmt: skip
"""Kinds of which nothing long is kept: their 40 MB, once in memory, would exceed :data:`SMALL_MB`."""
SMALL_MB = 70


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.long] * (kind in SLOW)) for kind in KINDS])
def test_peak_memory(tmp_path: Path, kind: str) -> None:
    write_bulky(tmp_path / "bulky.log.gz", kind)
    peak_mb, status, err = measure_parse(tmp_path / "bulky.log.gz", "csv")
    assert status in (0, 1), err
    assert peak_mb <= (SMALL_MB if kind in DROPPED else LIMIT_MB)


@pytest.mark.parametrize("kind", ["runs of histograms", "runs of keys", "runs of long modes"])
def test_peak_memory_of_openmetrics(tmp_path: Path, kind: str) -> None:
    """It comes after the last run: what all of them hold is limited, and what is left out makes the status 1."""
    write_bulky(tmp_path / "bulky.log.gz", kind)
    peak_mb, status, err = measure_parse(tmp_path / "bulky.log.gz", "openmetrics")
    assert (status, peak_mb <= LIMIT_MB) == (1, True), (peak_mb, err)
    assert "pass fewer logs, or --format json" in err


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    log = tmp_path / "long.log"
    strings = "".join(f"@s[{key}]: {'x' * 900_000}\n" for key in range(20))
    log.write_text(f"Attaching 1 probe...\n\n\n{strings}@t: 1\n")
    [result] = read_log(str(log))
    assert len(result.maps["s"].entries) == 11
    assert any("@s is left out from here on" in warning for warning in result.quality.warnings)
