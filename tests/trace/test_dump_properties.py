"""Property tests of the parser: it reads back all that bpftrace can print, and no text makes it fail."""

from __future__ import annotations

import io
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kproxylat.errors import LogError
from kproxylat.logs.reader import LogReader
from kproxylat.trace.dump import parse_dump, read_prints

pytestmark = pytest.mark.slow

INTS = st.integers(-(1 << 63), (1 << 64) - 1)
NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
COUNTS = st.integers(0, 10**9)
PIECES = st.sampled_from(
    [
        *("@h:\n", "@h: \n", "@h[", "a, b", "]: ", "]:\n", "@m[1, 2]: 3\n", "@m[x]: 1.2.3.4@m[y]: 5\n", "@s: count 1,"),
        *(
            "[0, 5)   3 |@@ |\n",
            "(..., 0) 1 |@|\n",
            "[1K, 2K)99999999 |@@|\n",
            "[4, ...) 1 |\n",
            "\n",
            "\n\n\n",
            "\r\n",
        ),
        *("12:00:00 SLOW iptables: 5 us (tid=1)\n", "\n12:00:00 Statistics:\n", "  FINAL REPORT\n", "\x1b[31m", "\0"),
        *("  [iptables] Count: 1, Min: 1 us, Avg: 1 us, Max: 1 us\n", "Attaching 1 probe...\n", "Avg latency: 5 us\n"),
        *("12:00:00   | 1            | 1      us  | 1      us\n", "--- IPTABLES MODE ---\n", "Total invocations: 1\n"),
        *(
            "        frame+1\n",
            "hh:mm:ss |___|\n",
            "12:00:00 *   | 4\n",
            "@t: (1, (2, x))\n",
            "{ .a = 1 }",
            "0x10",
            "@",
        ),
        *(
            "100,iptables,1,2,3,4,5,6,7,x\n",
            "Duration: 30s\n",
            "WARNING: x\n",
            "a.bt:1:2-3: ERROR: @x: 5\n",
            "    ~~~\n",
        ),
    ]
)
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=8)), max_size=40).map("".join)
quick = settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(st.dictionaries(NAMES, INTS, max_size=5))
def test_scalars(maps: dict[str, int]) -> None:
    text = "".join(f"@{name}: {value}\n" for name, value in sorted(maps.items()))
    assert {name: each.entries[0].value for name, each in parse_dump(text).items()} == maps


@quick
@given(st.integers(1, 4).flatmap(lambda n: st.dictionaries(st.tuples(*[INTS] * n), INTS, min_size=1, max_size=6)))
def test_integer_keys(entries: dict[tuple[int, ...], int]) -> None:
    text = "".join(f"@m[{', '.join(map(str, key))}]: {value}\n" for key, value in entries.items())
    assert {entry.key: entry.value for entry in parse_dump(text)["m"].entries} == entries


def label(number: int) -> str:
    """Write a histogram's edge as bpftrace does (hist_index_label)."""
    for power, unit in ((60, "E"), (50, "P"), (40, "T"), (30, "G"), (20, "M"), (10, "K")):
        if number >= 1 << power and number % (1 << power) == 0:
            return f"{number >> power}{unit}"
    return str(number)


@quick
@given(st.lists(COUNTS, min_size=1, max_size=63), st.booleans(), st.booleans())
def test_hist(counts: list[int], negative: bool, spaced: bool) -> None:
    rows = [
        ("[0]", 0, 1),
        ("[1]", 1, 2),
        *((f"[{label(1 << n)}, {label(2 << n)})", 1 << n, 2 << n) for n in range(1, 62)),
    ]
    shown = [("(..., 0)", None, 0)] * negative + rows
    shown, expected = shown[: len(counts)], []
    text = "@h: \n" if spaced else "@h:\n"
    for (name, lo, hi), count in zip(shown, counts, strict=False):
        text += f"{name:<16}{count:8} |{'@' * (count % 53):<52}|\n"
        expected.append({"lo": lo, "hi": hi, "count": count})
    each = parse_dump(text + "\n")["h"]
    assert each.entries[0].value == {"count": sum(row["count"] or 0 for row in expected), "buckets": expected}
    assert each.kind == "hist"


@quick
@given(st.lists(COUNTS, min_size=2, max_size=40), st.integers(3, 10**10), st.integers(0, 10**10))
def test_lhist(counts: list[int], step: int, low: int) -> None:
    text, expected = "@l:\n", []
    for at, count in enumerate(counts):
        lo, hi = low + at * step, low + (at + 1) * step
        text += f"{f'[{lo}, {hi})':<16}{count:8} |{'':<52}|\n"
        expected.append({"lo": lo, "hi": hi, "count": count})
    assert parse_dump(text + "\n")["l"].entries[0].value["buckets"] == expected


@quick
@given(
    st.dictionaries(st.integers(0, 99), st.text(st.characters(codec="utf-8", exclude_characters="\n\r@:]"), min_size=1))
)
def test_strings(entries: dict[int, str]) -> None:
    text = "".join(f"@s[{key}]: x{value}\n" for key, value in entries.items())
    parsed = parse_dump(text)
    assert {entry.key[0]: entry.value for each in parsed.values() for entry in each.entries} == {
        key: f"x{value}" for key, value in entries.items()
    }


@settings(max_examples=1500, suppress_health_check=[HealthCheck.too_slow])
@given(TEXTS)
def test_any_text_is_parsed(text: str) -> None:
    prints = list(read_prints(text.removesuffix("\n").split("\n")))
    last = {each.name: each.map for each in prints} | {each.name: each.map for each in prints if each.whole}
    assert parse_dump(text) == last


@settings(max_examples=1500, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(TEXTS.map(str.encode), st.binary(max_size=300)))
def test_any_bytes_are_a_log_or_say_why_not(text: bytes) -> None:
    try:
        results = list(LogReader("x").read(io.BytesIO(text)))
    except LogError:
        return  # it holds no run
    assert [each.source.index for each in results if each.source] == list(range(len(results)))


@pytest.mark.parametrize(
    "unit",
    [
        "@a[",
        "@a[x]: @a[",
        "(",
        "@t: ((((",
        "@a[1]: (\n",
        "]: ",
        "@",
        "@a: x\n\n",
        "\n",
        "[1, 2) 1 |\n",
        "@a[b, c",
        ", ",
    ],
)
@pytest.mark.parametrize("start", ["", "@m[", "\n\n@s: x\n", "@t: (", "@t: { .a = ", "@t: ((a, "])
def test_nothing_takes_out_of_proportion(start: str, unit: str) -> None:
    """Half a megabyte of anything repeated takes seconds of a processor at most."""
    text = start + unit * (500_000 // len(unit))
    begin = time.process_time()
    parse_dump(text)
    assert time.process_time() - begin < 10
