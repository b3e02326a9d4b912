"""The time limit of programs while signals are ignored, and the message of a second signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from kproxylat.errors import Interrupted, MachineError
from kproxylat.system import interrupts, processes

pytestmark = pytest.mark.usefixtures("handlers")


@pytest.fixture(autouse=True)
def _short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "CLEAN_UP_LIMIT_S", 0.2)


LIMIT = r"^sleep 60 did not end within 0\.2 s and was killed$"


def test_a_program_that_a_signal_can_end_has_no_limit() -> None:
    assert processes.run("sh", "-c", "sleep 0.5; echo done") == "done\n"


def test_in_a_shielded_block_a_program_has_a_limit() -> None:
    with interrupts.shielded(), pytest.raises(MachineError, match=LIMIT):
        processes.run("sleep", "60")
    assert interrupts.RUNNING == {}


def test_after_the_first_signal_a_program_has_a_limit(capfd: pytest.CaptureFixture[str]) -> None:
    with interrupts.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            processes.run("sleep", "60")
        with pytest.raises(MachineError, match=LIMIT):
            processes.run("sleep", "60")
    assert capfd.readouterr().err == ""
    for signum in interrupts.ENDING:
        os.kill(os.getpid(), signum)
    assert capfd.readouterr().err == "kproxylat: still cleaning up; running: no program\n" * len(interrupts.ENDING)


def test_output_does_not_extend_the_limit() -> None:
    with interrupts.shielded(), pytest.raises(MachineError, match="did not end within"):
        processes.run("sh", "-c", "echo some; trap '' TERM; sleep 60")


def test_the_first_of_two_signals_is_raised() -> None:
    """Python calls the handlers of signals that came together in the order of their numbers."""
    os.write(interrupts._state.arrivals[1], bytes([signal.SIGTERM, signal.SIGINT]))
    with pytest.raises(Interrupted) as caught:
        interrupts._handle(signal.SIGINT, None)
    assert caught.value.exit_code == 128 + signal.SIGTERM


def test_a_signal_within_a_fork_is_raised() -> None:
    """Python ignores the exception of a hook of os.fork()."""
    program = """
import os, signal
from kproxylat.errors import Interrupted
from kproxylat.system import interrupts, processes

interrupts.install()
os.register_at_fork(after_in_parent=lambda: [os.kill(os.getpid(), signal.SIGTERM), os.getpid()])
try:
    processes.run("sleep", "60")
except Interrupted as error:
    print("raised", error.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("raised 143\n", "")
