"""The virtual machine's command line, and the agent inside it, driven over pipes without a machine."""

from __future__ import annotations

import io
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
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from kproxylat import __version__
from kproxylat.errors import Interrupted, MachineError, UsageError
from kproxylat.system import interrupts, kernel, virtual_machine
from kproxylat.system.virtual_machine import Machine, build_command, find_kernel, find_release
from tests.results import LOGS
from tests.support import ROOT
from tests.support.agent import Agent

pytestmark = pytest.mark.slow


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a root file system with two kernels, and a cloud one, and an image without modules."""
    (tmp_path / "boot").mkdir()
    for release in ("6.1.0-9-amd64", "6.1.0-56-amd64", "6.12.1-cloud-amd64"):
        (tmp_path / "boot" / f"vmlinuz-{release}").touch()
        (tmp_path / "lib/modules" / release).mkdir(parents=True)
    return tmp_path


def test_the_newest_kernel_that_is_not_a_cloud_kernel_is_booted(root: Path) -> None:
    assert find_kernel(None, root).name == "vmlinuz-6.1.0-56-amd64"


def test_an_image_beside_its_modules_is_booted(root: Path) -> None:
    """Fedora, Arch, and Debian since Linux 7 keep the image there; a link to a removed file is none."""
    image = root / "lib/modules/7.2.13+deb14-amd64/vmlinuz"
    for path in (image, root / "lib/modules/7.3.4-cloud-amd64/vmlinuz"):
        path.parent.mkdir()
        path.touch()
    assert find_kernel(None, root) == find_kernel(image, root) == image
    assert find_release(image) == "7.2.13+deb14-amd64"
    command = build_command(Machine("ns", root=root), None)
    assert command[command.index("--kimg") + 1] == str(image)
    newer = root / "boot/vmlinuz-7.10.1-amd64"
    newer.touch()
    (root / "lib/modules/7.10.1-amd64").mkdir()
    assert find_kernel(None, root) == newer


@pytest.mark.parametrize(("clock", "set_to"), [("instructions", [(time.CLOCK_REALTIME, 1_700_000_000.0)]), ("ns", [])])
def test_a_clock_that_falls_behind_is_set(
    clock: str, set_to: list[tuple[int, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "since_epoch").write_text("1700000000\n")
    done = list[tuple[int, float]]()
    monkeypatch.setattr(kernel, "RTC", tmp_path / "since_epoch")
    monkeypatch.setattr(kernel, "detect_clock", lambda: (clock, True))
    monkeypatch.setattr(time, "clock_settime", lambda *call: done.append(call))
    kernel.set_clock()
    assert done == set_to


def test_a_host_of_another_architecture(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(MachineError, match="--vm needs an x86-64 machine; this one is aarch64"):
        Machine("ns", root=root)


def test_no_kernel(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no kernel image in") as caught:
        find_kernel(None, tmp_path)
    assert caught.value.remedy.startswith("apt-get install")


def test_a_kernel_that_does_not_exist(root: Path) -> None:
    with pytest.raises(MachineError, match="vmlinuz-5 cannot be read"):
        find_kernel(root / "boot/vmlinuz-5", root)


def test_a_kernel_without_its_modules(root: Path) -> None:
    (root / "boot/vmlinuz-7.0").touch()
    with pytest.raises(MachineError, match=r"modules of vmlinuz-7\.0 are not in"):
        find_kernel(root / "boot/vmlinuz-7.0", root)


def test_the_command_line_of_a_counting_machine_over_another_root(root: Path) -> None:
    (root / "out").mkdir()
    machine = Machine("instructions", root / "out", root=root)
    command = build_command(machine, (1000, 100))
    guest = command.pop(command.index("--script-sh") + 1)
    assert command.pop(command.index("-name") + 1) == f"kproxylat-{os.getpid()}"
    assert guest.splitlines()[3:] == [
        "mount --bind /run /run/host/run && mount --bind /out /run/host/out &&",
        "{ cp /etc/protocols /run/protocols && mount --bind /run/protocols /run/host/etc/protocols; true; } &&",
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/run "
        "PYTHONPATH=/opt/kproxylat SUDO_UID=1000 SUDO_GID=100 &&",
        "exec chroot /run/host /usr/bin/python3 -m kproxylat.guest",
    ]
    assert command == [
        *("--kimg", f"{root}/boot/vmlinuz-6.1.0-56-amd64", "--mods", "auto", "--memory", "2G", "--user", "root"),
        *("--root", str(root), "--cpus", "1", "--force-9p", "--disable-monitor", "--disable-kvm"),
        *("--kopt", "kproxylat.clock=instructions", "--kopt", "kproxylat.accelerator=tcg"),
        *("--kopt", "pti=off", "--kopt", "norandmaps"),
        *("--kopt", "tsc_early_khz=1000000", "--kopt", "hpet=disable", "--kopt", "pmtmr=0"),
        *(
            f"--rwdir=out={machine.shared}",
            "--script-sh",
            "--qemu-opts",
            "-name",
            "-cpu",
            "Nehalem",
            "-icount",
            "shift=0,sleep=on",
        ),
        *("-fsdev", f"local,id=kproxylat,path={root},security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=kproxylat,mount_tag=kproxylat"),
    ]


def test_the_command_line_of_a_timing_machine_over_this_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_machine, "has_kvm", lambda: True)
    monkeypatch.setattr(virtual_machine, "find_kernel", lambda *_: root / "boot/vmlinuz-6.1.0-56-amd64")
    command = build_command(Machine("ns"), None)
    guest = command.pop(command.index("--script-sh") + 1)
    assert command.pop(command.index("-name") + 1) == f"kproxylat-{os.getpid()}"
    assert guest.splitlines()[-2:] == [
        f"export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/run PYTHONPATH={ROOT}  &&",
        f"exec chroot /run/host {sys.executable} -m kproxylat.guest",
    ]
    assert command == [
        *("--kimg", f"{root}/boot/vmlinuz-6.1.0-56-amd64", "--mods", "auto", "--memory", "2G", "--user", "root"),
        *("--cpus", "2", "--force-9p", "--disable-monitor"),
        *("--kopt", "kproxylat.clock=ns", "--kopt", "kproxylat.accelerator=kvm"),
        *("--kopt", "pti=off", "--kopt", "norandmaps"),
        *("--script-sh", "--qemu-opts", "-name", "-cpu", "host"),
        *("-fsdev", "local,id=kproxylat,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=kproxylat,mount_tag=kproxylat"),
    ]


def test_unusual_paths_stay_single_words(root: Path) -> None:
    odd = root / "a b;$(touch pwned)'\"`&|"
    odd.mkdir()
    machine = Machine("ns", odd, root=root)
    command = build_command(machine, None)
    assert f"--rwdir={odd.name}={machine.shared}" in command
    assert machine.inside == f"/{odd.name}"
    guest = command[command.index("--script-sh") + 1]
    assert machine.inside in shlex.split(guest)
    assert f"/run/host{machine.inside}" in shlex.split(guest)
    # Run the guest's script with harmless commands for the mounts and the chroot.
    assert "exec chroot" in guest
    harmless = "mkdir() { :; }; mount() { printf '%s\\n' \"$@\"; }\n" + guest.replace("exec chroot", "echo")
    shell = subprocess.run(["sh", "-c", harmless], cwd=root, capture_output=True, text=True, check=False)
    assert machine.inside in shell.stdout.splitlines()
    assert not (root / "pwned").exists()


def test_qemu_gets_the_directory_that_was_checked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller of sudo replaces it before QEMU opens it, or before kproxylat does."""
    (root / "out").mkdir()
    (root / "victim").mkdir()
    machine = Machine("ns", root / "out", root=root)
    [word] = [word for word in build_command(machine, None) if "--rwdir" in word]
    inode = (root / "out").stat().st_ino
    (root / "out").rename(root / "away")
    (root / "out").symlink_to(root / "victim")
    assert Path(word.rpartition("=")[2]).stat().st_ino == inode
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    root.chmod(0o777)
    with pytest.raises(MachineError, match="out is not followed as root"):
        Machine("ns", root / "out", root=root)


@pytest.mark.parametrize("name", ["a,b", "a=b"])
def test_a_path_that_qemu_or_virtme_would_split(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(virtual_machine, "find", lambda *programs: programs[-1])
    odd = root / name
    odd.mkdir()
    with pytest.raises(UsageError, match="has a comma or =") as caught:
        Machine("ns", odd, root=root).__enter__()
    assert caught.value.remedy


def test_a_machine_without_an_output_directory_is_read_only(root: Path) -> None:
    machine = Machine("ns", root=root)
    command = build_command(machine, None)
    assert (machine.writable, machine.inside) == (None, "")
    assert not [word for word in command if word.startswith("--rwdir")]
    bound = re.findall(r"mount --bind (\S+)", command[command.index("--script-sh") + 1])
    assert bound == ["/run", "/run/protocols"]


def test_a_machine_that_does_not_boot_names_a_remedy(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_machine, "find", lambda *programs: programs[-1])
    monkeypatch.setattr(virtual_machine.sys, "executable", str(root / "bin/python"))
    (root / "bin").mkdir()
    for body, limit_s, message in (
        ("echo no memory", 60, "ended before it could boot: no memory"),
        ("cat", 0.1, "not boot"),
    ):
        (root / "bin/virtme-run").write_text(f"#!/bin/sh\n{body}\n")
        (root / "bin/virtme-run").chmod(0o755)
        monkeypatch.setattr(virtual_machine, "BOOT_LIMIT_S", limit_s)
        with pytest.raises(MachineError, match=message) as caught:
            Machine("ns", root=root).__enter__()
        assert "--kernel IMAGE" in caught.value.remedy


RUNNER = """#!{python}
import os, sys, tempfile
assert sys.argv[1] == "--kimg"
file = tempfile.mkstemp(prefix="virtme_ret")[1]
if os.fork():
    raise AssertionError("QEMU has a process of its own")
os.environ.update(PYTHONPATH="{root}", FILE=file)
os.execv("{python}", ["{python}", "-m", "kproxylat.guest"])
"""
"""A virtme-run that starts the agent on this machine, in the place of QEMU."""


@pytest.fixture
def machine(root: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Make a machine whose virtme-run boots no kernel, but starts the agent on this machine."""
    monkeypatch.setattr(virtual_machine, "find", lambda *programs: programs[-1])
    monkeypatch.setattr(virtual_machine, "find_runner", lambda: str(root / "virtme-run"))
    (root / "virtme-run").write_text(RUNNER.format(python=sys.executable, root=ROOT))
    return Machine("ns", root=root)


def test_a_machine_runs_one_command_after_another(machine: Machine) -> None:
    with machine:
        assert machine.release == platform.release()
        for status in (0, 5):
            out, err = io.StringIO(), io.StringIO()
            script = f"pwd; echo é >&2; exit {status}"
            assert machine.run(["sh", "-c", script], out, err, program=True) == status
            assert (out.getvalue(), err.getvalue()) == ("/\n", "é\n")


@pytest.mark.usefixtures("handlers")
def test_a_signal_reaches_the_command_from_any_thread(machine: Machine) -> None:
    """The main thread waits for the thread that runs the command, as in a pool."""
    out = io.StringIO()

    def interrupt() -> None:
        deadline_s = time.monotonic() + 30
        while not out.getvalue() and time.monotonic() < deadline_s:
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    with interrupts.deferred(), machine, ThreadPoolExecutor(2) as threads:
        command = ["sh", "-c", "echo on; exec sleep 60"]
        status = threads.submit(machine.run, command, out, io.StringIO(), program=True)
        threads.submit(interrupt)
        while not status.done():
            wait([status], 0.1)
        assert status.result() == -signal.SIGTERM
        threads.submit(interrupts.check).result()
        with pytest.raises(Interrupted) as caught:
            interrupts.check()
    assert caught.value.exit_code == 128 + signal.SIGTERM


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    started = Agent()
    assert started.next() == {"ready": platform.release()}
    yield started
    assert started.close() == ""


def test_a_kproxylat_command(agent: Agent) -> None:
    assert agent.run("--version") == (0, f"kproxylat {__version__}\n", "")


def test_tables_are_as_wide_as_the_hosts_terminal(agent: Agent) -> None:
    """The guest writes to a pipe, and used to take 80 columns whatever the host's terminal."""
    out = {columns: agent.run("parse", str(LOGS[0]), columns=columns)[1] for columns in (80, 160)}
    # The log's path is printed in one piece: it may be longer than a line.
    widest = {n: max(len(line) for line in text.splitlines() if str(LOGS[0]) not in line) for n, text in out.items()}
    assert widest[80] <= 80 < widest[160] <= 160


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


def test_long_output_is_complete(agent: Agent) -> None:
    status, out, _ = agent.run("seq", "50000", program=True)
    assert (status, out) == (0, "".join(f"{number}\n" for number in range(1, 50001)))


def test_a_program_that_cannot_start_fails_and_the_agent_lives(agent: Agent) -> None:
    assert agent.run("kproxylat-no-such-program", program=True)[0] != 0
    assert agent.run("--version", cwd="/kproxylat-nowhere")[0] != 0
    assert agent.run("--version")[0] == 0


def test_a_signal_ends_the_running_program(agent: Agent) -> None:
    agent.send(argv=["sh", "-c", "echo on; exec sleep 60"], cwd="/", program=True, columns=80)
    assert agent.next() == {"out": "on\n"}
    agent.send(signal=int(signal.SIGTERM))
    assert agent.finish() == (-signal.SIGTERM, "", "")


def test_a_signal_at_the_very_end_of_a_command() -> None:
    """It comes just before the command blocks signals: no traceback, and the output is whole."""
    late = Agent(
        "-c",
        "import os, signal; from kproxylat import guest; block = signal.pthread_sigmask; "
        "signal.pthread_sigmask = lambda how, mask: "
        "(how == signal.SIG_BLOCK and os.kill(os.getpid(), signal.SIGHUP), block(how, mask)); guest.serve()",
    )
    late.next()
    assert late.run("--version") == (128 + signal.SIGHUP, f"kproxylat {__version__}\n", "")
    late.close()


def test_a_signal_between_commands_is_ignored(agent: Agent) -> None:
    agent.send(signal=int(signal.SIGTERM))
    assert agent.run("--version")[0] == 0


def test_the_host_shows_a_report_of_an_internal_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest's own files are lost with it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    agent = Agent("-c", "from kproxylat import guest; guest.app.build = lambda *words: words; guest.serve()")
    agent.next()
    status, out, err = agent.run("doctor")
    agent.close()
    assert (status, out) == (3, "")
    assert "arguments: ['doctor']\n\nTraceback (most recent call last):\n" in err
    assert err.splitlines()[-1].startswith("kproxylat: internal error, please report it (traceback: above): TypeError:")
    assert list(tmp_path.iterdir()) == []
