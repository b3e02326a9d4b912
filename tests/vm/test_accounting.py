"""Generators, and faults put in on purpose: the books name each by its counter, on a real kernel."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from kproxylat.traffic import sender
from tests.vm.conftest import Done, Guest

pytestmark = pytest.mark.long

PACKETS = 300
RUN = ("run", "0.6", "500", "--lab", "--services", "10", "--format", "json")
LEGACY = ("--mode", "iptables", "--backend", "legacy")
NODE, CLIENT = "ip netns exec kproxylat-node", "ip netns exec kproxylat-client"
STANDS_IN = "/run/bpftrace-itself"


def run_while(guest: Guest, happens: str, *argv: str) -> Done:
    """Run a command line during which something happens: after all preparations, just before the probes attach.

    :param happens: shell commands. A script of ours stands in for bpftrace, runs them, and becomes bpftrace.
    """
    program, real = guest.directory / "stand-in", shutil.which("bpftrace")
    program.write_text(f'#!/bin/bash\n[ "$1" = - ] && {{ {happens}; }} &>/dev/null </dev/null\nexec {STANDS_IN} "$@"\n')
    program.chmod(0o755)
    mount = f"touch {STANDS_IN} && mount --bind {real} {STANDS_IN} && mount --bind {program} {real}"
    assert guest.program("bash", "-c", mount).status == 0
    try:
        return guest.kproxylat(*argv)
    finally:
        assert guest.program("bash", "-c", f"umount {real} && umount {STANDS_IN} && rm {STANDS_IN}").status == 0


def open_books(done: Done) -> dict[str, Any]:
    """Return the books, which must be open, with their difference on stderr."""
    assert done.status == 4, done.err
    books: dict[str, Any] = done.json["accounting"]
    assert books["closed"] is False
    assert books["difference"] in done.err
    return books


def test_conntrack_too_small(timing: Guest) -> None:
    setting = "net.netfilter.nf_conntrack_max"
    timing.program("modprobe", "nf_conntrack")
    before = timing.program("sysctl", "-n", setting).out.strip()
    try:
        books = open_books(run_while(timing, f"sysctl -w {setting}=150", *RUN, *LEGACY))
    finally:
        timing.program("sysctl", "-q", "-w", f"{setting}={before}")
    lost = books["drops"]["conntrack drop"]
    assert 0 < lost == PACKETS - books["lookups"] == PACKETS - books["rule_hits"] == PACKETS - books["delivered"]
    assert f"conntrack drop {lost}" in books["difference"]
    assert "unexplained" not in books["difference"]
    assert books["entries"] == books["delivered"] - books["drops"]["conntrack early_drop"]


def test_rp_filter_against_the_route(timing: Guest) -> None:
    fault = f"{NODE} sysctl -w net.ipv4.conf.kpl-pod.rp_filter=1; {NODE} ip route replace 10.244.128.0/17 dev kpl-be"
    books = open_books(run_while(timing, fault, *RUN, *LEGACY))
    assert books["lookups"] == books["rule_hits"] == PACKETS
    assert (books["delivered"], books["entries"], books["drops"]["rp_filter"]) == (0, 0, PACKETS)
    assert books["difference"] == f"delivered 0 instead of {PACKETS} (rp_filter {PACKETS})"


@pytest.mark.parametrize("link", ["kpl-be", "be0"])
def test_a_dropped_veth(timing: Guest, link: str) -> None:
    netns = "kproxylat-node" if link == "kpl-be" else "kproxylat-backend"
    books = open_books(run_while(timing, f"ip -n {netns} link set {link} down", *RUN, *LEGACY))
    assert (books["lookups"], books["rule_hits"], books["delivered"]) == (PACKETS, PACKETS, 0)
    assert f"link {link} is down or gone" in books["difference"]


def test_a_map_limit_of_16_keys(timing: Guest) -> None:
    # Both names of the setting, that of bpftrace 0.20 and later and that of earlier ones.
    limits = "BPFTRACE_MAX_MAP_KEYS=16", "BPFTRACE_MAP_KEYS_MAX=16"
    argv = (*RUN, *LEGACY, "--output-dir", str(timing.directory))
    done = timing.program("env", *limits, sys.executable, "-m", "kproxylat", *argv)
    books = open_books(done)
    assert books["lookups"] < PACKETS == books["rule_hits"] == books["delivered"]
    assert books["difference"] == f"lookups {books['lookups']} instead of {PACKETS} (map @n was full)"
    assert done.json["quality"]["full_maps"] == ["@n"]


def test_a_wrong_port(timing: Guest) -> None:
    swap = "sed s/10.244.1.10:50051/10.244.1.10:50052/"
    fault = f"{NODE} bash -c 'iptables-legacy-save -c | {swap} | iptables-legacy-restore -c'"
    books = open_books(run_while(timing, fault, *RUN, *LEGACY))
    assert (books["rule_hits"], books["delivered"], books["strayed"]) == (PACKETS, 0, PACKETS)
    assert books["difference"] == f"delivered 0 instead of {PACKETS} ({PACKETS} strayed to another address or port)"


def test_other_traffic_to_the_same_clusterip(timing: Guest) -> None:
    fault = f"{NODE} bash -c 'for i in 1 2 3 4 5; do echo > /dev/udp/10.96.100.50/50051; done'"
    books = open_books(run_while(timing, fault, *RUN, *LEGACY))
    assert (books["sent"], books["lookups"], books["delivered"], books["others"]) == (PACKETS, PACKETS, PACKETS, 5)
    assert books["difference"] == f"rule hits {PACKETS + 5} instead of {PACKETS} (5 of other senders)"


def test_calls_of_others_and_why_packets_are_freed(timing: Guest) -> None:
    """The node's own packets pass while ours are traced; those that arrive are dropped in the backend's namespace."""
    fault = f"({NODE} bash -c 'for i in {{1..100}}; do echo > /dev/udp/10.96.100.50/50051; sleep 0.1; done' &)"
    books = open_books(run_while(timing, fault, *RUN, *LEGACY, "--others"))
    assert books["lookups"] == books["delivered"] == PACKETS
    assert books["others"] > 0
    assert books["other_calls"] >= 3, (
        "of each that passed while it was traced: at OUTPUT nat and filter, at POSTROUTING nat"
    )
    assert books["freed"]["NETFILTER_DROP"] >= PACKETS


def test_a_rate_that_cannot_be_held(timing: Guest) -> None:
    """Packets go to the other processor, whose queue is short; pktgen sends again what the link did not take."""
    rps = "echo 2 > /sys/class/net/kpl-pod/queues/rx-0/rps_cpus"
    fault = f"sysctl -w net.core.netdev_max_backlog=2; {NODE} bash -c '{rps}'"
    try:
        done = run_while(timing, fault, "run", "0.01", "1000000", *RUN[3:], *LEGACY)
    finally:
        timing.program("sysctl", "-q", "-w", "net.core.netdev_max_backlog=1000")
    books = done.json["accounting"]
    assert books["sent"] == 10_000
    assert books["drops"]["backlog"] > 0
    assert re.search(r"asked for 1000000 pps, reached \d+; try \d+ pps", " / ".join(done.json["quality"]["warnings"]))
    assert books["closed"] or re.search(r"\(.*(backlog \d+|unexplained).*\)$", books["difference"])


@pytest.mark.parametrize(
    ("generator", "protocol", "mode"),
    [
        ("sockets", "udp", ("--mode", "nftables")),
        ("sockets", "tcp", LEGACY),
        ("hping3", "tcp", ("--mode", "iptables", "--backend", "nft")),
    ],
)
def test_books_of_other_generators_close(timing: Guest, generator: str, protocol: str, mode: tuple[str, ...]) -> None:
    argv = ("run", "3", "100", *RUN[3:], *mode, "--generator", generator, "--protocol", protocol)
    done = timing.kproxylat(*argv)
    assert done.status == 0, done.err
    books, traffic = done.json["accounting"], done.json["traffic"]
    assert books["closed"] is True
    assert books["sent"] == books["lookups"] == books["delivered"] == books["entries"] == PACKETS
    assert books["rule_hits"] == (None if "nftables" in mode else PACKETS)
    assert done.json["target"]["protocol"] == protocol
    assert traffic["generator"] == generator
    if generator == "sockets":
        assert traffic["pps"] == pytest.approx(100, rel=0.05)
    elif abs(traffic["pps"] / 100 - 1) > 0.05:
        assert "asked for 100 pps, reached" in done.json["quality"]["warnings"][0]
    assert timing.state() == ["lo"]


def test_with_none_the_traffic_comes_from_elsewhere(timing: Guest) -> None:
    words = f"udp 10.96.100.50 50051 10.244.128.9 1 2000 5000 {20 * PACKETS} 50"
    sends = f"{CLIENT} {sys.executable} -I {Path(sender.__file__)} {words} &"
    done = run_while(timing, f"{{ {sends} }}", "run", "6", *RUN[3:], *LEGACY, "--generator", "none")
    assert done.status == 0, done.err
    books = done.json["accounting"]
    assert books["closed"] is True
    assert done.json["traffic"]["sent"] is books["sent"] is None
    assert 200 < books["lookups"] <= books["rule_hits"]
    assert books["lookups"] <= books["delivered"]
