"""Millions of lookups on many processors: ``python -m bench.cpus PROCESSORS SECONDS RATE [OPTION ...]``, as root.

A virtual machine of so many processors, on the clock of nanoseconds, sends packets from one of them to nftables' rules
of 10 Services; receive packet steering spreads the packets, and with them the lookups, over all of them. Prints the
result's counts, and how many packets each processor received. OPTIONs are those of ``kproxylat run``.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from kproxylat.system import virtual_machine
from kproxylat.system.virtual_machine import Machine

KEYS = "262144"
"""Keys of a map: nanoseconds of an emulated machine have many distinct values."""
LAB = (
    *("env", f"BPFTRACE_MAP_KEYS_MAX={KEYS}", f"BPFTRACE_MAX_MAP_KEYS={KEYS}", sys.executable, "-m", "kproxylat"),
    *("run", "--lab", "--keep", "--mode", "nftables", "--services", "10", "--format", "json"),
)
ROOM = """
sysctl -w net.netfilter.nf_conntrack_max=1000000 net.core.netdev_max_backlog=100000
echo {mask:x} | ip netns exec kproxylat-node tee /sys/class/net/kpl-pod/queues/rx-0/rps_cpus
"""
"""Room for a second's flows, and for packets that wait for their processor; the processors of the pod's link."""


virtual_machine.BOOT_LIMIT_S = 1200
"""So many processors boot slowly on fewer."""


def run_in(machine: Machine, *argv: str) -> tuple[int, str]:
    """Run a program in the guest; return its exit status and its stdout. Its stderr goes to ours."""
    out = io.StringIO()
    status = machine.run(argv, out, sys.stderr, program=True)
    return status, out.getvalue()


def read_received(machine: Machine) -> list[int]:
    """Return how many packets each processor has received."""
    return [int(line.split()[0], 16) for line in run_in(machine, "cat", "/proc/net/softnet_stat")[1].splitlines()]


def main(cpus: int, seconds: str, rate: str, *options: str) -> None:
    """Boot, measure, print."""
    with tempfile.TemporaryDirectory() as directory:
        machine = Machine("ns", Path(directory))
        machine.cpus = cpus
        with machine:
            lab = (*LAB, "--output-dir", directory, *options)
            run_in(machine, *lab, "1", "200")
            print(run_in(machine, "sh", "-c", ROOM.format(mask=(1 << cpus) - 1))[1], file=sys.stderr)
            before = read_received(machine)
            status, out = run_in(machine, *lab, seconds, rate)
            received = [after - first for first, after in zip(before, read_received(machine), strict=True)]
        document: dict[str, Any] = json.loads(out)
        [probe] = [probe for probe in document["probes"] if probe["lookup"]]
        counts: dict[str, Any] = {
            "status": status,
            **{name: document[name] for name in ("traffic", "accounting", "quality", "warnings") if name in document},
            "distinct": len(probe["values"] or ()),
            "values": sum((probe["values"] or {}).values()),
            "histogram": sum(bucket["count"] for bucket in probe["histogram"]["buckets"]),
            "received": received,
        }
        print(json.dumps(counts, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
