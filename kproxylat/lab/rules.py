"""kube-proxy's rules of a lab: rendered, and loaded into its node."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import Any

from kproxylat.lab.services import ADDRESSES, Addresses, Service
from kproxylat.modes import Mode
from kproxylat.system import kernel
from kproxylat.system.processes import run

Command = tuple[tuple[str, ...], str]
"""A command that loads rules, and the text that it reads."""
SMALL = 50
"""Services of one transaction in a user namespace, where a netlink socket's buffer cannot be enlarged beyond
net.core.wmem_max (kernel, net/core/sock.c, SO_SNDBUFFORCE needs CAP_NET_ADMIN of the initial namespace)."""
EMPTY_TRANSACTION = ("nft", "-f", "-"), "table ip kproxylat_commit\ndelete table ip kproxylat_commit\n"
"""A transaction that changes no rule, for the parity of their number."""


def render_ruleset(
    mode: Mode, services: Sequence[Service], cluster: Addresses | None = None, standing: Collection[Service] = ()
) -> list[Command]:
    """Render the rules that kube-proxy 1.36 writes for these Services.

    :param cluster: the cluster's addresses (None: the lab's own).
    :param standing: those of the Services whose rules are loaded already, in a mode that has ``growing``.
    :return: the commands that load the rules.
    """
    from kproxylat.templates import render_rules  # for the sake of --help, because it imports jinja2

    variables: dict[str, Any] = {
        "cluster": cluster or ADDRESSES[mode.family],
        "family": mode.family,
        "ip": mode.ip,
        "bits": 128 if mode.family == 6 else 32,
        "services": services,
    }
    old = {service.port_name for service in standing}
    new = [service for service in services if service.port_name not in old]
    # The kernel finds the last added element of a hash bucket first, so the last Services are added again.
    last = [*takewhile(lambda service: service.port_name in old, reversed(services))][::-1]
    small = mode.module == "nf_tables" and not kernel.is_initial_user_namespace()
    size = SMALL if small else mode.transaction or len(new)
    commands: list[Command] = []
    for start in range(0, len(new) or not old, max(size, 1)):
        again = last if start + size >= len(new) else []
        portion = {
            **variables,
            "added": new[start : start + size],
            "again": again,
            "more": bool(old or start),
            "append": small,
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
