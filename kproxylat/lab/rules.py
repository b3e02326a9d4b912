"""kube-proxy's rules of a lab: rendered, and loaded into its node."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import Any

from kproxylat.lab.services import ADDRESSES, Addresses, Service
from kproxylat.modes import Mode
from kproxylat.system.processes import run
from kproxylat.templates import render_rules

RULESETS: dict[str, tuple[tuple[tuple[str, ...], str], ...]] = {
    "iptables": (
        # kube-proxy makes this counter, which its rule in KUBE-FORWARD names.
        (("nfacct", "add", "ct_state_invalid_dropped_pkts"), ""),
        (("{ip}tables-{backend}-restore",), "iptables"),
    ),
    "nftables": ((("nft", "-f", "-"), "nftables"),),
    "ipvs": (
        (("sysctl", "-q", "-p", "-"), "ipvs-sysctl"),
        (("ip", "-batch", "-"), "ipvs-addresses"),
        (("ipset", "restore"), "ipvs-sets"),
        (("{ip}tables-nft-restore",), "ipvs-iptables"),
        (("ipvsadm", "--restore"), "ipvs-services"),
    ),
}
"""Mode -> the commands that load its rules, each with the template (rules-NAME.j2) of what it reads."""
MORE: dict[tuple[str, str], tuple[tuple[tuple[str, ...], str], ...]] = {
    # As kube-proxy does where little has changed: KUBE-SERVICES anew, and the chains of what came.
    ("iptables", "legacy"): ((("{ip}tables-legacy-restore", "--noflush"), "iptables"),),
    ("nftables", "nft"): RULESETS["nftables"],
    ("ipvs", "ipvs"): tuple(
        each for each in RULESETS["ipvs"] if each[1] in ("ipvs-addresses", "ipvs-sets", "ipvs-services")
    ),
}
"""Mode and backend -> the same where other Services' rules are loaded already. There is none for iptables on nft:
a run that adds 5,000 Services to 5,000 by iptables-nft-restore takes longer than one that loads 10,000."""
PORTION = 500
"""Services in one transaction of nft's: for each anonymous map of a transaction the kernel goes through all that is in
it (net/netfilter/nf_tables_api.c, __nft_set_trans_bind)."""
ONE_MORE_COMMIT = ("nft", "-f", "-"), "table ip kproxylat_commit\ndelete table ip kproxylat_commit\n"
"""Nothing, but one transaction more. nft_do_chain takes one instruction more for each chain after an even number of
them (net/netfilter/nf_tables_core.c: blob_gen_0 or blob_gen_1, by the generation's cursor)."""


def render_ruleset(
    mode: Mode, services: Sequence[Service], cluster: Addresses | None = None, standing: Collection[Service] = ()
) -> list[tuple[tuple[str, ...], str]]:
    """Render what kube-proxy 1.36 writes for these Services.

    :param cluster: the cluster's addresses (None: the lab's own).
    :param standing: those of them whose rules are loaded already, in a mode of :data:`MORE`.
    :return: the commands that load it, each with the text that it reads.
    """
    variables: dict[str, Any] = {
        "cluster": cluster or ADDRESSES[mode.family],
        "family": mode.family,
        "ip": mode.ip,
        "bits": 128 if mode.family == 6 else 32,
        "services": services,
    }
    there = {each.port_name for each in standing}
    new = [each for each in services if each.port_name not in there]
    # The kernel finds the last added element of a hash bucket first.
    last = [*takewhile(lambda each: each.port_name in there, reversed(services))][::-1]
    size = PORTION if mode.name == "nftables" else len(new)
    loaded: list[tuple[tuple[str, ...], str]] = []
    for at in range(0, len(new) or not there, max(size, 1)):
        again = last if at + size >= len(new) else []
        portion = {**variables, "added": new[at : at + size], "again": again, "more": bool(there or at)}
        loaded += [
            (
                tuple(word.format(ip=mode.ip, backend=mode.backend) for word in argv),
                render_rules(name, portion) if name else "",
            )
            for argv, name in (MORE[mode.name, mode.backend] if there else RULESETS[mode.name])
        ]
    # An odd number of transactions at first, and an even one on top: the parity is the same for any number of Services.
    odd = len(loaded) % 2 == 1
    one_more = mode.name == "nftables" and odd == bool(there)
    return loaded + [ONE_MORE_COMMIT] * one_more


def load_ruleset(ruleset: Sequence[tuple[tuple[str, ...], str]], netns: str) -> None:
    """Load a ruleset into a network namespace.

    :raises CommandError: a tool refuses its part.
    """
    for argv, text in ruleset:
        run(*argv, netns=netns, stdin=text)
