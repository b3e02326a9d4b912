"""What tracing adds to one call of the engine, in instructions, beside a script of the old shape.

    python bench/overhead.py [MODE/BACKEND]

In a virtual machine, for each way of tracing a burst of equal packets to the lab's worker, with the whole hook around
the engine's calls timed in the same way: what the hook takes longer than without a probe, by the calls in it.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from kproxylat.system.virtual_machine import Machine

TEMPLATE = Path(__file__).with_name("ways.bt.j2")
WAYS = {
    "empty": "an empty fentry/fexit pair",
    "kprobes": "an empty kprobe/kretprobe pair",
    "old": "a script of the old shape",
    "script": "ours, the target's call",
    "others": "ours, another's call",
    "established": "ours, an established flow's call",
}
LIMITS = {"script": 0.5, "others": 0.2}
"""Share of the old shape's that is the goal."""


def run(machine: Machine, backend: str, inner: str, directory: str) -> list[dict[str, Any]]:
    """Send a burst with ``inner`` on the engine, and return the result's probes."""
    mode, _, name = backend.partition("/")
    out, err = io.StringIO(), io.StringIO()
    argv = ["run", "0.3", "1000", "--lab", "--mode", mode, "--backend", name, "--services", "10", "--envelope"]
    argv += ["--template", str(TEMPLATE), "--set", f"inner={inner}", "--format", "json", "--output-dir", directory]
    status = machine.run(argv, out, err)
    # Without our script there are no lookups, and the books stay open.
    if status != (0 if inner == "script" else 4):
        sys.exit(err.getvalue())
    probes: list[dict[str, Any]] = json.loads(out.getvalue())["probes"]
    return [each for each in probes if each["hook"] == "FORWARD"]


def main() -> None:
    """Print what each way adds to a call, and as a share of the old shape's."""
    backend = sys.argv[1] if sys.argv[1:] else "iptables/legacy"
    hooks: dict[str, int] = {}
    calls = 0
    with tempfile.TemporaryDirectory() as directory, Machine("instructions", Path(directory)) as machine:
        for inner in ("none", *WAYS):
            probes = run(machine, backend, inner, directory)
            [hooks[inner]] = [each["mode"] for each in probes if each["envelope"]]
            calls = calls or sum(1 for each in probes if not each["envelope"])
        release = machine.release
    added = {inner: (hooks[inner] - hooks["none"]) / calls for inner in WAYS}
    print(f"{backend}, Linux {release}, {calls} calls at FORWARD; instructions added to a call")
    for inner, name in WAYS.items():
        limit = f" (goal {LIMITS[inner]})" if inner in LIMITS else ""
        print(f"{name:<32} {added[inner]:8,.0f}   {added[inner] / added['old']:.2f}{limit}")


if __name__ == "__main__":
    main()
