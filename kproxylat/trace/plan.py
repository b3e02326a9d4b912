"""The plan of a probe script: the input of its template."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kproxylat.errors import MachineError
from kproxylat.modes import Engine, Mode
from kproxylat.system import btf, kernel
from kproxylat.trace.engine import find_engine, find_version, probe_words

PORT_STEP = 64
"""The script reads the names of tables and chains from one of this many packets."""
_Member = tuple[str, str, str]
"""Module, struct and member."""
_STATE_PATHS: Mapping[str, tuple[_Member, ...]] = {
    "pkt->state": (("nf_tables", "nft_pktinfo", "state"),),
    "pkt->xt.state": (("nf_tables", "nft_pktinfo", "xt"), ("nf_tables", "xt_action_param", "state")),
}
"""Expression of the state in nft_do_chain's first argument -> the members whose offsets add up to the state's."""


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


TICK_S = 0.02
"""A script of live traffic looks at the clock so often (templates/trace-kubeproxy.bt.j2, interval)."""


@dataclass(frozen=True)
class Live:
    """The lookups of live traffic to count.

    :param window_ms: the script counts for so long, and then ends itself.
    :param lead_ticks: how many times :data:`TICK_S` it waits, after all probes are attached, before it counts.
    :param hooks: numbers of the hooks; ``chains`` of ``table``: the base chains, for backend nft.
    :param shift: one flow in ``2**shift`` is counted.
    """

    window_ms: int
    lead_ticks: int
    hooks: tuple[int, ...]
    table: str | None
    chains: tuple[str | None, ...]
    shift: int = 0

    family = _hex(0, 0, 255, 255), _hex(0, 0, *(2).to_bytes(2, sys.byteorder))
    """Mask and value in ``ends`` of IPv4 (AF_INET)."""

    @classmethod
    def of(cls, mode: Mode, window_ms: int, lead_s: float, shift: int) -> Live:
        """Return the lookups of a mode. In ipvs, where calls nest, the node's own packets are left out."""
        hooks = (mode.hook,) if mode.nested else (mode.hook, mode.from_node().hook)
        return cls(window_ms, round(lead_s / TICK_S), hooks, mode.table, (mode.chain, mode.output_chain), shift)


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
    discard: str = ""
    fields: str = "args->"
    live: Live | None = None

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


def make_plan(
    mode: Mode,
    flow: Flow | None,
    kind: str = "auto",
    interval_s: int = 0,
    envelope: bool = False,
    netns_inode: int = 0,
    stepping: bool = False,
    others: bool = False,
    live: Live | None = None,
) -> Plan:
    """Plan a script for this kernel and this bpftrace.

    :param flow: whose packets to trace (None: all).
    :param kind: "fentry", "kprobe" or "auto".
    :param interval_s: seconds between reports (0: none).
    :param envelope: trace the whole hook, too, of the packets of ``flow``.
    :param netns_inode: the one network namespace whose calls to trace, see :attr:`Node.inode` (0: all).
    :param stepping: read the names of tables and chains from one packet in :data:`PORT_STEP` only; ``flow`` is ours and
        has more packets than that.
    :param others: count the calls of other packets, too, and the reasons why the kernel frees packets, if it has them.
    :param live: count these lookups of all packets; ``flow`` has no destination.
    :raises MachineError: this kernel lacks the functions or their types, or kprobes cannot trace these packets.
    """
    engine, kind = find_engine(mode, kind)
    # ipvs sends the node's own packet, once translated, through OUTPUT again.
    nested = mode.nested and mode.origin == "node"
    if nested and kind == "kprobe":
        raise MachineError(
            f"kprobes cannot tell mode {mode.name}'s lookup of the node's own packets from the call within it",
            "pass --probe fentry, or --from pod",
        )
    version = find_version()[1]
    entry, leave, args = probe_words(version, kind)
    skb, state, priv = _write_expressions(engine, kind, args)
    return Plan(
        mode=mode.name,
        backend=mode.backend,
        kind=kind,
        entry=entry,
        exit=leave,
        scope=f"{btf.btf_module(mode.module)}:" if kind == "fentry" else "",
        args=args,
        engine=mode.engine,
        functions=engine.functions,
        skb=skb,
        state=state,
        priv=priv,
        offsets=_find_offsets(
            engine, kind, has_flow=flow is not None, envelope=envelope, one_netns=netns_inode > 0, live=live is not None
        ),
        flow=flow,
        interval_s=interval_s,
        envelope=envelope,
        netns_inode=netns_inode,
        nested=nested,
        hook=mode.hook,
        stepping=stepping,
        others=others,
        reasons=kernel.read_drop_reasons() if others else {},
        discard="$_ = " if version >= (0, 26) else "",
        fields=probe_words(version)[2],
        live=live,
    )


def _find_offsets(
    engine: Engine, kind: str, *, has_flow: bool, envelope: bool, one_netns: bool, live: bool
) -> dict[str, int]:
    """Find the offsets of the struct members that the script reads."""
    paths: dict[str, tuple[_Member, ...]] = {
        f"{name}.{member}": ((module, name, member),) for module, name, member in engine.offsets
    }
    if has_flow:
        paths["nf_conn.tuplehash"] = (("nf_conntrack", "nf_conn", "tuplehash"),)
    if live:
        paths["nf_conn.status"] = (("nf_conntrack", "nf_conn", "status"),)
    if kind == "kprobe":
        paths["sk_buff._nfct"] = (("vmlinux", "sk_buff", "_nfct"),)
        if envelope:
            paths["sk_buff.data"] = (("vmlinux", "sk_buff", "data"),)
            paths["nf_hook_state.pf"] = (("vmlinux", "nf_hook_state", "pf"),)
        if "pkt" in engine.layout:
            paths["nft_pktinfo.state"] = _STATE_PATHS[engine.state]
    if one_netns:
        paths["nf_hook_state.net"] = (("vmlinux", "nf_hook_state", "net"),)
        paths["net.ns.inum"] = (("vmlinux", "net", "ns"), ("vmlinux", "ns_common", "inum"))
    return {name: sum(btf.struct_offset(*member) for member in path) for name, path in paths.items()}


def _write_expressions(engine: Engine, kind: str, args: str) -> tuple[str, str, str]:
    """Write the expressions for the packet, its state, and its table or chain."""
    if kind != "kprobe":
        return args + engine.skb, args + engine.state, args + engine.priv
    return (
        _write_argument(engine, engine.skb, "kpl_skb"),
        _write_argument(engine, engine.state, "kpl_state"),
        _write_argument(engine, engine.priv, ""),
    )


def _write_argument(engine: Engine, expression: str, struct: str) -> str:
    """Write an expression over the engine's arguments for a kprobe, which knows them by number only."""
    name, arrow, member = expression.partition("->")
    number = engine.layout.index(name)
    if arrow:
        return f"((struct kpl_pktinfo *)arg{number})->{member.rpartition('.')[2]}"
    return f"((struct {struct} *)arg{number})" if struct else f"arg{number}"
