"""kproxylat in namespaces of its own: nothing of the machine's network, and nothing below its /run, is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kproxylat.results import Result
from kproxylat.results_json import from_json
from tests.support import ROOT

SITE = next(path for path in sys.path if path.endswith("site-packages"))
# An ordinary user may not be able to read where Python and the checkout lie: both are bound to /mnt.
_SCRIPT = """
set -eu
mount -t tmpfs tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/python /mnt/checkout /mnt/site
mount --bind "$1" /mnt/python
mount --bind "$2" /mnt/checkout
mount --bind "$3" /mnt/site
user=$4
shift 4
export PYTHONPATH=/mnt/checkout:/mnt/site PYTHONDONTWRITEBYTECODE=1
[ "$user" = root ] || set -- setpriv --reuid="$user" --regid=nogroup --clear-groups "$@"
cd /mnt/checkout
exec "$@"
"""


def _alone(user: str = "root") -> list[str]:
    """Return the command line of Python in mount and network namespaces of its own."""
    script = ("sh", "-c", _SCRIPT, "sh", sys.base_prefix, str(ROOT), SITE, user)
    return [
        "unshare",
        "--mount",
        "--net",
        *script,
        f"/mnt/python/bin/python{sys.version_info[0]}.{sys.version_info[1]}",
    ]


def run_python(*words: str, user: str = "root", directory: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in mount and network namespaces of its own.

    :param words: Python's arguments.
    :param user: "root", or another user of this machine.
    :param directory: where the user may write; its home directory.
    """
    if user != "root":
        for parent in (directory, *directory.parents):
            if parent.stat().st_uid == 0 and parent != Path("/tmp"):
                parent.chmod(0o777 if parent == directory else 0o755)
    return subprocess.run(
        [*_alone(user), *words], env={**os.environ, "HOME": str(directory)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def run_alone(*words: str, user: str = "root", directory: Path) -> subprocess.CompletedProcess[str]:
    """Run kproxylat likewise, and save its results in the directory."""
    return run_python("-m", "kproxylat", *words, "--output-dir", str(directory), user=user, directory=directory)


def measure_alone(*words: str, user: str = "root", directory: Path) -> Result:
    """Return the result of a run; it must succeed."""
    done = run_alone("run", *words, "--format", "json", user=user, directory=directory)
    assert done.returncode == 0, done.stderr
    return from_json(done.stdout)


def sweep_alone(*words: str, directory: Path) -> dict[str, Any]:
    """Return the document of a sweep; it must succeed, and report none of its own labs as a leftover."""
    done = run_alone("sweep", *words, "--format", "json", directory=directory)
    assert done.returncode == 0, done.stderr
    assert "of an earlier run" not in done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


_NODE = """
import runpy, sys
from pathlib import Path
from kproxylat.lab.ruleset import read_ruleset
from kproxylat.measure.options import Lab
from kproxylat.modes import find_mode
from kproxylat.system.processes import Background, run

rules, port, place, *words = sys.argv[1:]
for line in (
    "netns add node", "netns add pod", "link add cni0 netns node type veth peer name eth0 netns pod",
    "-n node link set lo up",
    "-n node address add 10.244.1.1/24 dev cni0", "-n node link set cni0 up", "-n pod link set eth0 up",
    "-n pod address add 10.244.1.10/24 dev eth0", "-n pod route add default via 10.244.1.1",
):
    run("ip", *line.split())
run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1", netns="node")
if rules:
    read_ruleset(Path(rules)).load("node")
else:
    Lab(20).load(find_mode(words[words.index("--mode") + 1], "nft"), "node")
pod = [sys.executable, "-c", "import kproxylat.traffic.responder as r; print(r.__file__); r.main('4', sys.argv[1])"]
pod[2] = "import sys; " + pod[2]
responder = Background(*pod, port, on_out=lambda _: None, on_err=print, netns="pod")
responder.wait(1)
"""
_RUN = """
# A container's process, for the stand-in of docker to find.
inside = Background("sleep", "300", on_out=lambda _: None, on_err=print, netns="node")
sys.argv = ["kproxylat", "run", *place.split("="), "--format", "json", *words]
try:
    runpy.run_module("kproxylat", run_name="__main__")
finally:
    responder.end()
    inside.end()
"""
_HOLD = """
show = lambda line: print(line, end="", flush=True)
sleeper = Background("sh", "-c", "echo $$; exec sleep infinity", on_out=show, on_err=print, netns="node")
sys.stdin.read()
for program in (sleeper, responder):
    program.end()
"""


@contextmanager
def hold_node(mode: str) -> Iterator[str]:
    """Make a node as :func:`run_on_node` does, with the lab's rules in a mode, and yield the path of its namespace."""
    words = (*_alone(), "-c", _NODE + _HOLD, "", "50051", "", "--mode", mode)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        line = holder.stdout.readline()
        assert line, "the node has a namespace"
        yield f"/proc/{int(line)}/ns/net"
        holder.communicate(timeout=30)


def run_on_node(
    rules: str,
    *words: str,
    directory: Path,
    listening: str = "50051",
    place: str = "--netns=/run/netns/node",
) -> subprocess.CompletedProcess[str]:
    """Run ``kproxylat run`` on a network namespace that stands for a node, beside one that stands for its pod.

    :param rules: the file of what a kube-proxy wrote ("": the lab's rules of 20 Services in the mode that is passed).
    :param listening: the port at which the pod answers connections.
    :param place: the option that names the node.
    """
    words = (*words, "--output-dir", str(directory))
    return run_python("-c", _NODE + _RUN, rules, listening, place, *words, directory=directory)
