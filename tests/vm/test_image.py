"""The image's bpftrace on a real kernel: its root file system read-only, with exactly the rights of the Job's profile.

Each of these rights is needed: without it the kernel refuses, and a line says what is missing.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from kproxylat.cluster.envelope import Envelope, read_log
from kproxylat.cluster.job import PROFILES
from kproxylat.system.kernel import CAPABILITIES
from tests.support import ROOT
from tests.support.image import prepare_image, write_pod
from tests.vm.conftest import Guest

pytestmark = pytest.mark.long

STATE = "/run/kproxylat-pods"
NODE = "/run/netns/kproxylat-node"
TRACE = ("trace", "--mode", "nftables", "--duration", "5", "--output-dir=/tmp/kproxylat")
RUN = ("run", "--lab", "--services", "20", "1", "50", "--format=json", "--output-dir=/tmp/kproxylat")
MODULES = ("pktgen", "iptable_nat", "iptable_filter", "iptable_mangle", "nfnetlink_acct", "xt_nfacct")
"""A pod loads none: kube-proxy, or a person, has loaded those of the node."""
PROBES = "fentry:nf_tables:nft_do_chain { @ = count(); } interval:ms:200 { exit(); }"
"""A function of a module, whose types the kernel gives; and an event of perf."""


@pytest.fixture(scope="module")
def node(timing: Guest) -> Iterator[Guest]:
    """The guest with a lab that stands, in which a pod opens connections to a Service."""
    prepare_image()
    done = timing.kproxylat("run", "--lab", "--keep", "--mode", "nftables", "--services", "20", "1", "20")
    assert done.status == 0, done.err
    timing.program("mkdir", STATE)
    loaded = timing.program("modprobe", "-a", *MODULES)
    assert loaded.status == 0, loaded.err
    command = f"{sys.executable} {ROOT / 'tests/vm/senders.py'} 3000 20 1=10.97.0.1:80"
    started = timing.program("bash", "-c", f"ip netns exec kproxylat-client {command} >/dev/null 2>&1 & echo $!")
    yield timing
    timing.program("kill", started.out.strip())
    timing.kproxylat("cleanup")
    timing.program("sh", "-c", f"rmdir {STATE}; modprobe -r pktgen")
    assert timing.state() == ["lo"]


def run_pod(guest: Guest, *words: str, **more: Any) -> tuple[Envelope | None, str]:
    """Run a pod in the guest; return its result and its log."""
    done = guest.program("sh", "-c", 'exec "$@" 2>&1', "sh", *write_pod(STATE, *words, **more))
    assert guest.program("ls", STATE).out == "", "the lock is left"
    return read_log(done.out).envelope, done.out


def test_a_trace_of_a_node(node: Guest) -> None:
    result, text = run_pod(node, *TRACE, netns=NODE)
    assert result, text
    assert result.status == 0, text
    counted = re.search("NFTABLES MODE.*?Total invocations: ([0-9]+)", result.stdout, re.S)
    assert counted, text
    assert int(counted[1]) > 100


@pytest.mark.parametrize(("mode", "backend"), [("nftables", "nft"), ("iptables", "legacy")])
def test_a_run(node: Guest, mode: str, backend: str) -> None:
    result, text = run_pod(node, *RUN, "--mode", mode, "--backend", backend)
    assert result, text
    assert result.status == 0, text
    document: dict[str, Any] = json.loads(result.stdout)
    counts = document["accounting"]
    assert counts["sent"] == counts["lookups"] == 50
    assert counts["closed"] is True
    assert tuple(map(int, re.findall(r"\d+", document["run"]["bpftrace"])[:2])) >= (0, 25)


def test_a_run_loads_modules_only_with_the_right(node: Guest) -> None:
    """pktgen is unloaded, as on a node that never had it; the run that loads it takes it away again."""
    for load_modules, expected in ((False, 1), (True, 0)):
        node.program("modprobe", "-r", "pktgen")
        result, text = run_pod(node, *RUN, "--mode", "nftables", load_modules=load_modules)
        assert result, text
        assert result.status == expected, text
        assert ("module pktgen is not loaded" in text) == (not load_modules), text
    assert node.program("modprobe", "pktgen").status == 0


@pytest.mark.parametrize("name", CAPABILITIES)
def test_a_trace_needs_each_right(node: Guest, name: str) -> None:
    result, text = run_pod(node, *TRACE, netns=NODE, without=name)
    assert result, text
    assert result.status == 1
    assert f"kproxylat: root lacks CAP_{name}" in text


@pytest.mark.parametrize("name", PROFILES["measure"].capabilities)
def test_a_run_needs_each_right(node: Guest, name: str) -> None:
    result, text = run_pod(node, *RUN, "--mode", "iptables", "--backend", "legacy", without=name)
    assert result, text
    assert result.status == 1
    assert f"CAP_{name}" in text


@pytest.mark.parametrize(
    ("rights", "works"), [(("SYS_ADMIN",), True), (("BPF", "PERFMON"), False), (("BPF", "PERFMON", "SYS_ADMIN"), True)]
)
def test_what_the_kernel_wants_for_probes(node: Guest, rights: tuple[str, ...], works: bool) -> None:
    """The smallest set that works: CAP_BPF and CAP_PERFMON add nothing to CAP_SYS_ADMIN, and do not replace it."""
    argv = write_pod(STATE, *TRACE, netns=NODE)
    [limit] = [number for number, word in enumerate(argv) if word.startswith("--bounding-set=")]
    argv[limit] = ",".join(["--bounding-set=-all", *(f"+{name.lower()}" for name in rights)])
    argv = [*argv[: argv.index("python3", limit)], "bpftrace", "-e", PROBES]
    done = node.program("sh", "-c", 'exec "$@" 2>&1', "sh", *argv)
    assert (done.status == 0, "@: " in done.out) == (works, works), done.out


@pytest.mark.parametrize(
    ("program", "name"),
    [
        (("nft", "list", "ruleset"), "NET_ADMIN"),
        (("ip", "netns", "add", "x"), "SYS_ADMIN"),
        (("iptables-legacy", "-t", "nat", "-S"), "NET_RAW"),
    ],
)
def test_what_the_kernel_wants_for_rules_and_namespaces(node: Guest, program: tuple[str, ...], name: str) -> None:
    for without, works in (("", True), (name, False)):
        argv = write_pod(STATE, *RUN, without=without)
        argv = [*argv[: argv.index("--reset-env") + 1], *program]
        done = node.program(*argv)
        assert (done.status == 0) == works, done.out + done.err
