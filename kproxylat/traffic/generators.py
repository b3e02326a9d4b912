"""Table GENERATORS: who sends the packets. Flows never repeat, so that every packet is looked up.

"sockets" sends from plain sockets (:mod:`kproxylat.traffic.sender`); "hping3" sends TCP SYNs, from one address; with "none" the
traffic comes from elsewhere.

The kernel's pktgen (Documentation/networking/pktgen.rst): one command per write to a file below /proc/net/pktgen, in
the namespace that sends. Without the flags IPSRC_RND and UDPSRC_RND it steps source address and port together, so that
A addresses and P ports with no common divisor repeat only after A x P packets. Of IPv6 it has one source address
(``src6``; it steps none, net/core/pktgen.c, mod_cur_headers), so that no more flows than ports can be made.
"""

from __future__ import annotations

import queue
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from kproxylat.errors import MachineError, UsageError
from kproxylat.results import Destination, IpNetwork
from kproxylat.system.processes import Background, run

PROC = "/proc/net/pktgen"
THREAD = "kpktgend_0"
PORTS = range(1024, 64523)
"""Source ports: 63,499 of them, a prime number, so that any smaller number of addresses has no divisor in common."""
MAX_RATE_PPS = 10_000_000
RATE_TOLERANCE = 0.05
WRITE_LIMIT_S = 30
SENDER = Path(__file__).with_name("sender.py")
HPING3_LAST_WAIT_S = 1.0
"""How long hping3 waits for answers after the last packet of ``-c`` (hping2.h, COUNTREACHED_TIMEOUT)."""


@dataclass(frozen=True)
class Burst:
    """Packets to send.

    :param source: the addresses to send from; ``skip`` of them are left to an earlier burst.
    :param mac: the link-layer address of the node's end of the link ``device`` in namespace ``netns``.
    :param protocol: "udp" or "tcp", of which the SYN is sent.
    :param targets: where many are sent to in turn, in place of the one.
    """

    count: int
    rate_pps: int
    source: IpNetwork
    target_ip: str
    target_port: int
    netns: str | None
    device: str
    mac: str
    skip: int = 0
    protocol: str = "udp"
    targets: tuple[Destination, ...] = ()

    @property
    def first(self) -> str:
        """The first source address."""
        return str(self.source.network_address + 1 + self.skip)

    @property
    def addresses(self) -> int:
        """How many source addresses it takes for flows that never repeat."""
        return -(-self.count // len(PORTS))

    def check(self, most: int | None = None) -> None:
        """Make sure that the sources suffice.

        :param most: how many source addresses the generator can use (None: any number).
        :raises UsageError: they don't.
        """
        free = self.source.num_addresses - 2 - self.skip
        if most is not None and self.addresses > most:
            raise UsageError(
                f"{self.count} packets are more than the {most * len(PORTS)} flows that this generator can make",
                "a shorter run, a lower rate, or another --generator",
            )
        if self.addresses > free:
            raise UsageError(
                f"{self.count} packets need {self.addresses} source addresses, {self.source} has {free}",
                "a shorter run, a lower rate, or a larger --source",
            )


@dataclass(frozen=True)
class Sent:
    """What a generator says it did: packets, errors (pktgen's are retries of the device), packets per second.

    None is what it does not say.
    """

    count: int | None = None
    errors: int | None = None
    pps: float | None = None


class Sender(Background):
    """A program that sends, or lets the kernel send; its end is the end of the sending.

    :ivar said: the lines that it printed, the last 1,000.
    """

    def __init__(self, *argv: str, netns: str | None = None) -> None:
        self.said: deque[str] = deque(maxlen=1000)
        self.started_s = time.monotonic()
        super().__init__(*argv, on_out=self.said.append, on_err=self.said.append, netns=netns)


class _File:
    """One of pktgen's files, in the namespace that sends: ``tee`` writes to it, line by line."""

    def __init__(self, name: str, netns: str | None) -> None:
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
            raise MachineError(
                f"pktgen took {line!r} for {self._name} not within {WRITE_LIMIT_S} s", "pass --generator sockets"
            ) from None
        result = re.findall(r"Result: (.*)", self.path.read_text())
        if not echo.startswith(line) or not result or not result[-1].startswith("OK"):
            said = result[-1] if result else "nothing"
            raise MachineError(
                f"pktgen refuses {line!r} for {self._name}: {said} ({echo.strip()})", "pass --generator sockets"
            )

    def close(self) -> None:
        """End tee."""
        self.process.write(None)
        try:
            self.process.wait(WRITE_LIMIT_S)
        finally:
            self.process.end()


@contextmanager
def _open(name: str, netns: str | None) -> Iterator[_File]:
    file = _File(name, netns)
    try:
        yield file
    finally:
        file.close()


def start_pktgen(burst: Burst) -> Sender:
    """Set pktgen up and start it.

    :return: the writer of ``start``, which ends when all is sent.
    :raises MachineError: pktgen refuses a command, or this kernel has none.
    """
    with _open(THREAD, burst.netns) as thread:
        thread.write("rem_device_all")
        thread.write(f"add_device {burst.device}")
    with _open(burst.device, burst.netns) as device:
        for line in (
            f"count {burst.count}",
            "clone_skb 0",
            f"dst_mac {burst.mac}",
            *_addresses(burst),
            f"udp_src_min {PORTS.start}",
            f"udp_src_max {PORTS.stop}",
            f"udp_dst_min {burst.target_port}",
            f"udp_dst_max {burst.target_port}",
            f"ratep {burst.rate_pps}",
        ):
            device.write(line)
    # The file takes the last character for the end of the line, whatever it is.
    sender = Sender("tee", f"{PROC}/pgctrl", netns=burst.netns)
    sender.write("start\n")
    sender.write(None)
    return sender


def _addresses(burst: Burst) -> tuple[str, ...]:
    """Return the commands that depend on the IP family. An IPv6 packet has a checksum, and 16 bytes of pktgen's own."""
    if burst.source.version == 6:
        return "pkt_size 78", f"dst6 {burst.target_ip}", f"src6 {burst.first}", "flag UDPCSUM"
    last = ip_address(burst.first) + burst.addresses - 1
    target = f"dst_min {burst.target_ip}", f"dst_max {burst.target_ip}"
    return "pkt_size 64", *target, f"src_min {burst.first}", f"src_max {last}"


def stop_pktgen(burst: Burst, _: Sender | None = None) -> None:
    """Stop sending, if it still does."""
    run("tee", f"{PROC}/pgctrl", netns=burst.netns, stdin="stop\n")


def read_pktgen(burst: Burst, _: Sender | None = None) -> Sent:
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
        raise MachineError(
            f"pktgen's state cannot be read: {' '.join(text.split())[-200:]}", "pass --generator sockets"
        )
    elapsed = re.search(r"Result: OK: (\d+)\(", text)
    count = int(sofar[1])
    return Sent(count, int(sofar[2]), count / int(elapsed[1]) * 1e6 if elapsed and int(elapsed[1]) else 0.0)


def start_sockets(burst: Burst) -> Sender:
    """Start :mod:`kproxylat.traffic.sender`."""
    numbers = burst.addresses, PORTS.start, len(PORTS), burst.count, burst.rate_pps
    protocol = "-" if burst.targets else burst.protocol
    words = protocol, burst.target_ip, str(burst.target_port), burst.first, *map(str, numbers)
    # -I: modules of ours that lie beside it must not stand for Python's own.
    sender = Sender(sys.executable, "-I", str(SENDER), *words, netns=burst.netns)
    sender.write("".join(f"{each.protocol} {each.ip} {each.port}\n" for each in burst.targets))
    sender.write(None)
    return sender


def stop_program(_: Burst, sender: Sender | None) -> None:
    """Let a program of ours, or hping3, say what it has sent, and end."""
    if sender:
        sender.signal(signal.SIGINT)


def read_sockets(_: Burst, sender: Sender) -> Sent:
    """Read what the sender said at its end.

    Sample: ``sent 2000 errors 0 seconds 2.000071``.
    """
    said = _find_said(r"sent (\d+) errors (\d+) seconds ([\d.]+)", sender)
    if said is None:
        return Sent(0, 0, 0.0)
    count, seconds = int(said[1]), float(said[3])
    return Sent(count, int(said[2]), count / seconds if seconds else 0.0)


def start_hping3(burst: Burst) -> Sender:
    """Start hping3: SYNs from one address, whose port goes up by one with every packet."""
    interval = f"u{max(round(1e6 / burst.rate_pps), 1)}"
    words = "-q", "-n", "-S", "-I", burst.device, "-i", interval, "-c", str(burst.count), "-a", burst.first
    return Sender(
        "hping3", *words, "-s", str(PORTS.start), "-p", str(burst.target_port), burst.target_ip, netns=burst.netns
    )


def read_hping3(burst: Burst, sender: Sender) -> Sent:
    """Read what hping3 said at its end; it does not say how long it took, so we do.

    Sample: ``2000 packets transmitted, 0 packets received, 100% packet loss``.
    """
    elapsed_s = time.monotonic() - sender.started_s
    said = _find_said(r"(\d+) packets transmitted", sender)
    count = int(said[1]) if said else 0
    elapsed_s -= HPING3_LAST_WAIT_S if count == burst.count else 0
    return Sent(count, None, count / elapsed_s if elapsed_s > 0 else 0.0)


def _find_said(pattern: str, sender: Sender) -> re.Match[str] | None:
    """Find what a program said of its packets; None if our signal ended it before it began.

    :raises MachineError: it said nothing of the kind.
    """
    text = "".join(sender.said)
    found = re.search(pattern, text)
    if found is None and sender.status != -signal.SIGINT:
        said = " ".join(text.split())[-200:] or "(it printed nothing)"
        raise MachineError(f"{Path(sender.argv[0]).name} did not say what it sent: {said}", "pass another --generator")
    return found


@dataclass(frozen=True)
class Generator:
    """How packets are sent: start, stop, read what was sent.

    :param protocols: what it can send, the usual one first.
    :param sends: whether it does: with "none" others do. ``from_node``: whether the node's own packets, too.
    :param families: the IP families that it can send.
    :param max_addresses: how many source addresses it can use, by family, where that is not any number.
    :param modules: kernel modules that it takes. ``tools``: programs. ``ok``: its exit statuses that are no failure.
    """

    protocols: tuple[str, ...]
    start: Callable[[Burst], Sender]
    stop: Callable[[Burst, Sender | None], None]
    read: Callable[[Burst, Sender], Sent]
    sends: bool = True
    from_node: bool = False
    families: tuple[int, ...] = (4, 6)
    max_addresses: Mapping[int, int] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    ok: tuple[int, ...] = (0,)


GENERATORS = {
    "pktgen": Generator(("udp",), start_pktgen, stop_pktgen, read_pktgen, max_addresses={6: 1}, modules=("pktgen",)),
    "sockets": Generator(("udp", "tcp"), start_sockets, stop_program, read_sockets, from_node=True),
    # hping3 has no IPv6, and ends with status 1 where nothing answers.
    "hping3": Generator(
        *(("tcp",), start_hping3, stop_program, read_hping3),
        families=(4,),
        max_addresses={4: 1},
        tools=("hping3",),
        ok=(0, 1),
    ),
    "none": Generator(
        ("udp", "tcp"),
        lambda burst: Sender("sleep", f"{burst.count / burst.rate_pps:f}"),
        lambda _, sender: sender.end() if sender else None,
        lambda _burst, _sender: Sent(),
        sends=False,
        from_node=True,
    ),
}


def find_generator(name: str, protocol: str | None = None, family: int = 4) -> Generator:
    """Return the row of a generator.

    :param protocol: what it is to send (None: anything). ``family``: over IPv4 or IPv6.
    :raises UsageError: there is no such generator, or it does not send this protocol, or not this family.
    """
    if name not in GENERATORS:
        raise UsageError(f"unknown generator {name!r}", f"--generator takes one of: {', '.join(GENERATORS)}")
    found = GENERATORS[name]
    if protocol not in (None, *found.protocols):
        others = " or ".join(other for other, each in GENERATORS.items() if protocol in each.protocols and each.sends)
        remedy = f"--generator {others} does" if others else f"it sends: {', '.join(found.protocols)}"
        raise UsageError(f"generator {name} sends no {protocol!r}", remedy)
    if family not in found.families:
        raise UsageError(f"generator {name} sends no IPv{family}", "pass another --generator, such as sockets")
    return found
