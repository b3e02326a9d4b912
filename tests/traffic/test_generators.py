"""Who sends: sources that suffice, flows that never repeat, pktgen's words."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from ipaddress import IPv4Network
from math import gcd
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxylat.errors import MachineError, UsageError
from kproxylat.measure.options import Lab, Options, Sending
from kproxylat.measure.plan import check_options, plan_bursts
from kproxylat.modes import find_mode
from kproxylat.node.network import Network
from kproxylat.results import Target
from kproxylat.system import processes
from kproxylat.traffic import burst as traffic_burst
from kproxylat.traffic import hping3, sockets
from kproxylat.traffic import pktgen as traffic_pktgen
from kproxylat.traffic import sender as sender_program
from kproxylat.traffic.burst import PORTS, Burst, Sent
from kproxylat.traffic.generators import GENERATORS, check_generator, find_generator
from kproxylat.traffic.pktgen import read_pktgen
from kproxylat.traffic.sender import send_flows

BURST = Burst(
    2000,
    1000,
    IPv4Network("10.244.128.0/29"),
    Target("10.96.100.50", 50051, "udp"),
    "client",
    "pod0",
    "02:00:00:00:00:01",
)


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


@settings(max_examples=40)
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
    options = Options(
        find_mode("nftables", None), sending=Sending(duration_s=packets / 1000, rate_pps=1000, warmup=warmup)
    )
    first, second = plan_bursts(options, Network("client", "node", "backend"))
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

    monkeypatch.setattr(traffic_pktgen, "run", run)
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


def pktgen_file(monkeypatch: pytest.MonkeyPatch, answer: Path) -> traffic_pktgen._File:
    monkeypatch.setattr(traffic_pktgen, "Background", EchoingTee)
    file = traffic_pktgen._File("pod0", "client")
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
    monkeypatch.setattr(traffic_pktgen, "WRITE_LIMIT_S", 0.05)
    monkeypatch.setattr(EchoingTee, "echoes", 1)
    with pytest.raises(MachineError, match="took 'count 5' for pod0 not within"):
        pktgen_file(monkeypatch, tmp_path / "pod0").write("count 5")


@pytest.mark.parametrize(("name", "protocol"), [("sockets", "tcp"), ("pktgen", "udp"), ("none", "udp")])
def test_generators(name: str, protocol: str) -> None:
    assert find_generator(name) is GENERATORS[name]
    check_generator(GENERATORS[name], protocol)


@pytest.mark.parametrize(
    ("name", "protocol", "said", "remedy"),
    [
        ("iperf", "udp", "unknown generator 'iperf'", "pktgen, sockets, hping3, none"),
        ("pktgen", "tcp", "generator pktgen sends no 'tcp'", "--generator sockets or hping3 does"),
        ("hping3", "udp", "generator hping3 sends no 'udp'", "--generator pktgen or sockets does"),
        ("sockets", "sctp", "generator sockets sends no 'sctp'", "it sends: udp, tcp"),
    ],
)
def test_unknown_generators_and_protocols(name: str, protocol: str, said: str, remedy: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        check_generator(find_generator(name), protocol)
    assert remedy in caught.value.remedy


def test_hping3_has_one_address() -> None:
    replace(BURST, count=len(PORTS)).check(1)
    with pytest.raises(UsageError, match="63500 packets are more than the 63499 flows"):
        replace(BURST, count=len(PORTS) + 1).check(1)


def test_a_missing_hping3_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "PATH", str(tmp_path))
    with pytest.raises(MachineError, match=r"^the program 'hping3' is missing$") as caught:
        processes.find(*GENERATORS["hping3"].tools)
    assert caught.value.remedy == "apt-get install hping3"


def listen(kind: int) -> socket.socket:
    server = socket.socket(socket.AF_INET, kind)
    server.bind(("127.0.0.1", 0))
    server.settimeout(5)
    if kind == socket.SOCK_STREAM:
        server.listen(500)
    return server


def burst_to(server: socket.socket, **more: Any) -> Burst:
    """Make a burst to a socket of ours, from addresses of the loopback link."""
    ip, port = server.getsockname()
    protocol = "udp" if server.type == socket.SOCK_DGRAM else "tcp"
    about = {"source": IPv4Network("127.7.0.0/16"), "target": Target(ip, port, protocol), "netns": None}
    return replace(BURST, **about | {"count": 200, "rate_pps": 1000} | more)


def test_sockets_send_every_packet_from_another_flow_at_the_rate() -> None:
    with listen(socket.SOCK_DGRAM) as server:
        burst = burst_to(server, skip=3)
        sender = sockets.start_sockets(burst)
        flows = [server.recvfrom(100)[1] for _ in range(burst.count)]
        assert sender.wait(10)
    sent = sockets.read_sockets(burst, sender)
    assert (sender.status, sent.count, sent.errors) == (0, 200, 0)
    assert sent.pps == pytest.approx(1000, rel=0.05)
    assert len(set(flows)) == 200
    assert set(flows) == {("127.7.0.4", port) for port in PORTS[:200]}


def test_sockets_step_address_and_port_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "pthread_sigmask", lambda *_: None)
    flows: list[tuple[str, int]] = []
    monkeypatch.setattr(sender_program, "open_flow", lambda _, source: nullcontext(flows.append(source)))
    monkeypatch.setattr(sender_program, "time_call", lambda *_: 0)
    outcome = send_flows([["", 0, "udp"]], "10.0.0.1", 2, [10, 3], 6, 1e6)
    assert (outcome["sent"], outcome["errors"]) == (6, 0)
    a, b = "10.0.0.1", "10.0.0.2"
    assert flows == [(a, 10), (b, 11), (a, 12), (b, 10), (a, 11), (b, 12)]


def test_sockets_send_syns() -> None:
    with listen(socket.SOCK_STREAM) as server:
        # Another test process may have left its ports of a common address in TIME-WAIT, for a minute.
        burst = burst_to(server, count=20, source=IPv4Network((f"127.8.{os.getpid() % 256}.0", 24)))
        sender = sockets.start_sockets(burst)
        assert sender.wait(10)
        # On the loopback link the handshake is done at once.
        accepted, source = server.accept()
        accepted.close()
        assert source == (burst.first, PORTS.start)
    assert sockets.read_sockets(burst, sender).count == 20


def test_packets_that_cannot_be_sent_are_errors() -> None:
    with listen(socket.SOCK_DGRAM) as server:
        burst = burst_to(server, source=IPv4Network("203.0.113.0/24"), count=5)
        sender = sockets.start_sockets(burst)
        assert sender.wait(10)
    sent = sockets.read_sockets(burst, sender)
    assert (sent.count, sent.errors) == (0, 5)


def test_sockets_that_are_stopped_say_how_far_they_came() -> None:
    with listen(socket.SOCK_DGRAM) as server:
        burst = burst_to(server, count=60_000)
        sender = sockets.start_sockets(burst)
        server.recvfrom(100)
        traffic_burst.stop_program(burst, sender)
        assert sender.wait(10)
    assert 0 < (sockets.read_sockets(burst, sender).count or 0) < 60_000


def test_a_program_that_is_stopped_before_it_began_has_sent_nothing() -> None:
    sender = traffic_burst.Sender("sleep", "60")
    traffic_burst.stop_program(BURST, sender)
    assert sender.wait(10)
    assert sockets.read_sockets(BURST, sender) == Sent(0, 0, 0.0)


@pytest.mark.parametrize("read", [sockets.read_sockets, hping3.read_hping3])
def test_a_program_that_does_not_say_what_it_sent(read: Callable[[Burst, traffic_burst.Sender], Sent]) -> None:
    sender = traffic_burst.Sender("echo", "no idea")
    assert sender.wait(10)
    with pytest.raises(MachineError, match="echo did not say what it sent: no idea"):
        read(BURST, sender)


@pytest.mark.parametrize(("packets", "pps"), [(2000, 1000.0), (1000, 1000 / 3)])
def test_hping3s_last_wait_is_no_sending(monkeypatch: pytest.MonkeyPatch, packets: int, pps: float) -> None:
    sender = traffic_burst.Sender("echo", f"{packets} packets transmitted, 0 packets received, 100% packet loss")
    assert sender.wait(10)
    monkeypatch.setattr(hping3.time, "monotonic", lambda: sender.started_s + 3)
    assert hping3.read_hping3(BURST, sender) == Sent(packets, None, pytest.approx(pps))


def test_with_none_the_run_lasts_its_time_and_nobody_knows_what_was_sent() -> None:
    generator = GENERATORS["none"]
    started = time.monotonic()
    sender = generator.start(replace(BURST, count=30, rate_pps=100))
    assert sender.wait(10)
    assert 0.3 <= time.monotonic() - started < 3, "30 packets at 100 a second; the rest is a busy machine's"
    assert generator.read(BURST, sender) == Sent(None, None, None)


def test_none_needs_no_warm_up_and_takes_any_source() -> None:
    options = Options(find_mode("nftables", None), sending=Sending(GENERATORS["none"]))
    assert [burst.count for burst in plan_bursts(options, Network(None, None, None))] == [0, 300_000]
    assert str(options.sources) == "0.0.0.0/0"
    assert str(replace(options, where=Lab()).sources) == "10.244.128.0/17"


def test_the_nodes_own_packets_are_sent_by_the_node() -> None:
    sending = Sending(GENERATORS["sockets"], origin="node")
    options = Options(find_mode("iptables", "nft"), where=Lab(10), sending=sending)
    mode = options.mode
    assert (mode.chain, mode.hook, mode.origin) == ("OUTPUT", 3, "node")
    assert {burst.netns for burst in plan_bursts(options, Network("client", "node", "backend", "node"))} == {"node"}
    with pytest.raises(UsageError, match="pktgen sends no packets of the node's own") as caught:
        check_options(replace(options, sending=replace(sending, generator=GENERATORS["pktgen"])))
    assert "--generator sockets" in caught.value.remedy


@pytest.mark.parametrize(("rate_pps", "most"), [(1, 1), (20, 10), (1000, sender_program.SOCKETS)])
def test_a_syn_is_not_sent_again(monkeypatch: pytest.MonkeyPatch, rate_pps: float, most: int) -> None:
    """Nothing answers in the lab: the kernel repeats the SYN of a socket that is open for a second."""
    opened: list[int] = []

    class Flow:
        def __init__(self) -> None:
            opened.append(1)

        def close(self) -> None:
            opened.pop()

    counts: list[int] = []

    def time_packet(*_: object) -> tuple[str, int]:
        counts.append(len(opened))
        return "taken", 5

    for name, value in {
        "hold_still": lambda: None,
        "open_flow": lambda *_: Flow(),
        "time_packet": time_packet,
        "time": SimpleNamespace(monotonic=iter(range(1000, 10000)).__next__, perf_counter_ns=time.perf_counter_ns),
    }.items():
        monkeypatch.setattr(sender_program, name, value)
    target = ["10.96.100.50", 50051, "tcp"]
    sent = sender_program.send_timed([target], [], "10.244.128.1", 6, [1000, 50000], 100, rate_pps, ("", ""))
    assert (sent["sent"], max(counts), len(opened)) == (100, most, 0)


@pytest.mark.parametrize(
    ("status", "is_sent"),
    [(0, True), (errno.EINPROGRESS, True), (errno.ECONNREFUSED, True), (errno.EINVAL, False), (errno.ENOBUFS, False)],
)
def test_a_syn_that_was_not_sent_has_no_time(status: int, is_sent: bool) -> None:
    flow = SimpleNamespace(connect_ex=lambda _: status)
    outcome, time_ns = sender_program.time_packet((cast("Any", flow), False, ("10.96.0.1", 80)), None)
    assert (outcome in ("taken", "preempted"), time_ns > 0) == (is_sent, is_sent)
