"""The commands mode show and mode set."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from kproxylat.cli.options import Format
from kproxylat.cli.places import Cluster, Place
from kproxylat.cli.spread import spread
from kproxylat.cluster.proxy_mode import CERTAIN, LIKELY, decide, gather
from kproxylat.cluster.rollout import describe_rollouts, needs_restart, plan_change, set_mode
from kproxylat.console import confirm, plain_line, say, show
from kproxylat.modes import mode_names

mode_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Show or set kube-proxy's mode.

    \b
    Examples:
      kproxylat mode show
      kproxylat mode set nftables
    """,
)


@mode_app.command("show")
@spread
def mode_show(
    send_packet: Annotated[
        bool,
        typer.Option("--send-packet", help="If several backends hold rules, open one TCP connection to a Service."),
    ] = False,
    form: Annotated[Format, typer.Option("--format", "-o", help="How the answer is written to stdout.")] = Format.TABLE,
    *,
    cluster: Cluster,
    place: Place,
) -> None:
    """Show kube-proxy's mode and backend, how certain they are, and the answer of every source.

    If several backends hold rules, two questions have two answers: whose rules translate packets, and whose rules
    kube-proxy writes. The rest was left behind.

    Run it on a node, as root. It changes nothing. Exit status 0: certain or likely; 1: ambiguous, unknown, or no
    kube-proxy.

    \b
    Examples:
      sudo kproxylat mode show
      sudo kproxylat mode show --send-packet --format json
    """
    evidence = gather(cluster.connect, send_packet, place.find())
    finding = decide(evidence)
    if form is Format.JSON:
        answers = {"sources": dict(evidence.sources), "unasked": evidence.unasked}
        show(json.dumps({**asdict(finding), "translates": finding.translates, **answers}, indent=2))
    else:
        is_leftover = finding.live and finding.backend and finding.live != finding.translates
        subject = "packets meet leftover rules:" if is_leftover else "kube-proxy"
        show(f"{subject} mode {finding.mode or '?'}, backend {finding.backend or '?'}: {finding.sure}")
        show(f"  {plain_line(finding.reason)}")
        if len(evidence.rules or ()) > 1:
            show(f"translates packets: {finding.translates or 'unknown'}")
            show(f"is written by kube-proxy: {finding.live or 'unknown'}")
        for source, answer in evidence.sources:
            show(plain_line(f"{source}: {answer}"))
        for reason in evidence.unasked:
            show(plain_line(f"not asked: {reason}"))
        for warning in finding.warnings:
            show(plain_line(f"warning: {warning}"))
        if finding.removal:
            show(f"leftovers: {finding.removal}")
        if finding.settle:
            show(f"settle it: {finding.settle}")
    sys.exit(0 if finding.sure in (CERTAIN, LIKELY) else 1)


@mode_app.command("set")
@spread
def mode_set(
    mode: Annotated[str, typer.Argument(help=f"{', '.join(mode_names())}, or default (an empty mode).")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    limit: Annotated[float, typer.Option("--timeout", help="Longest wait for each step, in seconds.")] = 300,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the change without applying it.")] = False,
    *,
    cluster: Cluster,
    place: Place,
) -> None:
    """Set kube-proxy's mode: patch its ConfigMap, restart its pods by a rollout, and wait until they run in the mode.

    It changes the cluster: all nodes get rules in the new mode, and existing connections may break. It asks first,
    and prints the command that restores the old mode. On a node, as root, also wait for its rules. To resume after
    an interruption, run the same command again. Rules of the old mode may stay behind in the nodes' kernels:
    kproxylat mode show, on a node, names them.

    \b
    Examples:
      kproxylat mode set nftables
      kproxylat mode set default --yes
      sudo kproxylat mode set nftables --dry-run
    """
    api, node = cluster.connect(), place.find()
    change = plan_change(api, mode)
    if not needs_restart(api, change, node.netns, limit, is_dry_run=dry_run):
        show(f"kube-proxy's mode is {mode} already")
        if state := describe_rollouts(api, change):
            say(f"its rollout is not complete: {state}")
        return
    show(change.diff or f"kube-proxy is set to {mode} already, but its pods were not restarted since")
    if dry_run:
        say("kube-proxy's pods would be restarted, too")
        return
    if not yes:
        confirm(f"Change this in the cluster of context {api.context}, and restart kube-proxy?")
    if change.diff:
        say(f"to restore the old mode: {change.undoing(api)}")
    finding = set_mode(api, node, change, lambda step, took_s: show(f"{step}: {took_s:.1f} s"), limit)
    for warning in finding.warnings if finding else ():
        say(f"warning: {warning}")
    if finding and finding.removal:
        say(f"leftovers: {finding.removal}")
