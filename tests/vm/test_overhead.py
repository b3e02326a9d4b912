"""What tracing adds, and the whole hook around the engine: exact, and from the packets of the run itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kproxylat.logs.reader import read_log
from kproxylat.results_json import from_json
from tests.vm.conftest import Guest

HOOKS = {"iptables": ["PREROUTING", "FORWARD", "POSTROUTING"], "ipvs": ["INPUT", "OUTPUT"]}


@pytest.mark.long
@pytest.mark.parametrize(("mode", "backend", "calls"), [
    ("iptables", "legacy", 2),
    ("ipvs", "ipvs", 1),
])  # fmt: skip
def test_overhead_is_an_integer_and_the_hook_is_around_the_call(
    counting: Guest, mode: str, backend: str, calls: int
) -> None:
    done = counting.kproxylat(
        *("run", "0.2", "1000", "--lab", "--mode", mode, "--backend", backend, "--services", "10"),
        *("--envelope", "--overhead", "--format", "json"),
    )
    assert done.status == 0, done.err
    result = done.json
    assert result["accounting"]["closed"] is True
    assert result["accounting"]["sent"] == result["accounting"]["lookups"] == 200, (
        "the further bursts are not in the books"
    )
    assert result["quality"]["warnings"] == []
    added = result["overhead"]
    assert (added["unit"], added["packets"], added["calls"]) == ("instructions", 200, calls)
    empty, script = (added[name]["estimate"] for name in ("empty", "script"))
    assert isinstance(empty, int)
    assert isinstance(script, int)
    assert 0 < empty < script
    assert 0 < added["stored"] < script - empty, "storing the time of entry is a part of the script's work"
    whole = {each["hook"]: each for each in result["probes"] if each["envelope"]}
    assert set(HOOKS[mode]) <= set(whole)
    for each in result["probes"]:
        around = whole[each["hook"]]
        assert around["count"] == 200
        assert each["mode"] <= around["mode"]
        # Each call brings the hook what tracing adds to it, and what it takes itself.
        if not each["envelope"]:
            assert around["min"] > each["min"] + script - added["stored"] - empty
    for hook, around in whole.items():
        inside = sum(each["sum"] for each in result["probes"] if each["hook"] == hook and not each["envelope"])
        assert around["share"] == inside / around["sum"] < 1
    check = result["cross_check"]
    assert check["agrees"] is True
    [lookup] = [each for each in result["probes"] if each["lookup"]]
    assert check["lookup"]["lo"] < check["lookup"]["hi"] == lookup["mode"] - added["stored"]
    assert check["lookup"]["hi"] < check["way"]["estimate"]
    assert result["send_time"]["sent"] == {"target": 200, "endpoint": 200, "no_service": 200}
    [again] = read_log(result["run"]["log"])
    assert replace(again, source=None) == from_json(Path(result["run"]["log"]).with_suffix(".json").read_text())


def test_the_senders_clock_measures_ipvs(counting: Guest) -> None:
    """Only a kernel with ip_vs can; the sender's time is counted in instructions here."""
    words = ("0.2", "1000", "--lab", "--mode", "ipvs", "--services", "20", "--probe", "none", "--format", "json")
    done = counting.kproxylat("run", *words, "--output-dir", str(counting.directory))
    assert done.status == 0, done.err
    books, times = done.json["accounting"], done.json["send_time"]
    assert (books["closed"], books["sent"], books["rule_hits"], books["delivered"]) == (True, 200, 200, 200)
    assert (times["late"], times["target"]["unit"]) == (0, "instructions")
    assert times["target"]["min"] > times["endpoint"]["min"] > 1000, "ipvs finds and translates on top"
