"""reproduce, from outside, on this machine's own kernel."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.namespaces import run_alone, run_python

pytestmark = pytest.mark.slow

[README_COMMAND] = re.findall(r"`kproxylat reproduce ([^`]+)`", (ROOT / "README.md").read_text())


@pytest.mark.parametrize("words", [README_COMMAND, pytest.param("tke-2026", marks=pytest.mark.long)])
def test_reproduce_measures_what_was_published(tmp_path: Path, words: str) -> None:
    done = run_alone("reproduce", *words.split(), "--format", "json", directory=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["name"] == words.split()[0]
    assert all(figure["published"] > 0 and figure["measured"]["estimate"] > 0 for figure in document["figures"])
    results = [json.loads(path.read_text()) for path in tmp_path.glob("ebpf_*.json")]
    assert results
    assert all(result["accounting"]["closed"] for result in results)
    assert len(list(tmp_path.glob("reproduce_*.png"))) == 1


def test_reproduce_lists_what_it_knows(tmp_path: Path) -> None:
    done = run_python("-m", "kproxylat", "reproduce", directory=tmp_path)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["k8s-blog-2025", "tke-2026"]


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    done = run_alone("reproduce", "../nowhere", directory=tmp_path)
    assert done.returncode == 2
    assert "k8s-blog-2025" in done.stderr
