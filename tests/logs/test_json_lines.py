"""The JSON of ``bpftrace -f json``, read as a log: that in tests/dumps, and the corpus if it is there."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from kproxylat.errors import LogError
from kproxylat.logs.json_lines import read_event
from kproxylat.logs.reader import LogReader
from kproxylat.report.export import EXPORTERS
from kproxylat.results import Result
from kproxylat.trace.dump import Print
from tests.support import TESTS
from tests.support.corpus import CORPUS, flatten, read_json, show

DUMPS = TESTS / "dumps"
REPORT = b"""{"type": "attached_probes", "data": {"probes": 5}}
{"type": "time", "data": "12:00:00 "}
{"type": "printf", "data": "SLOW iptables: 123 us (tid=45)\\n"}
{"type": "time", "data": "\\n12:00:05 Statistics:\\n"}
{"type": "printf", "data": "  [iptables] Count: 4, Min: 1 us, Avg: 2 us, Max: 3 us\\n"}
{"type": "printf", "data": "\\n  FINAL REPORT\\n--- IPTABLES MODE ---\\nTotal invocations: 4\\nMin latency: 1 us\\n"}
{"type": "printf", "data": "Avg latency: 2 us\\nMax latency: 3 us\\n"}
{"type": "hist", "data": {"@ipt_latency_us": [{"min": 1, "max": 1, "count": 1}, {"min": 2, "max": 3, "count": 3}]}}


{"type": "map", "data": {"@ipt_sum_us": 9}}
"""
MENDED = (
    r"hist_suffix|tseries:|printf_mix:@(names|word)|string_values:@bytes|types:@when|enums_structs:@p\b|zero:|stack_"
)
"""Maps that are no JSON, or broken in it; and series, stacks and addresses, which are compared as text."""


def read(text: bytes) -> tuple[list[Result], list[Print]]:
    prints = list[Print]()
    return list(LogReader("a.json", prints.append).read(io.BytesIO(text))), prints


def list_differences(name: str, path: Path) -> Iterator[str]:
    """List the maps that are read otherwise than json.loads reads them."""
    text = path.read_bytes()
    expected = [(name, flatten(data)) for name, data in read_json(text.decode(errors="backslashreplace"))]
    try:
        _, prints = read(text)
    except LogError:
        prints = []
    parsed = [(printed.name, show(printed)) for printed in prints]
    for item in [item for item in expected if item[1] and item not in parsed]:
        yield f"{name}:@{item[0]} is lost"
    for item in [item for item in parsed if item not in expected]:
        yield f"{name}:@{item[0]} is invented"


def test_every_map_of_the_json_is_read_and_no_other() -> None:
    cases = [(path.stem, path) for path in DUMPS.glob("*--*.json")]
    cases += [(f"{path.parent.name}--{path.stem}", path) for path in CORPUS.glob("*/*.json")]
    differences = [difference for case in cases for difference in list_differences(*case)]
    assert [difference for difference in differences if not re.search(MENDED, difference)] == []


def test_what_is_no_json_is_mended() -> None:
    maps = {printed.name: printed.map for printed in read((DUMPS / "0.11.3--zero.json").read_bytes())[1]}
    assert maps["z_hist"].entries[0].value == {"count": 0, "buckets": []}
    maps = {printed.name: printed.map for printed in read((DUMPS / "0.23.2--printf_mix.json").read_bytes())[1]}
    assert (maps["word"].entries[0].value, maps["names"].entries[0].key) == ("größe", ("naïve",))
    points = '[{"interval_start":%s,"value":6}%s{"interval_start":%s,"value":12}]'
    for series in (points % ("19:03:56", "", "19:03:57"), points % ('"19:03:56"', ",", '"19:03:57"')):
        event = read_event(f'{{"type": "tseries", "data": {{"@ts": {series}}}}}')
        assert event
        first, second = event.prints[0].map.entries[0].value
        assert (first, second["value"]) == ({"time": "19:03:56", "value": 6}, 12)
    for line, value in (
        ('{"@when": 17:20:01}', "17:20:01"),
        ('{"@p": 0x1000}', 4096),
        (r'{"@b": "caf\xe9"}', r"caf\xe9"),
    ):
        event = read_event(f'{{"type": "map", "data": {line}}}')
        assert event
        assert event.prints[0].map.entries[0].value == value


def test_a_report_in_json_is_read_like_a_report() -> None:
    ((result,), _) = read(REPORT)
    (probe,) = result.probes
    assert (probe.count, probe.min, probe.max, probe.sum, probe.mean) == (4, 1, 3, 9, 2.25)
    assert [bucket.count for bucket in probe.histogram.buckets] == [1, 3]
    assert (result.slow["iptables"].lines, result.intervals["iptables"].lines) == (1, 1)
    assert (result.source.dialect if result.source else None, result.quality.warnings) == ("report", ())


def test_runs_messages_and_prints_of_json() -> None:
    text = (
        b'{"type": "attached_probes", "count": 1, "data": {"probes": 1}}\n{"type": "map", "data": {"@n": 1}}\n'
        b'{"type": "printf", "data": "@n: 7\\nLost 9 events\\nAttaching 9 probes...\\n"}\n'
        b'{"type": "map", "data": {"@n": 2}}\n{"type": "lost_events", "data": {"events": 5}}\nLost 2 events\n'
    )
    results, prints = read(text + text)
    assert [result.source.dialect for result in results if result.source] == ["json", "json"]
    assert [printed.map.entries[0].value for printed in prints] == [1, 2, 1, 2]
    assert [result.quality.lost_events for result in results] == [7, 7]
    ((result,), _) = read(text + b'{"type": "map", "data": {"@z": {"a": \n')
    assert any("unreadable" in warning and "@z" in warning for warning in result.quality.warnings)


def test_equal_keys_keep_their_number() -> None:
    (_, (printed,)) = read(b'{"type": "map", "data": {"@": {"vfs_read": 1, "vfs_read": 2}}}\n')
    assert [(entry.key, entry.value) for entry in printed.map.entries] == [(("vfs_read",), 1), (("vfs_read",), 2)]


def test_json_that_a_text_log_prints_is_text() -> None:
    ((result,), _) = read(b'Attaching 1 probe...\n{"type": "map", "data": {"@fake": 5}}\n\n\n@n: 1\n')
    assert (set(result.maps), result.source.dialect if result.source else None) == ({"n"}, "dump")


@settings(max_examples=200)
@given(
    st.text(max_size=60).map(lambda text: '{"type": "' + text) | st.sampled_from(REPORT.decode().splitlines()),
    st.data(),
)
def test_damaged_lines_make_no_internal_error(line: str, data: st.DataObject) -> None:
    start, end = sorted((data.draw(st.integers(0, len(line))), data.draw(st.integers(0, len(line)))))
    read_event(line)
    read_event(line[:start] + line[end:])


def test_stats_have_numbers_in_text_and_json() -> None:
    """Numbers beyond 2**53 are strings in JSON from 0.24 on; other strings are damage, which costs that map alone."""
    stats = ['"total": "9007199254740993"', '"total": 7', '"total": "x"', '"total": [7]']
    lines = "".join(
        f'{{"type": "stats", "data": {{"@{name}": {{"count": 2, "average": 3, {total}}}}}}}\n'
        for name, total in zip("abcd", stats, strict=True)
    )
    text = b"Attaching 1 probe...\n\n\n@e: { .count = 2, .average = 3x, .total = 7 }\n@f: 1\n"
    [of_json], [of_text] = (
        read(b'{"type": "attached_probes", "data": {"probes": 1}}\n' + lines.encode())[0],
        read(text)[0],
    )
    assert [of_json.maps[name].kind for name in "abcd"] == ["stats", "stats", "struct", "struct"]
    assert of_json.maps["a"].entries[0].value["total"] == (1 << 53) + 1
    assert of_text.maps["e"].kind == "struct"
    for result in (of_json, of_text):
        for export in EXPORTERS.values():
            assert "".join(export([result]))
