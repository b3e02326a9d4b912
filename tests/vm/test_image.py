"""Rights of the pods on a real kernel: the image's root file system, read-only, without one right of the Job's profile.

Each of these rights is needed: without it the kernel refuses, and a line says what is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from kproxylat.cluster.envelope import Envelope, read_log
from tests.support import ROOT
from tests.support.image import prepare_image, write_pod
from tests.vm.conftest import Guest

pytestmark = pytest.mark.long

STATE = "/run/kproxylat-pods"
NODE = "/run/netns/kproxylat-node"
TRACE = ("trace", "--mode", "nftables", "--duration", "5", "--output-dir=/tmp/kproxylat")
RUN = ("run", "--lab", "--services", "20", "1", "50", "--format=json", "--output-dir=/tmp/kproxylat")
PROBES = "fentry:nf_tables:nft_do_chain { @ = count(); } interval:ms:200 { exit(); }"
"""A function of a module, whose types the kernel gives; and an event of perf."""


@pytest.fixture(scope="module")
def node(timing: Guest) -> Iterator[Guest]:
    """The guest with a lab that stands, in which a pod opens connections to a Service."""
    prepare_image()
    done = timing.kproxylat("run", "--lab", "--keep", "--mode", "nftables", "--services", "20", "1", "20")
    assert done.status == 0, done.err
    timing.program("mkdir", STATE)
    command = f"{sys.executable} {ROOT / 'tests/vm/senders.py'} 3000 20 1=10.97.0.1:80"
    started = timing.program("bash", "-c", f"ip netns exec kproxylat-client {command} >/dev/null 2>&1 & echo $!")
    yield timing
    timing.program("kill", started.out.strip())
    timing.kproxylat("cleanup")
    timing.program("rmdir", STATE)
    assert timing.state() == ["lo"]


def run_pod(guest: Guest, *words: str, **more: str) -> tuple[Envelope | None, str]:
    """Run a pod in the guest; return its result and its log."""
    done = guest.program("sh", "-c", 'exec "$@" 2>&1', "sh", *write_pod(STATE, *words, **more))
    assert guest.program("ls", STATE).out == "", "the lock is left"
    return read_log(done.out).envelope, done.out


@pytest.mark.parametrize("name", ["NET_ADMIN", "SYS_ADMIN"])
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
    ],
)
def test_what_the_kernel_wants_for_rules_and_namespaces(node: Guest, program: tuple[str, ...], name: str) -> None:
    for without, works in (("", True), (name, False)):
        argv = write_pod(STATE, *RUN, without=without)
        argv = [*argv[: argv.index("--reset-env") + 1], *program]
        done = node.program(*argv)
        assert (done.status == 0) == works, done.out + done.err
