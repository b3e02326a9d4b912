"""The virtual machine's command line, and the agent inside it, driven over pipes without a machine."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kproxylat import __version__, kernel, vm
from kproxylat.errors import MachineError, UsageError
from kproxylat.vm import Machine, find_kernel

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a root file system with two kernels, and a cloud one, and an image without modules."""
    (tmp_path / "boot").mkdir()
    for release in ("6.1.0-9-amd64", "6.1.0-56-amd64", "6.12.1-cloud-amd64"):
        (tmp_path / "boot" / f"vmlinuz-{release}").touch()
        (tmp_path / "lib/modules" / release).mkdir(parents=True)
    return tmp_path


def test_the_newest_kernel_is_booted_but_no_cloud_kernel(root: Path) -> None:
    assert find_kernel(None, root).name == "vmlinuz-6.1.0-56-amd64"


@pytest.mark.parametrize(("clock", "set_to"), [("instructions", [(time.CLOCK_REALTIME, 1_700_000_000.0)]), ("ns", [])])
def test_a_clock_that_falls_behind_is_set(
    clock: str, set_to: list[tuple[int, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "since_epoch").write_text("1700000000\n")
    done = list[tuple[int, float]]()
    monkeypatch.setattr(kernel, "RTC", tmp_path / "since_epoch")
    monkeypatch.setattr(kernel, "detect_clock", lambda: (clock, True))
    monkeypatch.setattr(time, "clock_settime", lambda *each: done.append(each))
    kernel.set_clock()
    assert done == set_to


def test_no_kernel(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no kernel image in") as caught:
        find_kernel(None, tmp_path)
    assert caught.value.remedy.startswith("apt-get install")


def test_a_kernel_that_is_not_there(root: Path) -> None:
    with pytest.raises(MachineError, match="vmlinuz-5 cannot be read"):
        find_kernel(root / "boot/vmlinuz-5", root)


def test_a_kernel_without_its_modules(root: Path) -> None:
    (root / "boot/vmlinuz-7.0").touch()
    with pytest.raises(MachineError, match=r"modules of vmlinuz-7\.0 are not in"):
        find_kernel(root / "boot/vmlinuz-7.0", root)


def test_icount_is_for_the_instruction_clock_only(root: Path) -> None:
    counting = Machine("instructions", root, root=root).command()
    assert counting[counting.index("-icount") + 1] == "shift=0,sleep=on"
    assert counting[counting.index("--cpus") + 1] == "1"
    assert {"kproxylat.clock=instructions", "tsc_early_khz=1000000"} <= set(counting)
    assert "--disable-kvm" in counting
    timing = Machine("ns", root, root=root).command()
    assert "-icount" not in timing
    assert timing[timing.index("--cpus") + 1] == "2"
    assert "kproxylat.clock=ns" in timing
    assert "tsc_early_khz=1000000" not in timing


def test_odd_paths_stay_single_words(root: Path) -> None:
    odd = root / "a b;$(touch pwned)'\"`&|"
    odd.mkdir()
    machine = Machine("ns", odd, root=root)
    command = machine.command()
    assert f"--rwdir={odd}" in command
    assert machine.inside == f"/{odd.name}"
    guest = command[command.index("--script-sh") + 1]
    assert machine.inside in shlex.split(guest)
    assert f"/run/host{machine.inside}" in shlex.split(guest)
    # What the guest's shell would do with the mounts and the chroot taken out of its hands.
    assert "exec chroot" in guest
    harmless = "mkdir() { :; }; mount() { printf '%s\\n' \"$@\"; }\n" + guest.replace("exec chroot", "echo")
    said = subprocess.run(["sh", "-c", harmless], cwd=root, capture_output=True, text=True, check=False)
    assert machine.inside in said.stdout.splitlines()
    assert not (root / "pwned").exists()


@pytest.mark.parametrize("name", ["a,b", "a=b"])
def test_a_path_that_qemu_or_virtme_would_take_apart(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(vm, "find", lambda program: program)
    odd = root / name
    odd.mkdir()
    with pytest.raises(UsageError, match="no comma") as caught:
        Machine("ns", odd, root=root).__enter__()
    assert caught.value.remedy


def test_what_is_only_shown_has_nowhere_to_write(root: Path) -> None:
    machine = Machine("ns", root=root)
    command = machine.command()
    assert (machine.writable, machine.inside) == (None, "")
    assert not [word for word in command if word.startswith("--rwdir")]
    bound = re.findall(r"mount --bind (\S+)", command[command.index("--script-sh") + 1])
    assert bound == ["/run", "/run/protocols"]


def test_a_machine_that_does_not_boot_says_what_to_do(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "find", lambda program: program)
    monkeypatch.setattr(vm.sys, "executable", str(root / "bin/python"))
    (root / "bin").mkdir()
    for body, limit_s, said in (
        ("echo no memory", 60, "ended before it could boot: no memory"),
        ("cat", 0.1, "not boot"),
    ):
        (root / "bin/virtme-run").write_text(f"#!/bin/sh\n{body}\n")
        (root / "bin/virtme-run").chmod(0o755)
        monkeypatch.setattr(vm, "BOOT_LIMIT_S", limit_s)
        with pytest.raises(MachineError, match=said) as caught:
            Machine("ns", root=root).__enter__()
        assert "--kernel IMAGE" in caught.value.remedy


class Agent:
    """The agent as a child of ours.

    :param words: how Python starts it. ``env``: its environment beyond ours.
    """

    def __init__(self, *words: str, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *(words or ("-m", "kproxylat.guest"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        )

    def send(self, **order: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def next(self) -> dict[str, Any]:
        assert self.process.stdout
        event: dict[str, Any] = json.loads(self.process.stdout.readline())
        return event

    def run(self, *argv: str, program: bool = False, cwd: str = "/") -> tuple[int, str, str]:
        self.send(argv=argv, cwd=cwd, program=program)
        return self.finish()

    def finish(self) -> tuple[int, str, str]:
        """Read a command's output until it ends; after 5 minutes the agent is killed, and reading fails."""
        output = {"out": "", "err": ""}
        timer = threading.Timer(300, self.process.kill)
        timer.start()
        try:
            while "status" not in (event := self.next()):
                for stream, text in event.items():
                    output[stream] += text
        finally:
            timer.cancel()
        return event["status"], output["out"], output["err"]

    def close(self) -> None:
        """Close the agent's input, at which it ends without another word."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        assert self.process.wait(10) == 0
        assert self.process.stdout.read() == ""
        self.process.stdout.close()


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    started = Agent()
    assert started.next() == {"ready": platform.release()}
    yield started
    started.close()


def test_a_command_of_ours(agent: Agent) -> None:
    assert agent.run("--version") == (0, f"kproxylat {__version__}\n", "")


def test_bad_options_are_status_2_on_stderr(agent: Agent) -> None:
    status, out, err = agent.run("run", "--lab", "--mode", "ipvs4")
    assert (status, out) == (2, "")
    assert err.startswith("kproxylat: unknown mode 'ipvs4'\n")
    assert agent.run("--no-such-option")[0] == 2


def test_a_program_in_its_directory(agent: Agent, tmp_path: Path) -> None:
    assert agent.run("pwd", program=True, cwd=str(tmp_path)) == (0, f"{tmp_path}\n", "")
    assert agent.run("sh", "-c", "echo é >&2; exit 5", program=True) == (5, "", "é\n")


def test_a_program_has_nothing_to_read(agent: Agent) -> None:
    assert agent.run("cat", program=True) == (0, "", "")


def test_much_output_comes_whole(agent: Agent) -> None:
    status, out, _ = agent.run("seq", "50000", program=True)
    assert (status, out) == (0, "".join(f"{number}\n" for number in range(1, 50001)))


def test_what_cannot_start_fails_and_the_agent_lives(agent: Agent) -> None:
    assert agent.run("kproxylat-no-such-program", program=True)[0] != 0
    assert agent.run("--version", cwd="/kproxylat-nowhere")[0] != 0
    assert agent.run("--version")[0] == 0


def test_a_signal_ends_the_program_under_way(agent: Agent) -> None:
    agent.send(argv=["sh", "-c", "echo on; exec sleep 60"], cwd="/", program=True)
    assert agent.next() == {"out": "on\n"}
    agent.send(signal=int(signal.SIGTERM))
    assert agent.finish() == (-signal.SIGTERM, "", "")


def test_a_signal_at_the_very_end_of_a_command() -> None:
    """It comes just before the command blocks signals: no traceback, and the output is whole."""
    late = Agent(
        "-c",
        "import os, signal; from kproxylat import guest; block = signal.pthread_sigmask; "
        "signal.pthread_sigmask = lambda *how: (os.kill(os.getpid(), signal.SIGHUP), block(*how)); guest.serve()",
    )
    late.next()
    assert late.run("--version") == (128 + signal.SIGHUP, f"kproxylat {__version__}\n", "")
    late.close()


def test_a_signal_between_commands_is_nobodys(agent: Agent) -> None:
    agent.send(signal=int(signal.SIGTERM))
    assert agent.run("--version")[0] == 0
