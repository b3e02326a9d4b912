"""Prefixes before every line of a log, of each collector that puts one there."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from kproxylat.errors import LogError
from kproxylat.logs.prefix import PrefixStripper
from kproxylat.logs.reader import LogReader
from tests.support import TESTS

DUMPS = sorted((TESTS / "dumps").glob("*--*.[tl][xo][tg]"))
SMALL = b"""Attaching 1 probe...


@n[nat]: 4
@n[filter]: 5
@us[a, 1]:
[0]                    3 |@@@@@@@|
[2, 4)                 1 |@@     |

"""
PREFIXES: dict[str, Callable[[int], str]] = {
    "ts": lambda at: f"Nov {at // 900 % 28 + 1:2} 12:{at // 60 % 60:02}:{at % 60:02} ",
    "ts with seconds": lambda at: f"{1764331201 + at}.{at * 7919 % 10**6:06} ",
    "ts since the start": lambda at: f"00:{at // 60:02}:{at % 60:02} ",
    "journald": lambda at: f"Nov 28 12:{at // 60 % 60:02}:{at % 60:02} node-1 bpftrace[4711]: ",
    "journald, iso": lambda at: f"2026-11-28T12:{at // 60 % 60:02}:{at % 60:02}+0100 node-1.example bpftrace[4711]: ",
    "journald, monotonic": lambda at: f"[{at * 7.25:12.6f}] node-1 bpftrace[4711]: ",
    "kubectl --prefix": lambda _: "[pod/kproxylat-x7k2p/tracer] ",
    "kubectl --timestamps": lambda at: f"2026-11-28T12:00:{at % 60:02}.{at * 7919 % 10**9:09}Z ".replace("0Z ", "Z "),
    "kubectl, both": lambda at: f"[pod/kproxylat-x7k2p/tracer] 2026-11-28T12:00:{at % 60:02}.{at:09}Z ",
    "CRI": lambda at: f"2026-11-28T12:00:{at % 60:02}.{at:09}Z std{('out', 'err')[at % 7 == 0]} F ",
    "docker compose": lambda _: "tracer-1  | ",
    "docker compose, coloured": lambda _: "\x1b[36mtracer-1  | \x1b[0m",
    "GitHub Actions": lambda at: f"2026-11-28T12:{at // 60 % 60:02}:{at % 60:02}.{at:07}Z ",
    "a user and a host": lambda _: "root@node: ",
    "a quote": lambda _: "> ",
    "a quote in a quote": lambda _: "> > ",
    "blanks": lambda _: "    ",
    "a tab": lambda _: "\t",
    "numbers of lines": lambda at: f"{at + 1:6}\t",
    "grep -n": lambda at: f"{at + 1}:",
    "a comment": lambda _: "# ",
    "a word": lambda _: "abc",
}


def read(text: bytes) -> list[Any]:
    try:
        results = list(LogReader("a.log").read(io.BytesIO(text)))
    except LogError:
        return []
    return [(result.probes, result.maps, result.intervals, result.slow, result.traffic) for result in results]


def put_before(text: bytes, prefix: Callable[[int], str], *, keeps_blanks: bool = True) -> bytes:
    """Put a prefix before every line; a text without its last line end gets none."""
    ended = text.endswith(b"\n")
    lines = [prefix(at).encode() + line for at, line in enumerate(text.removesuffix(b"\n").split(b"\n"))]
    return b"\n".join(line if keeps_blanks else line.rstrip(b" \t") for line in lines) + b"\n" * ended


@pytest.mark.parametrize("kind", PREFIXES)
def test_a_log_with_a_prefix_is_read_as_the_log_without(kind: str) -> None:
    for path in DUMPS[::5]:
        text = path.read_bytes()
        expected, changed = read(text), read(put_before(text, PREFIXES[kind]))
        if expected or "@" not in PREFIXES[kind](0):  # a log without content cannot show that root@node is a prefix
            assert changed == expected, path.name


@pytest.mark.parametrize("kind", PREFIXES)
def test_blank_lines_may_have_the_prefix_without_its_blanks(kind: str) -> None:
    (result,) = LogReader("a.log").read(io.BytesIO(put_before(SMALL, PREFIXES[kind], keeps_blanks=False)))
    assert [(result.probes, result.maps, result.intervals, result.slow, result.traffic)] == read(SMALL)
    assert result.quality.warnings == (f"the prefix {PREFIXES[kind](0)!r} of the lines was stripped",)


@pytest.mark.parametrize("name", ["d2", "d3"])
def test_texts_that_lost_maps_before(name: str) -> None:
    """Maps as the .json beside each text says."""
    (result,) = LogReader(name).read(io.BytesIO((TESTS / "texts" / f"{name}.txt").read_bytes() + b"\n"))
    expected = json.loads((TESTS / "texts" / f"{name}.json").read_bytes())["maps"]
    maps: dict[str, list[Any]] = {}
    for map_name, content in result.maps.items():
        for entry in content.entries:
            value = entry.value
            if content.kind == "hist":
                value = {"hist": [[row["lo"], row["hi"], row["count"]] for row in value["buckets"]]}
            maps.setdefault(map_name, []).append([list(entry.key), value])
    assert maps == expected
    assert "the prefix " in result.quality.warnings[0]


def warnings(text: bytes) -> list[str]:
    return [warning for result in LogReader("a.log").read(io.BytesIO(text)) for warning in result.quality.warnings]


def test_a_log_without_a_prefix_stays_as_it_is() -> None:
    for path in DUMPS:
        text = path.read_bytes()
        assert PrefixStripper().strip(text) == text.removeprefix(b"\xef\xbb\xbf"), path.name


def test_lines_of_other_programs_among_those_with_the_prefix() -> None:
    prefix = PREFIXES["journald"]
    unit = b"Nov 28 12:00:00 node-1 systemd[1]: "
    text = b"-- Journal begins at Sat 2026-11-28 12:00:00 UTC. --\n" + unit + b"Started tracer.\n"
    text += put_before(SMALL, prefix) + unit + b"tracer.service: Deactivated successfully.\n"
    assert read(text) == read(SMALL)


def test_prefixes_one_after_another_are_stripped() -> None:
    other = SMALL.replace(b"nat]: 4", b"nat]: 400")
    for first, second in (("a quote", "ts"), ("journald", "journald"), ("kubectl --prefix", "blanks")):
        start = put_before(other, PREFIXES[first]).replace(b"4711", b"4710")
        assert read(start + put_before(SMALL, PREFIXES[second])) == read(other) + read(SMALL)
        assert read(other + put_before(SMALL, PREFIXES[second])) == read(other) + read(SMALL)


def test_two_programs_that_alternate_are_not_mixed() -> None:
    ours, other = (
        put_before(text, lambda _, name=name: f"{name}  | ").splitlines()  # type: ignore[misc]
        for name, text in (("tracer-1", SMALL + b"@z: 1\n"), ("tracer-2", SMALL.replace(b": 4", b": 400")))
    )
    text = b"\n".join(line for pair in zip(ours, [*other, b""], strict=True) for line in pair) + b"\n"
    ((_, maps, *_),) = read(text)
    assert [entry.value for entry in maps["us"].entries] == [read(SMALL)[0][1]["us"].entries[0].value]
    assert sum("tracer-2  | [" in warning for warning in warnings(text)) == 2


def test_a_histogram_whose_rows_have_a_prefix_is_left_out() -> None:
    """The rows of a map are lost with a warning; the map is no histogram of 0 events."""
    rows = b"web-1 | [2, 4)     3 |@@@|\nweb-1 | [4, 8)     3 |@@@|\n"
    text = b"Attaching 1 probe...\n@n: 1\nweb-1 | @lat:\n" + rows + b"\n@n: 2\n-\n@n: 3\n-\n@n: 5\n"
    ((_, maps, *_),) = read(text)
    assert {name: content.entries[0].value for name, content in maps.items()} == {"n": 5}
    assert [warning for warning in warnings(text) if "[2, 4)" in warning or "@lat" in warning][1:]


def test_a_blank_line_before_such_rows_makes_no_histogram_of_0_events() -> None:
    """The blank line ends the map's text, so that only the row behind the prefix tells that it had some."""
    text = b"Attaching 1 probe...\n\n@h: \n\nweb-1 | [2, 4)     3 |@@@|\n\n@z: 2\n\n"
    ((_, maps, *_),) = read(text)
    assert set(maps) == {"z"}
    assert "line 5: the rows of @h cannot be read; it is left out" in warnings(text)


def test_such_rows_in_the_dump_are_text_with_a_warning() -> None:
    text = b"Attaching 1 probe...\n\n\n@h: \nweb-1 | [2, 4)     3 |@@@|\n\n@z: 2\n"
    ((_, maps, *_),) = read(text)
    assert maps["h"].entries[0].value == "\nweb-1 | [2, 4)     3 |@@@|"
    assert any("as text of @h; it may be a row behind a prefix" in warning for warning in warnings(text))


class Pipe(io.BytesIO):
    """A stream that brings one line at a time, as a pipe may."""

    def read1(self, _: int | None = -1) -> bytes:
        return self.readline()


@pytest.mark.parametrize("kind", sorted(set(PREFIXES) - {"a user and a host"}))
def test_a_prefix_in_a_log_that_comes_line_by_line(kind: str) -> None:
    (result,) = LogReader("a.log").read(Pipe(put_before(SMALL, PREFIXES[kind])))
    assert result.maps == read(SMALL)[0][1]


def test_a_prefix_in_a_log_of_many_pieces() -> None:
    block = b"\n12:00:00 Statistics:\n  [iptables] Count: %d, Min: 3 us, Avg: 40 us, Max: 123 us\n"
    text = b"Attaching 1 probe...\n" + b"".join(block % at for at in range(9000))
    for kind in ("journald", "GitHub Actions", "CRI"):
        assert read(put_before(text, PREFIXES[kind])) == read(text)


@example("@", "").via("the sign of a map")
@example("[", "x").via("a bracket")
@example("-1,", " ").via("what looks like a row")
@settings(max_examples=300)
@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"]), max_size=12),
    st.text(" \t|>:", max_size=3),
)
def test_any_constant_prefix(word: str, end: str) -> None:
    prefix = word + end
    assume(prefix.strip(" \t") or not end.startswith("\t"))
    assert read(put_before(SMALL, lambda _: prefix)) == read(SMALL)
