"""The agent inside the virtual machine, which runs the command lines of the host one after another.

system/virtual_machine starts it as ``python -m kproxylat.guest``. Each line on stdin is a JSON object: an order
``{"argv": [...], "cwd": "...", "program": false, "mode": [NAME, BACKEND], "columns": 80}``, or ``{"signal": N}`` for
the command that runs. Each line on stdout is an event: ``{"ready": RELEASE}``, ``{"out": TEXT}``, ``{"err": TEXT}``,
``{"status": N}``. A command runs in a fork of this process, so that slow steps happen once. Under emulation the
imports, the script's template, bpftrace's version and its list of a mode's functions take seconds each.
"""

from __future__ import annotations

import json
import os
import platform
import selectors
import signal
import sys
from contextlib import suppress
from typing import Any

from kproxylat.cli import app
from kproxylat.errors import ENDING, KproxylatError
from kproxylat.measure import run, watch
from kproxylat.measure.plan import load_modules
from kproxylat.modes import find_mode
from kproxylat.report import columns
from kproxylat.sweep import sweep
from kproxylat.system import crash, interrupts
from kproxylat.system.kernel import set_clock
from kproxylat.trace.engine import find_engine, find_version
from kproxylat.trace.script import compile_script

PRELOADED = run, sweep, watch
"""Modules that the commands import later; imported here once for all."""


def emit(**event: Any) -> None:
    """Send an event to the host."""
    print(json.dumps(event), flush=True)


def spawn(argv: list[str], cwd: str, program: bool, width: int) -> tuple[int, dict[int, str]]:
    """Fork a child that runs a command line.

    :param argv: the arguments of kproxylat; with ``program`` another program and its arguments.
    :param cwd: the directory to run in.
    :param width: the columns of the terminal that shows the output.
    :return: the process id; file descriptor of the child's output -> name of the event that carries the text.
    """
    pipes = {"out": os.pipe(), "err": os.pipe()}
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            # With a reading end of its own, the child would not get SIGPIPE when the agent closes the other.
            for reader, _ in pipes.values():
                os.close(reader)
            for number, name in ((0, os.devnull), (1, "out"), (2, "err")):
                os.dup2(pipes[name][1] if name in pipes else os.open(name, os.O_RDONLY), number)
            os.chdir(cwd)
            columns.WIDTH = width
            if program:
                os.execvp(argv[0], argv)  # noqa: S606 - no shell is intended
            app.main(argv)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        finally:
            # The command has ended: a signal would only cut its last output short.
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
            if signum := interrupts.pending():
                status = 128 + signum
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    for _, writer in pipes.values():
        os.close(writer)
    return pid, {reader: name for name, (reader, _) in pipes.items()}


def prepare(mode: list[str]) -> None:
    """Load the modules of a mode and look its functions up, once for all runs, which report the errors."""
    with suppress(KproxylatError):
        row = find_mode(*mode)
        load_modules(row)
        find_engine(row, "auto")


def serve() -> None:
    """Run the orders of the host until it closes stdin. It reports internal errors on stderr, which the host shows."""
    crash.DIRECTORIES.clear()
    app.build()
    compile_script()
    with suppress(KproxylatError):
        find_version()
    emit(ready=platform.release())
    child: tuple[int, dict[int, str]] = (0, {})
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    pending = b""
    while True:
        for key, _ in selector.select():
            chunk = os.read(key.fd, 65536)
            pid, names = child
            if key.fd == 0:
                if not chunk:
                    return
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    order = json.loads(line)
                    if "signal" in order:
                        if names:
                            os.kill(pid, order["signal"])
                    else:
                        set_clock()
                        if order.get("mode"):
                            prepare(order["mode"])
                        child = spawn(order["argv"], order["cwd"], order["program"], order.get("columns", 80))
                        for reader in child[1]:
                            selector.register(reader, selectors.EVENT_READ)
            elif chunk:
                emit(**{names[key.fd]: chunk.decode(errors="replace")})
            else:
                selector.unregister(key.fd)
                os.close(key.fd)
                del names[key.fd]
                if not names:
                    emit(status=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    serve()
