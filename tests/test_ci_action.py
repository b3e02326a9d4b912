"""The composite action of deploy/ci: the very texts of its steps run here, with stand-ins for the network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.results import COUNTED, LOGS, load, with_values
from tests.support import ROOT
from tests.support.command import RULES
from tests.support.documents import files

pytestmark = pytest.mark.slow

ACTION = yaml.safe_load((ROOT / "deploy/ci/action.yml").read_text())
STEPS = {step["id"]: step for step in ACTION["runs"]["steps"]}
RESULT = load(COUNTED)[0]
ENTER = """
mount -t proc proc "$0/proc"; mount --rbind /dev "$0/dev"; mount --rbind /sys "$0/sys"
mkdir -p "$0$DIRECTORY" "$0/checkout"; mount --bind "$DIRECTORY" "$0$DIRECTORY"; mount --bind "$CHECKOUT" "$0/checkout"
exec chroot "$0" env --chdir "$DIRECTORY" PATH="$DIRECTORY/kproxylat/bin:/usr/sbin:/usr/bin:/sbin:/bin" "$@"
"""
"""Enters another root file system ($0), with its own mounts: the runner's directory and the checkout are there, too."""


class Runner:
    """What GitHub's runner does: steps in order, with their environment, outputs and paths.

    :ivar known: inputs and what is known of the run, and the outputs of each step.
    :ivar prefix: words before each step's own, which enter another root file system.
    """

    prefix: tuple[str, ...] = ()

    def __init__(self, directory: Path, **inputs: str) -> None:
        self.directory = directory
        defaults = {name: entry.get("default", "") for name, entry in ACTION["inputs"].items()}
        self.known = {f"inputs.{name}": text for name, text in (defaults | inputs).items()}
        self.known |= {"github.action_path": str(ROOT / "deploy/ci"), "github.token": "t", "github.repository": "o/r"}
        self.known |= {"github.event.pull_request.number": "7"}
        (directory / "bin").mkdir(exist_ok=True)
        for name in ("apt-get", "sudo", "gh", "pip"):
            self.stand_in(name, f'echo "{name} $*" >> {directory}/calls\n')
        self.stand_in("kproxylat", f'exec "{sys.executable}" -m kproxylat "$@"\n')

    def stand_in(self, name: str, text: str) -> None:
        """Write a program that stands in for another."""
        path = self.directory / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}")
        path.chmod(0o755)

    @property
    def calls(self) -> str:
        """Return what the stand-ins were called with."""
        path = self.directory / "calls"
        return path.read_text() if path.exists() else ""

    def run(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run a step as the runner does: bash with -e and pipefail."""
        output = self.directory / "output"
        output.write_text("")
        values = {
            variable: re.sub(r"\$\{\{ (\S+) \}\}", lambda match: self.known.get(match[1], ""), text)
            for variable, text in STEPS[name].get("env", {}).items()
        }
        places = {
            "PATH": f"{self.directory / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
            "HOME": str(self.directory), "RUNNER_TEMP": str(self.directory), "GITHUB_OUTPUT": str(output),
            "GITHUB_PATH": str(self.directory / "path"), "GITHUB_STEP_SUMMARY": str(self.directory / "summary"),
        }  # fmt: skip
        words = [*self.prefix, "bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[name]["run"]]
        done = subprocess.run(
            words, env=places | values, cwd=self.directory, capture_output=True, text=True, check=False
        )
        for line in output.read_text().splitlines():
            variable, _, text = line.partition("=")
            self.known[f"steps.{name}.outputs.{variable}"] = text
        return done


def test_no_value_is_part_of_a_script() -> None:
    """Inputs reach the steps as variables of the environment, never as text of a script."""
    assert list(STEPS) == ["install", "measure", "compare", "comment", "gate"]
    for step in STEPS.values():
        assert "${{" not in step["run"]
        assert step["shell"] == "bash"
        for text in step.get("env", {}).values():
            name = re.fullmatch(r"\$\{\{ (\S+) \}\}", text)[1]  # type: ignore[index]
            assert name.split(".")[0] != "inputs" or name.removeprefix("inputs.") in ACTION["inputs"]


def compare(runner: Runner) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run the steps from measuring to the gate; return the gate, and the table."""
    for name in ("measure", "compare", "comment"):
        done = runner.run(name)
        assert done.returncode == 0, done.stderr
    return runner.run("gate"), (runner.directory / "summary").read_text()


def test_two_results_that_are_alike_pass(tmp_path: Path) -> None:
    gate, table = compare(Runner(tmp_path, before=str(LOGS[0]), after=str(LOGS[0])))
    assert gate.returncode == 0
    assert table.startswith("# kube-proxy lookups\n")
    assert "A and B cost the same at 10 Services: 2,106 instructions" in table


def test_one_that_costs_more_fails_and_its_table_is_posted(tmp_path: Path) -> None:
    slower = with_values(RESULT, {2200: 2000})
    before, after = files(tmp_path, RESULT, slower)
    runner = Runner(tmp_path, before=before, after=after)
    gate, table = compare(runner)
    assert gate.returncode == 5
    assert "| commonest | 2,106 | 2,200 | +94 | 1.045 |" in table
    assert f"gh pr comment 7 --body-file {tmp_path}/report.md --edit-last" in runner.calls
    assert (tmp_path / "report.md").read_text() == table
    (tmp_path / "summary").unlink()
    assert compare(Runner(tmp_path, before=before, after=after, **{"fail-if-worse": "10"}))[0].returncode == 0


def test_results_that_must_not_be_compared_end_with_the_reason(tmp_path: Path) -> None:
    other = replace(RESULT, run=replace(RESULT.run, kernel="6.12"))
    runner = Runner(tmp_path, **dict(zip(("before", "after"), files(tmp_path, RESULT, other), strict=True)))
    assert runner.run("measure").returncode == 0
    done = runner.run("compare")
    assert done.returncode == 1
    assert "kernel (6.1.0-56-amd64 and 6.12)" in done.stderr


def test_rulesets_are_measured(tmp_path: Path) -> None:
    """The options are those of kproxylat's run; the virtual machine itself is a matter of tests/vm."""
    runner = Runner(tmp_path, before=RULES, after=RULES, target="10.96.100.51:50051", protocol="udp")
    real = (tmp_path / "bin/kproxylat").read_text().removeprefix("#!/bin/bash\n")
    dry = f'set -- run --dry-run "${{@:2}}"; echo "$*" >> {tmp_path}/calls; {real}'
    runner.stand_in("kproxylat", f"if [[ $1 == run ]]; then {dry} fi\n{real}")
    done = runner.run("measure")
    assert done.returncode == 0, done.stderr
    assert runner.known["steps.measure.outputs.AFTER"] == f"{tmp_path}/AFTER.json"
    assert '"instructions"' in (tmp_path / "AFTER.json").read_text()
    assert runner.calls.count("--ruleset") == 2


@pytest.mark.parametrize("target", ["", "10.96.0.77:1"])
def test_a_file_that_is_neither_is_named(tmp_path: Path, target: str) -> None:
    (tmp_path / "x").write_text("neither\n")
    done = Runner(tmp_path, before=str(tmp_path / "x"), after=RULES, target=target).run("measure")
    assert done.returncode == 1
    assert f"{tmp_path}/x" in done.stderr


def test_it_installs_what_make_installs_for_a_lab(tmp_path: Path) -> None:
    """The Debian packages are among those of the Makefile; pip gets the checkout that the action is part of."""
    runner = Runner(tmp_path)
    runner.stand_in("python3", f'mkdir -p "$3/bin" && ln -sf {tmp_path}/bin/pip "$3/bin/pip"\n')
    done = runner.run("install")
    assert done.returncode == 0, done.stderr
    installed = re.search(r"apt-get install (.*)", runner.calls)
    assert installed
    packages = {word for word in installed[1].split() if not word.startswith("-")}
    makefile = (ROOT / "Makefile").read_text()
    known = re.search(r"^PACKAGES := (.*?[^\\])$", makefile, re.MULTILINE | re.DOTALL)
    assert known
    assert packages <= set(known[1].split())
    assert f"pip install --quiet --disable-pip-version-check {ROOT}/deploy/ci/../..[vm]" in runner.calls
    assert (tmp_path / "path").read_text() == f"{tmp_path}/kproxylat/bin\n"


def test_the_example_names_inputs_that_exist() -> None:
    readme = (ROOT / "deploy/ci/README.md").read_text()
    example: dict[str, Any] = yaml.safe_load(readme.partition("```yaml\n")[2].partition("```")[0])
    step = example["jobs"]["lookups"]["steps"][-1]
    assert set(step["with"]) <= set(ACTION["inputs"])
    assert {name for name, entry in ACTION["inputs"].items() if entry.get("required")} <= set(step["with"])


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="a root file system takes root")
def test_the_steps_run_in_a_clean_debian(tmp_path: Path) -> None:
    """All steps in a fresh Debian 12: it installs its packages by itself and measures in a virtual machine."""
    root, work = tmp_path / "root", tmp_path / "work"
    work.mkdir()
    mirror = subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates", "bookworm", str(root)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert mirror.returncode == 0, mirror.stderr
    # What this machine's network needs is no part of the action.
    for path in map(Path, ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")):
        if path.exists():
            shutil.copy(path, root / path.relative_to("/"))
    before = Path(RULES).read_text()
    rule = next(line for line in before.splitlines() if "10.96.100.52/32 -p tcp" in line and "cluster IP" in line)
    (work / "before.txt").write_text(before)
    (work / "after.txt").write_text(before.replace(rule, f"{rule.replace('.52/32', '.53/32')}\n{rule}", 1))

    def run_all(**sides: str) -> tuple[int, str]:
        runner = Runner(work, target="10.96.100.51:50051", protocol="udp", **sides)
        runner.known["github.action_path"] = "/checkout/deploy/ci"
        places = (f"DIRECTORY={work}", f"CHECKOUT={ROOT}")
        separate = "unshare", "--mount", "--pid", "--fork", "bash", "-ec"
        runner.prefix = ("env", "--unset=PYTHONPATH", *places, *separate, ENTER, str(root))
        (work / "summary").unlink(missing_ok=True)
        for name in ("install", "measure", "compare"):
            done = runner.run(name)
            assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        return runner.run("gate").returncode, (work / "summary").read_text()

    status, table = run_all(before="before.txt", after="after.txt")
    assert status == 5
    assert re.search(r"\| commonest \| [\d,]+ \| [\d,]+ \| \+(8[0-9]|1[0-9][0-9]) \|", table), table
    status, table = run_all(before=str(work / "BEFORE.json"), after=str(work / "BEFORE.json"))
    assert (status, "cost the same" in table) == (0, True)
