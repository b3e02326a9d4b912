"""Pictures: they are drawn, say what they show, tell their series apart in grey, and do without matplotlib politely."""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kproxylat.analysis.compare import compare
from kproxylat.analysis.comparison import from_json, to_json
from kproxylat.analysis.series import build_series
from kproxylat.cli import app
from kproxylat.report.plot import STYLES, _make_figure, draw_ratios, draw_series, plot
from kproxylat.results import Result
from tests.results import COUNTED, LOGS, TIMED, change_run, load, with_values
from tests.support.documents import files

SLOW = load(TIMED)
LEGACY, NFT, NFTABLES = (load(COUNTED)[at] for at in (0, 3, 6))


def texts(svg: Path) -> str:
    """The words of a picture: matplotlib writes each as a comment beside its outlines."""
    return " | ".join(re.findall(r"<!-- (.*?) -->", svg.read_text()))


def draw(directory: Path, *names: str) -> str:
    output = directory / "x.svg"
    plot(names, output)
    return texts(output)


def test_a_sweep_counted(tmp_path: Path) -> None:
    words = draw(tmp_path, str(COUNTED))
    for each in (
        "commonest lookup, emulated instructions (logarithmic)",
        "Services (logarithmic)",
        "iptables/legacy: O(n), 26 per Service",
        "nftables/nft: O(1)",
    ):
        assert each in words


def test_a_sweep_timed_has_error_bars(tmp_path: Path) -> None:
    words = draw(tmp_path, str(TIMED))
    assert "median lookup, emulated ns" in words
    assert "bars: 95% bounds of the median" in words
    assert re.search(r"iptables/nft: unclear, 307.1 per Service \(\d+(\.\d+)? to ", words)


def test_one_run_counted_shows_every_value(tmp_path: Path) -> None:
    words = draw(tmp_path, *files(tmp_path, load(COUNTED)[6]))
    assert "2,678: 1,913 calls" in words
    assert "5,786: 84 calls" in words
    assert "cost of a lookup, emulated instructions" in words


def test_one_run_timed(tmp_path: Path) -> None:
    words = draw(tmp_path, *files(tmp_path, SLOW[0]))
    assert "share of the calls that cost at most so much" in words
    assert "cost of a lookup, emulated ns (logarithmic)" in words


def test_a_picture_of_two_results_states_the_difference(tmp_path: Path) -> None:
    words = draw(tmp_path, *map(str, LOGS))
    assert "A's lookup is 2.11 times cheaper" in words
    assert "B: iptables/legacy, 100 Services (2,000 calls)" in words


def test_two_sweeps(tmp_path: Path) -> None:
    names = files(tmp_path, load(COUNTED)[:3], load(COUNTED)[6:])
    words = draw(tmp_path, *names)
    assert "nftables/nft by iptables/legacy" in words
    assert "exact values" in words


def test_a_comparisons_document(tmp_path: Path) -> None:
    path = tmp_path / "comparison.json"
    found = compare(*files(tmp_path, SLOW[0], SLOW[2]))
    path.write_text(to_json(found))
    assert from_json(path.read_text()) == found
    assert "median" in draw(tmp_path, str(path))
    path.write_text(to_json(compare(str(COUNTED), None)))
    assert "iptables/nft by iptables/legacy" in draw(tmp_path, str(path))


def test_a_png_and_the_same_again(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "a.svg", "b.svg"):
        plot([str(COUNTED)], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


COSTS = ((LEGACY, 1846, 26), (NFT, 2912, 84), (NFTABLES, 2678, 0))


def sweep(sizes: Iterable[int]) -> list[Result]:
    return [with_values(base, {start + each * size: 2000}, size) for base, start, each in COSTS for size in sizes]


SIZES = ((0, 5), (0, 10, 100), (0, 10, 100, 1000, 5000), (10, 100, 20000), range(4), range(20), range(104))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["series", "ratios"])
def test_labels_do_not_overlap_and_the_legend_covers_nothing(tmp_path: Path, sizes: Sequence[int], kind: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure, [axes] = _make_figure()
    if kind == "series":
        draw_series(axes, build_series(sweep(sizes)))
    else:
        draw_ratios(axes, compare(files(tmp_path, sweep(sizes))[0], None))
    FigureCanvasAgg(figure).draw()
    low, high = axes.get_xlim()
    boxes = [tick.label1.get_window_extent() for tick in axes.xaxis.get_major_ticks()
             if low <= tick.get_loc() <= high and tick.label1.get_text()]  # fmt: skip
    assert len(boxes) > 1
    assert all(one.x1 < other.x0 for one, other in pairwise(sorted(boxes, key=lambda box: box.x0)))
    lines = [low <= at <= high for at in axes.xaxis.get_minorticklocs()]
    assert sum(lines) < 40
    [legend] = figure.legends
    assert legend.get_window_extent().y1 < axes.get_window_extent().y0


def test_the_label_distinguishes_a_rulesets_services(tmp_path: Path) -> None:
    words = draw(tmp_path, *files(tmp_path, [change_run(each, arguments=("whatif", "x")) for each in sweep(range(4))]))
    assert "Services before the one that is looked up" in words
    assert "logarithmic" not in words
    assert "Services before" not in draw(tmp_path, *files(tmp_path, sweep(range(4))))


def test_repeats_are_one_entry_of_the_legend(tmp_path: Path) -> None:
    counted = [with_values(LEGACY, {2106: 1900 + at, 2107: 100 - at}, 100) for at in range(10)]
    words = draw(tmp_path, *files(tmp_path, counted))
    assert words.count("iptables/legacy, 100 Services") == 1
    assert "iptables/legacy, 100 Services (10 runs, 20,000 calls)" in words
    assert "2,106: 19,045 calls" in words
    spread = {1000 + 7 * at: 10 for at in range(40)}
    words = draw(tmp_path, *files(tmp_path, [with_values(SLOW[0], spread, 100) for _ in range(10)]))
    assert words.count("100 Services") == 1
    assert "marks: 50, 95 and 99 %" in words
    words = draw(tmp_path, *files(tmp_path, counted, counted[:3]))
    assert "A: iptables/legacy, 100 Services (10 runs" in words
    assert "B: iptables/legacy, 100 Services (3 runs" in words


def test_styles_differ_in_grey() -> None:
    for part in ("line", "marker", "color"):
        assert len({str(getattr(style, part)) for style in STYLES}) == len(STYLES)


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
    assert "neither PNG nor SVG" in err
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
    assert err == "kproxylat: plot needs matplotlib: No module named 'matplotlib'\n  pip install 'kproxylat[plot]'\n"
