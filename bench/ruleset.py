"""CPU seconds to read 10 MB of kube-proxy's rules and write them anew: ``python -m bench.ruleset`` (limit 2 s each)."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path

from kproxylat.lab.ruleset import read_ruleset
from kproxylat.lab.ruleset_check import CHECKS, read_text
from tests.support.rules import captured

SIZE, ROUNDS = 10_000_000, 3


def rename(text: str, number: int) -> str:
    """Give the dummy Services in a part of a ruleset other names, chains and addresses."""
    text = text.replace("dummy-service-", f"dummy{number}-service-")
    text = re.sub(r"(KUBE-S(?:VC|EP)-)(\w)", lambda match: match[1] + f"{match[2]}{number}", text)
    return re.sub(r"\b10\.(97|245)\.", lambda match: f"{(int(match[1]) + number) % 89 + 11}.{match[1]}.", text)


def enlarge(text: str, copies: int) -> str:
    """Return a captured ruleset with several times as many dummy Services."""
    parts = (
        r"^:KUBE-S(?:VC|EP)-.*\n|^.*-A .*dummy.*\n",
        r"^\tchain \S*dummy.*?^\t\}\n",
        r"(?<=elements = \{)[^}]*",
    )

    def repeat(match: re.Match[str]) -> str:
        end = "," if match[0][-1] != "\n" else ""
        return match[0] + "".join(end + rename(match[0], number) for number in range(1, copies))

    for part in parts[:1] if text.startswith("#") else parts[1:]:
        text = re.sub(part, repeat, text, flags=re.M | re.S if part != parts[0] else re.M)
    return text


if __name__ == "__main__":
    for name, kind in (
        ("iptables-nft/n1000/iptables-nft-save.txt", "iptables-save"),
        ("nftables/n1000/nft-list-ruleset.txt", "nft"),
    ):
        text = re.split("^table ip6", captured(name), flags=re.M)[0]
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "ruleset"
            path.write_text(enlarge(text, SIZE // len(text) + 1))
            rewriting, whole = [], []
            for _ in range(ROUNDS):
                started_s = time.process_time()
                CHECKS[kind](name, read_text(path), [])
                rewriting.append(time.process_time() - started_s)
                started_s = time.process_time()
                count = len(read_ruleset(path).services)
                whole.append(time.process_time() - started_s)
            print(f"{kind}, {path.stat().st_size / 1e6:.1f} MB, {count:,} Services: read and rewritten "
                  f"{min(rewriting):.2f} to {max(rewriting):.2f} s of CPU (limit 2); "
                  f"with the Services {min(whole):.2f} to {max(whole):.2f} s")  # fmt: skip
