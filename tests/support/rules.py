"""kube-proxy's rules, as a real one wrote them."""

from __future__ import annotations

import gzip
import re
from collections import defaultdict

from kproxylat.lab.rules import render_ruleset
from kproxylat.lab.services import Service
from kproxylat.modes import Mode
from tests.support import TESTS

CAPTURED = TESTS / "kube-proxy-rules"
ENDPOINT = ("10.244.1.10:50051",)
ALWAYS = [
    Service("default/kubernetes:https", "tcp", "10.96.0.1", 443, ()),
    Service("default/worker:grpc", "tcp", "10.96.100.50", 50051, ENDPOINT),
    Service("default/worker-udp:grpc-udp", "udp", "10.96.100.51", 50051, ENDPOINT),
    Service("default/worker-dual:grpc", "tcp", "10.96.100.52", 50051, ENDPOINT),
    Service("default/worker-dual:grpc-udp", "udp", "10.96.100.52", 50051, ENDPOINT),
]


def text_of(mode: Mode, services: list[Service]) -> str:
    """Return what the last command of a ruleset reads, in all its transactions."""
    rendered = render_ruleset(mode, services)
    return "".join(text for argv, text in rendered if argv == rendered[-1][0])


def captured(name: str) -> str:
    path = CAPTURED / name
    return path.read_text() if path.exists() else gzip.decompress((CAPTURED / f"{name}.gz").read_bytes()).decode()


def iptables_chains(text: str) -> dict[str, set[str]]:
    """Rules by table and chain; counters and the policies' counters aside."""
    chains: dict[str, set[str]] = defaultdict(set)
    table = ""
    for line in text.splitlines():
        rule = re.sub(r"^\[\d+:\d+\] ", "", line)
        if line.startswith("*"):
            table = line
        elif line.startswith(":"):
            chains[f"{table} {line.split()[0][1:]}"].add(re.sub(r" \[.*", "", line))
        elif rule.startswith("-A "):
            chains[f"{table} {rule.split()[1]}"].add(rule)
    return dict(chains)


def nft_blocks(text: str) -> dict[str, set[str]]:
    """Lines by table and chain, set or map; a list of elements is one line for each; handles aside."""
    blocks: dict[str, set[str]] = defaultdict(set)
    text = re.sub(r" # handle \d+", "", text)
    text = re.sub(r"elements = \{ (.*?) \}\n", lambda m: m[1].replace(",", "\n") + "\n", text, flags=re.DOTALL)
    table = block = ""
    for line in (each.strip() for each in text.splitlines()):
        if line.startswith("table "):
            table = block = line.removesuffix(" {")
        elif line.startswith(("chain ", "set ", "map ")):
            block = f"{table} {line.removesuffix(' {')}"
            blocks[block] |= set()
        elif line == "}":
            block = table
        elif line:
            blocks[block].add(line)
    return {name: lines for name, lines in blocks.items() if name.startswith("table ip kube-proxy")}


OTHERS = TESTS / "rulesets"
