"""Property tests of what people do to bpftrace's text: padding, foreign lines, equal keys, and text below it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kproxylat.logs.reader import LogReader, read_log
from kproxylat.results import Map, Result
from tests.support import TESTS

TEXTS = TESTS / "texts"
KEYS = ("a", "b", "vfs_read", "nat, 0", "x_1", "dd")
FOREIGN = st.sampled_from(
    [
        *(
            "dd: 1000 records in",
            "cat: write error: Broken pipe",
            "exiting",
            "$ exit",
            "[1/7] Building",
            "[000] n=1 ns",
        ),
        *(
            "[12345.678] usb 1-1: new device",
            "[...]",
            "    indented text",
            "\ttext",
            "#",
            "x" * 300,
            "\x1b[31mred\x1b[0m",
        ),
        *(
            "[2, 4)   x   1 |@@  |",
            "[1]    oops  3 |@@@|",
            "(..., 0)  ?? |",
            "user@host",
            "100%",
            "(see below)",
            "a: b",
        ),
    ]
)
PAD = st.sampled_from(["", " ", "   ", "\t", "\xa0", " \xa0 ", "\r", "\r\r", " " * 40])
settle = settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])


def draw_rows(counts: list[int], old: bool = False) -> str:
    """Write a histogram's rows from 1 on, and the blank line below them."""
    labels = ["[0, 1]" if old else "[1]", *(f"[{1 << at}, {2 << at})" for at in range(1, 10))]
    return (
        "".join(
            f"{label:<16} {count:7} |{'@' * (count % 9):9}|\n" for label, count in zip(labels, counts, strict=False)
        )
        + "\n"
    )


def draw_step(at: int, count: int) -> str:
    """Write a row of a linear histogram."""
    return f"[{at * 10}, {at * 10 + 10})  {count} |@|\n"


COUNTS = st.lists(st.integers(0, 10**6), min_size=1, max_size=6)
VALUES = {
    "int": st.integers(-5, 10**6).map(lambda number: f" {number}\n"),
    "hist": st.builds(lambda counts, head: f"{head}\n{draw_rows(counts)}", COUNTS, st.sampled_from(["", " "])),
    "stack": st.lists(st.sampled_from(["read+1", "write+22", "0xffffffff"]), min_size=1, max_size=4).map(
        lambda frames: " \n" + "".join(f"        {frame}\n" for frame in frames) + "\n"
    ),
    "stats": st.integers(1, 99).map(lambda count: f" count {count}, average 2, total {2 * count}\n"),
    "series": st.lists(st.integers(0, 9), min_size=1, max_size=3).map(
        lambda points: (
            "\n             0                  9\nhh:mm:ss |___________________|\n"
            + "".join(f"19:00:0{at} *                   | {point}\n" for at, point in enumerate(points))
            + "         v___________________v\n             0                  9\n\n"
        )
    ),
    "old": COUNTS.map(lambda counts: f" \n{draw_rows(counts, old=True)}"),
    "lhist": COUNTS.map(lambda counts: f"\n(..., 0)  2 |@|\n{''.join(map(draw_step, range(9), counts))}\n"),
    "tuple": st.integers(0, 99).map(lambda number: f" ({number}, ok, 0x10)\n"),
}


@st.composite
def dumps(draw: st.DrawFn, *, equal_keys: bool = False) -> list[str]:
    """Draw the dump at exit as lines: up to four maps in the order of their names, keyed or not, of any kind."""
    text = draw(
        st.sampled_from(["Attached 1 probe\n\n\n", "Attaching 2 probes...\n^C\n\n", "Attaching 1 probe...\nx\n\n\n"])
    )
    for name in sorted(draw(st.sets(st.sampled_from(["lat", "n", "us", ""]), min_size=1))):
        values = VALUES[draw(st.sampled_from(sorted(VALUES)))]
        if draw(st.booleans()):
            text += f"@{name}:{draw(values)}"
            continue
        frames = draw(st.sampled_from(["", "\n    a+1\n    b+2\n"])) if equal_keys else ""
        for key in draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=5, unique=not equal_keys)):
            text += f"@{name}[{frames or key}]:{draw(values)}"
        text += "\n" * text.endswith("total 2\n")
    return text.splitlines()


def read(lines: list[str]) -> Result:
    (result,) = LogReader("x").read(io.BytesIO("\n".join([*lines, ""]).encode()))
    return result


def rows(maps: dict[str, Map]) -> list[Any]:
    """List every entry's key and value."""
    return [(name, entry.key, entry.value) for name, content in maps.items() for entry in content.entries]


@settle
@given(dumps(equal_keys=True), st.data())
def test_padding_changes_nothing(lines: list[str], data: st.DataObject) -> None:
    padded = [line + data.draw(PAD) for line in lines]
    assert read(padded).maps == read(lines).maps


@settle
@given(dumps(equal_keys=True))
def test_no_break_spaces_and_tabs_read_as_spaces(lines: list[str]) -> None:
    plain = read(lines).maps
    assert read([line.replace(" ", "\xa0") for line in lines]).maps == plain
    assert read([line.replace("   ", "\t") if line.endswith("|") else line for line in lines]).maps == plain


@settle
@given(dumps(equal_keys=True), FOREIGN, st.data())
def test_a_foreign_line_anywhere_loses_no_row(lines: list[str], foreign: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(lines)))
    assert read([*lines[:at], foreign, *lines[at:]]).maps == read(lines).maps


@settle
@given(dumps(), st.lists(FOREIGN | st.just(""), max_size=6))
def test_text_below_the_dump_changes_nothing(lines: list[str], below: list[str]) -> None:
    assert read([*lines, "", *below]).maps == read(lines).maps


@settle
@given(dumps(equal_keys=True))
def test_equal_keys_keep_their_number(lines: list[str]) -> None:
    heads = sum(line.startswith("@") for line in lines)
    assert len(rows(read(lines).maps)) == heads


def simplify(content: Map) -> list[Any]:
    """List a map's entries as tests/texts/*.json do."""
    values = [entry.value for entry in content.entries]
    if content.kind in ("hist", "lhist"):
        values = [{content.kind: [list(bucket.values()) for bucket in value["buckets"]]} for value in values]
    return [[list(entry.key), value] for entry, value in zip(content.entries, values, strict=True)]


@pytest.mark.parametrize("name", sorted(path.stem for path in TEXTS.glob("*.json")))
def test_texts_as_people_have_them(name: str) -> None:
    (result,) = read_log(str(TEXTS / f"{name}.txt"))
    expected = json.loads((TEXTS / f"{name}.json").read_text())
    assert {map_name: simplify(content) for map_name, content in result.maps.items()} == expected["maps"]
    warnings = [warning for warning in result.quality.warnings if warning.startswith("line ")]
    assert [warning.split(":")[0] for warning in warnings] == expected.get("warned", [])


@pytest.mark.parametrize("head", ["@us:", "@us: ", "@us[a]:"])
@pytest.mark.parametrize("start", ["Attached 1 probe", "Attached 1 probe\n\n"])
@pytest.mark.parametrize("damaged", ["[1]     oops  3 |@@@|", "[1]    -3 |@@@|", "(...,x, 0)  ?", "\xff\xfe", "[1]  "])
def test_a_damaged_row_costs_itself_and_is_named(start: str, head: str, damaged: str) -> None:
    lines = [*start.split("\n"), head, damaged, "[2, 4)   1 |@@  |", "[4, 8)   9 |@@@ |", ""]
    result = read(lines)
    assert result.maps["us"].entries[0].value["count"] == 10
    line = lines.index(damaged) + 1
    assert any(f"line {at}: unreadable: " in " ".join(result.quality.warnings) for at in (line, line + 1))


def test_a_histogram_without_a_readable_row_is_no_result() -> None:
    lines = ["Attached 1 probe", "", "", "@n: 4", "@us: ", "[1]   oops 3 |@@|", "[2, 4)   x |@@|", ""]
    result = read(lines)
    assert set(result.maps) == {"n"}
    assert "no line of 1 of the values of @us can be read" in " ".join(result.quality.warnings)
    doubled = read([line for text in ["@us: ", *draw_rows([1, 2]).split("\n")] for line in (text, "")])
    assert doubled.maps["us"].entries[0].value["count"] == 3


def test_text_in_brackets_is_no_row_and_hides_no_message() -> None:
    texts = ("[1/7] Building", "[000] n=1 ns", "[12345.678] usb", "[...]", "(1, 2)", "[1, 2]", "[12:00:01] x", "[5]")
    result = read(["Attaching 1 probe...", *texts * 30, *["[2, 4)  3 |@@|"] * 120, "Lost 7 events", "@n: 1"])
    warnings = result.quality.warnings
    assert [warning.split(": ", 1)[1] for warning in warnings[:2]] == ["unreadable: '[2, 4)  3 |@@|'"] * 2
    assert len(warnings) == 102
    assert warnings[-1].endswith(": Lost 7 events")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["(100, 2, ok)", "(5, 0, over, quota)"], [(100, 2, "ok"), (5, 0, "over, quota")]),
        (["(over, quota, 5)", "(ok, 7)"], [("over, quota", 5), ("ok", 7)]),
        (["(1, (2, a, b))", "(3, (4, c))"], [(1, (2, "a, b")), (3, (4, "c"))]),
        (["(1, )", "(2, a, b)"], [(1, ""), (2, "a, b")]),
        (["(1, a)", "(2, 7)"], [(1, "a"), (2, 7)]),
        (["()", "()"], [(), ()]),
    ],
)
def test_tuples_of_one_map_have_the_same_number_of_parts(values: list[str], expected: list[Any]) -> None:
    result = read([f"@t[{at}]: {value}" for at, value in enumerate(values)])
    assert [entry.value for entry in result.maps["t"].entries] == expected


def test_entries_and_strings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kproxylat.trace.dump._ENTRIES", 3)
    monkeypatch.setattr("kproxylat.trace.dump._VALUE_SIZE", 10)
    result = read(["", "", *(f"@m[{at}]: 1" for at in range(9)), "@n: 4", "@s: a", *["12345"] * 9, "@t: 1"])
    assert [len(content.entries) for content in result.maps.values()] == [3, 1, 1, 1]
    assert result.maps["s"].entries[0].value == "a\n12345\n12345"
    assert [warning.split(": ")[1] for warning in result.quality.warnings] == [
        "more than 3 entries; those of @m from here on are left out",
        "@s has more than 10 characters; the rest is left out",
    ]
    result = read(["@h:", *(f"[{at}]  1 |" for at in range(9)), ""])
    assert result.maps["h"].entries[0].value["count"] == 3
    assert "more than 3 rows or frames; those of @h from here on are left out" in result.quality.warnings[0]
