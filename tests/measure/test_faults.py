"""The fault table: what can go wrong around a run, what it says, how it ends, what is saved, and that nothing is left.

Every program that kproxylat runs is a fake (tests/support/fakes.py). tests/vm/test_faults.py has the
faults that need a kernel.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.agent import Agent
from tests.support.fakes import PROGRAMS, make_world

pytestmark = pytest.mark.slow

RUN = ("run", "0.2", "1000", "20", "--lab", "--mode", "nftables", "--format", "json", "--output-dir", "out")
WATCH = ("trace", "--mode", "nftables", "--duration", "60")
COMMAND = (sys.executable, "-m", "tests.support.fakes")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
TRACE = PROGRAMS["bpftrace"]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return "(no file)"


class World:
    """A machine of fakes, and the state that it is to be in again after each fault."""

    def __init__(self, path: Path, programs: dict[str, str | None] | None = None, flows: int = 262144) -> None:
        self.path = path
        make_world(path, programs or {})
        (path / "ns/host/sysctls/net.netfilter.nf_conntrack_max").write_text(f"{flows}\n")
        self.before = self.state()

    def state(self) -> dict[str, list[str]]:
        """Namespaces and lock; links, rules and settings; modules; temporary files; processes that work here."""
        ran = [each for each in Path("/proc").glob("[0-9]*") if self._works_here(each)]
        tops = [self.path / top for top in ("run", "ns", "root/sys/module", "tmp")]
        # Unlike rglob(), walk() takes it that directories vanish under its eyes.
        found = [Path(folder, name) for top in tops for folder, dirs, names in os.walk(top) for name in dirs + names]
        return {**{str(each): [_read(each)] for each in found}, "processes": [each.name for each in ran]}

    def _works_here(self, process: Path) -> bool:
        try:
            return process.joinpath("cwd").readlink() == self.path and bool((process / "cmdline").read_bytes())
        except OSError:
            return False

    def check(self) -> None:
        """Check that the machine is as before; processes may take a moment to be gone."""
        deadline = time.monotonic() + 10
        while (now := self.state()) != self.before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert now == self.before

    def programs(self, programs: dict[str, str]) -> None:
        """Put other programs in the usual ones' place."""
        for name, body in programs.items():
            # A program that just starts cannot be written, but it can be replaced.
            new = self.path / f"{name}.new"
            new.write_text(f"#!/bin/sh\n{body}\n")
            new.chmod(0o755)
            new.replace(self.path / "bin" / name)

    def saved(self) -> list[str]:
        """Return what is saved: "log", "json"."""
        return sorted(each.suffix[1:] for each in (self.path / "out").glob("*"))

    def start(self, *argv: str, wrap: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command line in a process of its own."""
        words, environment = [*wrap, *COMMAND, *argv], {**ENVIRONMENT, **env}
        return subprocess.run(
            words, cwd=self.path, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )


@pytest.fixture(scope="module")
def agents() -> Iterator[list[Agent]]:
    started = [Agent("-m", "tests.support.fakes") for _ in range(3)]
    for each in started:
        each.next()
    yield started
    for each in started:
        each.close()


@dataclass(frozen=True)
class Fault:
    """One row.

    :param programs: fakes in the usual ones' place; None is a program that is missing.
    :param says: what stderr says, a regular expression. ``saved``: which files there are afterwards.
    """

    id: str
    status: int
    says: str
    programs: dict[str, str | None] = field(default_factory=dict)
    saved: tuple[str, ...] = ("log",)
    argv: tuple[str, ...] = RUN
    prepare: Callable[[Path], object] = lambda _: None


def after(words: str, body: str) -> str:
    """Return bpftrace's fake with ``body`` in place of ``words``."""
    assert words in TRACE
    return TRACE.replace(words, body)


def dumping(body: str) -> str:
    """Return bpftrace's fake that prints what ``body`` prints, in place of its maps."""
    return after("dump() {", f"dump() {{ {body}; exit 0;")


def sender(words: str, body: str) -> str:
    """Return pktgen's fake with ``body`` in place of ``words``."""
    assert words in PROGRAMS["tee"]
    return PROGRAMS["tee"].replace(words, body)


STEPS = "for step in 1 2 3 4 5; do"
"""The loop in which pktgen's fake sends."""
WAIT = "while :; do sleep 0.02; done"
DUMP = "exec 9<&-; dump; exit 0"
LOG = r"\n  what bpftrace printed is in out/ebpf_nftables_\d+_\d+(?:_nft_\d+services)?\.log"
FLOOD = "head -c 10000000 /dev/zero | tr '\\0' x"
LINES = 'yes "@a[$(printf %01000d 0)]: 4" | head -c 10000000'
GARBAGE = "head -c 3000 /dev/urandom"
FULL = "seq -f '@n[8, %.0f]: 1' 65536; echo '@table[8]: kube-proxy'; echo '@chain[8]: nat-prerouting'"
FAULTS = (
    Fault("bpftrace-missing", 1, r"'bpftrace' is missing\n  apt-get install bpftrace", {"bpftrace": None}, ()),
    Fault("bpftrace-too-old", 1, "v0.9.4 is too old", {"bpftrace": "echo bpftrace v0.9.4"}, ()),
    Fault("bpftrace-says-no-version", 1, "bpftrace --version printed no version", {"bpftrace": "echo hello"}, ()),
    Fault("bpftrace-not-executable", 1, "status 126", {"bpftrace": "exit 126"}, ()),
    Fault("bpftrace-lists-nothing", 1, "no function nft_do_chain", {"bpftrace": after("-lv)", "-lv) exit ;; x)")}, ()),
    Fault("bpftrace-dies-at-attach", 1, f"before its probes were attached .status 1.: ERROR: no such probe{LOG}",
          {"bpftrace": after("echo __", "echo ERROR: no such probe >&2; exit 1; echo __")}),
    Fault("bpftrace-script-does-not-compile", 1, r"bt.j2, line \d+: syntax error\n  bpftrace does not compile: ",
          {"bpftrace": after("echo __", "echo 'stdin:1:2-3: ERROR: syntax error' >&2; exit 1; echo __")}),
    Fault("bpftrace-never-attaches", 1, f"attached no probes within 1 s: still thinking{LOG}",
          {"bpftrace": after("echo __", f"echo still thinking >&2; {WAIT}; echo __")}),
    Fault("bpftrace-dies-in-the-middle", 1, f"died while tracing .status 9.: out of memory{LOG}",
          {"bpftrace": after(WAIT, "echo out of memory >&2; exit 9")}),
    Fault("bpftrace-dies-in-the-middle-of-a-trace", 1, f"died while tracing .status 9.: out of memory{LOG}",
          {"bpftrace": after(WAIT, "echo out of memory >&2; exit 9")}, argv=(*WATCH, *RUN[-2:])),
    Fault("bpftrace-is-killed-in-the-middle", 1, f"died while tracing .status -9.: .*{LOG}",
          {"bpftrace": after(WAIT, "kill -KILL $$")}),
    Fault("bpftrace-dies-at-exit", 1, f"failed at its end .status 3.: .*{LOG}",
          {"bpftrace": after(DUMP, "exit 3")}),
    Fault("bpftrace-ignores-sigint", 1, f"did not end within 1 s of SIGINT.*{LOG}",
          {"bpftrace": after(f"trap '{DUMP}' INT", "trap '' INT")},
          prepare=lambda world: (world / "stop_limit_s").write_text("1")),
    Fault("bpftrace-prints-nothing", 4, "the books don't close: lookups 0 instead of 200",
          {"bpftrace": after(DUMP, "exit 0")}, ("json", "log")),
    Fault("bpftrace-prints-garbage", 4, "the books don't close: lookups 0 instead of 200",
          {"bpftrace": dumping(GARBAGE)}, ("json", "log")),
    Fault("bpftrace-prints-10-MB-in-one-line", 4, "the books don't close: lookups 0 instead of 200",
          {"bpftrace": dumping(FLOOD)}, ("json", "log")),
    Fault("bpftrace-prints-10-MB-of-lines", 4, "the books don't close: lookups 0 instead of 200",
          {"bpftrace": dumping(LINES)}, ("json", "log")),
    Fault("bpftrace-fills-its-maps", 4, "the books don't close: lookups 65536 instead of 200",
          {"bpftrace": dumping(FULL)}, ("json", "log")),
    Fault("pktgen-has-no-module", 1, "module not found for this kernel: pktgen.*\n  .*--lab --vm",
          {"modprobe": "for name; do :; done; [ $name != pktgen ]"}, ()),
    Fault("pktgen-module-does-not-load", 1, "kernel module pktgen cannot be loaded: not today",
          {"modprobe": "case $1 in --dry-run|-r) ;; *) echo not today >&2; exit 1; esac"}, ()),
    Fault("pktgen-refuses-a-line", 1, "pktgen refuses 'ratep 200' for pod0: ERROR", {"tee": sender(
        'echo "Result: OK: $line" >$1', 'case $line in ratep*) echo Result: ERROR ;; *) echo Result: OK; esac >$1'
    )}, ()),
    Fault("pktgen-does-not-start", 1, "pktgen failed .status 1.",
          {"tee": sender("read -r order\n", "read -r order\n[ -e started ] && exit 1; : >started\n")}),
    Fault("veth-vanishes", 1, "cat pktgen/pod0 ended with status 1: .*No such file",
          {"tee": sender(">pktgen/pod0 ;;", ">pktgen/pod0; [ ! -e log ] || rm pktgen/pod0; : >log ;;")}),
    Fault("namespace-name-taken", 1, "netns kproxylat-node: File exists",
          {"ip": PROGRAMS["ip"].replace("[ !", "[ $3 != kproxylat-node ] && [ !")}, ()),
    Fault("namespace-cannot-be-removed", 1, "ip netns delete kproxylat-node ended with status 1",
          {"ip": PROGRAMS["ip"].replace("rm run/netns/$3", "[ $3 != kproxylat-node ] && rm run/netns/$3")},
          ("json", "log")),
    Fault("left-by-another-run", 0, r"removed kproxylat-client of an earlier run", {}, ("json", "log"),
          prepare=lambda world: (world / "run/netns/kproxylat-client").touch()),
    Fault("conntrack-full", 1, "220 flows at a time need more room than conntrack has .7.",
          {"cat": PROGRAMS["cat"].replace("_max) 0", "_max) 262137")}, ()),
    Fault("ruleset-refused", 1, "nft -f - ended with status 1: syntax error",
          {"nft": "cat >/dev/null; echo syntax error >&2; exit 1"}, ()),
    Fault("counters-are-garbage", 1, "nft does not list the counters of kproxylat-client: '{",
          {"nft": PROGRAMS["nft"].replace("printf '{\"nftables\"", "echo '{'; exit; printf '{\"nftables\"")}),
    Fault("service-ips-are-garbage", 1, "cannot parse nft's list of map service-ips: '{",
          {"nft": PROGRAMS["nft"].replace("echo '{\"nftables\": [{\"map\"", "echo '{'; exit; echo '")}, ()),
    Fault("sysctl-refuses", 1, "sysctl -q -w .* read-only file system",
          {"sysctl": "echo read-only file system >&2; exit 1"}, ()),
    Fault("output-directory-cannot-be-made", 1, "sent/x cannot be made: Not a directory\n  pass another", {}, (),
          (*RUN[:-1], "sent/x")),
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda each: each.id)
def test_fault(agents: list[Agent], tmp_path: Path, fault: Fault) -> None:
    world = World(tmp_path, fault.programs)
    fault.prepare(tmp_path)
    status, out, err = agents[0].run(*fault.argv, cwd=str(tmp_path))
    print(err)
    assert re.search(fault.says, err)
    assert status == fault.status
    assert "Traceback" not in err
    assert max(map(len, err.splitlines())) < 600
    assert world.saved() == sorted(fault.saved)
    assert bool(out) == ("json" in fault.saved and fault.status in (0, 4))
    if fault.id == "namespace-cannot-be-removed":
        (tmp_path / "run/netns/kproxylat-node").unlink()
    world.check()


def test_a_map_limit_of_16_keys(tmp_path: Path) -> None:
    body = FULL.replace("65536", "$BPFTRACE_MAP_KEYS_MAX")
    world = World(tmp_path, {"bpftrace": dumping(body)})
    done = world.start(*RUN, BPFTRACE_MAP_KEYS_MAX="16")
    assert done.returncode == 4
    assert "the books don't close: lookups 16 instead of 200" in done.stderr
    assert "full maps (16 keys): @n; events are missing" in json.loads(done.stdout)["quality"]["warnings"]
    assert world.saved() == ["json", "log"]
    world.check()


@pytest.mark.parametrize("home", ["/proc/sys", "/proc/sys/kernel/ostype/nowhere"], ids=["read-only", "no-directory"])
def test_a_home_that_cannot_be_written(tmp_path: Path, home: str) -> None:
    """Below /proc/sys not even root makes a file."""
    world = World(tmp_path)
    done = world.start(*RUN, HOME=home, XDG_CACHE_HOME=home, XDG_CONFIG_HOME=home)
    assert (done.returncode, "closed" in done.stdout) == (0, True), done.stderr
    assert home not in done.stderr
    assert world.saved() == ["json", "log"]
    world.check()
    there = world.start(*RUN[:-1], f"{home}/logs")
    assert f"kproxylat: {home}/logs cannot be made: " in there.stderr
    assert there.stderr.endswith("\n  pass another --output-dir\n")
    assert (there.returncode, there.stdout) == (1, "")
    world.check()


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """A file that may not grow beyond 1 kB plays the disk; what was measured is still shown."""
    world = World(tmp_path)
    done = world.start(*RUN, wrap=("prlimit", "--fsize=1000"))
    assert done.returncode == 1
    assert "kproxylat: the result could not be saved whole in out: File too large\n  make room there\n" in done.stderr
    assert json.loads(done.stdout)["accounting"]["closed"] is True
    assert "log" in world.saved()
    world.check()


INTERVAL = "12:00:00 Statistics:\\n@stats[1, 0]: count 3, average 12000, total 36000\\n--\\n"
NO_SPACE = r"kproxylat: \[Errno 28\] No space left on device\n"


@pytest.mark.parametrize(
    ("argv", "pipe", "says", "saved"),
    [
        pytest.param(RUN, "| head -c 0", "", ["json", "log"], id="stdout-closed"),
        pytest.param(RUN, "2>&1 | head -c 0", "", [], id="stderr-closed"),
        pytest.param(RUN, ">/dev/full", NO_SPACE, ["json", "log"], id="stdout-full"),
        pytest.param((*WATCH, *RUN[-2:]), "| head -n 2", "", ["json", "log"], id="trace-stdout-closed"),
        pytest.param((*WATCH, *RUN[-2:]), ">/dev/full", NO_SPACE, ["json", "log"], id="trace-stdout-full"),
    ],
)
def test_output_that_nobody_reads(
    tmp_path: Path, argv: tuple[str, ...], pipe: str, says: str, saved: list[str]
) -> None:
    """A trace of a minute ends at once: it could do nothing but fail at its end."""
    world = World(tmp_path, {"bpftrace": after(WAIT, f"while :; do printf '{INTERVAL}'; sleep 0.02; done")})
    started_s = time.monotonic()
    script = f'set -o pipefail; "$@" {pipe}'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *COMMAND, *argv], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1, done
    assert time.monotonic() - started_s < 30
    assert "Traceback" not in done.stderr + done.stdout
    assert "Exception ignored" not in done.stderr + done.stdout
    assert re.search(says + "$", done.stderr)
    assert says or "kproxylat: " not in done.stderr
    assert world.saved() == saved
    world.check()


def test_a_parent_that_dies(tmp_path: Path) -> None:
    """Nobody is left to read: a run of a minute ends at the next words that it says, and takes everything away."""
    world = World(tmp_path, {"tee": sender(STEPS, "for step in $(seq 3000); do")})
    agent = Agent("-m", "tests.support.fakes")
    agent.next()
    agent.send(argv=("run", "60", *RUN[2:]), cwd=str(tmp_path), program=False)
    while "[3/7]" not in agent.next().get("err", ""):
        pass
    agent.process.kill()
    agent.process.wait()
    world.check()
    assert world.saved() == []
    for stream in (agent.process.stdin, agent.process.stdout):
        assert stream
        stream.close()


ALLOWED = ("net.ipv4.ip_forward", "net.netfilter.nf_conntrack_max")
NODE_RUN = (
    *(*RUN[:4], "--mode", "iptables", "--backend", "nft", "--target", "10.96.100.50:50051"),
    *("--source", "10.244.7.128/25", "--position", "first", *(f"--allow={name}" for name in ALLOWED), *RUN[-4:]),
)
"""Moves a rule, lets the node forward, makes room in conntrack, loads a module, and has a link in the node."""
LONG_RUN = ("run", "20", "1000", "0", *NODE_RUN[4:])
"""Without a warm-up, which a slow sender would make long."""


def wait_for(agent: Agent, words: str) -> None:
    """Wait until a command that is under way prints these words."""
    printed = ""
    while words not in printed:
        event = agent.next()
        assert "status" not in event, printed
        printed += event.get("err", "")


def kill_run(agent: Agent, world: World) -> None:
    """Kill a run on a node while all that it may change is changed."""
    world.programs({"tee": sender(STEPS, "for step in $(seq 3000); do")})
    agent.send(argv=LONG_RUN, cwd=str(world.path), program=False)
    wait_for(agent, "[7/7]")
    agent.send(signal=int(signal.SIGKILL))
    assert agent.finish()[0] == -signal.SIGKILL
    world.programs({"tee": PROGRAMS["tee"]})
    assert (world.path / "run/lock").read_text().count("\n") == 4, "all changes are noted"


def check_cleanup(agent: Agent, world: World) -> None:
    """Check that ``cleanup`` restores what the killed run changed."""
    status, _, err = agent.run("cleanup", cwd=str(world.path))
    assert status == 0, err
    (world.path / "ns/host/flows").unlink(missing_ok=True)
    world.check()


DIES = {"bpftrace": after("echo __", "exit 1; echo __")}
SWEEP = ("sweep", "0.1", *RUN[2:5], "--mode", "nftables", "--services", "10", "--seed", "1", *RUN[-2:])
COMMANDS: dict[str, tuple[tuple[str, ...], dict[str, str], int]] = {
    "trace": ((*WATCH[:-1], "0.2", *RUN[-2:]), {}, 0),
    "trace-that-fails": ((*WATCH, *RUN[-2:]), DIES, 1),
    "run": (RUN, {}, 0),
    "run-that-fails-before-its-checks": (("run", "--lab", "--mode", "later"), {}, 2),
    "run-that-fails-at-its-checks": (RUN, {"bpftrace": "exit 126"}, 1),
    "run-that-fails-in-the-middle": (RUN, DIES, 1),
    "sweep": (SWEEP, {}, 0),
    "sweep-that-fails": (SWEEP, DIES, 1),
    "render": (("render", *RUN[1:7]), {}, 0),
    "doctor": (("doctor",), {}, 0),
    "mode-show": (("mode", "show", "--kubeconfig", "sent"), {}, 1),
    "services-list": (("services", "list", "--kubeconfig", "sent"), {}, 1),
    "capture": (("capture", "--output", "captured.json"), {}, 1),
    "parse": (("parse", "nowhere"), {}, 1),
    "whatif": (("whatif", "nowhere"), {}, 2),
    "cleanup": (("cleanup",), {}, 0),
}
"""A command after a killed run: its arguments, fakes in the usual ones' place, its exit status."""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_run_is_restored_whatever_comes_before_cleanup(agents: list[Agent], tmp_path: Path, name: str) -> None:
    world = World(tmp_path, flows=300)
    kill_run(agents[0], world)
    argv, programs, expected = COMMANDS[name]
    world.programs(programs)
    status, _, err = agents[0].run(*argv, cwd=str(tmp_path))
    assert status == expected, err
    check_cleanup(agents[0], world)


def test_a_cleanup_that_cannot_remove_restores_all_the_same(agents: list[Agent], tmp_path: Path) -> None:
    world = World(tmp_path, flows=300)
    kill_run(agents[0], world)
    world.programs({"ip": PROGRAMS["ip"].replace('"netns delete")', '"netns delete") return 1 ;; x)')})
    status, _, err = agents[0].run("cleanup", cwd=str(tmp_path))
    assert (status, (tmp_path / "run/lock").exists()) == (1, False)
    assert "ip netns delete kproxylat-client ended with status 1" in err
    assert (tmp_path / "ns/host/sysctls/net.netfilter.nf_conntrack_max").read_text() == "300\n"
    world.programs({"ip": PROGRAMS["ip"]})
    check_cleanup(agents[0], world)


def test_a_run_that_cannot_see_whether_a_lab_stands(agents: list[Agent], tmp_path: Path) -> None:
    world = World(tmp_path, flows=300)
    kill_run(agents[0], world)
    for name in ("kproxylat-node", "kproxylat-backend"):
        (tmp_path / "run/netns" / name).touch()
    world.programs({"ip": PROGRAMS["ip"].replace("*-json*link*)", "*-json*link*) exit 2 ;; x)")})
    status, _, err = agents[0].run(*RUN, cwd=str(tmp_path))
    assert (status, "-json link show dev kpl-be ended with status 2" in err) == (1, True), err
    world.programs({"ip": PROGRAMS["ip"]})
    check_cleanup(agents[0], world)


@pytest.mark.parametrize("argv", [("cleanup",), RUN], ids=["cleanup", "run"])
def test_a_restore_that_fails_is_tried_again(agents: list[Agent], tmp_path: Path, argv: tuple[str, ...]) -> None:
    world = World(tmp_path, flows=300)
    kill_run(agents[0], world)
    refusing = '[ -n "$NETNS" ] || [ "$1" = -n ] || { echo not now >&2; exit 1; }\n'
    world.programs({"sysctl": refusing + PROGRAMS["sysctl"]})
    status, _, err = agents[0].run(*argv, cwd=str(tmp_path))
    again = "ended with status 1: not now; the next run or kproxylat cleanup tries again\n"
    words = r"nf_conntrack_max=\d+ is not restored: sysctl -q -w net.netfilter.nf_conntrack_max=\d+ "
    assert re.search(f"{words}{again}", err)
    assert status == (1 if argv == ("cleanup",) else 0)
    if status:
        assert "kproxylat: not restored: net.netfilter.nf_conntrack_max=" in err
        assert "pktgen" in err.split("removed ")[1], "the rest is restored"
    world.programs({"sysctl": PROGRAMS["sysctl"]})
    check_cleanup(agents[0], world)


HAS_CLIENT = "[ -e run/netns/kproxylat-client ]"
NOT_AT_FIRST = 'if [ ! -e forgot ]; then case "$*" in *" -d "*) : >forgot;; esac; exit 0; fi'
HANGS = {
    "conntrack": ({"conntrack": f"{NOT_AT_FIRST}; {WAIT}"}, ["conntrack -D -f ipv4 -s 10.244.7.128/25"], 1, 0),
    "modprobe": ({"modprobe": PROGRAMS["modprobe"].replace("-r)", f"-r) {WAIT};")}, ["modprobe -r -q pktgen"], 0, 1),
    "ip": ({"ip": PROGRAMS["ip"].replace('"netns delete")', f'"netns delete") {WAIT};')},
           ["ip netns delete kproxylat-client"], 1, 0),
    "sysctl": ({"sysctl": PROGRAMS["sysctl"].replace("for", f"[ -e run/netns/kproxylat-client ] || {WAIT}\nfor")},
               ["sysctl -q -w net.netfilter.nf_conntrack_max=100"], 0, 1),
}  # fmt: skip
"""A program that hangs in the clean-up: the fake, the commands that are killed, exit status, notes that stay."""


@pytest.mark.parametrize("names", [*((name,) for name in HANGS), ("conntrack", "modprobe", "ip")], ids=" ".join)
def test_a_program_that_hangs_in_the_clean_up(tmp_path: Path, names: tuple[str, ...]) -> None:
    world = World(tmp_path, flows=100)
    world.programs({program: body for name in names for program, body in HANGS[name][0].items()})
    done = world.start(*NODE_RUN, KPROXYLAT_LIMIT_S="1.5")
    for name in names:
        for words in HANGS[name][1]:
            assert f"{words} did not end within 1.5 s and was killed" in done.stderr
    assert done.returncode == max(HANGS[name][2] for name in names)
    assert world.saved() == ["json", "log"]
    left = sum(HANGS[name][3] for name in names)
    lock = tmp_path / "run/lock"
    assert (len(lock.read_text().splitlines()) - 1 if lock.exists() else 0) == left
    world.programs(PROGRAMS)
    done = world.start("cleanup")
    assert done.returncode == 0, done.stderr
    (tmp_path / "ns/host/flows").unlink(missing_ok=True)
    world.check()


def test_a_second_signal_names_what_still_runs(agents: list[Agent], tmp_path: Path) -> None:
    slow = ": >hanging; for step in $(seq 250); do [ -e go ] || sleep 0.02; done; rmdir"
    world = World(tmp_path, {"modprobe": PROGRAMS["modprobe"].replace("rmdir", slow)}, flows=100)
    world.programs({"tee": sender(STEPS, "for step in $(seq 3000); do")})
    agents[0].send(argv=LONG_RUN, cwd=str(tmp_path), program=False)
    wait_for(agents[0], "[7/7]")
    agents[0].send(signal=int(signal.SIGINT))
    while not (tmp_path / "hanging").exists():
        time.sleep(0.01)
    for signum in (signal.SIGINT, signal.SIGTERM):
        agents[0].send(signal=int(signum))
        wait_for(agents[0], "kproxylat: still cleaning up; running: modprobe -r -q pktgen\n")
    (tmp_path / "go").touch()
    status, out, err = agents[0].finish()
    assert (status, "closed" in out) == (130, True), err
    world.check()


def test_a_kept_lab(agents: list[Agent], tmp_path: Path) -> None:
    """It stands for more Services, and is gone after fewer, after cleanup, and after a run on it that fails."""
    world = World(tmp_path)

    def start(*argv: str) -> tuple[int, str]:
        status, _, err = agents[0].run(*argv, cwd=str(tmp_path))
        return status, err

    def run(*argv: str) -> str:
        status, err = start(*RUN, *argv)
        assert status == 0, err
        assert (tmp_path / "run/netns/kproxylat-node").exists() == ("--keep" in argv)
        return err

    replaced, removed = "the lab that stands is replaced", "removed kproxylat-client of an earlier run"
    assert "on top" not in run("--services", "10", "--keep")
    assert "on top of the 10 Services that stand" in run("--services", "600", "--keep")
    assert "on top of the 600 Services that stand" in run("--services", "600", "--keep")
    err = run("--services", "599", "--keep")
    assert (replaced in err, removed in err, "on top" in err) == (True, False, False)
    assert removed in run("--services", "600", "--position", "first")
    world.check()
    run("--keep")
    assert "removed kproxylat-backend, kproxylat-client, kproxylat-node" in start("cleanup")[1]
    world.check()
    run("--keep")
    assert "on top" in run()
    world.check()
    run("--keep")
    world.programs({"bpftrace": after("@n[8, 5]", "@m[8, 5]")})
    assert start(*RUN, "--keep")[0] == 4, "the books don't close"
    world.check()
    for each in ("--ruleset=x", "--vm", "--vm-if-needed"):
        assert start(*RUN, "--keep", each)[0] == 2


def test_a_sweep_grows_one_lab(agents: list[Agent], tmp_path: Path) -> None:
    world = World(tmp_path)
    argv = ("sweep", *RUN[1:5], "--mode", "nftables", "--services", "10,20,30", "--seed", "1", *RUN[-2:])
    status, _, err = agents[0].run(*argv, cwd=str(tmp_path))
    assert status == 0, err
    order = re.findall(r"on nft[^,]*, (\d+) Services", err)
    stood = [below for below, above in pairwise(order) if int(below) < int(above)]
    assert re.findall(r"on top of the (\d+) Services", err) == stood != []
    world.check()


def test_two_runs_at_once(agents: list[Agent], tmp_path: Path) -> None:
    world = World(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda agent: agent.run(*RUN, cwd=str(tmp_path)), agents[:2]))
    assert sorted(status for status, _, _ in done) == [0, 1]
    [refused] = [err for status, _, err in done if status == 1]
    assert re.search(r"another run is under way \(process \d+\)\n  wait for its end", refused)
    assert world.saved() == ["json", "log"]
    world.check()


SHUFFLE = """grep -v '"a"' ns/host/rules/nat >new; cp new ns/host/rules/nat
    [ "$order" = start ]"""
"""kube-proxy at work, at pktgen's orders: the first Service goes."""


def test_where_the_rule_is_afterwards(tmp_path: Path) -> None:
    """kube-proxy writes KUBE-SERVICES anew during the run: both places are recorded, and lengths."""
    (tmp_path / "world").mkdir()
    world = World(tmp_path / "world", {"tee": sender('[ "$order" = start ]', SHUFFLE)})
    script = (
        "from tests.support import fakes; fakes.enter(); from kproxylat.measure.run import measure; "
        "from pathlib import Path; "
        "from kproxylat.measure.options import NodeUnderTest, Options, Record, Sending; "
        "from kproxylat.modes import find_mode; "
        "from kproxylat.results import Target as To; from ipaddress import ip_network; "
        "measure(Options(find_mode('iptables', 'nft'), To('10.96.100.50', 50051, 'udp'), "
        "where=NodeUnderTest(allow=('net.ipv4.ip_forward',)), record=Record(Path('out')), "
        "sending=Sending(duration_s=0.2, rate_pps=1000, source=ip_network('10.244.7.0/24'))), sync_s=1.5)"
    )
    words, environment = [sys.executable, "-c", script], {**ENVIRONMENT, "TMPDIR": "tmp"}
    done = subprocess.run(words, cwd=world.path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [path] = (world.path / "out").glob("*.json")
    run = json.loads(path.read_text())["run"]
    assert (run["position"], run["chain_length"]) == (2, 4)
    assert (run["position_after"], run["chain_length_after"], run["sync_s"]) == (1, 3, 1.5)


MOMENTS = int(os.environ.get("KPROXYLAT_MOMENTS", "12"))
"""For each signal and kind of run: 120 in all, at other moments in each run of the tests; 1,000 in `make test-long`."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL)


def time_run(agent: Agent, world: World, argv: tuple[str, ...]) -> float:
    """Return how many seconds a run takes from its first words on, which signals are sent within."""
    agent.send(argv=argv, cwd=str(world.path), program=False)
    agent.next()
    started_s = time.monotonic()
    assert agent.finish()[0] == 0
    world.check()
    return time.monotonic() - started_s


def strike(
    agent: Agent, world: World, argv: tuple[str, ...], signum: int, delay_s: float, second: int = 0
) -> float | None:
    """Send a run a signal, ``delay_s`` after its first words; look at its end, at what is saved and what is left.

    :param second: another signal, which follows at once (0: none).

    :return: None if it ended by the signal; else, as it ended before, how long it took.
    """
    shutil.rmtree(world.path / "out", ignore_errors=True)
    agent.send(argv=argv, cwd=str(world.path), program=False)
    first = agent.next()
    signals = [{"signal": int(number)} for number in (signum, second) if number]
    timer = threading.Timer(delay_s, lambda: [agent.send(**order) for order in signals])
    timer.start()
    began_s = time.monotonic()
    status, out, err = agent.finish()
    took_s = time.monotonic() - began_s
    timer.join()
    second_name = f" and {signal.Signals(second).name}" if second else ""
    moment = f"{signal.Signals(signum).name}{second_name} after {delay_s:.4f} s: status {status}, {err[-200:]}"
    assert "err" in first, moment
    assert "Traceback" not in err, moment + err
    # The kernel delivers two that are pending at once in an order of its own.
    allowed = {0, *(-number if number == signal.SIGKILL else 128 + number for number in (signum, second) if number)}
    assert status in allowed, moment
    if status == -signal.SIGKILL or (signal.SIGKILL in (signum, second) and status == 0):
        assert agent.run("cleanup", cwd=str(world.path))[0] == 0, moment
        # They stay until their timeout, as docs/rights.md says.
        (world.path / "ns/host/flows").unlink(missing_ok=True)
    else:
        assert not out or json.loads(out)["accounting"]["closed"], moment + out
        assert not out or world.saved() == ["json", "log"], moment
        assert out or status, moment
    try:
        world.check()
    except AssertionError as error:
        raise AssertionError(f"{moment}: {error}") from error
    return None if status else took_s


@pytest.mark.parametrize("signum", SIGNALS, ids=lambda each: f"{each.name}-at-{MOMENTS}-random-moments")
@pytest.mark.parametrize("argv", [RUN, NODE_RUN], ids=["lab", "node"])
def test_signals(
    agents: list[Agent],
    tmp_path: Path,
    argv: tuple[str, ...],
    signum: int,
    record_property: Callable[[str, object], None],
) -> None:
    seed = int(os.environ.get("KPROXYLAT_SEED", time.time_ns() % 10**6))
    print(f"KPROXYLAT_SEED={seed}")
    dice = random.Random(seed)
    worlds = []
    for number in range(len(agents)):
        (tmp_path / str(number)).mkdir()
        worlds.append(World(tmp_path / str(number), flows=100 if argv == NODE_RUN else 262144))
    with ThreadPoolExecutor(len(agents)) as pool:
        moments = [dice.random() for _ in range(MOMENTS)]
        seconds = dice.choices(SIGNALS, k=MOMENTS)

        def strike_all(number: int) -> int:
            agent, world, hits = agents[number], worlds[number], 0
            took_s = time_run(agent, world, argv)
            for index, moment in enumerate(moments[number :: len(agents)]):
                second = seconds[index] if index % 2 else 0
                # The machine may have got faster: a run that ended before its signal tells how long one takes now.
                # A moment close to the end of the run takes several tries where other tests run at the same time.
                for _ in range(8):
                    missed_s = strike(agent, world, argv, signum, moment * took_s, second)
                    if missed_s is None:
                        hits += 1
                        break
                    took_s = missed_s
            return hits

        hits = sum(pool.map(strike_all, range(len(agents))))
    record_property("note", f"{hits} of {MOMENTS} within the run")
    assert hits > 0.9 * MOMENTS
