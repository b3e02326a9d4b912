"""Table MODES: proxy mode (kube-proxy's setting) and backend (the kernel's) -> all that kproxylat knows of them.

Other modules ask the row. They write a name out only where other programs print it: old logs, iptables-save.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from kproxylat.errors import UsageError

LOCK_WAIT = "--wait=5"
"""Seconds that iptables waits for the tables' lock: kube-proxy holds it while it writes its rules."""
DEFAULT_MODE = "iptables"
"""The mode on Linux if kube-proxy's ``mode`` is empty (Kubernetes, pkg/proxy/apis/config/types.go, ProxyMode)."""


@dataclass(frozen=True)
class Engine:
    """The kernel function that walks the rules, or two with equal arguments, as a range of kernels has them.

    :param functions: the kernel functions; the first one gives the engine its name.
    :param since: the first kernel version with these arguments.
    :param layout: names of the arguments in BTF; the expressions below rely on them.
    :param skb: expression after ``args`` for the packet.
    :param state: expression after ``args`` for the packet's ``struct nf_hook_state``.
    :param priv: expression after ``args`` for the ``struct xt_table`` or ``struct nft_chain``: the script splits
        calls by it.
    :param offsets: (module, struct, member) of each byte offset that the script needs; the module's BTF has it.
    """

    functions: tuple[str, ...]
    since: tuple[int, int]
    layout: tuple[str, ...]
    skb: str
    state: str
    priv: str
    offsets: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class RuleForm:
    """The form in which the kernel holds Service rules. node/service_rule, node/live_rules and lab/ read each form.

    :param tool: the tool that prints the rules; lab/ruleset_check has its texts' kind of this name.
    :param place: the place of a Service's rule, in words.
    :param ordered: whether packets pass the rules one by one, so that a lookup costs more after more rules; otherwise
        a hash table finds the rule, and a Service changes the cost only by the luck of its hash.
    """

    tool: str
    place: str
    ordered: bool


CHAIN = RuleForm("iptables-save", "in KUBE-SERVICES", ordered=True)
MAP = RuleForm("nft", "in map service-ips", ordered=False)
SERVERS = RuleForm("ipvsadm", "a virtual server", ordered=False)


class LoadStep(NamedTuple):
    """One command that loads the lab's rules.

    :param argv: the command; ``{ip}`` in it stands for "ip" or "ip6".
    :param template: NAME of the template ``rules-NAME.j2`` of what the command reads; "" if it reads nothing.
    """

    argv: tuple[str, ...]
    template: str = ""


@dataclass(frozen=True)
class Mode:
    """One proxy mode on one backend.

    :param name: kube-proxy's ``mode``: iptables, nftables, ipvs.
    :param backend: the kernel's implementation of the rules: legacy (xtables), nft or ipvs.
    :param engines: the functions to trace, those of the newest kernels first.
    :param module: the kernel module that holds the functions.
    :param table: the table that looks up the Service of a packet that enters the node.
    :param chain: the base chain of that lookup.
    :param hook: number of the netfilter hook of that lookup.
    :param output_chain: the base chain that looks up the node's own packets, at OUTPUT.
    :param modules: kernel modules to load before the rules and the probes.
    :param tools: programs that load and show the rules.
    :param report: section of the old FINAL REPORT: its title and the prefix of its map names.
    :param loading_cost: how long the rules of many Services take to load, compared with other modes; 1 is the shortest.
    :param form: the form in which the kernel holds the rules.
    :param loading: the commands that load the rules of the lab.
    :param growing: the commands that add Services to loaded rules; () if all rules have to be loaded again.
    :param transaction: how many Services a transaction takes; the commands run once for each (0: all in one).
    :param parity_matters: whether a lookup costs more after an even number of transactions than after an odd one.
    :param usual: whether current distributions have this one of the mode's backends.
    :param overhead_hook: number of a hook where tracing's own cost can be measured: without conntrack and nested calls.
    :param nested: whether the engine's call for the node's own packet holds another call, which sends the packet on.
    :param raw_sockets: whether the tools need raw sockets, which a container may forbid.
    :param link: the link that holds the Services' addresses, except those of NodePorts.
    :param misses_looked_up: whether the engine also sees, at the lookup's hook, packets that match no Service.
    :param origin: where the packets come from: a "pod", or the "node" itself.
    :param family: the packets' IP family, 4 or 6.
    """

    name: str
    backend: str
    engines: tuple[Engine, ...]
    module: str
    table: str | None
    chain: str | None
    hook: int
    output_chain: str | None
    modules: tuple[str, ...]
    tools: tuple[str, ...]
    report: tuple[str, str]
    loading_cost: int
    form: RuleForm
    loading: tuple[LoadStep, ...]
    growing: tuple[LoadStep, ...] = ()
    transaction: int = 0
    parity_matters: bool = False
    usual: bool = True
    overhead_hook: int = 2
    nested: bool = False
    raw_sockets: bool = False
    link: str | None = None
    misses_looked_up: bool = True
    origin: str = "pod"
    family: int = 4

    def for_family(self, family: int) -> Mode:
        """Return the row for IPv4 (4) or IPv6 (6)."""
        if family == self.family:
            return self
        names = IPV6 if family == 6 else {name6: name4 for name4, name6 in IPV6.items()}

        def rename(words: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(names.get(word, word) for word in words)

        engines = tuple(
            replace(engine, functions=rename(engine.functions), offsets=tuple(map(rename, engine.offsets)))
            for engine in self.engines
        )
        [module] = rename((self.module,))
        modules, tools = rename(self.modules), rename(self.tools)
        return replace(self, engines=engines, module=module, modules=modules, tools=tools, family=family)

    def from_node(self) -> Mode:
        """Return the row for the node's own packets."""
        return replace(self, chain=self.output_chain, hook=3, origin="node", misses_looked_up=True)

    @property
    def ip(self) -> str:
        """The IP family in the words of nft, ip6tables and others: "ip" or "ip6"."""
        return "ip6" if self.family == 6 else "ip"

    @property
    def iptables(self) -> str:
        """The iptables program of this family and backend, e.g. ``ip6tables-nft``."""
        return f"{self.ip}tables-{self.backend}"

    @property
    def engine(self) -> str:
        """The engine's name in results, the same on every kernel."""
        return self.engines[0].functions[0]


IPV6 = {
    "ip_tables": "ip6_tables",
    "iptable_nat": "ip6table_nat",
    "ipt_do_table": "ip6t_do_table",
    "ip_vs_remote_request4": "ip_vs_remote_request6",
    "ip_vs_local_request4": "ip_vs_local_request6",
    "iptables-legacy": "ip6tables-legacy",
    "iptables-legacy-restore": "ip6tables-legacy-restore",
    "iptables-nft": "ip6tables-nft",
    "iptables-nft-restore": "ip6tables-nft-restore",
}
"""Module, function or tool for IPv4 -> its counterpart for IPv6; the others serve both."""
_XT_NAME = (("ip_tables", "xt_table", "name"),)
# Kernel, net/ipv4/netfilter/ip_tables.c and ip6_tables.c: 5.16 put the arguments into the order of a hook's arguments.
_IPT = (
    Engine(("ipt_do_table",), (5, 16), ("priv", "skb", "state"), "skb", "state", "priv", _XT_NAME),
    Engine(("ipt_do_table",), (4, 9), ("skb", "state", "table"), "skb", "state", "table", _XT_NAME),
)
# Kernel, net/netfilter/nf_tables_core.c, nft_do_chain. Up to 5.11, pkt's struct xt_action_param holds the state.
_NFT_NAMES = (
    ("nf_tables", "nft_chain", "table"),
    ("nf_tables", "nft_chain", "name"),
    ("nf_tables", "nft_table", "name"),
)
_NFT = (
    Engine(("nft_do_chain",), (5, 12), ("pkt", "priv"), "pkt->skb", "pkt->state", "priv", _NFT_NAMES),
    Engine(("nft_do_chain",), (4, 9), ("pkt", "priv"), "pkt->skb", "pkt->xt.state", "priv", _NFT_NAMES),
)
# Kernel, net/netfilter/ipvs/ip_vs_core.c: since 5.16 one function serves all hooks; older kernels have one for LOCAL_IN
# and one for LOCAL_OUT.
_IPVS = (
    Engine(("ip_vs_in_hook",), (5, 16), ("priv", "skb", "state"), "skb", "state", "priv"),
    Engine(("ip_vs_remote_request4", "ip_vs_local_request4"), (4, 9), ("priv", "skb", "state"), "skb", "state", "priv"),
)

# kube-proxy makes these counters, which a rule in KUBE-FORWARD and those of NodePorts name.
_COUNTERS = "ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts"
_MAKE_COUNTERS = tuple(LoadStep(("nfacct", "add", name)) for name in _COUNTERS)
_LOAD_NFTABLES = (LoadStep(("nft", "-f", "-"), "nftables"),)
_LOAD_ADDRESSES, _LOAD_SETS, _LOAD_SERVERS = (
    LoadStep(("ip", "-batch", "-"), "ipvs-addresses"),
    LoadStep(("ipset", "restore"), "ipvs-sets"),
    LoadStep(("ipvsadm", "--restore"), "ipvs-services"),
)

MODES: tuple[Mode, ...] = (
    Mode(
        name="iptables",
        backend="legacy",
        engines=_IPT,
        module="ip_tables",
        table="nat",
        chain=None,
        hook=0,
        output_chain=None,
        modules=("ip_tables", "iptable_nat", "nf_conntrack", "nfnetlink_acct", "xt_nfacct"),
        tools=("iptables-legacy", "iptables-legacy-restore", "nfacct"),
        report=("IPTABLES", "ipt"),
        loading_cost=1,
        form=CHAIN,
        loading=(*_MAKE_COUNTERS, LoadStep(("{ip}tables-legacy-restore", LOCK_WAIT), "iptables")),
        # As kube-proxy does where little has changed: KUBE-SERVICES anew, and the chains of what came.
        growing=(LoadStep(("{ip}tables-legacy-restore", LOCK_WAIT, "--noflush"), "iptables"),),
        usual=False,
        raw_sockets=True,
    ),
    Mode(
        name="iptables",
        backend="nft",
        engines=_NFT,
        module="nf_tables",
        table="nat",
        chain="PREROUTING",
        hook=0,
        output_chain="OUTPUT",
        modules=("nf_tables", "nft_compat", "nf_conntrack", "nfnetlink_acct", "xt_nfacct"),
        tools=("iptables-nft", "iptables-nft-restore", "nfacct"),
        report=("IPTABLES", "ipt"),
        loading_cost=1,
        form=CHAIN,
        # No growing: to add 5,000 Services to 5,000, iptables-nft-restore takes longer than to load 10,000.
        loading=(*_MAKE_COUNTERS, LoadStep(("{ip}tables-nft-restore",), "iptables")),
    ),
    Mode(
        name="nftables",
        backend="nft",
        engines=_NFT,
        module="nf_tables",
        table="kube-proxy",
        chain="nat-prerouting",
        hook=0,
        output_chain="nat-output",
        modules=("nf_tables", "nf_conntrack"),
        tools=("nft",),
        report=("NFTABLES", "nft"),
        # For each map the kernel goes through all others (net/netfilter/nf_tables_api.c, nf_tables_newset).
        loading_cost=3,
        form=MAP,
        loading=_LOAD_NFTABLES,
        growing=_LOAD_NFTABLES,
        # For each anonymous map of a transaction the kernel goes through all that is in the transaction
        # (net/netfilter/nf_tables_api.c, __nft_set_trans_bind).
        transaction=500,
        # nft_do_chain takes one instruction more for each chain after an even number of transactions
        # (net/netfilter/nf_tables_core.c: blob_gen_0 or blob_gen_1, by the generation's cursor).
        parity_matters=True,
    ),
    Mode(
        name="ipvs",
        backend="ipvs",
        engines=_IPVS,
        module="ip_vs",
        table=None,
        chain=None,
        # LOCAL_IN, since every ClusterIP is an address of the node. The packet then leaves through LOCAL_OUT, where
        # the kernel calls the function once more; that call finds the connection that the first one made.
        hook=1,
        output_chain=None,
        modules=("ip_vs", "ip_vs_rr", "nf_conntrack", "nf_tables", "nft_compat", "xt_set", "dummy"),
        tools=("ipvsadm", "ipset", "iptables-nft-restore"),
        report=("IPVS", "ipvs"),
        # Four tools load the rules.
        loading_cost=2,
        form=SERVERS,
        loading=(
            LoadStep(("sysctl", "-q", "-p", "-"), "ipvs-sysctl"),
            _LOAD_ADDRESSES,
            _LOAD_SETS,
            LoadStep(("{ip}tables-nft-restore",), "ipvs-iptables"),
            _LOAD_SERVERS,
        ),
        growing=(_LOAD_ADDRESSES, _LOAD_SETS, _LOAD_SERVERS),
        # ipvs is not called in FORWARD.
        overhead_hook=3,
        nested=True,
        link="kube-ipvs0",
        # Rules in INPUT reject such a packet before.
        misses_looked_up=False,
    ),
)


def find_rows(name: str | None = None, backend: str | None = None) -> list[Mode]:
    """Return the rows of a mode and a backend; None stands for any."""
    return [row for row in MODES if name in (None, row.name) and backend in (None, row.backend)]


def mode_names() -> list[str]:
    """Return the names of all modes, in the table's order."""
    return list(dict.fromkeys(row.name for row in MODES))


def only_backend(name: str | None) -> str | None:
    """Return the backend of a mode that has only one; None if it has several, or is unknown."""
    backends = [row.backend for row in MODES if row.name == name]
    return backends[0] if len(backends) == 1 else None


def is_ordered(name: str | None) -> bool:
    """Return whether packets pass this mode's rules one by one."""
    return any(row.form.ordered for row in MODES if row.name == name)


def find_mode(name: str, backend: str | None, *, usual: bool = False) -> Mode:
    """Return the row of a mode and backend.

    :param backend: None if the mode has only one backend.
    :param usual: without a backend, take that of current distributions.
    :raises UsageError: the mode or the backend is unknown, or the backend is None and the mode has several.
    """
    if not (backends := [row.backend for row in find_rows(name)]):
        raise UsageError(f"unknown mode {name!r}", f"--mode takes one of: {', '.join(sorted(mode_names()))}")
    rows = [row for row in find_rows(name, backend) if row.usual or backend or not usual]
    if not rows:
        raise UsageError(f"mode {name} has no backend {backend!r}", f"--backend takes: {', '.join(backends)}")
    if len(rows) > 1:
        raise UsageError(f"mode {name} has several backends", f"pass --backend {' or '.join(backends)}")
    return rows[0]
