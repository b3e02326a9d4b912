"""The process that becomes QEMU: no file of it is dangerous on the host, it dies with kproxylat, and leaves no file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kproxylat.system import launch, virtual_machine
from tests.support import ROOT
from tests.support.processes import find_marked

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(("call", "error"), [
    ("os.chmod('file', 0o4755)", "PermissionError"),
    ("os.chmod('file', 0o2755)", "PermissionError"),
    ("os.fchmod(os.open('file', os.O_RDWR), 0o4755)", "PermissionError"),
    ("os.open('new', os.O_CREAT | os.O_WRONLY, 0o4755)", "PermissionError"),
    ("os.mknod('new', 0o4755 | stat.S_IFREG)", "PermissionError"),
    ("os.mknod('new', 0o644 | stat.S_IFCHR, os.makedev(1, 3))", "PermissionError"),
    ("os.mknod('new', 0o644 | stat.S_IFBLK, os.makedev(1, 3))", "PermissionError"),
    ("os.setxattr('file', 'security.capability', bytes(20))", "OSError"),
    ("os.setxattr('file', 'user.x', b'1')", "OSError"),
    ("os.truncate('file', launch.MAX_FILE + 1)", "OSError"),
])  # fmt: skip
def test_dangerous_files_are_denied(tmp_path: Path, call: str, error: str) -> None:
    (tmp_path / "file").write_text("")
    assert attempt(tmp_path, call) == f"{error}\n"
    assert [(path.name, path.stat().st_mode & 0o7000) for path in tmp_path.iterdir()] == [("file", 0)]


@pytest.mark.parametrize("call", [
    "os.chmod('file', 0o755)", "os.chmod('directory', 0o1777)", "open('new', 'x')", "os.mkfifo('new')",
    "os.mknod('new', 0o644 | stat.S_IFREG)", "os.truncate('file', launch.MAX_FILE)", "os.symlink('file', 'new')",
])  # fmt: skip
def test_ordinary_files_are_not_denied(tmp_path: Path, call: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "directory").mkdir()
    assert attempt(tmp_path, call) == "done\n"


def attempt(directory: Path, call: str) -> str:
    """Return the error of a call in a process that executes another, as virtme-run executes QEMU; else "done"."""
    inner = f"import os, stat\nfrom kproxylat.system import launch\ntry:\n {call}\n print('done')"
    inner += "\nexcept OSError as error:\n print(type(error).__name__)"
    outer = (
        "import os, sys; from kproxylat.system import launch; launch.limit(); os.execv(sys.executable, sys.argv[1:])"
    )
    words = [sys.executable, "-c", outer, "python", "-c", inner]
    done = subprocess.run(words, cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(("head", "python"), [
    ("#!/usr/bin/python3\nimport re", "/usr/bin/python3"),
    ("#!/usr/bin/env python3.12\n", "python3.12"),
    ("#!/bin/sh\n'''exec' \"/a b/python3\" \"$0\" \"$@\"\n", "/a b/python3"),
    ("#!/bin/sh\nexec python3 x\n", None),
    ("\x7fELF", None),
])  # fmt: skip
def test_the_python_of_virtme_run(tmp_path: Path, head: str, python: str | None) -> None:
    (tmp_path / "virtme-run").write_text(head)
    assert launch.find_python(str(tmp_path / "virtme-run")) == python


RUNNER = f"""#!{sys.executable}
import os, tempfile
tempfile.mkstemp(prefix="virtme_ret")
os.fork() or os.execvp("sleep", ["sleep", "60"])
os.wait()
"""
"""virtme-run in short: a file for the status, and QEMU as another process."""
HOST = """
import sys
from pathlib import Path
from kproxylat.system import virtual_machine
from kproxylat.system.virtual_machine import Machine
virtual_machine.find = lambda program: program
virtual_machine.find_runner = lambda: sys.argv[1]
Machine("ns", root=Path(sys.argv[1]).parent).begin()
print("begun", flush=True)
sys.stdin.read()
"""


def test_sigkill_leaves_no_qemu_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-6.1").touch()
    (tmp_path / "lib/modules/6.1").mkdir(parents=True)
    (tmp_path / "virtme-run").write_text(RUNNER)
    (tmp_path / "tmp").mkdir()
    mark = f"KPROXYLAT_TEST={tmp_path}"
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path / "tmp"), "KPROXYLAT_TEST": str(tmp_path)}
    for pause_s in (0, 0.02, 0.05, 0.1, 0.2, 0.4):
        words = [sys.executable, "-c", HOST, str(tmp_path / "virtme-run")]
        host = subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert host.stdout
        assert host.stdin
        assert host.stdout.readline() == b"begun\n"
        time.sleep(pause_s)
        host.kill()
        host.communicate()
        ends_s = time.monotonic() + 5
        while (left := find_marked(mark)) and time.monotonic() < ends_s:
            time.sleep(0.01)
        assert left == []
        assert list((tmp_path / "tmp").iterdir()) == []


def test_cleanup_ends_only_machines_that_are_left() -> None:
    """Those of a kproxylat that runs stay, and so do processes that only look alike."""
    names = {f"kproxylat-{os.getpid()}": None, "kproxylat-4194304": -signal.SIGKILL, "kproxylat-": None, "qemu": None}
    processes = {
        name: subprocess.Popen(["sh", "-c", "read line; exit 5", "sh", "-name", name], stdin=subprocess.PIPE)
        for name in names
    }
    try:
        while not all(f"-name\0{name}".encode() in Path(f"/proc/{processes[name].pid}/cmdline").read_bytes()
                      for name in names):  # fmt: skip
            time.sleep(0.01)
        assert virtual_machine.end_leftovers() == ["virtual machine kproxylat-4194304"]
        assert processes["kproxylat-4194304"].wait(5) == -signal.SIGKILL
        assert {name: process.poll() for name, process in processes.items()} == names
        assert virtual_machine.end_leftovers() == []
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
