"""The parser of bpftrace's text: single forms of maps, and each of its parts alone."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest

from kproxylat.logs.reader import LogReader
from kproxylat.trace.dump import PrintAssembler, parse_dump, read_prints
from kproxylat.trace.lines import KeyReader, NoiseFilter


def values(text: str) -> dict[str, Any]:
    """Parse a text: map name -> its value, or {key: value} where it has keys."""
    return {
        name: {entry.key: entry.value for entry in each.entries} if each.entries[0].key else each.entries[0].value
        for name, each in parse_dump(text).items()
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("@n: 42", {"n": 42}),
        ("@n: -9223372036854775807\n@u: 18446744073709551615", {"n": -9223372036854775807, "u": (1 << 64) - 1}),
        ("@: 1", {"": 1}),
        ("@zip: 007", {"zip": "007"}),
        ("@f: 1.5\n@version: 1.50", {"f": 1.5, "version": "1.50"}),
        ("@n[-1234567890, 0, 4239]: 198", {"n": {(-1234567890, 0, 4239): 198}}),
        ("@table[18446635]: nat", {"table": {(18446635,): "nat"}}),
        ("@p[0xffff8880]: 2", {"p": {(0xFFFF8880,): 2}}),
        ("@m[a, b]: 1\n@m[a, b, c]: 2", {"m": {("a", "b"): 1, ("a, b", "c"): 2}}),
        ("@s[12]: 1\n@s[x]: 9]: 5", {"s": {("12",): 1, ("x]: 9",): 5}}),
        ("@s[1]: a]: 5\n@s[2]: b", {"s": {(1,): "a]: 5", (2,): "b"}}),
        ("18:53:21 @reads: 58794", {"reads": 58794}),
        ("@a[x]: 1.2.3.4@a[y]: 5.6.7.8", {"a": {("x",): "1.2.3.4", ("y",): "5.6.7.8"}}),
        ("@r: { .x = 1, .y = two }", {"r": {"x": 1, "y": "two"}}),
        ("@s: { .count = 2, .average = 3, .total = 7 }", {"s": {"count": 2, "average": 3, "total": 7}}),
        ("@n: 1\n@n: 2", {"n": 2}),
        ("Attaching 3 probes...\nAttached 3 probes\n__BPFTRACE_NOTIFY_PROBES_ATTACHED\n\n\n@n: 1\n", {"n": 1}),
        ("@n: 1\r\n@s: x\r\n", {"n": 1, "s": "x"}),
        ("", {}),
    ],
)
def test_forms(text: str, expected: dict[str, Any]) -> None:
    assert values(text) == expected


def test_histograms_are_half_open_and_labels_binary() -> None:
    text = (
        "@h:\n(..., 0)   2 |@@|\n[0]   1 |@|\n[512, 1K)20000020 |@@|\n\n@l:\n[0, 5)  1 |@|\nnoise\n[5, ...)  3 |@@|\n"
    )
    maps = parse_dump(text)
    assert maps["h"].kind == "hist"
    assert maps["h"].entries[0].value == {
        "count": 20000023,
        "buckets": [
            {"lo": None, "hi": 0, "count": 2},
            {"lo": 0, "hi": 1, "count": 1},
            {"lo": 512, "hi": 1024, "count": 20000020},
        ],
    }
    assert maps["l"].kind == "lhist"
    assert [row["hi"] for row in maps["l"].entries[0].value["buckets"]] == [5, None]


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ("[8, 16) 1 |\n[16, 32) 1 |\n", "hist"),
        ("[8, 16) 1 |\n[16, 24) 1 |\n", "lhist"),
        ("[8, 12) 1 |\n[12, 16) 1 |\n[16, 24) 1 |\n", "hist"),
        ("[3] 1 |\n[4] 1 |\n[5] 1 |\n[6] 1 |\n[7] 1 |\n[8, ...) 1 |\n", "lhist"),
        ("(..., 5) 1 |\n", "lhist"),
        ("(..., 0) 1 |\n", "hist"),
        ("[-8, -4) 1 |\n", "lhist"),
    ],
)
def test_hist_and_lhist(rows: str, kind: str) -> None:
    assert parse_dump(f"@h:\n{rows}\n")["h"].kind == kind


def test_prints_are_told_apart() -> None:
    prints = list(read_prints("@n[1]: 1\n@n[2]: 2\n-- text\n@n[3]: 3\n\n\n@n[1]: 7\n@n[4]: 9\n".splitlines()))
    assert [[entry.value for entry in each.map.entries] for each in prints] == [[1, 2], [3], [7, 9]]


def test_a_string_keeps_its_lines() -> None:
    assert values("\n\n@a: one\ntwo\n\n@b[k\n1]: 2\n@z: 1\n") == {"a": "one\ntwo", "b": {("k\n1",): 2}, "z": 1}


def test_fifty_thousand_entries_are_fast() -> None:
    text = "".join(f"@n[-12345{at}, 0, {at}]: 198\n" for at in range(50_000))
    start = time.perf_counter()
    assert len(parse_dump(text)["n"].entries) == 50_000
    assert time.perf_counter() - start < 10


STACK = "@[\n    a+1\n    b+2\n    c+3\n]: 5\n@v[x]: \n        d+4\n        e+5\n\n"


@pytest.mark.parametrize(
    "before",
    [
        "Attaching 1 probe...\n\n\n",
        "Attached 2 probes\n\n\n",
        "^C\n\n",
        "Lost 5 events\n",
        "WARNING: Addrspace is not set\n",
        "a.bt:1:2-3: WARNING: Bad address\n    $a = 1;\n         ~\n",
        "my dir/a.bt:3:1-2: WARNING: Bad address\nAdditional Info - helper: probe_read, retcode: 0\n    $a;\n    ~~\n",
    ],
)
def test_a_message_takes_no_frames(before: str) -> None:
    assert values(before + STACK) == {"": {(("a+1", "b+2", "c+3"),): 5}, "v": {("x",): ("d+4", "e+5")}}
    inside = STACK.replace("    b+2\n", f"{before.strip()}\n    b+2\n") if "^C" not in before else STACK
    assert values(inside) == values(STACK)


def test_time_series() -> None:
    """As src/output/text.cpp of 0.25 writes them: a line at zero, gaps, microseconds, nothing at all."""
    text = (
        "@t[1]:\n             -5                                                 5\n"
        "hh:mm:ss.µs  |___________________________________________________|\n"
        "19:00:01.000001 *                         .                         | -5\n"
        "19:00:01.000002 |                         .                         | -\n"
        "19:00:01.000003 |                         .                         * 5\n"
        "             v___________________________________________________v\n"
        "             -5                                                 5\n\n"
        "@t[2]:\n<no data>\n@u:\n<no data>\n@z: 1\n"
    )
    maps = parse_dump(text)
    assert [maps[name].kind for name in maps] == ["tseries", "tseries", "int"]
    points = [[point["value"] for point in entry.value] for entry in maps["t"].entries]
    assert (points, maps["u"].entries[0].value) == ([[-5, None, 5], []], ())
    assert maps["t"].entries[0].value[1]["time"] == "19:00:01.000002"


def test_keys_that_look_alike_are_all_kept_in_the_dump_at_exit() -> None:
    text = "@k[vfs_write]: 1\n@k[vfs_read]: 3\n@k[vfs_open]: 4\n@k[vfs_read]: 5\n"
    entries = [(entry.key[0], entry.value) for entry in parse_dump(f"\n\n{text}@z: 1")["k"].entries]
    assert entries == [("vfs_write", 1), ("vfs_read", 3), ("vfs_open", 4), ("vfs_read", 5)]
    assert [len(each.map.entries) for each in read_prints(text.splitlines())] == [3, 1]  # printed while it ran
    prints = read_prints("\n\n@n[1]: 1\n12:00:01\n@n[1]: 2\n12:00:02\n".splitlines())
    assert [len(each.map.entries) for each in prints] == [1, 1]


@pytest.mark.parametrize(
    ("whole", "cut"),
    [
        ("@h:\n[1] 5 |@|\n\n", "@h:\n"),
        ("@h: \n[1] 5 |@|\n\n", "@h: \n"),
        ("@h:\n[1] 5 |@|\n\n", "@h:\n[1] 1 |@|\n"),
        ("@h[a]:\n[1] 5 |@|\n\n@h[b]:\n[1] 5 |@|\n\n", "@h[a]: \n[1] 5 |@|\n\n@h[b]: \n"),
        ("@k: \n        a+1\n        b+1\n\n", "@k: \n        a+1\n"),
        ("@k: \n        a+1\n        b+1\n\n", "@k: \n"),
        ("@t:\n   1    2\nhh:mm:ss |___|\n19:00:01 *  | 1\n\n", "@t:\n   1    2\n"),
    ],
)
def test_a_print_that_is_cut_does_not_replace_a_whole_one(whole: str, cut: str) -> None:
    assert parse_dump(f"{whole}-- text\n{cut}") == parse_dump(whole)
    assert [each.whole for each in read_prints(f"{whole}-- text\n{cut}".splitlines())] == [True, False]


def test_an_empty_string_at_the_end_is_whole() -> None:
    assert [each.whole for each in read_prints(["@s: "])] == [True]
    assert [each.whole for each in read_prints(["@t:", "<no data>"])] == [True]


def test_an_address_is_no_map() -> None:
    assert values("@eth0: 5\ndev x@eth0: link up\nmail to a_@b[c]: d\n") == {"eth0": 5}
    assert values("text@n: 5\nunfinished@m[a]: 3\nx @s: one\n") == {"n": 5, "m": {("a",): 3}, "s": "one"}


def test_what_stands_around_a_number() -> None:
    assert values("@ipt_sum: 528\x1b[0m\n@s: red\x1b[0m\n") == {"ipt_sum": 528, "s": "red\x1b[0m"}
    assert values("\0" * 5000 + "@c: 2\n") == {"c": 2}
    assert parse_dump("@h:\n[1] 5 |@|\n[2, 4) -1 ||\n\n")["h"].entries[0].value["count"] == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[1,2],[3,4]]", ((1, 2), (3, 4))),
        ("[[[1],[2]],[[-3],[4]]]", (((1,), (2,)), ((-3,), (4,)))),
        ("[(1, a),(2, b)]", ((1, "a"), (2, "b"))),
        ("[1, -2, 3]", (1, -2, 3)),
        (
            "{ .s = [{ .a = [1,2], .x = 3 },{ .a = [4,5], .x = 6 }], .t = (1, [2,3]) }",
            {"s": ({"a": (1, 2), "x": 3}, {"a": (4, 5), "x": 6}), "t": (1, (2, 3))},
        ),
        ("{ .name = a, .x = 3, .x = 1 }", "{ .name = a, .x = 3, .x = 1 }"),
    ],
)
def test_composites_in_each_other(text: str, expected: Any) -> None:
    assert values(f"@m: {text}\n") == {"m": expected}


def test_composites_over_several_lines() -> None:
    stacks = "@t[1]: (1, \n        a+1\n        b+2\n)\n@t[2]: (2, \n        c+3\n)\n"
    structs = "@u[1]: { .name = one\ntwo, .x = 3 }\n@u[2]: { .name = x, .x = 4 }\n"
    assert values(f"\n\n{stacks}{structs}@z: 1\n") == {
        "t": {(1,): (1, ("a+1", "b+2")), (2,): (2, ("c+3",))},
        "u": {(1,): {"name": "one\ntwo", "x": 3}, (2,): {"name": "x", "x": 4}},
        "z": 1,
    }


def test_empty_stacks() -> None:
    assert values("@u[]: 2\n@u[\n    ppoll+166\n]: 1\n@v[]: 1\n") == {
        "u": {((),): 2, (("ppoll+166",),): 1},
        "v": {("",): 1},
    }
    assert values("@u[dd, ]: 2\n@u[dd, \n    ppoll+166\n]: 1\n") == {"u": {("dd", ()): 2, ("dd", ("ppoll+166",)): 1}}
    each = parse_dump("\n\n@k[a]: \n        foo+1\n\n@k[b]: \n\n@z: 1")["k"]
    assert (each.kind, [entry.value for entry in each.entries]) == ("stack", [("foo+1",), ()])


def test_keys_of_many_parts_are_fast() -> None:
    mixed = "1, a, " * 40_000
    start = time.perf_counter()
    keys = [entry.key for entry in parse_dump(f"@m[{mixed}x]: 1\n@m[{mixed}y, z, z]: 1\n")["m"].entries]
    assert time.perf_counter() - start < 10
    assert [len(key) for key in keys] == [80_001, 80_001]


def read_warnings(text: str) -> tuple[set[str], list[str]]:
    """Read a text as a log: the names of its maps, and the warnings."""
    (result,) = LogReader("x").read(io.BytesIO(text.encode()))
    return set(result.maps), list(result.quality.warnings)


@pytest.mark.parametrize(
    ("text", "names", "line"),
    [
        ("\n\n@a: 1\n@m[a\n@b: 2\nc\n", {"a", "b"}, 6),
        ("\n\n@a: 1\n@m[a\n@b: 2\n@k[c\nd]: 1\n", {"a", "b", "k"}, 6),
        ("\n\n@a: 1\n@m[a\nfoo\n@z: 1\n", {"a", "z"}, 6),
        ("\n\n@a: 1\n@m[a\nfoo\n", {"a"}, 5),
    ],
)
def test_a_key_that_does_not_end_is_named(text: str, names: set[str], line: int) -> None:
    warning = f"line {line}: the key that began with '@m[a' does not end before this line"
    assert read_warnings(text) == (names, [warning])


def test_what_looks_like_a_map_inside_a_key_is_a_part_of_it() -> None:
    text = "\n\n@m[a\n@b: 2\nc]: 1\n\n@z: 2\n"
    assert values(text) == {"m": {("a\n@b: 2\nc",): 1}, "z": 2}
    (warning,) = read_warnings(text)[1]
    assert "in the key that began with '@m[a' is a part of it" in warning


def test_a_map_behind_a_word_is_named() -> None:
    assert read_warnings("@n: 1\nx@eth0: 7\n") == (
        {"n", "eth0"},
        ["line 2: 'x@eth0: 7' was read as a print of a map, which may be text"],
    )


def test_names_are_bounded() -> None:
    """A hundred engines, ten thousand maps; the rest is named in a warning."""
    slow = "".join(f"12:00:00 SLOW e{at}: 5 us (tid=1)\n" for at in range(200))
    (result,) = LogReader("x").read(io.BytesIO(f"Attaching 1 probe...\n{slow}".encode()))
    assert len(result.slow) == 100
    assert "line 102: unreadable: '12:00:00 SLOW e100: 5 us (tid=1)'" in result.quality.warnings
    names, warnings = read_warnings("".join(f"@m{at}: 1\n" for at in range(10_002)))
    assert len(names) == 10_000
    assert warnings[0].endswith("more than 10000 maps; @m10000 is left out")


@pytest.mark.parametrize(
    ("lines", "noise"),
    [
        (["Attaching 3 probes...", "Attached 3 probes", "Lost 5 events", "WARNING: x", "stdin: ERROR: y"], [True] * 5),
        (["\x1b[31mERROR: red", "__BPFTRACE_NOTIFY_PROBES_ATTACHED"], [True] * 2),
        (["a.bt:1:2-3: WARNING: x", "    $a = 1;", "         ~~", "    f+1"], [True, True, True, False]),
        (["a.bt:1:2-3: WARNING: x", "    $a = 1;", "    f+1"], [True, True, False]),
        (["a.bt:1:2-3: WARNING: x", "text", "    $a = 1;"], [True, False, False]),
        (["Additional Info - helper: probe_read, retcode: 0", "    $a;", "    ~~"], [True] * 3),
        (["WARNING: x", "    f+1"], [True, False]),
        (["a.bt:1:2-3: ERROR: x", "Lost 5 events", "    f+1"], [True, True, False]),
        (["Attaching", "Attached 3 probes now", "Lost events", "    ~~", ""], [False] * 5),
    ],
)
def test_noise_is_a_message_and_the_source_below_it(lines: list[str], noise: list[bool]) -> None:
    matches = NoiseFilter().matches
    assert [matches(line) for line in lines] == noise


def read_key(lines: list[str]) -> tuple[KeyReader, list[str], tuple[str, str] | None]:
    """Feed lines to a key until it ends or does not admit one: the reader, its notes, and the key."""
    notes: list[str] = []
    key = KeyReader(notes.append)
    key.begin(lines[0])
    for line in lines[1:]:
        ended = key.add(line) if key.admits(line) else None
        if ended:
            return key, notes, ended
    return key, notes, None


def test_a_key_ends_with_its_bracket() -> None:
    key, notes, ended = read_key(["@m[", "    f+1", "    g+2", "]: 5"])
    assert (ended, notes, key.is_open) == (("m", "\n    f+1\n    g+2\n]: 5"), [], False)


def test_a_key_that_held_what_looks_like_a_map_is_noted() -> None:
    key, notes, ended = read_key(["@m[a", "@b[1]: 2", "c]: 1"])
    assert (ended, key.is_open) == (("m", "a\n@b[1]: 2\nc]: 1"), False)
    assert notes == ["what looks like a map in the key that began with '@m[a' is a part of it"]
    key.begin("@m[x")
    assert (key.add("y]: 2"), len(notes)) == (("m", "x\ny]: 2"), 1)


@pytest.mark.parametrize(
    ("lines", "next_line", "admitted"),
    [
        (["@m[a"], "", True),
        (["@m[a"], "@b: 2", True),
        (["@m[a"], "@b[c", False),
        (["@m[a", "@b: 2"], "", False),
        (["@m[a", "@b: 2", *["x"] * 8], "x", False),
        (["@m[a", "@b: 2", *["x"] * 7], "x", True),
        (["@m[a", *["x"] * 1000], "x", False),
        (["@m[a", *["x"] * 999], "x", True),
    ],
)
def test_lines_that_a_key_admits(lines: list[str], next_line: str, admitted: bool) -> None:
    key, _, _ = read_key(lines)
    assert key.is_open
    assert key.admits(next_line) == admitted


def test_a_key_that_is_dropped_gives_its_lines_back() -> None:
    key, notes, _ = read_key(["@m[a", "b", "@c: 1", "d"])
    assert key.drop() == (["@m[a", "b"], ["@c: 1", "d"])
    assert notes == ["the key that began with '@m[a' does not end before this line"]
    assert (key.is_open, key.drop(), len(notes)) == (False, ([], []), 1)


def test_an_assembler_gives_each_print_and_note_once() -> None:
    assembler = PrintAssembler()
    assert [assembler.feed(line) for line in ("@n: 1", "text", "x@eth0: 7", "")] == [True, False, True, False]
    assert [each.name for each in assembler.pop_prints()] == ["n"]
    assert [len(assembler.pop_notes()), assembler.pop_prints(), assembler.pop_notes()] == [1, [], []]
    assembler.end()
    assert [each.name for each in assembler.pop_prints()] == ["eth0"]


@pytest.mark.parametrize(
    ("lines", "counts"),
    [
        (["@n: 1"], False),
        (["@m[a"], True),
        (["@h:"], True),
        (["@s: x"], False),
        (["", "", "@s: x"], True),
        (["", "", "@s: x", "@t: 1"], False),
    ],
)
def test_text_counts_inside_a_key_a_value_or_a_string(lines: list[str], counts: bool) -> None:
    assembler = PrintAssembler()
    for line in lines:
        assembler.feed(line)
    assert assembler.counts_text == counts


def test_a_run_keeps_all_that_its_maps_held() -> None:
    """Limits for foreign texts are smaller: BPFTRACE_MAP_KEYS_MAX may allow more keys, and each may have 64 rows."""
    keys = "".join(f"@n[18446635825034690560, {number}]: {number % 7}\n" for number in range(120_000))
    assert len(parse_dump(keys)["n"].entries) == 120_000
    [foreign] = read_prints(keys.splitlines())
    assert len(foreign.map.entries) < 120_000
    rows = "[0]   1 |@@@@|\n[1]   2 |@@@@@@@@|\n\n"
    shapes = parse_dump("".join(f"@shape[{number}]:\n{rows}" for number in range(60_000)))["shape"].entries
    assert sum(row["count"] for entry in shapes for row in entry.value["buckets"]) == 180_000
