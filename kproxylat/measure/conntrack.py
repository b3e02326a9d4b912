"""Room for our flows in conntrack, on a node only if the user allows it; and their removal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kproxylat.errors import CommandError, MachineError
from kproxylat.measure.options import Options
from kproxylat.node.changes import CONNTRACK_MAX
from kproxylat.node.network import Network
from kproxylat.results import IpNetwork
from kproxylat.system import interrupts, kernel
from kproxylat.system.processes import run

TIMEOUT_S = 1
"""How long the lab's conntrack keeps our flows, where it has no room for all: at UDP's default, 30 s, 10,000 pps would
hold 300,000 entries."""
KEEP_S = 600
"""How much longer than the run it keeps them where it has: so that they can be counted at the end."""
TIMEOUTS = {
    "tcp": "net.netfilter.nf_conntrack_tcp_timeout_syn_sent",
    "udp": "net.netfilter.nf_conntrack_udp_timeout",
}
"""Protocol -> the setting of how long a flow of one packet is kept."""
RESET_TIMEOUT = "net.netfilter.nf_conntrack_tcp_timeout_close"
"""The setting of how long a connection is kept after its RST."""
MASQUERADED_FLOWS = 50_000
"""Most flows at a time where all get one address: masquerade has 64,512 ports, and others want some, too."""
DELETE_TRIES = 1000
"""How often flows are deleted at most: with each try there are fewer."""
FORGET_S = 1.0
"""How often our flows are removed from a node's conntrack, where they would be too many."""


@dataclass(frozen=True)
class Room:
    """Room in conntrack, in flows: what there is for us, what we need.

    :param who: what limits it, "conntrack" or "masquerade".
    :param kept: our flows stay until they are counted. ``forget_s``: they are removed every so many seconds (None: at
        the end).
    """

    free: int
    needed: int
    kept: bool = False
    forget_s: float | None = None
    who: str = "conntrack"

    def __str__(self) -> str:
        removed = f"; ours are removed every {self.forget_s:g} s" if self.forget_s else ""
        return f"{self.who} has room for {self.free} flows, {self.needed} needed{removed}"


def make_room(
    options: Options, network: Network, raise_limit: Callable[[int], None] | None = None, masqueraded: bool = False
) -> Room:
    """Make room in conntrack for our flows (in the lab), and make sure that there is enough.

    On a node it is never our flows alone that fill it: where they would not fit until they time out, they are removed
    as we go. A node's timeouts stay what they are.

    :param raise_limit: makes room for so many flows more (None: that is not allowed).
    :param masqueraded: whether packets were seen to be masqueraded, though that was not expected.
    :raises MachineError: there is not enough; names the rate that there is room for.
    """
    setting = name_timeout(options)
    masqueraded = masqueraded or options.masqueraded
    room = kernel.conntrack_room(network.node)
    most = min(room, MASQUERADED_FLOWS) if masqueraded else room
    kept = network.is_lab and options.packets_in_all + _count_warmup(options) <= most
    if network.is_lab:
        timeout_s: float = round(options.sending.duration_s) + KEEP_S if kept else TIMEOUT_S
        run("sysctl", "-q", "-w", f"{setting}={timeout_s}", netns=network.node)
    else:
        timeout_s = int(run("sysctl", "-n", setting, netns=network.node))
    sends = options.sending.generator.sends
    forget_s = None
    if not network.is_lab and sends and _live(options, timeout_s) > most:
        # Those of one interval are there while those of the one before are removed.
        forget_s, timeout_s = FORGET_S, 2 * FORGET_S
    needed = _live(options, timeout_s) if sends else 0
    if needed > room and raise_limit and not network.is_lab:
        raise_limit(needed - room)
        room = kernel.conntrack_room(network.node)
        most = min(room, MASQUERADED_FLOWS) if masqueraded else room
    if needed > most:
        pps = int(max(most - _count_warmup(options), 0) / max(timeout_s, 1) / options.round_packets)
        raise MachineError(
            f"{needed} flows at a time need more room than {'masquerade' if most < room else 'conntrack'} has ({most})",
            f"there is room for {pps} pps, or for a shorter run"
            + ("" if network.is_lab or most < room else f"; or: --allow {CONNTRACK_MAX}"),
        )
    return Room(most, needed, kept, forget_s, "masquerade" if masqueraded else "conntrack")


def _live(options: Options, timeout_s: float) -> int:
    """Return how many flows there are at most, if each stays so long."""
    at_rate = options.sending.rate_pps * options.round_packets * timeout_s
    return round(min(options.packets_in_all, at_rate)) + _count_warmup(options)


def _count_warmup(options: Options) -> int:
    return options.sending.warmup * options.round_packets


def name_timeout(options: Options) -> str:
    """Return the setting of how long conntrack keeps the flows of a run."""
    return RESET_TIMEOUT if options.sending.connects else TIMEOUTS[options.target.protocol or ""]


def forget_flows(network: Network, source: IpNetwork) -> None:
    """Remove our flows from the node's conntrack, and those that late answers to them made.

    :raises MachineError: some cannot be removed.
    """
    with interrupts.shielded():
        for end in ("-s", "-d"):
            _delete_flows(("-f", f"ipv{source.version}", end, str(source)), network.node)


def _delete_flows(which: tuple[str, ...], netns: str | None) -> None:
    """Delete flows. conntrack(8) stops at one that has ended by itself since it was listed: then it begins again."""
    for _ in range(DELETE_TRIES):
        try:
            run("conntrack", "-D", *which, netns=netns)
        except CommandError as error:
            if "such conntrack doesn't exist" in error.output:
                continue
            if "0 flow entries" not in error.output:
                raise
        return
    raise MachineError(f"conntrack still has flows of ours: {' '.join(which)}", f"conntrack -D {' '.join(which)}")
