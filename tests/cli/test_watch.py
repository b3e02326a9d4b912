"""``bill --watch`` on a terminal: it draws in place, and leaves the terminal as it was, whatever ends it."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from kproxylat.analysis.bill import add_up
from kproxylat.report.bill import draw_live
from tests.support import ROOT
from tests.support.bills import NAMES, make_bill, window
from tests.support.command import Captured, call

pytestmark = pytest.mark.slow
PROGRAM = """
import sys, threading
from contextlib import nullcontext
from kproxylat.analysis.windows import Load, Windows
from kproxylat.cli import app, bill as command
from kproxylat.errors import MachineError
from kproxylat.measure import bill
from kproxylat.measure.live_load import Counters
from kproxylat.modes import find_mode
from kproxylat.node.node import Node
from kproxylat.system import interrupts
from tests.support.bills import NAMES, WINDOWS
ways = sys.argv.pop(1)
command.check_root = lambda: None
bill.check_machine = lambda *_: None
bill.read_counters = lambda *_: Counters(0, 0, 0, None)
bill.find_load = lambda *_: Load(1000, 100)
bill.find_version = lambda: ("v0", (0, 17))
bill.lock.lock, bill.bpf_stats.counting = nullcontext, lambda: nullcontext(True)
bill.plan_windows = lambda *_: Windows(5, 0.01, 0.02, 0, 0.001)
bill.LOOK_S, bill.WATCH_S = 0.01, 0.2
bill.plan_bill = lambda *words: bill.Billing(find_mode("iptables", "nft"), Node(), NAMES, *words[3:])
count = 0

def trace(billing, length_s, plan, meter, measured, before):
    global count
    interrupts.wait(threading.Event(), 1000 if ways == "early" else 0.02)
    count += 1
    if count == 8 and ways != "whole":
        if ways == "fault":
            raise RuntimeError("a fault of ours")
        raise MachineError("bpftrace failed")
    meter.used_s, meter.calls = meter.used_s + 0.0001, meter.calls + 10
    return WINDOWS[count % 2], ""

bill._trace_window = trace
app.main(["bill", "--watch", *sys.argv[1:]])
"""
"""bill --watch without a kernel: windows that counted the same, and what may fail in them."""


class Terminal:
    """A program on a terminal of its own, whose stdout is a pipe.

    :ivar screen: what the terminal got.
    """

    def __init__(self, directory: Path, way: str, *words: str) -> None:
        self._master, self._slave = pty.openpty()
        termios.tcsetwinsize(self._slave, (24, 80))
        self._before = termios.tcgetattr(self._slave)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "XDG_STATE_HOME": str(directory)}
        argv = ["setsid", "--ctty", sys.executable, "-c", PROGRAM, way, *words]
        self._process = subprocess.Popen(
            argv, stdin=self._slave, stderr=self._slave, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.screen = ""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # The terminal was closed.
            while data := os.read(self._master, 10_000):
                with self._changed:
                    self.screen += data.decode(errors="replace")
                    self._changed.notify_all()

    def wait_for(self, text: str, number: int = 1) -> None:
        """Wait until the screen got a text a number of times."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.screen.count(text) >= number, 60), self.screen

    def press(self, key: bytes) -> None:
        """Press a key."""
        os.write(self._master, key)

    def signal(self, signum: int) -> None:
        """Send the program, which setsid became, a signal."""
        self._process.send_signal(signum)

    def end(self) -> tuple[int, str]:
        """Wait for the end: status and stdout. The terminal must be as it was."""
        out, _ = self._process.communicate(timeout=60)
        after = termios.tcgetattr(self._slave)
        os.close(self._slave)
        self._reader.join(10)
        os.close(self._master)
        assert after == self._before
        return self._process.returncode, out


SERVICE = "kube-system/kube-dns:dns"
ENDS: dict[str, tuple[Callable[[Terminal], None], int]] = {
    "q": (lambda terminal: terminal.press(b"q"), 0),
    "Q after other keys": (lambda terminal: terminal.press(b"\x1b[A Q"), 0),
    "ctrl-c": (lambda terminal: terminal.press(b"\x03"), 130),
    "ctrl-backslash": (lambda terminal: terminal.press(b"\x1c"), 131),
    "term": (lambda terminal: terminal.signal(signal.SIGTERM), 143),
    "hup": (lambda terminal: terminal.signal(signal.SIGHUP), 129),
}


@pytest.mark.parametrize("name", ENDS)
def test_an_end_prints_the_bill(tmp_path: Path, name: str) -> None:
    end, expected = ENDS[name]
    terminal = Terminal(tmp_path, "whole", "--for", "1h")
    terminal.wait_for(SERVICE, 3)
    end(terminal)
    status, out = terminal.end()
    assert (status, out.count("cost this node")) == (expected, 1), terminal.screen
    assert SERVICE in out
    assert "cost this node" not in terminal.screen, "stdout is not the terminal"
    assert terminal.screen.count("\x1b[1A") > 10, "each is drawn over the one before"


def test_the_time_ends_it_too(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "whole", "--for", "2s", "--format", "csv")
    status, out = terminal.end()
    assert (status, out.startswith("service,target,")) == (0, True), terminal.screen


def test_a_part_that_fails_leaves_the_others(tmp_path: Path) -> None:
    """A busy time passes: the next part of the period has windows again."""
    status, out = Terminal(tmp_path, "busy", "--for", "2s", "--format", "json").end()
    assert status == 0
    assert out.count("no further window: bpftrace failed") == 1
    windows = re.search('"windows": ([0-9]+)', out)
    assert windows
    assert int(windows[1]) > 8


def test_a_fault_leaves_the_terminal(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "fault")
    assert terminal.end() == (3, "")
    assert "internal error" in terminal.screen


def test_q_before_the_first_window(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "early")
    terminal.wait_for("q ends")
    terminal.press(b"q")
    assert terminal.end() == (1, "")
    assert "ended by q before the first window" in terminal.screen


@pytest.mark.parametrize("words", [(), ("--serve", ":9105"), ("--node", "n1")])
def test_it_is_refused_where_it_cannot_draw(capsys: Captured, words: tuple[str, ...]) -> None:
    status, out, err = call(capsys, "bill", "--watch", *words)
    assert (status, out, "--watch" in err) == (2, "", True), err
    assert words or "--serve" in err


def test_a_bill_without_lookups_can_be_drawn() -> None:
    windows = (window({}),)
    assert add_up(windows, NAMES)[0] == ()
    assert "0 lookups/s" in draw_live(make_bill(windows))
