"""The virtual machine's agent as a process of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import Any

from tests.support import ROOT


class Agent:
    """A process that takes orders as kproxylat.guest does.

    :param arguments: the arguments of Python, which start the agent itself, or ``tests.support.fakes``.
    :param env: its environment beyond ours.
    """

    def __init__(self, *arguments: str, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *(arguments or ("-m", "kproxylat.guest"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        )

    def send(self, **order: Any) -> None:
        """Send an order."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def next(self) -> dict[str, Any]:
        """Return the next event."""
        assert self.process.stdout
        event: dict[str, Any] = json.loads(self.process.stdout.readline())
        return event

    def run(self, *argv: str, program: bool = False, cwd: str = "/", columns: int = 80) -> tuple[int, str, str]:
        """Run a command line; return its exit status, stdout and stderr."""
        self.send(argv=argv, cwd=cwd, program=program, columns=columns)
        return self.finish()

    def finish(self) -> tuple[int, str, str]:
        """Wait for the end of the command line that runs; return the same as :meth:`run`.

        After 5 minutes the agent is killed, and reading fails.
        """
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

    def close(self) -> str:
        """End the agent by closing its stdin; return the rest of its output."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        assert self.process.wait(10) == 0
        with self.process.stdout as stream:
            return stream.read()
