"""Ends of the program: signals at any moment, closed or full streams, few descriptors, an ASCII stdout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from kproxylat.cli import app
from kproxylat.errors import ENDING, Interrupted
from tests.support import ROOT
from tests.support.command import Captured, call

RESULT = str(ROOT / "tests/results/counted.json")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
PROGRAM = f"{sys.executable} -m kproxylat"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    words = ["bash", "-c", command.replace("kproxylat", PROGRAM, 1)]
    return subprocess.run(words, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("command", "status", "message"), [
    (f"kproxylat compare {RESULT} {RESULT} >&-", 1, "kproxylat: standard output is closed\n"),
    (f"kproxylat parse {RESULT} >&- 2>&-", 1, ""),
    (f"kproxylat compare {RESULT} {RESULT} >/dev/full", 1, "kproxylat: [Errno 28] No space left on device\n"),
    ("kproxylat --version >/dev/full", 1, "kproxylat: [Errno 28] No space left on device\n"),
    ("kproxylat --version <&- 2>&-", 0, ""),
    ("kproxylat parse - <&-", 1, "kproxylat: -: is empty\n"),
    ("kproxylat parse /dev/zero", 1, "kproxylat: /dev/zero: is a device, which may have no end\n"),
    (f"kproxylat compare /dev/urandom {RESULT}", 1, "kproxylat: /dev/urandom: is a device, which may have no end\n"),
    ("ulimit -Sn 18; kproxylat --version", 0, ""),
    *((f"ulimit -n {limit}; kproxylat run --lab", 1, f"kproxylat: this process can open only {limit} files\n  ulimit")
      for limit in (18, 20, 22)),
])  # fmt: skip
def test_streams_and_limits(command: str, status: int, message: str) -> None:
    done = shell(command)
    assert done.returncode == status
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr


def test_ascii_stdout_has_every_character() -> None:
    """A document stays JSON."""
    code = "import json; from kproxylat.system import streams; streams.prepare(); "
    code += "print(json.dumps('\\xe9 \\U0001f600 \\udc80', ensure_ascii=False))"
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == "é 😀 \udc80"


@pytest.mark.parametrize("second", [0, *ENDING])
@pytest.mark.parametrize("first", ENDING)
def test_signals_at_any_moment_of_a_short_command(first: int, second: int) -> None:
    """From the first line of the program on: while it imports, while it works, while it ends."""
    for step in range(2):
        # On a busy machine the signal may come before the first line of main().
        early = "from signal import *; signal(SIGINT, SIG_DFL); "
        words = [sys.executable, "-c", f"{early}from kproxylat.cli import main; print(flush=True); main()"]
        process = subprocess.Popen(
            [*words, "compare", RESULT, RESULT], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout
        process.stdout.readline()
        time.sleep(0.005 + step * 0.1)
        for signum in filter(None, (first, second)):
            process.send_signal(signum)
        _, err = process.communicate(timeout=60)
        assert b"Traceback" not in err, err.decode()
        allowed = {0, *(128 + signum for signum in (first, second) if signum)}
        assert process.returncode in {*allowed, *(-signum for signum in (first, second))}, err.decode()


def test_after_its_end_a_command_is_not_interrupted() -> None:
    code = "import os, signal, sys; from kproxylat.system import interrupts\nwith interrupts.raised(): pass\n"
    code += "for number in (1, 2, 3, 15): os.kill(os.getpid(), number)\nprint('end')"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "end\n")
    assert "Traceback" not in done.stderr


def test_a_signal_in_a_callback_ends_the_program() -> None:
    """Python cannot raise an exception there."""
    code = "import os, signal, sys; from kproxylat.cli import app, main\nclass Thing:\n def __del__(self):"
    code += " os.kill(os.getpid(), 15)\napp.build = lambda name: Thing() and None\nmain(['x'])"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr == ""


def test_a_signal_while_a_class_is_made(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """Python 3.11 wraps it: commands import their modules when they are needed."""

    class Late:
        def __set_name__(self, *_: object) -> None:
            raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(app, "build", lambda _: type("Made", (), {"late": Late()}))
    assert call(capsys, "doctor") == (143, "", "kproxylat: ended by SIGTERM\n")
