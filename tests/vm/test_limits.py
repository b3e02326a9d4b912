"""Limits of the guest: what it cannot do to the host, and what it has of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.processes import find_marked
from tests.vm.conftest import Guest


def test_the_guest_leaves_no_dangerous_file_on_the_host(timing: Guest) -> None:
    """Root in the guest writes as the user of QEMU, which is root here."""
    directory = timing.directory / "limits"
    directory.mkdir()
    attempts = (
        "cp /bin/true suid && chmod 4755 suid", "cp /bin/true sgid && chmod 2755 sgid", "mknod null c 1 3",
        "mknod disk b 8 0", "install -m 6755 /bin/true both", "truncate -s 5G large",
        "python3 -c 'import os; os.setxattr(\"suid\", \"security.capability\", bytes(20))'",
        "cp -a /usr/bin/passwd ./ && test -u passwd", "touch /usr/kproxylat-limits", "touch ~root/kproxylat-limits",
    )  # fmt: skip
    for attempt in attempts:
        done = timing.program("sh", "-c", f"cd {directory} && {attempt}")
        assert done.status, attempt
    assert timing.program("sh", "-c", f"cd {directory} && echo text >file && chmod 644 file").status == 0
    for path in directory.iterdir():
        assert path.is_file()
        assert path.stat().st_mode & 0o7000 == 0, path
        assert os.listxattr(path) == []
        assert path.stat().st_size < 4 << 30
    assert (directory / "file").read_text() == "text\n"


def test_the_guest_has_no_network_and_2_gib_of_memory(timing: Guest) -> None:
    assert timing.program("ls", "/sys/class/net").out.split() == ["lo"]
    memory = re.search(r"MemTotal: +(\d+) kB", timing.program("cat", "/proc/meminfo").out)
    assert memory
    assert 1 << 20 < int(memory[1]) <= 2 << 20
    # QEMU's CD drive is empty.
    assert timing.program("ls", "/sys/block").out.split() in ([], ["sr0"])


@pytest.mark.long
@pytest.mark.usefixtures("timing")
def test_20_kills_leave_no_qemu(tmp_path: Path) -> None:
    """SIGKILL at moments from the start to the second run of a sweep in machines."""
    (tmp_path / "tmp").mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp_path / "tmp"),
        "KPROXYLAT_TEST": str(tmp_path),
    }
    words = ("sweep", "--lab", "--vm", "--clock", "instructions", "--mode", "iptables,nftables", "--services", "1,2")
    command = [sys.executable, "-m", "kproxylat", *words, "0.1", "100", "--output-dir", str(tmp_path / "out")]
    booted = 0
    for number in range(20):
        host = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(0.5 + number * number / 10)
        booted += any("qemu-system" in line for line in find_marked(f"KPROXYLAT_TEST={tmp_path}"))
        host.send_signal(signal.SIGKILL)
        host.wait()
        ends_s = time.monotonic() + 5
        while (left := find_marked(f"KPROXYLAT_TEST={tmp_path}")) and time.monotonic() < ends_s:
            time.sleep(0.05)
        assert left == [], number
        assert list((tmp_path / "tmp").iterdir()) == [], number
    assert booted > 10
