"""The plan of a probe script: what the template is rendered from."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

PORT_STEP = 64
"""The script reads the names of tables and chains from one of this many packets."""


def _hex(*data: int) -> str:
    """Return the 64-bit number, in hex, that this machine reads from up to 8 bytes in memory."""
    return hex(int.from_bytes(bytes(data).ljust(8, b"\0"), sys.byteorder))


@dataclass(frozen=True)
class Flow:
    """Condition for kproxylat's own packets, on words in network byte order of the packet's conntrack entry.

    :param daddr: the ClusterIP: one word, or four for an IPv6 address; empty for every destination of our sources.
    :param port_protocol: port, protocol and direction (original), 32 bits; None if our sources send to no other port.
    :param saddr: the network address of our sources.
    :param saddr_mask: the mask of ``saddr``.
    """

    daddr: tuple[int, ...]
    port_protocol: int | None
    saddr: tuple[int, ...]
    saddr_mask: tuple[int, ...]

    daddr_mask = _hex(0, 0, 0, 0, *[255] * 4)
    """Mask of daddr0 in ``ends``, which holds sport, l3num and daddr0."""
    stepping = _hex(0, PORT_STEP - 1), _hex(0, 1)
    """Mask and value in ``ends`` of one source port in 64: the second port of pktgen, the first of other generators."""

    def match(self, conn: str, ends: str = "") -> str:
        """Return the condition, in bpftrace's language, that a conntrack entry is ours.

        :param conn: a variable that points to a ``struct kpl_conn``.
        :param ends: a variable that already holds its ``ends``.
        """
        terms = [f"{conn}->daddr{number} == {word}" for number, word in enumerate(self.daddr) if number]
        if self.daddr:
            word = _hex(0, 0, 0, 0, *self.daddr[0].to_bytes(4, sys.byteorder))
            terms.insert(0, f"({ends or f'{conn}->ends'} & {self.daddr_mask}) == {word}")
        terms += [] if self.port_protocol is None else [f"{conn}->port_protocol == {self.port_protocol}"]
        sources = enumerate(zip(self.saddr, self.saddr_mask, strict=True))
        terms += [f"({conn}->saddr{number} & {mask}) == {word}" for number, (word, mask) in sources if mask]
        return " && ".join(terms)


@dataclass(frozen=True)
class Plan:
    """Input of the probe script's template, whose head describes the fields."""

    mode: str
    backend: str
    kind: str
    entry: str
    exit: str
    scope: str
    args: str
    engine: str
    functions: tuple[str, ...]
    skb: str
    state: str
    priv: str
    offsets: Mapping[str, int] = field(default_factory=dict)
    flow: Flow | None = None
    interval_s: int = 0
    envelope: bool = False
    netns_inode: int = 0
    nested: bool = False
    hook: int = 0
    stepping: bool = False
    others: bool = False
    reasons: Mapping[int, str] = field(default_factory=dict)
    fields: str = "args->"

    @property
    def anonymous(self) -> Plan:
        """The plan with the sources and the namespace replaced by other numbers; its script costs the same."""
        flow = self.flow
        if flow:
            words = tuple(min(mask, 1) for mask in flow.saddr_mask)
            flow = replace(flow, saddr=words, saddr_mask=words)
        return replace(self, flow=flow, netns_inode=1 if self.netns_inode else 0)


def network_words(data: bytes) -> tuple[int, ...]:
    """Return the 32-bit numbers that this machine reads from bytes in network order."""
    return tuple(int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data), 4))
