"""Services with several endpoints, session affinity and NodePorts, on a real kernel: the counts agree."""

from __future__ import annotations

import pytest

from tests.vm.commands import BACKENDS, lookup_of
from tests.vm.conftest import Guest


@pytest.mark.long
@pytest.mark.parametrize("affinity", [(), ("--affinity",)])
@pytest.mark.parametrize(
    ("mode", "backend"),
    BACKENDS,
)
def test_every_packet_arrives_at_one_of_the_endpoints(
    counting: Guest, mode: str, backend: str, affinity: tuple[str, ...]
) -> None:
    words = ("run", "0.4", "1000", "--lab", "--mode", mode, "--backend", backend, "--services", "5")
    done = counting.kproxylat(*words, "--endpoints", "4", *affinity, "--format", "json")
    assert done.status == 0, done.err
    counts, run = done.json["accounting"], done.json["run"]
    assert counts["closed"] is True
    assert counts["sent"] == counts["lookups"] == counts["delivered"] == 400
    assert (run["endpoints"], run["affinity"]) == (4, bool(affinity))
    if mode == "iptables" and not affinity:
        # A rule more for each further endpoint, except the last, which needs no chance.
        common = [int(value) for value, count in lookup_of(done.json)["values"].items() if count > 40]
        assert len(common) >= 4
        assert max(common) - min(common) > 60


@pytest.mark.long
@pytest.mark.parametrize(("mode", "backend"), BACKENDS)
def test_a_packet_to_a_node_port_passes_the_rules_of_all_services(counting: Guest, mode: str, backend: str) -> None:
    common = []
    for services in ("5", "105"):
        words = ("run", "0.2", "1000", "--lab", "--mode", mode, "--backend", backend, "--services", services)
        done = counting.kproxylat(*words, "--node-port", "--format", "json")
        assert done.status == 0, done.err
        counts = done.json["accounting"]
        assert counts["closed"] is True
        assert counts["sent"] == counts["lookups"] == counts["delivered"] == counts["delivered_masqueraded"] == 200
        common.append(lookup_of(done.json)["mode"])
    each = (common[1] - common[0]) / 100
    assert each > 20 if mode == "iptables" else abs(each) < 5
