"""Hostile input costs itself: it is named with its file, the rest is read, and nothing ends with an internal error."""

from __future__ import annotations

import copy
import gzip
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kproxylat.analysis.comparable import REASONS
from kproxylat.analysis.compare import compare
from kproxylat.console import left_out
from kproxylat.errors import KproxylatError
from kproxylat.results_json import list_from_json, to_json
from kproxylat.sweep.state import STATE_FORMAT, State
from tests.results import COUNTED, LOGS
from tests.support import TESTS
from tests.support.command import Captured, call
from tests.support.odd import put, walk

ROW = {"lo": 1, "hi": 2, "count": 1}
NUMBER, TEXT = '"NUMBER"', '"TEXT"'
"""Places in a document where a hostile number or text is put."""
INPUTS: dict[str, tuple[str, str] | bytes] = {
    "1 lone surrogates": ("5", r'"a\ud800\udfffb\udc80"'),
    "2 a huge integer": ("9" * 4000, '"a"'),
    "3 an integer of 100,000 digits": ("9" * 100_000, '"a"'),
    "4 NaN": ("NaN", '"a"'),
    "5 Infinity": ("-Infinity", '"a"'),
    "6 a number beyond floats": ("1e999", '"a"'),
    "7 a negative count": ("-5", '"a"'),
    "8 a text for a number": ('"5"', '"a"'),
    "9 lists for both": ("[5]", "[]"),
    "10 a map for both": ('{"a": 5}', "{}"),
    "11 true for a number": ("true", '"a"'),
    "12 a number for a text": ("5", "7"),
    "13 nested 100,000 deep": ("[" * 100_000 + "]" * 100_000, '"a"'),
    "14 maps nested 100,000 deep": ('{"a":' * 100_000 + "1" + "}" * 100_000, '"a"'),
    "15 nested 900 deep": ("[" * 900 + "]" * 900, '"a"'),
    "16 escapes": ("5", r'"\u001b]0;x\u0007\u202e\u009b2J"'),
    "17 a text of 1 MB": ("5", f'"{"a" * 1_000_000}"'),
    "18 nothing": b"",
    "19 only the beginning": b'{"schema": "kproxylat/1", "results": [{"run"',
    "20 not UTF-8": b'{"schema": "\xff\xfe\x80"}',
    "21 zeros": b"\0" * 1000,
    "22 another schema": b'{"schema": ["kproxylat/1"]}',
    "23 a list": b"[1, 2]",
    "24 null": b"null",
    "25 the results are a text": b'{"schema": "kproxylat/1", "results": "abc"}',
    "26 the results are null": b'{"schema": "kproxylat/1", "results": [null, 5, "a", [], {}]}',
    "27 a gzip that is cut": gzip.compress(b'{"schema": "kproxylat/1"}' * 100)[:40],
    "28 brackets only": b"{" * 200_000,
}
HARMLESS = {"16 escapes", "17 a text of 1 MB"}
"""Inputs that are odd but possible."""


def fill(document: Any, name: str) -> bytes:
    """Put a hostile number and text into a document, or return the hostile input alone."""
    row = INPUTS[name]
    if isinstance(row, bytes):
        return row
    return json.dumps(document).replace(NUMBER, row[0]).replace(TEXT, row[1]).encode()


def results(*, whole: bool = True) -> dict[str, Any]:
    """Return a document whose first result has the places; the others are as measured."""
    document: dict[str, Any] = json.loads(COUNTED.read_bytes())
    document = {"schema": document["schema"], "results": copy.deepcopy(document["results"][:3])}
    first = document["results"][0]
    first["probes"][0]["count"], first["run"]["kernel"] = "NUMBER", "TEXT"
    return document if whole else {"schema": document["schema"], **first}


def write_results(directory: Path, name: str) -> list[str]:
    (directory / "input.json").write_bytes(fill(results(), name))
    return [str(directory / "input.json"), str(COUNTED), "--allow", "kernel"]


def write_comparison(directory: Path, name: str) -> list[str]:
    document = json.loads((TESTS / "documents/comparison-1.json").read_bytes())
    document["comparisons"][0]["a"]["runs"], document["comparisons"][0]["unit"] = "NUMBER", "TEXT"
    (directory / "input.json").write_bytes(fill(document, name))
    return [str(directory / "input.json"), "--output", str(directory / "picture.svg")]


def write_log(directory: Path, name: str) -> list[str]:
    log = LOGS[0].read_bytes()
    record = b"kproxylat record: " + fill(results(whole=False), name)
    (directory / "input.json").write_bytes(log[: log.rindex(b"kproxylat record: ")] + record + b"\n")
    return [str(directory / "input.json"), "--format", "openmetrics"]


def write_events(directory: Path, name: str) -> list[str]:
    maps = {"type": "map", "data": {"@n": {"NUMBER": "NUMBER", "TEXT": "TEXT"}}}
    rows = {"type": "hist", "data": {"@h": [{"min": "NUMBER", "max": "NUMBER", "count": "NUMBER"}]}}
    good = b'{"type": "attached_probes", "data": {"probes": 2}}\n{"type": "map", "data": {"@ok": 1}}\n'
    lines = [good, *(fill(line, name) + b"\n" for line in (maps, rows)), good]
    (directory / "input.json").write_bytes(b"".join(lines))
    return [str(directory / "input.json"), "--format", "csv"]


def write_ruleset(directory: Path, name: str) -> list[str]:
    document = json.loads((TESTS / "documents/ruleset-1.json").read_bytes())
    document["texts"]["nft"][1], document["texts"]["iptables-save"] = "TEXT", ["TEXT"]
    document["backend"] = "TEXT" if name in HARMLESS else document["backend"]
    document["texts"]["ipset"] = ["NUMBER"]
    (directory / "input.json").write_bytes(fill(document, name))
    return [str(directory / "input.json"), "--dry-run"]


READERS = {
    "compare": write_results,
    "plot": write_comparison,
    "parse": write_log,
    "parse --prints all": write_events,
    "whatif": write_ruleset,
}
TOLERANT = {"parse", "parse --prints all"}
"""A log is what others' programs print: what cannot be read in it makes a warning."""


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("name", INPUTS)
def test_hostile_input(capsys: Captured, tmp_path: Path, name: str, command: str) -> None:
    arguments = READERS[command](tmp_path, name)
    if command == "parse --prints all":
        arguments = arguments[:1]
    status, out, err = call(capsys, *command.split(), *arguments)
    assert all(char.isprintable() or char in "\n\t" for char in out + err)
    assert status in (0, 1), err[-3000:]
    if status:
        assert "input.json" in err, err[-3000:]
    if command == "compare":
        # The other two results are compared, unless there is no document to read them from.
        is_document = isinstance(INPUTS[name], tuple) and "100,000 deep" not in name
        assert status == (name not in HARMLESS)
        assert ("B - A" in out) == is_document, err[-3000:]
        assert not status or ("results[0].probes[0].count" in err or "results[0].run.kernel" in err) == is_document


@pytest.mark.parametrize("name", INPUTS)
def test_hostile_state(capsys: Captured, tmp_path: Path, name: str) -> None:
    """One bad line, one bad result and one whole bad file cost themselves; the good run is resumed."""
    good = json.loads(COUNTED.read_bytes())["results"][1]
    (tmp_path / "good.json").write_text(to_json(list_from_json(COUNTED.read_bytes())[1]))
    (tmp_path / "bad.json").write_bytes(fill(results(whole=False), name))
    head = {"format": STATE_FORMAT, "options": {}, "seed": None}
    row = {"point": ["iptables/legacy", 10, 0], "seconds": 1, "result": "good.json"}
    bad = fill({"point": ["TEXT", "NUMBER", "NUMBER"], "seconds": "NUMBER", "result": "good.json"}, name)
    lines = [json.dumps(head).encode(), bad, json.dumps(row | {"point": ["a", 1, 1], "result": "bad.json"}).encode()]
    (tmp_path / "sweep_2.state").write_bytes(b"\n".join([*lines, json.dumps(row).encode()]))
    (tmp_path / "sweep_3.state").write_bytes(fill(head | {"options": "NUMBER", "seed": "TEXT"}, name))
    left_out.clear()
    state = State(tmp_path, {}, None, fresh=False)
    assert ("iptables/legacy", 10, 0) in state.results
    assert good["run"]["kernel"] == state.results["iptables/legacy", 10, 0].run.kernel  # type: ignore[index]
    err = capsys.readouterr().err
    assert all(char.isprintable() or char in "\n\t" for char in err)
    assert name in HARMLESS or "bad.json" in err
    left_out.clear()


ODD_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 1 << 63, 1 << 64, 10**4000, 0.0, -0.5, 1e308, float("nan"), float("inf"), "", "a"),
    *("\ud800", [], [0], {}, {"a": 1}, {"5": 0}, {"-5": 5}, [[[]]], "instructions", "ns", "us"),
)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["counted.json", "timed.json.gz"])
def test_any_value_anywhere(tmp_path_factory: pytest.TempPathFactory, source: str) -> None:
    """Whatever a place of a result holds, comparing it works or names the file."""
    path = TESTS / "results" / source
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    first = {"schema": "kproxylat/1", **json.loads(text)["results"][0]}
    first["maps"] = {
        "h": {"kind": "hist", "entries": [{"key": [1], "value": {"count": 1, "buckets": [ROW]}}]},
        "s": {"kind": "stats", "entries": [{"key": [], "value": {"count": 0, "average": 0, "total": 0}}]},
    }
    directory = tmp_path_factory.mktemp("values")
    (directory / "whole.json").write_text(json.dumps(first))
    number = sum(1 for _ in walk(first))

    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.integers(0, number - 1), st.sampled_from(ODD_VALUES)), min_size=1, max_size=2))
    def check(changes: list[tuple[int, Any]]) -> None:
        document = first
        for at, value in changes:
            places = list(walk(document))
            document = put(document, places[at % len(places)], value)
        (directory / "changed.json").write_text(json.dumps(document))
        for pair in (("changed.json", "whole.json"), ("whole.json", "changed.json")):
            with suppress(KproxylatError):
                compare(*(str(directory / name) for name in pair), allowed=REASONS)

    check()
    left_out.clear()
