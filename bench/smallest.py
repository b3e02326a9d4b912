"""The smallest change that the sender's clock finds in a minute: ``python bench/smallest.py [REPEATS]``

Measures a Service behind 1,000 others and behind some more, 25 s each, and asks ``compare`` whether the two differ.
Prints, for each number of rules more, how often they did; 0 more must not differ.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SERVICES = 1000
MORE = (0, 300, 1000, 3000)
"""Services that the second run has more. In mode iptables each is one more rule before the target's."""
RUN = ("run", "25", "1000", "--lab", "--probe", "none", "--mode", "iptables", "--backend", "legacy", "--format", "json")


def call(*words: str) -> str:
    """Run kproxylat and return its stdout.

    :raises RuntimeError: it failed; 5 (compared, and worse) is no failure.
    """
    done = subprocess.run(["kproxylat", *words], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 5):
        raise RuntimeError(f"kproxylat {' '.join(words)}: status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def try_once(more: int, directory: Path) -> tuple[bool | None, float, float]:
    """Measure a pair; return whether it differs, and both medians in ns."""
    files, medians = [], []
    for name, services in (("a", SERVICES), ("b", SERVICES + more)):
        text = call(*RUN, "--services", str(services), "--output-dir", str(directory))
        file = directory / f"{name}.json"
        file.write_text(text)
        files.append(str(file))
        medians.append(float(json.loads(text)["send_time"]["target"]["percentiles"]["50"]["estimate"]))
    [comparison] = json.loads(call("compare", *files, "--format", "json"))["comparisons"]
    return comparison["differs"], medians[0], medians[1]


def main(repeats: int) -> None:
    """Print how often each number of rules more was seen."""
    seen: dict[int, list[Any]] = {more: [] for more in MORE}
    with tempfile.TemporaryDirectory() as name:
        for _ in range(repeats):
            for more in MORE:
                seen[more].append(try_once(more, Path(name)))
                differs, before, after = seen[more][-1]
                print(f"  {more} more: {before:,.0f} -> {after:,.0f} ns, differs: {differs}", flush=True)
    for more, tries in seen.items():
        print(f"{more} rules more: {sum(bool(differs) for differs, *_ in tries)} of {len(tries)} differ")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 4)
