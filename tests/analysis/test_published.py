"""Published measurements: their data files, and the verdicts on ours."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from kproxylat.analysis.published import (
    AS_PUBLISHED,
    NOT_AS_PUBLISHED,
    UNCLEAR,
    Reproduction,
    compare_published,
    find_published,
    read_published,
)
from kproxylat.errors import UsageError
from kproxylat.modes import mode_names
from kproxylat.report.reproduction import draw_reproduction
from kproxylat.results import Bounded, FirstPacket, Percentile, PlaceTime, Result, Run
from kproxylat.trace.probes import exact_probe

BLOG = "k8s-blog-2025"


def make_run(mode: str, services: int, median_us: float, error: float = 0.02, per_service_ns: float = 0) -> Result:
    """Return a run whose percentiles follow from its median, with relative bounds; and its two places."""
    parts = {"1": 0.5, "50": 1.0, "90": 2.0, "99": 3.0}
    ns = {name: median_us * 1000 * part for name, part in parts.items()}
    percentiles = {name: Percentile(value, value * (1 - error), value * (1 + error)) for name, value in ns.items()}
    probe = exact_probe("connect", (None, None, None), Counter({1: 1}), "ns")
    places = tuple(
        PlaceTime(before, "", 1, Bounded(median_us * 1000 + before * per_service_ns, 0, 0)) for before in (0, services)
    )
    first = FirstPacket(type(probe)(**{**vars(probe), "percentiles": percentiles}), 0, 1, 0, 0, 0, (), places)
    return Result(Run(mode=mode, backend="nft", services=services), first_packet=first)


def reproduce(iptables: tuple[float, float], nftables: tuple[float, float], error: float = 0.02) -> Reproduction:
    """Compare medians at 5,000 and 10,000 Services with the blog's."""
    slope = (iptables[1] - iptables[0]) / 5
    runs = [make_run("iptables", size, us, error, slope) for size, us in zip((5000, 10000), iptables, strict=True)]
    runs += [make_run("nftables", size, us, error) for size, us in zip((5000, 10000), nftables, strict=True)]
    return compare_published(BLOG, read_published(BLOG), runs)


def states(reproduction: Reproduction) -> list[str]:
    """Return the states of the verdicts in their order."""
    return [verdict.state for verdict in reproduction.verdicts]


@pytest.mark.parametrize("name", find_published())
def test_a_data_file_is_whole(name: str) -> None:
    published = read_published(name)
    assert published.address.startswith("https://")
    assert {row.mode for row in published.rows} <= set(mode_names())
    assert set(published.shapes.values()) <= {"line", "flat"}
    assert set(published.quick) <= {row.services for row in published.rows}
    assert len({(row.mode, row.services) for row in published.rows}) == len(published.rows)
    assert published.list_sizes(quick=True) == sorted(published.quick)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown measurement 'x'") as caught:
        read_published("x")
    assert BLOG in caught.value.remedy


def test_the_same_shapes_are_as_published() -> None:
    reproduction = reproduce((50, 110), (12, 12.3))
    assert set(states(reproduction)) == {AS_PUBLISHED}
    # Two shapes, the order at four percentiles, the crossing.
    assert len(reproduction.verdicts) == 7
    slopes = {(slope.mode, slope.percentile): slope for slope in reproduction.slopes}
    assert slopes["iptables", "50"].measured.estimate == pytest.approx(12)
    assert slopes["iptables", "50"].published == pytest.approx(2.4)
    assert slopes["iptables", ""].measured.estimate == pytest.approx(12)
    assert slopes["iptables", ""].published == 22.4
    figures = {(row.mode, row.services, row.percentile): row for row in reproduction.figures}
    assert len(figures) == 16
    assert figures["iptables", 10000, "90"].ratio == pytest.approx(220 / 186)


def test_other_shapes_are_not_as_published() -> None:
    assert states(reproduce((50, 40), (12, 12)))[0] == NOT_AS_PUBLISHED
    assert states(reproduce((50, 110), (12, 20)))[1] == NOT_AS_PUBLISHED
    assert set(states(reproduce((50, 110), (120, 121)))[2:]) == {NOT_AS_PUBLISHED}


def test_wide_bounds_leave_it_unclear() -> None:
    reproduction = reproduce((50, 60), (42, 43), error=0.3)
    assert states(reproduction)[1:] == [UNCLEAR] * 6


def test_growth_only_is_over_the_least_number() -> None:
    runs = [make_run("iptables", size, us) for size, us in ((0, 30), (5000, 80), (10000, 140))]
    reproduction = compare_published("tke-2026", read_published("tke-2026"), runs)
    assert [figure.services for figure in reproduction.figures] == [5000, 10000]
    assert [figure.measured.estimate for figure in reproduction.figures] == [50, 110]
    assert states(reproduction) == [AS_PUBLISHED]


def test_the_table_fits_and_names_what_may_differ() -> None:
    text = "\n".join(draw_reproduction(reproduce((50, 110), (12, 12.3)), "Linux 9; a processor"))
    assert max(map(len, text.splitlines())) <= 80
    for words in ("this machine: Linux 9; a processor", "AS PUBLISHED", "each before it", "2025-02-28"):
        assert words in text
    assert all(str(json.loads(json.dumps(figure.published))) in text for figure in reproduce((1, 2), (3, 4)).figures)


def test_a_sweep_that_was_cut_short_is_compared_as_far_as_it_came() -> None:
    runs = [make_run("iptables", size, us) for size, us in ((5000, 1000), (10_000, 2000))]
    some = compare_published(BLOG, read_published(BLOG), [*runs, make_run("nftables", 5000, 20)])
    assert not [verdict for verdict in some.verdicts if "cross" in verdict.subject]
    assert [verdict for verdict in some.verdicts if "order of the modes" in verdict.subject]
