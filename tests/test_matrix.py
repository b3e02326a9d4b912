"""bench/matrix.py without its machines: the comparison with golden.json, the tables, the cache."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from bench import matrix
from kproxylat.errors import MachineError

FOUND: dict[str, Any] = {
    "kernel": "6.1.0-56-amd64",
    "bpftrace": "v0.17.0",
    "lookups": {"iptables/legacy fentry 10": 2106, "iptables/legacy fentry 1000": 27846, "ipvs/ipvs fentry 10": 3000},
}


@pytest.mark.parametrize(("name", "by", "differs"), [
    ("iptables/legacy fentry 10", 1, True),
    ("iptables/legacy fentry 10", -1, True),
    ("ipvs/ipvs fentry 10", 200, False),
    ("ipvs/ipvs fentry 10", 201, True),
])  # fmt: skip
def test_a_changed_integer_is_told(name: str, by: int, differs: bool) -> None:
    now = copy.deepcopy(FOUND)
    now["lookups"][name] += by
    said = matrix.compare("6.1/bookworm", FOUND, now)
    assert said == ([f"6.1/bookworm: {name} {FOUND['lookups'][name]} -> {now['lookups'][name]}"] if differs else [])


def test_whatever_is_missing_or_new_is_told() -> None:
    now = copy.deepcopy(FOUND)
    del now["lookups"]["ipvs/ipvs fentry 10"]
    now["kernel"] = "6.1.0-57-amd64"
    assert matrix.compare("6.1/bookworm", FOUND, now) == [
        "6.1/bookworm: kernel 6.1.0-56-amd64 -> 6.1.0-57-amd64",
        "6.1/bookworm: ipvs/ipvs fentry 10 3000 -> None",
    ]
    assert matrix.compare("6.1/bookworm", None, now) == ["6.1/bookworm: not in golden.json"]


def test_the_table_has_a_column_for_each_place_and_fits() -> None:
    older = {"kernel": "5.10.0-32-amd64", "bpftrace": "v0.23.2", "lookups": {"iptables/legacy kprobe 10": 3000}}
    lines = matrix.draw(dict.fromkeys(matrix.PLACES[:5], FOUND) | {"6.12/trixie": older}).splitlines()
    assert lines[0].split() == ["Linux", *["6.1"] * 5, "5.10"]
    assert lines[1].split() == ["bpftrace", *["0.17"] * 5, "0.23"]
    assert [line.split()[2] for line in lines[2:]] == ["10", "1000", "10", "10"]
    assert lines[2].split() == ["iptables/legacy", "fentry", "10", *["2,106"] * 5, "-"]
    assert max(map(len, lines)) <= 80


def test_a_new_version_of_a_program_differs() -> None:
    now = {**FOUND, "iptables": "1.8.13"}
    assert matrix.compare("6.1/bookworm", FOUND, now) == ["6.1/bookworm: iptables None -> 1.8.13"]


def test_the_readme_has_the_tables_of_golden() -> None:
    golden, text = json.loads(matrix.GOLDEN.read_text()), matrix.README.read_text()
    assert matrix.document(text, golden) == text
    for place, result in golden.items():
        assert f"| {place} | {result['kernel']} |" in text
    changed = {place: {**result, "nft": "9.9"} for place, result in golden.items()}
    assert matrix.document(text, changed) != text


def test_golden_is_what_a_sweep_of_all_backends_makes() -> None:
    golden = json.loads(matrix.GOLDEN.read_text())
    assert golden.keys() == set(matrix.PLACES)
    for place, found in golden.items():
        kernel = place.split("/")[0]
        kinds = {"kprobe"} if kernel in matrix.UNTYPED else {"fentry", "kprobe"}
        assert kernel in matrix.MOVING or found["kernel"].startswith(f"{kernel}.")
        assert {name.split()[1] for name in found["lookups"]} == kinds
        assert len(found["lookups"]) == 4 * len(kinds) * len(matrix.SERVICES.split(","))


def test_a_cache_that_was_not_finished_is_made_anew(tmp_path: Any) -> None:
    def fail(part: Any) -> None:
        (part / "half").touch()
        raise MachineError("no")

    with pytest.raises(MachineError):
        matrix.make(tmp_path / "root", fail)
    assert not (tmp_path / "root").exists()
    made = matrix.make(tmp_path / "root", lambda part: (part / "whole").touch())
    assert [each.name for each in made.iterdir()] == ["whole"]
    assert matrix.make(made, fail) == made
