"""Every command of the README, and what its logs say when they are read again."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kproxylat.results_json import to_json
from kproxylat.sweep import pool
from tests.results import COUNTED, load
from tests.support import ROOT
from tests.vm.commands import COMMANDS, README, Trigger, words
from tests.vm.conftest import Guest

[DEMO] = re.findall(r"^\t\S*/kproxylat (.+)$", (ROOT / "Makefile").read_text(), re.M)


def test_readme_is_short_and_names_every_command() -> None:
    assert len(README.splitlines()) < 150
    listed = subprocess.run(
        [sys.executable, "-m", "kproxylat", "--help"], capture_output=True, text=True, check=True
    ).stdout
    names = set(re.findall(r"^  (\w+)  ", listed.split("Commands:")[1], re.M))
    assert names == {command.split()[0] for command in COMMANDS}


@pytest.mark.parametrize(
    "command",
    [each for each in COMMANDS if each.split()[0] in ("run", "sweep") and "--lab" in each and "--vm" not in each],
)
def test_lab_commands(timing: Guest, command: str) -> None:
    done = timing.kproxylat(*words(command))
    assert done.status == 0, done.err
    assert "closed" in done.out


def test_run_on_a_node_without_rules(timing: Guest) -> None:
    """Without kube-proxy's rules there is nothing to measure; tests/vm/test_ways.py runs it on a node with rules."""
    [command] = [each for each in COMMANDS if "--target" in each]
    timing.program("bash", "-c", "nft flush ruleset")
    done = timing.kproxylat(*words(command))
    assert done.status == 1
    assert "KUBE-SERVICES" in done.err
    assert timing.program("ip", "netns", "list").out.count("kproxylat") == 0


def test_trace_ends_by_ctrl_c(timing: Guest) -> None:
    import io

    [command] = [each for each in COMMANDS if each.startswith("trace")]
    out, err = io.StringIO(), Trigger(timing, "Ctrl-C ends it", signal.SIGINT)
    argv = [*words(command), "--output-dir", str(timing.directory)]
    assert timing.machine.run(argv, out, err) == 0, err.getvalue()
    assert "No nftables traffic observed." in out.getvalue()


@pytest.mark.parametrize("name", ["render", "cleanup", "doctor"])
def test_other_commands(timing: Guest, name: str) -> None:
    [command] = [each for each in COMMANDS if each.startswith(name)]
    done = timing.kproxylat(*words(command))
    assert done.status == 0, done.err


@pytest.mark.parametrize("name", ["compare", "plot"])
def test_commands_on_results(tmp_path: Path, name: str) -> None:
    [command] = [each for each in COMMANDS if each.startswith(name)]
    shutil.copy(COUNTED, tmp_path / "sweep.json")
    for each, result in (("before", load(COUNTED)[0]), ("after", load(COUNTED)[0])):
        (tmp_path / f"{each}.json").write_text(to_json(result))
    package = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-m", "kproxylat", *shlex.split(command)],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "PYTHONPATH": package},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cost the same" in done.stdout if name == "compare" else (tmp_path / "sweep.svg").stat().st_size


@pytest.mark.parametrize("services", ["3", pytest.param("3,10", marks=pytest.mark.long)])
def test_demo(tmp_path: Path, services: str) -> None:
    """What `make demo` does, from outside; where this machine cannot trace, in as many machines as it has room for."""
    argv, runs = words(DEMO), 3 * (services.count(",") + 1)
    done = subprocess.run(
        [sys.executable, "-m", "kproxylat", *argv, "--services", "10,200", "--traced-services", services],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "left out" not in done.stderr
    if "own kernel" not in done.stderr and pool.count_machines() > 1:
        assert "in 2 virtual machines" in done.stderr
    first, _, last = done.stdout.partition("what each Service adds to a packet")
    assert re.search(r"^what each Service adds, ns$", first, re.M)
    assert re.search(r"^what each Service adds, (emulated )?instructions$", first, re.M)
    assert {"iptables/legacy", "iptables/nft", "nftables/nft"} <= set(last.split())
    saved = sorted(each.name.split("_")[0] + each.suffix for each in (tmp_path / "logs/demo").iterdir())
    count = runs + 6
    assert saved == ["demo.png.png", *["ebpf.json"] * count, *["ebpf.log"] * count, "sweep.json", "sweep.json"]
    documents = [json.loads(path.read_text()) for path in (tmp_path / "logs/demo").glob("sweep_*.json")]
    assert all(result["accounting"]["closed"] for document in documents for result in document["results"])


def test_run_in_a_virtual_machine_and_parse_its_log(tmp_path: Path) -> None:
    """From outside, as a user calls it; the log read again gives the run, its target, traffic and books."""
    [command] = [each for each in COMMANDS if "--vm " in each]
    package = str(ROOT)
    environment = {**os.environ, "PYTHONPATH": package}
    done = subprocess.run(
        [sys.executable, "-m", "kproxylat", *words(command), "--format", "json"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["run"]["clock"] == "instructions"
    assert result["accounting"]["closed"] is True
    [log] = (tmp_path / "logs/ebpf").glob("*.log")
    parsed = subprocess.run(
        [sys.executable, "-m", "kproxylat", "parse", "--format", "json", str(log)],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    [again] = json.loads(parsed.stdout)["results"]
    for name in ("target", "probes", "path", "traffic", "accounting", "quality", "run", "maps"):
        assert again[name] == result[name], name
    [command] = [each for each in COMMANDS if each.startswith("parse")]
    script = f"{shlex.quote(sys.executable)} -m kproxylat {command}"
    csv = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert csv.stdout.count("\n") == 2
