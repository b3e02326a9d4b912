"""Table GENERATORS: who sends the packets. Flows never repeat, so that every packet is looked up.

"sockets" sends from plain sockets (traffic/sender.py); "hping3" sends TCP SYNs, from one address; with "none" the
traffic comes from elsewhere.

The kernel's pktgen (Documentation/networking/pktgen.rst): one command per write to a file below /proc/net/pktgen, in
the namespace that sends. Without the flags IPSRC_RND and UDPSRC_RND it steps source address and port together, so that
A addresses and P ports with no common divisor repeat only after A x P packets. Of IPv6 it has one source address
(``src6``; it steps none, net/core/pktgen.c, mod_cur_headers), so that no more flows than ports can be made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kproxylat.errors import UsageError
from kproxylat.traffic.burst import Burst, Sender, Sent, stop_program
from kproxylat.traffic.hping3 import read_hping3, start_hping3
from kproxylat.traffic.pktgen import read_pktgen, start_pktgen, stop_pktgen
from kproxylat.traffic.sockets import read_sockets, start_sockets

RATE_TOLERANCE = 0.05


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
