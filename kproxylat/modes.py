"""Table MODES: what kube-proxy was told (mode) and what the kernel runs (backend) -> which function to trace."""

from __future__ import annotations

from dataclasses import dataclass

from kproxylat.errors import UsageError


@dataclass(frozen=True)
class Mode:
    """One proxy mode on one backend.

    :param name: kube-proxy's ``mode``: iptables, nftables.
    :param backend: what the kernel runs: legacy (xtables) or nft.
    :param engine: the kernel function that walks the rules, once per table or base chain and hook.
    :param module: the module that holds ``engine``.
    :param skb: bpftrace expression after ``args``: the packet. ``state``: its ``struct nf_hook_state``.
    :param priv: that which the call is split by: the ``struct xt_table`` or ``struct nft_chain``.
    :param layout: names of the engine's arguments, as BTF has them, that the expressions rely on.
    :param offsets: struct and member whose byte offset the script needs, each with the module whose BTF has it.
    :param table: the table of the Service lookup of a packet that enters the node. ``chain``: its base chain.
    :param hook: number of the lookup's netfilter hook.
    :param modules: modules to load before rules are loaded and probes attached.
    :param tools: programs that load and show the rules.
    :param counts_hits: whether the rules count packets.
    :param report: section of the old FINAL REPORT: its title and the prefix of its map names.
    """

    name: str
    backend: str
    engine: str
    module: str
    skb: str
    state: str
    priv: str
    layout: tuple[str, ...]
    offsets: tuple[tuple[str, str, str], ...]
    table: str
    chain: str | None
    hook: int
    modules: tuple[str, ...]
    tools: tuple[str, ...]
    counts_hits: bool
    report: tuple[str, str]


# Kernel, net/netfilter/nf_tables_core.c: unsigned int nft_do_chain(struct nft_pktinfo *pkt, void *priv).
_NFT = {
    "backend": "nft",
    "engine": "nft_do_chain",
    "module": "nf_tables",
    "skb": "pkt->skb",
    "state": "pkt->state",
    "priv": "priv",
    "layout": ("pkt", "priv"),
    "offsets": (
        ("nf_tables", "nft_chain", "table"),
        ("nf_tables", "nft_chain", "name"),
        ("nf_tables", "nft_table", "name"),
    ),
    "hook": 0,
}

MODES: tuple[Mode, ...] = (
    Mode(
        name="iptables",
        backend="legacy",
        # Kernel, net/ipv4/netfilter/ip_tables.c, 5.16 and later:
        # unsigned int ipt_do_table(void *priv, struct sk_buff *skb, const struct nf_hook_state *state)
        engine="ipt_do_table",
        module="ip_tables",
        skb="skb",
        state="state",
        priv="priv",
        layout=("priv", "skb", "state"),
        offsets=(("ip_tables", "xt_table", "name"),),
        table="nat",
        chain=None,
        hook=0,
        modules=("ip_tables", "iptable_nat", "nf_conntrack", "nfnetlink_acct", "xt_nfacct"),
        tools=("iptables-legacy", "iptables-legacy-restore", "nfacct"),
        counts_hits=True,
        report=("IPTABLES", "ipt"),
    ),
    Mode(
        **_NFT,  # type: ignore[arg-type]
        name="iptables",
        table="nat",
        chain="PREROUTING",
        modules=("nf_tables", "nft_compat", "nf_conntrack", "nfnetlink_acct", "xt_nfacct"),
        tools=("iptables-nft", "iptables-nft-restore", "nfacct"),
        counts_hits=True,
        report=("IPTABLES", "ipt"),
    ),
    Mode(
        **_NFT,  # type: ignore[arg-type]
        name="nftables",
        table="kube-proxy",
        chain="nat-prerouting",
        modules=("nf_tables", "nf_conntrack"),
        tools=("nft",),
        counts_hits=False,
        report=("NFTABLES", "nft"),
    ),
)


def find_mode(name: str, backend: str | None) -> Mode:
    """Return the row of a mode and backend.

    :param backend: None is only enough where the mode has one backend.
    :raises UsageError: there is no such mode or backend, or more than one.
    """
    rows = [row for row in MODES if row.name == name]
    if not rows:
        names = sorted({row.name for row in MODES})
        raise UsageError(f"unknown mode {name!r}", f"--mode takes one of: {', '.join(names)}")
    backends = [row.backend for row in rows]
    if backend is None and len(rows) > 1:
        raise UsageError(f"mode {name} has several backends", f"pass --backend {' or '.join(backends)}")
    found = [row for row in rows if backend in (None, row.backend)]
    if not found:
        raise UsageError(f"mode {name} has no backend {backend!r}", f"--backend takes: {', '.join(backends)}")
    return found[0]
