"""Table GENERATORS: who sends the packets. Flows never repeat, so that every packet is looked up.

The kernel's pktgen (Documentation/networking/pktgen.rst): one command per write to a file below /proc/net/pktgen, in
the namespace that sends. Without the flags IPSRC_RND and UDPSRC_RND it steps source address and port together, so that
A addresses and P ports with no common divisor repeat only after A x P packets.
"""

from __future__ import annotations

import queue
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from kproxylat.errors import MachineError, UsageError
from kproxylat.proc import Background, run

PROC = "/proc/net/pktgen"
THREAD = "kpktgend_0"
PORTS = range(1024, 64523)
"""Source ports: 63,499 of them, a prime number, so that any smaller number of addresses has no divisor in common."""
MAX_RATE_PPS = 10_000_000
RATE_TOLERANCE = 0.05
WRITE_LIMIT_S = 30


@dataclass(frozen=True)
class Burst:
    """Packets to send.

    :param source: the addresses to send from; ``skip`` of them are left to an earlier burst.
    :param mac: the link-layer address of the node's end of the link ``device`` in namespace ``netns``.
    """

    count: int
    rate_pps: int
    source: IPv4Network
    target_ip: str
    target_port: int
    netns: str
    device: str
    mac: str
    skip: int = 0

    @property
    def addresses(self) -> int:
        """How many source addresses it takes for flows that never repeat."""
        return -(-self.count // len(PORTS))

    def check(self) -> None:
        """Make sure that the sources suffice.

        :raises UsageError: they don't.
        """
        free = self.source.num_addresses - 2 - self.skip
        if self.addresses > free:
            raise UsageError(
                f"{self.count} packets need {self.addresses} source addresses, {self.source} has {free}",
                "a shorter run, a lower rate, or a larger --source",
            )


@dataclass(frozen=True)
class Sent:
    """What a generator says it did: packets, errors (retries of the device), packets per second."""

    count: int
    errors: int
    pps: float


class _File:
    """One of pktgen's files, in the namespace that sends: ``tee`` writes to it, line by line."""

    def __init__(self, name: str, netns: str) -> None:
        self._echo: queue.Queue[str] = queue.Queue()
        # tee echoes a line, then writes it to each file in turn: the echo to the second comes after the write.
        files = f"{PROC}/{name}", "/proc/self/fd/1"
        self.process = Background("tee", *files, on_out=self._echo.put, on_err=self._echo.put, netns=netns)
        # The process is in the namespace, and so are the files below its net directory.
        self.path = Path(f"/proc/{self.process.pid}/net/pktgen/{name}")
        self._name = name

    def write(self, line: str) -> None:
        """Write one command, and wait until it is written.

        :raises MachineError: pktgen refuses it; carries its own words.
        """
        self.process.write(line + "\n")
        try:
            echo = self._echo.get(timeout=WRITE_LIMIT_S) and self._echo.get(timeout=WRITE_LIMIT_S)
        except queue.Empty:
            raise MachineError(f"pktgen took {line!r} for {self._name} not within {WRITE_LIMIT_S} s") from None
        result = re.findall(r"Result: (.*)", self.path.read_text())
        if not echo.startswith(line) or not result or not result[-1].startswith("OK"):
            said = result[-1] if result else "nothing"
            raise MachineError(f"pktgen refuses {line!r} for {self._name}: {said} ({echo.strip()})")

    def close(self) -> None:
        """End tee."""
        self.process.write(None)
        self.process.wait(WRITE_LIMIT_S)
        self.process.end()


@contextmanager
def _open(name: str, netns: str) -> Iterator[_File]:
    file = _File(name, netns)
    try:
        yield file
    finally:
        file.close()


def start_pktgen(burst: Burst) -> Background:
    """Set pktgen up and start it.

    :return: the writer of ``start``, which ends when all is sent.
    :raises MachineError: pktgen refuses a command, or this kernel has none.
    """
    burst.check()
    first = burst.source.network_address + 1 + burst.skip
    with _open(THREAD, burst.netns) as thread:
        thread.write("rem_device_all")
        thread.write(f"add_device {burst.device}")
    with _open(burst.device, burst.netns) as device:
        for line in (
            f"count {burst.count}",
            "clone_skb 0",
            "pkt_size 64",
            f"dst_mac {burst.mac}",
            f"dst_min {burst.target_ip}",
            f"dst_max {burst.target_ip}",
            f"src_min {first}",
            f"src_max {first + burst.addresses - 1}",
            f"udp_src_min {PORTS.start}",
            f"udp_src_max {PORTS.stop}",
            f"udp_dst_min {burst.target_port}",
            f"udp_dst_max {burst.target_port}",
            f"ratep {burst.rate_pps}",
        ):
            device.write(line)
    # The file takes the last character for the end of the line, whatever it is.
    sender = Background("tee", f"{PROC}/pgctrl", on_out=_ignore, on_err=_ignore, netns=burst.netns)
    sender.write("start\n")
    sender.write(None)
    return sender


def _ignore(_: str) -> None:
    """tee echoes what it writes; whether it could, its exit status says."""


def stop_pktgen(burst: Burst) -> None:
    """Stop sending, if it still does."""
    run("tee", f"{PROC}/pgctrl", netns=burst.netns, stdin="stop\n")


def read_pktgen(burst: Burst) -> Sent:
    """Return what pktgen says it has sent so far, or in all.

    Sample, after a run::

        Params: count 2000  min_pkt_size: 64  max_pkt_size: 64
        Current:
             pkts-sofar: 2000  errors: 0
        Result: OK: 1999032(c37+d1998994) usec, 2000 (60byte,0frags)
          1000pps 0Mb/sec (480000bps) errors: 0
    """
    text = run("cat", f"{PROC}/{burst.device}", netns=burst.netns)
    sofar = re.search(r"pkts-sofar: (\d+)\s+errors: (\d+)", text)
    if sofar is None:
        raise MachineError(f"pktgen's state cannot be read: {' '.join(text.split())[-200:]}")
    elapsed = re.search(r"Result: OK: (\d+)\(", text)
    count = int(sofar[1])
    return Sent(count, int(sofar[2]), count / int(elapsed[1]) * 1e6 if elapsed and int(elapsed[1]) else 0.0)


@dataclass(frozen=True)
class Generator:
    """How packets are sent: start, stop, read what was sent."""

    protocol: str
    start: Callable[[Burst], Background]
    stop: Callable[[Burst], None]
    read: Callable[[Burst], Sent]


GENERATORS = {"pktgen": Generator("udp", start_pktgen, stop_pktgen, read_pktgen)}
