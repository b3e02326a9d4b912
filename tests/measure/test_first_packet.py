"""First packets: on this machine's own kernel, without tracing; and how the times become percentiles with bounds."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kproxylat.errors import MachineError
from kproxylat.measure.first_packet import build_first_packet
from kproxylat.measure.options import Lab, Options, Sending
from kproxylat.modes import find_mode
from kproxylat.report.openmetrics import export_openmetrics
from kproxylat.report.sentences import describe_result
from kproxylat.results import FirstPacket
from kproxylat.results_json import from_json, to_json
from kproxylat.traffic.generators import GENERATORS
from kproxylat.traffic.sender import BLOCKS
from tests.support.namespaces import measure_alone, run_alone, run_on_node, sweep_alone

pytestmark = pytest.mark.slow

LAB = ("--lab", "--probe", "none", "--first-packet")
SHORT = ("0.2", "1000", "20")
CONNECTIONS = 200
ROWS = [("iptables", "legacy"), ("iptables", "nft"), ("nftables", "nft")]
FIRST = ("--backend", "nft", "--target", "10.96.100.50:50051", "--probe", "none", "--first-packet", "0.5")


def make_options(places: int = 2) -> Options:
    """Return options of a lab with connections to some of 10 Services."""
    sending = Sending(GENERATORS["sockets"], connects=True)
    return Options(find_mode("nftables", None), where=Lab(10, places=places), sending=sending)


def make_found(*places: list[list[int]]) -> dict[str, Any]:
    """Return what the sender finds: its times by place and block."""
    counts = {"errors": 0, "refused": 1, "unanswered": 2, "preempted": 3, "sent": 9}
    return {**counts, "seconds": 1.0, "clock": 50, "times": places}


def check(times: FirstPacket | None, connections: int = CONNECTIONS) -> FirstPacket:
    """Check that every connection was answered, and that its time is known or its lack is."""
    assert times
    assert (times.sent, times.refused, times.unanswered) == (connections, 0, 0)
    assert times.probe.count + times.preempted == connections
    assert list(times.probe.percentiles) == ["1", "50", "90", "95", "99", "100"]
    for percentile in times.probe.percentiles.values():
        assert percentile.estimate is not None
        assert percentile.lo is not None
        assert percentile.hi is not None
        assert 1_000 < percentile.lo <= percentile.estimate <= percentile.hi < 1_000_000_000
    assert times.probe.percentiles["100"].estimate == times.probe.max
    assert 1 < len(times.blocks) <= BLOCKS
    return times


@pytest.mark.parametrize(("mode", "backend"), ROWS)
def test_a_lab_answers_and_the_accounting_closes(mode: str, backend: str, tmp_path: Path) -> None:
    result = measure_alone(
        *LAB, *SHORT, "--services", "20", "--mode", mode, "--backend", backend, directory=tmp_path
    )  # fmt: skip
    times = check(result.first_packet)
    books = result.accounting
    assert books
    hits = None if mode == "nftables" else CONNECTIONS
    assert (books.sent, books.lookups, books.rule_hits, books.delivered) == (CONNECTIONS, None, hits, CONNECTIONS)
    assert (books.closed, books.entries, books.strayed, books.others) == (True, CONNECTIONS, 0, 0)
    assert result.headline == times.probe
    assert (result.headline.measured, times.places, times.lookup_share) == ("first packet", (), None)
    assert from_json(to_json(result)) == result
    text = "".join(export_openmetrics([result]))
    assert re.search(rf"^kproxylat_first_packet_seconds_count.* {times.probe.count}\.0$", text, re.M)


@pytest.mark.parametrize("more", [("--family", "6"), ("--from", "node"), ("--mode", "nftables")])
def test_places_are_connected_to_in_turn(more: tuple[str, ...], tmp_path: Path) -> None:
    result = measure_alone(*LAB, *SHORT, "--services", "40", "--places", "4", *more, directory=tmp_path)
    times = check(result.first_packet)
    assert [place.before for place in times.places] == [9, 19, 29, 39]
    assert sum(place.count for place in times.places) == times.probe.count
    assert times.probe.targets
    assert [sum(values.values()) for values in times.probe.targets.values()] == [place.count for place in times.places]
    assert list(times.probe.targets) == [place.target for place in times.places]
    assert result.accounting
    assert result.accounting.closed


def test_an_ordinary_user_needs_no_root(tmp_path: Path) -> None:
    words = (*LAB, *SHORT, "--services", "120", "--places", "3", "--mode", "iptables")
    result = measure_alone(*words, user="nobody", directory=tmp_path)
    check(result.first_packet, 198)
    assert result.accounting
    assert result.accounting.closed


def test_a_sweep_grows_the_lab_and_judges_first_packets(tmp_path: Path) -> None:
    words = (*LAB, "--mode", "iptables", "--backend", "nft", "--services", "10,1000,3000", "--places", "2")
    document = sweep_alone(*words, "0.3", "1000", directory=tmp_path)
    assert all(result["accounting"]["closed"] for result in document["results"])
    [series] = document["series"]
    assert series["measured"] == "first packet"
    assert series["verdict"] in ("O(n)", "unclear")
    costs = [point["cost"] for point in series["points"]]
    assert costs[-1] > 1.3 * costs[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--places", "2"), "only connections go to several of them: --places would have no effect"),
        (("--first-packet", "--places", "21", "--services", "20"), "--places 21 among 20 Services is not possible"),
        (("--first-packet", "--places", "2", "--node-port"), "--places are of other Services: --node-port would have"),
        (("--first-packet", "--places", "0"), "0 places are not possible"),
        (("--first-packet", "--protocol", "udp"), "--first-packet opens connections, and UDP has none"),
        (("--first-packet", "--generator", "hping3"), "--generator hping3 opens no connections"),
        (("--first-packet", "--overhead"), "what tracing adds cannot be measured with first packets"),
    ],
)
def test_options_that_cannot_be_are_refused(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = run_alone("run", "--lab", *words, directory=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_node_is_asked_kindly() -> None:
    from kproxylat.cli.run import RunOptions

    assert RunOptions(first_packet=True).choose_rate(None, 10000) == 100
    assert RunOptions(first_packet=True, lab=True).choose_rate(None, 10000) == 1000
    assert RunOptions(first_packet=True).choose_rate(7, 10000) == 7
    assert RunOptions().choose_rate(None, 10000) == 10000


def test_the_workers_rules_count_as_before_a_place() -> None:
    """Its two ports have a rule each, which come first, or in the middle."""
    found = make_found([[10, 12], [30]], [[20], [40, 40]])
    for position, before in (("first", [6, 11]), ("middle", [4, 11]), ("last", [4, 9])):
        options = replace(make_options(), where=Lab(10, position, places=2))
        times = build_first_packet(found, options, "ns")
        assert [place.before for place in times.places] == before


def test_times_become_percentiles_with_bounds_and_places() -> None:
    times = build_first_packet(make_found([[10, 12], [30]], [[20], [40, 40]]), make_options(), "ns")
    assert (times.probe.count, times.probe.min, times.probe.max) == (6, 10, 40)
    median = times.probe.percentiles["50"]
    assert (median.estimate, median.lo, median.hi) == (25, 12, 40)
    assert times.blocks == (12, 40)
    assert [(place.before, place.count, place.median.estimate) for place in times.places] == [(4, 3, 12), (9, 3, 40)]
    assert (times.refused, times.unanswered, times.preempted) == (1, 2, 3)


def test_without_an_answer_there_is_an_error() -> None:
    with pytest.raises(MachineError, match=re.escape("no connection to 10.97.0.5:80/tcp was answered")) as caught:
        build_first_packet(make_found([[], []], [[], []]), make_options(), "ns")
    assert "9 SYNs sent, 1 refused, 2 unanswered, 0 errors, 3 preempted" in str(caught.value)
    assert "ready pods" in caught.value.remedy


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_on_a_node_the_pods_of_the_service_answer(mode: str, tmp_path: Path) -> None:
    done = run_on_node("", "--mode", mode, *FIRST, directory=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Opening 50 connections to the Service's own pods, 100 a second, each closed at once" in done.stderr
    result = from_json(done.stdout)
    times = check(result.first_packet, 50)
    assert (times.places, result.run.masqueraded) == ((), True)
    books = result.accounting
    assert books
    assert (books.closed, books.sent, books.delivered) == (True if mode == "iptables" else None, 50, None)
    assert ("50 of 50 connections were answered" in describe_result(result)) == (mode == "nftables")
    assert books.rule_hits == (50 if mode == "iptables" else None)


def test_on_a_node_whose_pods_do_not_listen_it_ends_soon(tmp_path: Path) -> None:
    done = run_on_node("", "--mode", "nftables", *FIRST, listening="50052", directory=tmp_path)
    assert done.returncode == 1
    assert "no connection to 10.96.100.50:50051/tcp was answered in time" in done.stderr
    assert "10 refused" in done.stderr
