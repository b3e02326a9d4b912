"""docs/templates.md: its examples, as they stand there, on a real kernel; and a mistake, at the template's line."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support import ROOT
from tests.vm.conftest import Guest

DOCS = (ROOT / "docs/templates.md").read_text()
EXAMPLES = dict(re.findall(r"^### (\S+)\n```\n(.*?)^```$", DOCS, re.M | re.S))
PACKETS = 200
RECURSING = """{% extends "trace-kubeproxy.bt.j2" %}
{% block probes %}{{ super() }}
{{ plan.entry }}:htab_map_update_elem { @again[1] = 1; }
{% endblock %}
"""
"""A probe of the function that its own write of a map calls: the kernel skips each of these inner calls."""


def run(guest: Guest, name: str, backend: str, *options: str) -> dict[str, Any]:
    template = guest.directory / name
    template.write_text(EXAMPLES[name])
    done = guest.kproxylat(
        *("run", "0.5", "400", "--lab", "--mode", "iptables", "--backend", backend, "--services", "10"),
        *("--template", str(template), "--format", "json", *options),
    )
    assert done.status == 0, done.err
    result = done.json
    assert result["accounting"]["closed"] is True
    assert result["accounting"]["sent"] == PACKETS
    return result


def test_every_example_is_tested() -> None:
    assert set(EXAMPLES) == {"per-cpu.bt.j2", "insert.bt.j2", "verdicts.bt.j2", "one-liner.bt.j2"}


@pytest.mark.long
def test_latency_by_cpu(timing: Guest) -> None:
    result = run(timing, "per-cpu.bt.j2", "legacy")
    found = result["maps"]["cpu"]
    assert found["kind"] == "hist"
    for hook, name in ((0, "PREROUTING"), (2, "FORWARD"), (4, "POSTROUTING")):
        calls = sum(each["count"] for each in result["probes"] if each["hook"] == name)
        assert calls
        assert sum(entry["value"]["count"] for entry in found["entries"] if entry["key"][1] == hook) == calls


def test_conntrack_insert_beside_the_lookup(counting: Guest) -> None:
    result = run(counting, "insert.bt.j2", "legacy")
    assert result["maps"]["inserts"]["entries"] == [{"key": [1], "value": PACKETS}]
    [entry] = result["maps"]["insert_ns"]["entries"]
    assert entry["value"]["count"] == PACKETS
    assert result["accounting"]["lookups"] == PACKETS


@pytest.mark.long
@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_verdicts_by_chain(counting: Guest, backend: str) -> None:
    result = run(counting, "verdicts.bt.j2", backend)
    found = {tuple(entry["key"]): entry["value"] for entry in result["maps"]["verdict"]["entries"]}
    hooks = {"PREROUTING": 0, "FORWARD": 2, "POSTROUTING": 4}
    calls = dict[tuple[str, int, int], int]()
    for each in result["probes"]:
        key = (each["chain"] or each["table"], hooks[each["hook"]], 1)
        calls[key] = calls.get(key, 0) + each["count"]
    assert found == calls


def test_the_old_one_liner(timing: Guest) -> None:
    result = run(timing, "one-liner.bt.j2", "legacy")
    assert result["probes"] == []
    assert result["accounting"]["lookups"] is None
    [entry] = result["maps"]["latency_ns"]["entries"]
    assert entry["value"]["count"] >= PACKETS * 4, "each packet enters several tables"
    assert result["maps"]["avg_ns"]["entries"][0]["value"] > 0


def test_calls_that_the_kernel_skipped_are_counted_and_named(counting: Guest) -> None:
    """The lookups are whole, and still the run does not call its books closed: a probe has missed calls."""
    template = counting.directory / "recursing.bt.j2"
    template.write_text(RECURSING)
    done = counting.kproxylat(
        *("run", "0.5", "400", "--lab", "--mode", "iptables", "--backend", "legacy", "--services", "10"),
        *("--template", str(template), "--format", "json"),
    )
    counts, missed = done.json["accounting"], done.json["quality"]["missed_probes"]
    assert (done.status, counts["lookups"], counts["delivered"]) == (4, PACKETS, PACKETS)
    assert missed >= PACKETS * sum(probe["count"] == PACKETS for probe in done.json["probes"]), "a write for each call"
    assert counts["difference"] == f"{missed} calls missed, or without an exit"
    assert done.err.splitlines()[-1].endswith(f"the books don't close: {missed} calls missed, or without an exit")
