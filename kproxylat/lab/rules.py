"""kube-proxy's rules of a lab: rendered, and loaded into its node."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from kproxylat.errors import UsageError
from kproxylat.lab.services import ADDRESSES, Addresses, Service
from kproxylat.modes import MAP, Mode
from kproxylat.system import kernel
from kproxylat.system.processes import run

Command = tuple[tuple[str, ...], str]
"""A command that loads rules, and the text that it reads."""


class Release(NamedTuple):
    """How a release of kube-proxy writes the rules of mode nftables; those of the other modes are the same in all.

    :param held: the real kube-proxy whose rules ours were compared with ("": they stand on its source alone).
    :param endpoint_chains: a chain for each endpoint translates, in place of a map in the Service's chain.
    :param map_from: the number of endpoints from which on a Service has a map.
    """

    held: str = ""
    endpoint_chains: bool = False
    map_from: int = 1


RELEASES = {
    "1.33": Release(endpoint_chains=True),
    "1.36": Release(held="1.36.3"),
    # kubernetes/kubernetes #140723 and #140960: a Service with one endpoint has no map.
    "1.37": Release(map_from=2),
}
"""Release of kube-proxy -> its rules. Releases between two of them write as the older one does."""
DEFAULT_RELEASE = "1.36"
"""The newest release whose rules were held against a real kube-proxy."""
AFFINITY_S = 10800
"""Kubernetes, pkg/apis/core/types.go, DefaultClientIPServiceAffinitySeconds."""
SMALL = 50
"""Services of one transaction in a user namespace, where a netlink socket's buffer cannot be enlarged beyond
net.core.wmem_max (kernel, net/core/sock.c, SO_SNDBUFFORCE needs CAP_NET_ADMIN of the initial namespace)."""
_RIGHTS = "-all,+net_admin,+net_raw"
CONFINED = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", "--pdeathsig=KILL"),
    *(f"--inh-caps={_RIGHTS}", f"--ambient-caps={_RIGHTS}", f"--bounding-set={_RIGHTS}"),
    *("env", "XTABLES_LOCKFILE=/dev/null"),
)
"""Words before a tool that reads a captured ruleset: it then has root's rights to change the network, but not those to
files. The lock file of iptables-legacy belongs to root."""
EMPTY_TRANSACTION = ("nft", "-f", "-"), "table ip kproxylat_commit\ndelete table ip kproxylat_commit\n"
"""A transaction that changes no rule, for the parity of their number."""


def check_release(release: str, mode: Mode) -> None:
    """Check a release of kube-proxy ("": the default one) for a mode's rules.

    :raises UsageError: the rules of this release are unknown, or the mode's are the same in every release.
    """
    if release and release not in RELEASES:
        raise UsageError(f"unknown release {release!r}", f"--kube-proxy takes one of: {', '.join(RELEASES)}")
    if release and mode.form != MAP:
        raise UsageError(f"mode {mode.name} has the same rules in every release", "leave out --kube-proxy")


def render_ruleset(
    mode: Mode,
    services: Sequence[Service],
    cluster: Addresses | None = None,
    standing: Collection[Service] = (),
    release: str = "",
) -> list[Command]:
    """Render the rules that kube-proxy writes for these Services.

    :param cluster: the cluster's addresses (None: the lab's own).
    :param standing: those of the Services whose rules are loaded already, in a mode that has ``growing``.
    :param release: kube-proxy's, a key of :data:`RELEASES` ("": the default one).
    :return: the commands that load the rules.
    """
    from kproxylat.templates import render_rules  # for the sake of --help, because it imports jinja2

    variables: dict[str, Any] = {
        "cluster": cluster or ADDRESSES[mode.family],
        "family": mode.family,
        "ip": mode.ip,
        "bits": 128 if mode.family == 6 else 32,
        "services": services,
        "release": RELEASES[release or DEFAULT_RELEASE],
        "affinity_s": AFFINITY_S,
    }
    old = {service.port_name for service in standing}
    new = [service for service in services if service.port_name not in old]
    # The kernel finds the last added element of a hash bucket first, so the last Services are added again.
    last = [*takewhile(lambda service: service.port_name in old, reversed(services))][::-1]
    small = mode.module == "nf_tables" and not kernel.is_initial_user_namespace()
    size = SMALL if small else mode.transaction or len(new)
    commands: list[Command] = []
    for start in range(0, len(new) or not old, max(size, 1)):
        is_last = start + size >= len(new)
        portion = {
            **variables,
            "added": new[start : start + size],
            "again": last if is_last else [],
            "more": bool(old or start),
            "append": small,
            "is_last": is_last,
        }
        for argv, template in mode.growing if old else mode.loading:
            if start and not template:
                continue
            words = tuple(word.format(ip=mode.ip) for word in argv)
            words += ("--noflush",) if start and words[0].endswith("-restore") and "--noflush" not in words else ()
            commands.append((words, render_rules(template, portion) if template else ""))
    # An odd number of transactions at first, and an even one on top: the parity is the same for any number of Services.
    if mode.parity_matters and (len(commands) % 2 == 1) == bool(old):
        commands.append(EMPTY_TRANSACTION)
    return commands


def load_ruleset(ruleset: Sequence[Command], netns: str) -> None:
    """Load a ruleset into a network namespace.

    :raises CommandError: a tool refuses its part.
    """
    for argv, text in ruleset:
        run(*argv, netns=netns, stdin=text)
