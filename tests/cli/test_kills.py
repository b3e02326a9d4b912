"""Kills at random moments of a run, a sweep in machines, Services, and the mode. Nothing is left.

The run works in real network namespaces, with real rules and packets. The virtual machine is a fake that answers each
order with the same result. tests/measure/test_faults.py kills runs whose programs are all fakes.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxylat.errors import ENDING
from kproxylat.results_json import to_json
from tests.results import COUNTED, load
from tests.support import ROOT
from tests.support.fake_api import FakeApi
from tests.support.kube_proxy import CONFIGMAP, DAEMONSET
from tests.support.processes import find_marked

pytestmark = pytest.mark.slow

SIGNALS = (*ENDING, signal.SIGKILL)
TIMES = max(1, int(os.environ.get("KPROXYLAT_MOMENTS", "12")) // 12)
"""Kills of each command by each signal: 8 if KPROXYLAT_MOMENTS is 100, which makes 200 in all."""
RUNNER = f"""#!{sys.executable}
import os, sys, tempfile
tempfile.mkstemp(prefix="virtme_ret")
os.fork() or os.execv({sys.executable!r}, [{sys.executable!r}, {{guest!r}}])
os.wait()
"""
"""virtme-run in short."""
GUEST = """
import json, sys, time
print(json.dumps({"ready": "6.1.0-fake"}), flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if order.get("mode"):
        time.sleep(0.1)
        print(json.dumps({"out": open("result.json").read()}))
    if "argv" in order:
        print(json.dumps({"status": 0}), flush=True)
"""
PROGRAM = """
import os, sys
from pathlib import Path
from kproxylat.cli import main

def prepare():
    from kproxylat.system import virtual_machine
    virtual_machine.find = lambda program: program
    virtual_machine.find_runner = lambda: os.environ["RUNNER"]
    virtual_machine.find_kernel = lambda *_: Path("/boot/vmlinuz-6.1.0-fake")

if sys.argv[1] == "sweep":
    prepare()
print("begins", flush=True)
main()
"""
STATE = """
import os, subprocess
for top, directories, files in os.walk("/run"):
    print(top, sorted(directories), sorted(files))
for words in ("ip -o link", "ip netns", "iptables-legacy-save", "nft list ruleset", "sysctl net.ipv4.ip_forward"):
    print([line for line in subprocess.check_output(words.split(), text=True).splitlines() if line[:1] != "#"])
"""
"""Prints what a run changes in its namespaces."""
COMMANDS = {
    "run": (
        "run",
        "0.2",
        "500",
        "0",
        "--lab",
        "--probe",
        "none",
        "--mode",
        "iptables",
        "--backend",
        "legacy",
        "--services",
        "3",
    ),
    "sweep": ("sweep", "--lab", "--vm", "--mode", "iptables,nftables", "--services", "1,2", "0.1", "100"),
    "create": ("services", "create", "--count", "80"),
    "delete": ("services", "delete"),
    "mode": ("mode", "set", "nftables", "--yes", "--timeout", "1"),
}


class Place:
    """A directory for all that a command makes, and a cluster.

    :param namespaces: words that let a program run in the namespaces of the test; none for commands that need no root.
    """

    def __init__(self, path: Path, fake: FakeApi, namespaces: tuple[str, ...]) -> None:
        self.path, self.fake, self.namespaces = path, fake, namespaces
        self.rules = ""
        for name in ("tmp", "state"):
            (path / name).mkdir()
        (path / "result.json").write_text(to_json(load(COUNTED)[0]))
        (path / "guest.py").write_text(GUEST)
        (path / "virtme-run").write_text(RUNNER.format(guest=str(path / "guest.py")))
        fake.delay_s = 0.002
        for document in (CONFIGMAP, DAEMONSET):
            fake.add(copy.deepcopy(document))
        self.mark = f"KPROXYLAT_TEST={path}"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "KPROXYLAT_TEST": str(path),
            "TMPDIR": str(path / "tmp"),
            "XDG_STATE_HOME": str(path / "state"),
            "RUNNER": str(path / "virtme-run"),
            "KUBECONFIG": str(fake.kubeconfig(path)),
        }

    def prepare(self, name: str) -> None:
        """Make a cluster with the Services that a command deletes, or without those that it creates."""
        shutil.rmtree(self.path / "out", ignore_errors=True)
        if name == "create":
            kept = [key for key in self.fake.objects if key[1] not in ("services", "endpointslices")]
            self.fake.objects = {key: self.fake.objects[key] for key in kept}
        elif name == "delete":
            self.start("create").communicate(timeout=60)

    def start(self, name: str) -> subprocess.Popen[str]:
        """Start a command; its first words come before it handles signals."""
        words = [*self.namespaces, sys.executable, "-c", PROGRAM, *COMMANDS[name]]
        words += ["--output-dir", str(self.path / "out")] if name in ("run", "sweep") else []
        process = subprocess.Popen(
            words, cwd=self.path, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout
        assert process.stdout.readline() == "begins\n"
        return process

    def kill(self, name: str, signals: tuple[int, ...], delay_s: float) -> bool:
        """Kill a command; return whether it had not ended before."""
        process = self.start(name)
        time.sleep(delay_s)
        for signum in signals:
            process.send_signal(signum)
        _, err = process.communicate(timeout=60)
        moment = f"{name}, {[signal.Signals(signum).name for signum in signals]} after {delay_s:.3f} s: {err[-300:]}"
        # The kernel delivers two that are pending at once in an order of its own.
        killed = {-signum if signum == signal.SIGKILL else 128 + signum for signum in signals}
        # "mode set" waits in vain for a rollout.
        assert process.returncode in {0, 1 if name == "mode" else 0, *killed}, (process.returncode, moment)
        assert "Traceback" not in err, moment
        self.check(moment, cleanup=signal.SIGKILL in signals)
        return process.returncode in killed

    def check(self, moment: str, cleanup: bool = False) -> None:
        """Check that no process, file, namespace and link is left, and that what is saved can be read.

        :param cleanup: whether ``cleanup`` removes the namespaces first, as after SIGKILL.
        """
        ends_s = time.monotonic() + 10
        while (left := find_marked(self.mark)) and time.monotonic() < ends_s:
            time.sleep(0.01)
        assert left == [], moment
        assert list((self.path / "tmp").iterdir()) == [], moment
        assert list((self.path / "state").iterdir()) == [], moment
        for path in (self.path / "out").glob("*"):
            assert path.suffix in (".state", ".json", ".csv", ".log"), moment
            if path.suffix == ".state":
                [json.loads(line) for line in path.read_text().splitlines()]
        if self.namespaces:
            if cleanup:
                self.look("-m", "kproxylat", "cleanup")
            now = self.look("-c", STATE)
            self.rules = self.rules or now
            assert now == self.rules, moment

    def look(self, *words: str) -> str:
        """Run Python in the namespaces; return its output."""
        argv = [*self.namespaces, sys.executable, *words]
        return subprocess.run(argv, env=self.environment, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.fixture
def namespaces() -> Iterator[tuple[str, ...]]:
    """Mount and network namespaces with an own /run, as the words that let a program run there."""
    ready = "mount -t tmpfs tmpfs /run && ip link set lo up && echo ready && exec sleep 3600"
    holder = subprocess.Popen(["unshare", "--mount", "--net", "sh", "-c", ready], stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"ready\n"
        yield ("nsenter", f"--target={holder.pid}", "--mount", "--net")
        holder.kill()


@pytest.mark.parametrize("name", COMMANDS)
def test_kills(
    tmp_path: Path, fake: FakeApi, name: str, request: pytest.FixtureRequest, record_property: pytest.RecordProperty
) -> None:
    if name == "run" and (os.geteuid() or not shutil.which("iptables-legacy-restore")):
        pytest.skip("runs the lab as root")
    place = Place(tmp_path, fake, request.getfixturevalue("namespaces") if name == "run" else ())
    seed = int(os.environ.get("KPROXYLAT_SEED", time.time_ns() % 10**6))
    print(f"KPROXYLAT_SEED={seed}")
    dice = random.Random(seed)
    place.prepare(name)
    began_s = time.monotonic()
    process = place.start(name)
    _, err = process.communicate(timeout=60)
    took_s, hits, tries = time.monotonic() - began_s, 0, 0
    place.check(f"without a signal: {err}")
    while hits < len(SIGNALS) * TIMES:
        place.prepare(name)
        more = (dice.choice(SIGNALS),) if hits % 2 else ()
        hit = place.kill(name, (SIGNALS[hits % len(SIGNALS)], *more), dice.random() * took_s * 0.8)
        hits, tries = hits + hit, tries + 1
        assert tries <= 3 * len(SIGNALS) * TIMES
        # Others may have kept the machine busy while the command was timed.
        took_s *= 1 if hit else 0.8
    record_property("note", f"{name}: {hits} kills within the command, of {tries}")
