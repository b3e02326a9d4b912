"""A burst of packets: its flows, its rate, and what was sent."""

from __future__ import annotations

import re
import signal
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kproxylat.errors import MachineError, UsageError
from kproxylat.results import IpNetwork, Target
from kproxylat.system.processes import Background

PORTS = range(1024, 64523)
"""Source ports: 63,499 of them, a prime number, so that any smaller number of addresses has no divisor in common."""
MAX_RATE_PPS = 10_000_000


@dataclass(frozen=True)
class Burst:
    """Packets to send.

    :param source: the addresses to send from; ``skip`` of them are left to an earlier burst.
    :param mac: the link-layer address of the node's end of the link ``device`` in namespace ``netns``.
    :param target: where to send; by TCP, the SYN is sent.
    :param targets: where many are sent to in turn, in place of the one.
    :param arrivals: a network namespace, as a path, and a counter of its IP packets, which must rise within the system
        call that sends a packet ("": no check): the time of each call is taken (None: it is not). ``controls``: where a
        packet goes beside each to a target.
    :param connects: open a connection with each packet, and take the time until it is answered.
    """

    count: int
    rate_pps: int
    source: IpNetwork
    target: Target
    netns: str | None
    device: str
    mac: str
    skip: int = 0
    targets: tuple[Target, ...] = ()
    arrivals: tuple[str, str] | None = None
    controls: tuple[Target, ...] = ()
    connects: bool = False

    @property
    def first(self) -> str:
        """The first source address."""
        return str(self.source.network_address + 1 + self.skip)

    @property
    def takes_times(self) -> bool:
        """Whether the sender takes times."""
        return self.connects or self.arrivals is not None

    @property
    def flows(self) -> int:
        """How many flows it makes: one for each packet, those to the controls among them."""
        return self.count * (1 + len(self.controls))

    @property
    def addresses(self) -> int:
        """How many source addresses it takes for flows that never repeat."""
        return -(-self.flows // len(PORTS))

    def check(self, most: int | None = None) -> None:
        """Make sure that the sources suffice.

        :param most: how many source addresses the generator can use (None: any number).
        :raises UsageError: they don't.
        """
        free = max(self.source.num_addresses - 2 - self.skip, 0)
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

    :param times: what the sender found where it took times, as :func:`kproxylat.traffic.sender.send_timed` or
        ``connect_timed`` returns it.
    """

    count: int | None = None
    errors: int | None = None
    pps: float | None = None
    times: Mapping[str, Any] | None = None


class Sender(Background):
    """A program that sends, or lets the kernel send; its end is the end of the sending.

    :ivar said: the lines that it printed, the last 1,000.
    """

    def __init__(self, *argv: str, netns: str | None = None) -> None:
        self.said: deque[str] = deque(maxlen=1000)
        self.started_s = time.monotonic()
        super().__init__(*argv, on_out=self.said.append, on_err=self.said.append, netns=netns)


def stop_program(_: Burst, sender: Sender | None) -> None:
    """Let a program of ours, or hping3, say what it has sent, and end."""
    if sender:
        sender.signal(signal.SIGINT)


def find_summary(pattern: str, sender: Sender) -> re.Match[str] | None:
    """Find what a program said of its packets; None if our signal ended it before it began.

    :raises MachineError: it said nothing of the kind.
    """
    text = "".join(sender.said)
    found = re.search(pattern, text)
    if found is None and sender.status != -signal.SIGINT:
        said = " ".join(text.split())[-200:] or "(it printed nothing)"
        raise MachineError(f"{Path(sender.argv[0]).name} did not say what it sent: {said}", "pass another --generator")
    return found
