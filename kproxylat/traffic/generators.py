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
    """How to start and stop a generator, and how to read what it sent.

    :param name: its name in options and results.
    :param protocols: the protocols that it can send, the default first.
    :param sends: whether it sends packets; with "none" others do.
    :param from_node: whether it can send the node's own packets, too.
    :param families: the IP families that it can send.
    :param max_addresses: family -> most source addresses that it can use, if limited.
    :param modules: the kernel modules that it needs. ``tools``: the programs.
    :param ok: exit statuses that mean success.
    """

    name: str
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


_ROWS = (
    Generator(
        *("pktgen", ("udp",), start_pktgen, stop_pktgen, read_pktgen),
        max_addresses={6: 1},
        modules=("pktgen",),
    ),
    Generator("sockets", ("udp", "tcp"), start_sockets, stop_program, read_sockets, from_node=True),
    # hping3 has no IPv6, and ends with status 1 if nothing answers.
    Generator(
        *("hping3", ("tcp",), start_hping3, stop_program, read_hping3),
        families=(4,),
        max_addresses={4: 1},
        tools=("hping3",),
        ok=(0, 1),
    ),
    Generator(
        "none",
        ("udp", "tcp"),
        lambda burst: Sender("sleep", f"{burst.count / burst.rate_pps:f}"),
        lambda _, sender: sender.end() if sender else None,
        lambda _burst, _sender: Sent(),
        sends=False,
        from_node=True,
    ),
)
GENERATORS = {row.name: row for row in _ROWS}


def find_generator(name: str) -> Generator:
    """Return the row of a generator.

    :raises UsageError: no generator has this name.
    """
    if name not in GENERATORS:
        raise UsageError(f"unknown generator {name!r}", f"--generator takes one of: {', '.join(GENERATORS)}")
    return GENERATORS[name]


def check_generator(generator: Generator, protocol: str, family: int = 4) -> None:
    """Refuse a generator that cannot send this protocol, or over this IP family.

    :raises UsageError: it cannot.
    """
    if protocol not in generator.protocols:
        able = " or ".join(row.name for row in GENERATORS.values() if protocol in row.protocols and row.sends)
        remedy = f"--generator {able} does" if able else f"it sends: {', '.join(generator.protocols)}"
        raise UsageError(f"generator {generator.name} sends no {protocol!r}", remedy)
    if family not in generator.families:
        raise UsageError(
            f"generator {generator.name} sends no IPv{family}", "pass another --generator, such as sockets"
        )
