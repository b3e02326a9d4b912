"""Stored documents of each schema, as version 0.1.0 wrote them: every later version reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kproxylat.cli.app import main
from kproxylat.lab.ruleset import read_ruleset
from kproxylat.results_json import from_json, to_json
from tests.results import COUNTED, LOGS
from tests.support import TESTS

DOCUMENTS = TESTS / "documents"


def run_command(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command line that succeeds; return its stdout."""
    with pytest.raises(SystemExit) as ended:
        main([*argv])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    return out


def check_kept(new: Any, old: Any) -> None:
    """Check that a document has all that an older one has; it may have more members, but no more entries."""
    if isinstance(old, dict):
        assert set(old) <= set(new)
        for name, value in old.items():
            check_kept(new[name], value)
    elif isinstance(old, list):
        assert len(new) == len(old)
        for one, other in zip(new, old, strict=True):
            check_kept(one, other)
    else:
        assert new == old


def test_a_result_is_read_and_written_alike() -> None:
    text = (DOCUMENTS / "result-1.json").read_text()
    check_kept(json.loads(to_json(from_json(text))), json.loads(text))


def test_a_sweep_and_its_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    out = run_command(capsys, "compare", str(COUNTED), "--format", "json").replace(str(COUNTED), COUNTED.name)
    check_kept(json.loads(out), json.loads((DOCUMENTS / "comparison-1.json").read_text()))


def test_a_ruleset() -> None:
    ruleset = read_ruleset(DOCUMENTS / "ruleset-1.json", None, None)
    assert (ruleset.mode.name, len(ruleset.services)) == ("nftables", 5)


def test_a_sweep_is_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "sweep.svg"
    run_command(capsys, "plot", str(COUNTED), "--output", str(picture))
    assert picture.read_text().startswith("<?xml")


@pytest.mark.parametrize("log", LOGS, ids=lambda path: path.stem)
def test_a_log_gives_its_saved_result(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    document = json.loads(run_command(capsys, "parse", "--format", "json", str(log)))
    assert document["schema"] == "kproxylat/1"
    assert [result["accounting"]["closed"] for result in document["results"]] == [True]
