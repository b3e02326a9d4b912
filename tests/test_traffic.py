"""Who sends: sources that suffice, flows that never repeat, pktgen's words."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network
from math import gcd
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxylat import traffic
from kproxylat.errors import MachineError, UsageError
from kproxylat.modes import find_mode
from kproxylat.plan import Options, plan_bursts
from kproxylat.traffic import PORTS, Burst, Sent, read_pktgen

BURST = Burst(2000, 1000, IPv4Network("10.244.128.0/29"), "10.96.100.50", 50051, "client", "pod0", "02:00:00:00:00:01")


def test_the_number_of_ports_is_prime_and_they_are_ports() -> None:
    assert all(len(PORTS) % divisor for divisor in range(2, 252))
    assert len(PORTS) < 252**2
    assert PORTS.start >= 1024
    assert PORTS.stop <= 65536


@pytest.mark.parametrize(
    ("count", "addresses"),
    [(0, 0), (1, 1), (len(PORTS), 1), (len(PORTS) + 1, 2), (10 * len(PORTS), 10), (10 * len(PORTS) + 1, 11)],
)
def test_addresses(count: int, addresses: int) -> None:
    assert replace(BURST, count=count).addresses == addresses


def test_sources_that_suffice() -> None:
    replace(BURST, count=6 * len(PORTS)).check()
    replace(BURST, count=5 * len(PORTS), skip=1).check()


@pytest.mark.parametrize(("count", "skip"), [(6 * len(PORTS) + 1, 0), (5 * len(PORTS) + 1, 1), (1, 6)])
def test_sources_that_do_not_suffice(count: int, skip: int) -> None:
    with pytest.raises(UsageError, match=f"{count} packets need .* source addresses, 10.244.128.0/29 has {6 - skip}"):
        replace(BURST, count=count, skip=skip).check()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400_000))
def test_flows_never_repeat(count: int) -> None:
    """pktgen steps address and port together, each around its own range (kernel, net/core/pktgen.c)."""
    addresses = replace(BURST, count=count).addresses
    flows = {(number % addresses, number % len(PORTS)) for number in range(count)}
    assert len(flows) == count


@given(st.integers(1, 2**31 - 1))
def test_flows_never_repeat_in_long_runs(count: int) -> None:
    addresses = replace(BURST, count=count).addresses
    assert gcd(addresses, len(PORTS)) == 1
    assert addresses * len(PORTS) >= count


@given(st.integers(0, 200_000), st.integers(1, 10**6))
def test_the_run_and_its_warm_up_share_no_source(warmup: int, packets: int) -> None:
    options = Options(find_mode("nftables", None), duration_s=packets / 1000, rate_pps=1000, warmup=warmup)
    first, second = plan_bursts(options, "client")
    assert (first.count, second.count) == (warmup, packets)
    assert second.skip >= first.skip + first.addresses


SAMPLE = """Params: count 2000  min_pkt_size: 64  max_pkt_size: 64
     frags: 0  delay: 1000000  clone_skb: 0  ifname: pod0
Current:
     pkts-sofar: 2000  errors: 3
     started: 29350838us  stopped: 31349870us idle: 1990000us
Result: OK: 1999032(c37+d1998994) usec, 2000 (60byte,0frags)
  1000pps 0Mb/sec (480000bps) errors: 0
"""


@pytest.fixture
def pktgen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let pktgen's file hold the last element."""
    text = [SAMPLE]

    def run(*argv: str, netns: str | None = None) -> str:
        assert (argv, netns) == (("cat", "/proc/net/pktgen/pod0"), "client")
        return text[-1]

    monkeypatch.setattr(traffic, "run", run)
    return text


def test_what_pktgen_says_it_sent(pktgen: list[str]) -> None:
    assert pktgen
    assert read_pktgen(BURST) == Sent(2000, 3, pytest.approx(2000 / 1.999032))


def test_a_run_that_is_not_over_has_no_rate_yet(pktgen: list[str]) -> None:
    pktgen.append(SAMPLE.split("Result")[0] + "Result: Starting\n")
    assert read_pktgen(BURST) == Sent(2000, 3, 0.0)
    pktgen.append(SAMPLE.replace("1999032(", "0("))
    assert read_pktgen(BURST).pps == 0.0


def test_pktgens_words_that_cannot_be_read(pktgen: list[str]) -> None:
    pktgen.append("Result: No device\n")
    with pytest.raises(MachineError, match="cannot be read: Result: No device"):
        read_pktgen(BURST)


class EchoingTee:
    """What tee does: it echoes each line twice; pktgen's answer is in the file."""

    pid = 1
    echoes = 2

    def __init__(self, *_: str, on_out: object, **__: object) -> None:
        self.on_out = on_out

    def write(self, line: str | None) -> None:
        for _ in range(self.echoes if line else 0):
            self.on_out(line)  # type: ignore[operator]


def pktgen_file(monkeypatch: pytest.MonkeyPatch, answer: Path) -> traffic._File:
    monkeypatch.setattr(traffic, "Background", EchoingTee)
    file = traffic._File("pod0", "client")
    file.path = answer
    return file


@pytest.mark.parametrize("said", ["Result: OK: count=5\n", "Result: Old\nResult: OK: count=5\n"])
def test_a_command_that_pktgen_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str) -> None:
    (tmp_path / "pod0").write_text(said)
    pktgen_file(monkeypatch, tmp_path / "pod0").write("count 5")


@pytest.mark.parametrize(
    ("said", "named"),
    [('Result: No such parameter "cuont"\n', 'No such parameter "cuont"'), ("", "nothing"), ("Result: Idle\n", "Idle")],
)
def test_a_command_that_pktgen_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, named: str) -> None:
    (tmp_path / "pod0").write_text(said)
    with pytest.raises(MachineError, match=f"pktgen refuses 'cuont 5' for pod0: {named}"):
        pktgen_file(monkeypatch, tmp_path / "pod0").write("cuont 5")


def test_a_command_that_is_never_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(traffic, "WRITE_LIMIT_S", 0.05)
    monkeypatch.setattr(EchoingTee, "echoes", 1)
    with pytest.raises(MachineError, match="took 'count 5' for pod0 not within"):
        pktgen_file(monkeypatch, tmp_path / "pod0").write("count 5")
