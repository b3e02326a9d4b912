"""A node's live ruleset as one document, which the lab of another machine can load. Reading changes nothing.

Format ``kproxylat-ruleset/1``, JSON: ``mode`` and ``backend``; ``captured``, ``kernel``, ``anonymous``; ``tools``: tool
-> its version; ``texts``: kind
-> lines that the tool printed, for ``iptables-save`` (with counters), ``nft`` (``nft list table ip kube-proxy``),
``ipvsadm`` (``ipvsadm -Sn``) and ``ipset`` (``ipset save``). The texts imply the nfacct objects, which rules name, and
the addresses of kube-ipvs0, which are those of the virtual servers. IPv4 only.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from kproxylat import __version__
from kproxylat.errors import MachineError, RulesetError
from kproxylat.lab.anonymous import Anonymizer
from kproxylat.lab.ruleset import SCHEMA, Ruleset, build
from kproxylat.modes import CHAIN, MAP, MODES, Mode, find_mode
from kproxylat.node.live_rules import LiveRules, has_table, read_live_rules
from kproxylat.node.service_rule import call_nft
from kproxylat.system import kernel
from kproxylat.system.files import save_file
from kproxylat.system.processes import run


def capture(mode: str | None, backend: str | None, anonymous: bool, netns: str | None = None) -> tuple[str, Ruleset]:
    """Read kube-proxy's live rules.

    :param mode: chooses rules, if the kernel holds those of several modes.
    :param backend: chooses rules, if the kernel holds those of several backends.
    :param anonymous: replace addresses and names.
    :param netns: the node's network namespace (None: the current one).
    :return: the document, and the ruleset as it is read from the document.
    :raises MachineError: the kernel holds no rules, or several; or the rules cannot be read or replayed.
    """
    kernel.check_root()
    row = _choose(read_live_rules(netns), mode, backend)
    try:
        ruleset = build("the live ruleset", row, _print(row, netns))
        if anonymous:
            anonymizer = Anonymizer(secrets.token_bytes(32))
            texts = {kind: anonymizer.text(text) for kind, text in ruleset.texts.items()}
            notes = tuple(map(anonymizer.text, ruleset.notes))
            ruleset = replace(build("the live ruleset", row, texts), notes=notes)
    except RulesetError as error:
        raise MachineError(f"the rules cannot be replayed: {error}", error.remedy) from None
    if not ruleset.services:
        raise MachineError(
            "the live rules hold no IPv4 Services, and a ruleset supports only IPv4",
            "sweep --lab --family 6 measures lookups of IPv6, without this node's rules",
        )
    about = {
        "mode": row.name,
        "backend": row.backend,
        "captured": datetime.now().astimezone().isoformat(timespec="seconds"),
        "kernel": kernel.release(),
        "kproxylat": __version__,
        "anonymous": anonymous,
        "tools": {tool: run(tool, "--version", netns=netns).splitlines()[0] for tool in _list_tools(ruleset)},
    }
    # The texts without lines of IPv6: the anonymizer does not change those.
    lines = {kind: text.splitlines() for kind, text in ruleset.texts.items()}
    return json.dumps({"schema": SCHEMA, **about, "texts": lines}, indent=1) + "\n", ruleset


def _list_tools(ruleset: Ruleset) -> list[str]:
    """Return the tools that printed a ruleset: their versions decide how it reads."""
    words = {"nft": "nft", "ipset": "ipset", "ipvsadm": "ipvsadm"}
    saved = [mode.iptables for mode in MODES if mode.form == CHAIN and mode.backend == ruleset.mode.backend]
    return [words.get(kind) or (saved or ["iptables-nft"])[0] for kind, text in ruleset.texts.items() if text]


def _print_rules(row: Mode, netns: str | None) -> str:
    """Return the output of iptables-save for the backend; of virtual servers, for the backend that has their chain."""
    for chain in [row] if row.form == CHAIN else [mode for mode in MODES if mode.form == CHAIN]:
        if has_table(chain, netns):
            text = run(f"{chain.iptables}-save", "-c", netns=netns)
            if "KUBE-SERVICES" in text:
                return text
    return ""


def _print(row: Mode, netns: str | None) -> dict[str, str]:
    """Return the output of the tools that print the rules: kind -> text."""
    if row.form == MAP:
        return {"nft": call_nft("list", "table", "ip", "kube-proxy", netns=netns)}
    texts = {"iptables-save": _print_rules(row, netns)}
    if "--match-set" in texts["iptables-save"]:
        texts["ipset"] = run("ipset", "save", netns=netns)
    return texts if row.form == CHAIN else {**texts, "ipvsadm": run("ipvsadm", "-S", "-n", netns=netns)}


def _choose(live: tuple[LiveRules, ...], mode: str | None, backend: str | None) -> Mode:
    """Return the mode of the live rules that mode and backend choose."""
    choices = [rules for rules in live if mode in (None, rules.mode) and backend in (None, rules.backend)]
    if not choices:
        names = ", ".join(map(str, live)) or "no rules of kube-proxy's"
        raise MachineError(f"no matching rules: this kernel holds {names}", "run it on a node, as root")
    if len(choices) > 1:
        raise MachineError(
            f"rules of several backends are live: {', '.join(map(str, choices))}",
            "kproxylat mode show says which are in use: pass --mode and --backend",
        )
    [rules] = choices
    return find_mode(rules.mode, rules.backend)


def save(text: str, output: Path, force: bool = False) -> None:
    """Write the document to a file.

    :param force: replace an existing file.
    :raises MachineError: the file exists or cannot be written.
    """
    save_file(output, text, "--output, or --force", force=force)
