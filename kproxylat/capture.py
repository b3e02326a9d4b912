"""A node's live ruleset as one document, to be loaded into the lab elsewhere. Looking changes nothing.

Format ``kproxylat-ruleset/1``, JSON: ``mode`` and ``backend``; ``captured``, ``kernel``, ``anonymous``; ``texts``, by
kind the lines that the tools printed: ``iptables-save`` (with counters), ``nft`` (``nft list table ip kube-proxy``),
``ipvsadm`` (``ipvsadm -Sn``), ``ipset`` (``ipset save``). The nfacct objects are those that the rules name, the
addresses of kube-ipvs0 the virtual servers': both follow from the texts. IPv4 alone.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from kproxylat import __version__, kernel
from kproxylat.anonymous import Anonymizer
from kproxylat.errors import MachineError, RulesetError
from kproxylat.liverules import LiveRules, read_live_rules
from kproxylat.modes import Mode, find_mode
from kproxylat.proc import run
from kproxylat.ruleset import SCHEMA, Ruleset, build
from kproxylat.runlog import give_to_user


def capture(mode: str | None, backend: str | None, anonymous: bool, netns: str | None = None) -> tuple[str, Ruleset]:
    """Read the live rules of kube-proxy.

    :param mode: which, where several are there. ``backend`` likewise.
    :param anonymous: replace addresses and names.
    :param netns: a network namespace (None: ours).
    :return: the document, and what is read out of it again.
    :raises MachineError: there are none, or several; or they cannot be read.
    """
    kernel.check_root()
    row = _choose(read_live_rules(netns), mode, backend)
    try:
        read = build("the live ruleset", row, _print(row, netns))
        if anonymous:
            hide = Anonymizer(secrets.token_bytes(32))
            hidden = {kind: hide.text(text) for kind, text in read.texts.items()}
            read = replace(build("the live ruleset", row, hidden), notes=tuple(map(hide.text, read.notes)))
    except RulesetError as error:
        raise MachineError(f"it could not be loaded again: {error}", error.remedy) from None
    if not read.services:
        raise MachineError(
            "there are no IPv4 Services in the live rules, and a ruleset holds IPv4 alone",
            "sweep --lab --family 6 measures IPv6's lookups, without this node's rules",
        )
    about = {
        "mode": row.name,
        "backend": row.backend,
        "captured": datetime.now().astimezone().isoformat(timespec="seconds"),
        "kernel": kernel.release(),
        "kproxylat": __version__,
        "anonymous": anonymous,
    }
    # What was kept of them: lines of IPv6, which are never read again, would come through anonymity as they are.
    lines = {kind: text.splitlines() for kind, text in read.texts.items()}
    return json.dumps({"schema": SCHEMA, **about, "texts": lines}, indent=1, ensure_ascii=False) + "\n", read


def _print_rules(row: Mode, netns: str | None) -> str:
    """Return what iptables-save prints of the backend; in mode ipvs of the one that has its few rules."""
    tables = run("cat", "/proc/net/ip_tables_names", netns=netns, ok=(0, 1)).split()
    for backend in ("legacy", "nft") if row.name == "ipvs" else (row.backend,):
        if backend == "nft" or "nat" in tables:
            text = run(f"iptables-{backend}-save", "-c", netns=netns)
            if "KUBE-SERVICES" in text:
                return text
    return ""


def _print(row: Mode, netns: str | None) -> dict[str, str]:
    """Let the tools print the rules: kind -> text."""
    if row.name == "nftables":
        return {"nft": run("nft", "list", "table", "ip", "kube-proxy", netns=netns)}
    texts = {"iptables-save": _print_rules(row, netns)}
    if "--match-set" in texts["iptables-save"]:
        texts["ipset"] = run("ipset", "save", netns=netns)
    return texts | ({"ipvsadm": run("ipvsadm", "-S", "-n", netns=netns)} if row.name == "ipvs" else {})


def _choose(live: tuple[LiveRules, ...], mode: str | None, backend: str | None) -> Mode:
    found = [each for each in live if mode in (None, each.mode) and backend in (None, each.backend)]
    if not found:
        there = ", ".join(map(str, live)) or "none of kube-proxy's"
        raise MachineError(f"no such rules are live here: there are {there}", "run it on a node, as root")
    if len(found) > 1:
        raise MachineError(
            f"rules of several backends are live: {', '.join(map(str, found))}",
            "kproxylat mode show tells which are in use: pass --mode and --backend",
        )
    return find_mode(found[0].mode, found[0].backend)


def save(text: str, output: Path) -> None:
    """Write the document to a new file.

    :raises MachineError: it cannot be written, or is there already.
    """
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
            give_to_user(file.fileno())
    except OSError as error:
        raise MachineError(f"{output} cannot be written: {error.strerror}", "pass another --output") from None
