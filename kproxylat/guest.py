"""What runs inside the virtual machine: serve command lines from the host, one after another, in one boot.

Started by :mod:`kproxylat.vm` as ``python -m kproxylat.guest``. Each line on stdin is a JSON object: an order
``{"argv": [...], "cwd": "...", "program": false, "mode": [NAME, BACKEND]}``, or ``{"signal": N}`` for the command under
way. Each line on stdout is one, too: ``{"ready": RELEASE}``, ``{"out": TEXT}``, ``{"err": TEXT}``, ``{"status": N}``. A
command runs in a fork of this process, so that the imports, the script's template, bpftrace's version and its list of a
mode's functions, seconds each under emulation, are paid once.
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

from kproxylat import cli, interrupts, measure, sweep, watch
from kproxylat.bpftrace import find_engine, find_version
from kproxylat.errors import Interrupted, KproxylatError
from kproxylat.kernel import set_clock
from kproxylat.modes import find_mode
from kproxylat.plan import load_modules
from kproxylat.render import compile_script

PRELOADED = measure, sweep, watch
"""What the commands import, here once for all of them."""


def emit(**event: Any) -> None:
    """Send one event to the host."""
    print(json.dumps(event), flush=True)


def spawn(argv: list[str], cwd: str, program: bool) -> tuple[int, dict[int, str]]:
    """Fork a child that runs one command line: kproxylat's, or that of another program.

    :return: its process id; file descriptor to read from -> the event that its text goes into.
    """
    pipes = {"out": os.pipe(), "err": os.pipe()}
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            # Were we a reader of our own output, we would not learn that nobody else is any more.
            for reader, _ in pipes.values():
                os.close(reader)
            for number, name in ((0, os.devnull), (1, "out"), (2, "err")):
                os.dup2(pipes[name][1] if name in pipes else os.open(name, os.O_RDONLY), number)
            os.chdir(cwd)
            if program:
                os.execvp(argv[0], argv)  # noqa: S606 - no shell is what we want
            cli.main(argv)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        finally:
            try:
                # It is over: a signal now would only cut short what is still to be written.
                signal.pthread_sigmask(signal.SIG_BLOCK, interrupts.ENDING)
            except Interrupted as interrupt:
                # A signal that came first; all later ones are ignored.
                status = interrupt.exit_code
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    for _, writer in pipes.values():
        os.close(writer)
    return pid, {reader: name for name, (reader, _) in pipes.items()}


def prepare(mode: list[str]) -> None:
    """Find out, for all runs in a mode, what each would find out anew. What is wrong with it is theirs to say."""
    with suppress(KproxylatError):
        row = find_mode(*mode)
        load_modules(row)
        find_engine(row, "auto")


def serve() -> None:
    """Serve until the host closes our stdin."""
    cli.build()
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
                        child = spawn(order["argv"], order["cwd"], order["program"])
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
