"""docs/rights.md: each guarantee names its tests, and they exist."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support import ROOT

ROWS = [line.strip("|").rsplit("|", 1) for line in (ROOT / "docs/rights.md").read_text().splitlines()
        if line.startswith("|") and ".py::" in line]  # fmt: skip


def test_there_are_guarantees() -> None:
    text = (ROOT / "docs/rights.md").read_text()
    guaranteed = text.partition("## What is guaranteed")[2]
    rows = [line for line in guaranteed.splitlines() if re.match(r"\| (?!guarantee)", line)]
    assert len(rows) == len(ROWS) > 30, "a row of the tables names no test"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip()[:60])
def test_the_tests_of_a_guarantee_exist(row: list[str]) -> None:
    for name in row[1].split(","):
        file, _, function = name.strip().partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name
