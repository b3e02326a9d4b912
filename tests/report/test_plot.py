"""Pictures: they are drawn, say what they show, tell their series apart in grey, and do without matplotlib politely."""

from __future__ import annotations

import builtins
import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kproxylat.analysis.compare import compare
from kproxylat.analysis.comparison import from_json, to_json
from kproxylat.analysis.series import build_series
from kproxylat.cli import app
from kproxylat.errors import LogError
from kproxylat.report.figure import STYLES, make_figure
from kproxylat.report.plot import draw_distributions, draw_figures, draw_ratios, draw_series, find_crossings, plot
from kproxylat.results import Result
from tests.results import COUNTED, LOGS, TIMED, change_run, load, with_values
from tests.support import TESTS
from tests.support.documents import files

pytestmark = pytest.mark.slow

SLOW = load(TIMED)
LEGACY, NFT, NFTABLES = (load(COUNTED)[at] for at in (0, 3, 6))


def texts(svg: Path) -> str:
    """Return the words of a picture, which are text in it, not outlines."""
    return " | ".join(html.unescape(word) for word in re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text()))


def draw(directory: Path, *names: str) -> str:
    output = directory / "x.svg"
    plot(names, output)
    return texts(output)


def test_a_sweep_counted(tmp_path: Path) -> None:
    words = draw(tmp_path, str(COUNTED))
    for text in (
        "Cost of a Service lookup by the number of Services",
        "Instructions per Service lookup (log scale)",
        "Number of Services (log scale)",
        "iptables/legacy | O(n), 26 per Service",
        "nftables/nft | O(1)",
        "iptables/legacy and nftables/nft: | equal at 32 Services",
        "Linux 6.1.0-56-amd64, bpftrace v0.17.0, clock: emulated instructions, 2026-11-22, kproxylat 0.1.0",
    ):
        assert text in words


@pytest.mark.parametrize("place", ["unit", "name"])
def test_a_text_of_a_million_characters_is_cut(tmp_path: Path, place: str) -> None:
    """matplotlib drew all of it, in minutes."""
    document = json.loads((TESTS / "documents/comparison-1.json").read_bytes())
    [pair] = document["comparisons"] = document["comparisons"][:1]
    pair.update(lookups=pair["lookups"][:1], series=[], crossing=None)
    (pair if place == "unit" else pair["lookups"][0]["figures"][0])[place] = "a" * 1_000_000
    (tmp_path / "long.json").write_text(json.dumps(document))
    words = draw(tmp_path, str(tmp_path / "long.json")).split(" | ")
    assert 150 < max(map(len, words)) < 250


def test_a_thousand_series_are_refused(tmp_path: Path) -> None:
    """Each pair of them was looked at, for minutes."""
    document = json.loads(COUNTED.read_bytes())
    document["results"] = [
        {**each, "run": {**each["run"], "backend": f"b{number}"}}
        for number in range(1000)
        for each in document["results"][:2]
    ]
    (tmp_path / "many.json").write_text(json.dumps(document))
    with pytest.raises(LogError, match="1,000 series are too many for a picture, which has room for 60"):
        draw(tmp_path, str(tmp_path / "many.json"))


def test_a_sweep_timed_has_error_bars(tmp_path: Path) -> None:
    words = draw(tmp_path, str(TIMED))
    assert "Emulated nanoseconds per Service lookup" in words
    assert "log scale)" not in words.partition("Emulated")[2], "12,000 to 19,000 spans no decade"
    assert "marks: median, with 95% bounds" in words
    assert re.search(r"iptables/nft \| unclear, 307.1 per Service \| \(\d+(\.\d+)? to ", words)


def test_one_run_counted_shows_every_value(tmp_path: Path) -> None:
    words = draw(tmp_path, *files(tmp_path, load(COUNTED)[6]))
    assert "1,913 calls, 95.65% (p50 p95)" in words
    assert "84 calls, 4.20% (p99)" in words
    assert "2,678" in words
    assert "Instructions per Service lookup" in words


def test_a_single_value_is_one_labelled_bar(tmp_path: Path) -> None:
    words = draw(tmp_path, *files(tmp_path, with_values(LEGACY, {11148: 300}, 100)))
    assert "all 300 calls (p50 p95 p99)" in words
    assert "11,148" in words
    assert "log scale" not in words


def test_one_run_timed(tmp_path: Path) -> None:
    words = draw(tmp_path, *files(tmp_path, SLOW[0]))
    assert "Fraction of lookups ≤ x" in words
    assert "Emulated nanoseconds per Service lookup" in words
    for name in ("p50", "p95", "p99"):
        assert re.search(rf"{name} \d+,\d+ \|", words)


def test_one_slow_call_does_not_stretch_the_axis(tmp_path: Path) -> None:
    values = {20_000 + 7 * at: 100 for at in range(100)} | {1_600_000: 1}
    words = draw(tmp_path, *files(tmp_path, with_values(SLOW[0], values)))
    assert "the axis ends at p99.9, the greatest value is 1,600,000" in words
    assert "log scale" not in words
    words = draw(tmp_path, *files(tmp_path, with_values(SLOW[0], {10 * at**3: 10 for at in range(1, 100)})))
    assert "Emulated nanoseconds per Service lookup (log scale)" in words


def test_a_title_and_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    plot([str(COUNTED)], tmp_path / "x.svg", title='$\\frac{1}$ <b> & "quoted" #222222')
    assert '$\\frac{1}$ <b> & "quoted" #222222' in texts(tmp_path / "x.svg")


def test_a_picture_of_two_results_states_the_difference(tmp_path: Path) -> None:
    words = draw(tmp_path, *map(str, LOGS))
    assert "A's lookup is 2.11 times cheaper" in words
    assert "B: iptables/legacy, 100 Services (2,000 calls)" in words


def test_two_sweeps(tmp_path: Path) -> None:
    names = files(tmp_path, load(COUNTED)[:3], load(COUNTED)[6:])
    words = draw(tmp_path, *names)
    assert "nftables/nft / iptables/legacy" in words
    assert "exact values" in words


def test_a_comparisons_document(tmp_path: Path) -> None:
    path = tmp_path / "comparison.json"
    found = compare(*files(tmp_path, SLOW[0], SLOW[2]))
    path.write_text(to_json(found))
    assert from_json(path.read_text()) == found
    assert "median" in draw(tmp_path, str(path))
    path.write_text(to_json(compare(str(COUNTED), None)))
    assert "iptables/nft / iptables/legacy" in draw(tmp_path, str(path))


@pytest.mark.parametrize("bound", ["lo", "hi"])
def test_an_estimate_outside_of_its_bounds_is_drawn(tmp_path: Path, bound: str) -> None:
    document = json.loads(to_json(compare(*files(tmp_path, SLOW[0], SLOW[2]))))
    ratio = document["comparisons"][0]["lookups"][0]["figures"][-1]["ratio"]
    ratio[bound] = ratio["estimate"] * (2 if bound == "lo" else 0.5)
    (tmp_path / "comparison.json").write_text(json.dumps(document))
    assert "median" in draw(tmp_path, str(tmp_path / "comparison.json"))


def test_each_format_and_the_same_again(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "a.svg", "b.svg", "a.pdf", "b.pdf"):
        plot([str(COUNTED)], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "a.pdf").read_bytes()[:5] == b"%PDF-"
    for suffix in ("png", "svg", "pdf"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


COSTS = ((LEGACY, 1846, 26), (NFT, 2912, 84), (NFTABLES, 2678, 0))


def sweep(sizes: Iterable[int]) -> list[Result]:
    return [with_values(base, {start + each * size: 2000}, size) for base, start, each in COSTS for size in sizes]


SIZES = ((0, 5), (0, 10, 100), (0, 10, 100, 1000, 5000), (10, 100, 20000), range(4), range(20), range(104))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["series", "ratios"])
def test_labels_do_not_overlap(tmp_path: Path, sizes: Sequence[int], kind: str) -> None:
    figure, [axes] = make_figure("title", "origin")
    if kind == "series":
        draw_series(axes, build_series(sweep(sizes)), crossings=find_crossings(sweep(sizes)))
    else:
        draw_ratios(axes, compare(files(tmp_path, sweep(sizes))[0], None))
    figure.draw_without_rendering()
    low, high = axes.get_xlim()
    boxes = [tick.label1.get_window_extent() for tick in axes.xaxis.get_major_ticks()
             if low <= tick.get_loc() <= high and tick.label1.get_text()]  # fmt: skip
    assert len(boxes) > 1
    assert all(one.x1 < other.x0 for one, other in pairwise(sorted(boxes, key=lambda box: box.x0)))
    lines = [low <= at <= high for at in axes.xaxis.get_minorticklocs()]
    assert sum(lines) < 40
    ends = [text.get_window_extent() for text in axes.texts if text.get_window_extent().x0 > axes.bbox.x1]
    assert len(ends) == 3, "each line has its label to the right of the axes"
    assert all(one.y1 <= other.y0 + 1 for one, other in pairwise(sorted(ends, key=lambda box: box.y0)))
    assert max(box.x1 for box in ends) <= figure.bbox.x1 + 1


def test_labels_of_lines_that_end_together_stand_apart() -> None:
    figure, [axes] = make_figure("title", "origin")
    results = [with_values(base, {1000 + size: 100}, size) for base in (LEGACY, NFT, NFTABLES) for size in (10, 100)]
    draw_series(axes, build_series(results))
    figure.draw_without_rendering()
    ends = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert len(ends) == 3
    assert all(one.y1 <= other.y0 + 1 for one, other in pairwise(ends))


def test_a_legend_covers_nothing() -> None:
    for side in (load(COUNTED)[:2], SLOW[:2]):
        figure, [axes] = make_figure("title", "origin")
        draw_distributions(axes, [("", result) for result in side])
        figure.draw_without_rendering()
        legend = axes.get_legend()
        assert legend
        assert legend.get_window_extent().y1 < axes.bbox.y0
        [origin] = [text for text in figure.texts if text.get_text() == "origin"]
        assert origin.get_window_extent().y1 < legend.get_window_extent().y0


def test_the_label_distinguishes_a_rulesets_services(tmp_path: Path) -> None:
    words = draw(tmp_path, *files(tmp_path, [change_run(each, arguments=("whatif", "x")) for each in sweep(range(4))]))
    assert "Services before the one that is looked up" in words
    assert "logarithmic" not in words
    assert "Services before" not in draw(tmp_path, *files(tmp_path, sweep(range(4))))


def test_repeats_are_one_entry_of_the_legend(tmp_path: Path) -> None:
    counted = [with_values(LEGACY, {2106: 1900 + at, 2107: 100 - at}, 100) for at in range(10)]
    words = draw(tmp_path, *files(tmp_path, counted))
    assert words.count("iptables/legacy, 100 Services") == 1
    assert "19,045 calls, 95.23% (p50 p95)" in words
    spread = {1000 + 7 * at: 10 for at in range(40)}
    words = draw(tmp_path, *files(tmp_path, [with_values(SLOW[0], spread, 100) for _ in range(10)]))
    assert words.count("100 Services") == 2, "in the title and once in the legend"
    assert "iptables/legacy, 100 Services (10 runs, 4,000 calls)" in words
    assert "marks: p50, p95 and p99" in words
    words = draw(tmp_path, *files(tmp_path, counted, counted[:3]))
    assert "A: iptables/legacy, 100 Services (10 runs" in words
    assert "B: iptables/legacy, 100 Services (3 runs" in words


def test_a_pairs_axis_names_the_sides_as_its_table_does(tmp_path: Path) -> None:
    [axes] = make_figure("x", "y")[1]
    draw_figures(axes, compare(*files(tmp_path, SLOW[0], SLOW[2]))[0])
    assert axes.get_xlabel().startswith("B / A: ")


def test_styles_differ_in_grey() -> None:
    for part in ("line", "marker", "color"):
        assert len({str(getattr(style, part)) for style in STYLES[:5]}) == 5
    assert len({(str(style.line), style.marker) for style in STYLES}) == len(STYLES) == 12
    for style, same_color in zip(STYLES, STYLES[5:], strict=False):
        assert style.color == same_color.color
        assert style.line != same_color.line
        assert style.marker != same_color.marker


def call(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        app.main(["plot", *argv])
    assert isinstance(ended.value.code, int)
    out, err = capsys.readouterr()
    assert out == ""
    return ended.value.code, err


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = str(tmp_path / "x.png")
    assert call(capsys, str(COUNTED), "--output", output) == (0, f"drawn: {output}\n")
    status, err = call(capsys, str(COUNTED), "--output", str(tmp_path / "x.gif"))
    assert status == 2
    assert "neither PNG nor SVG nor PDF" in err
    status, err = call(capsys, str(tmp_path / "nowhere.json"), "--output", output)
    assert status == 1
    status, err = call(capsys, str(COUNTED), "--output", str(tmp_path / "no" / "x.png"))
    assert (status, len(err.splitlines())) == (1, 2)
    for suffix in ("png", "svg"):
        picture = tmp_path / f"own.{suffix}"
        for _ in range(2):
            assert call(capsys, str(COUNTED), "--output", str(picture)) == (0, f"drawn: {picture}\n")
        picture.write_text("precious")
        status, err = call(capsys, str(COUNTED), "--output", str(picture))
        remedy = "pass another --output, or --force"
        assert (status, err) == (1, f"kproxylat: {picture} cannot be written: File exists\n  {remedy}\n")
        assert picture.read_text() == "precious"
        assert call(capsys, str(COUNTED), "--output", str(picture), "--force")[0] == 0
        assert picture.read_bytes() != b"precious"
    status, err = call(capsys, str(COUNTED), str(TIMED), "--output", output)
    assert status == 1
    assert "clock" in err


def test_without_matplotlib_it_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = builtins.__import__

    def lack(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError("No module named 'matplotlib'")
        return known(name, *rest)

    monkeypatch.setattr(builtins, "__import__", lack)
    status, err = call(capsys, str(COUNTED), "--output", str(tmp_path / "x.png"))
    assert status == 1
    remedy = "pip install matplotlib # with pipx: pipx inject kproxylat matplotlib"
    assert err == f"kproxylat: plot needs matplotlib: No module named 'matplotlib'\n  {remedy}\n"


def test_a_long_name_in_another_script_is_drawn_without_a_word(tmp_path: Path) -> None:
    """pytest makes an error of each warning; matplotlib warns of missing glyphs and of little room."""
    result = change_run(LEGACY, mode="測" * 3000)
    for suffix in ("png", "svg", "pdf"):
        plot(files(tmp_path, result), tmp_path / f"x.{suffix}", title="測試 " * 2000)
    assert "測試 測試" in texts(tmp_path / "x.svg")


def test_matplotlib_writes_and_prints_nothing_but_the_picture(tmp_path: Path) -> None:
    """Neither in the home directory, nor for temporary files; a user's matplotlibrc changes nothing."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home/matplotlibrc").write_text("no such setting\n")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), str(tmp_path / "home"))
    words = ["-m", "kproxylat", "plot", str(COUNTED), "--output", str(tmp_path / "x.svg")]
    done = subprocess.run(
        [sys.executable, *words], env=environment | places, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == f"drawn: {tmp_path}/x.svg\n"
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["home", "matplotlibrc", "x.svg"]
