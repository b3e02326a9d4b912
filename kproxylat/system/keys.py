"""A key of a person ends a command, without Enter."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

QUIT = b"q"
PAUSE_S = 0.1


@contextmanager
def quitting() -> Iterator[threading.Event]:
    """In the block, the key q on stdin, a terminal, ends the command as Ctrl-C does; then the terminal is as before.

    The block must defer signals, so that none comes between the terminal's two modes.

    :return: is set if q was pressed.
    """
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    pressed, ended = threading.Event(), threading.Event()

    def read() -> None:
        with suppress(OSError):  # The terminal is gone.
            while not (ended.is_set() or pressed.is_set()):
                if select.select([terminal], [], [], PAUSE_S)[0] and QUIT in os.read(terminal, 100).lower():
                    pressed.set()
                    os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=read, daemon=True)
    try:
        tty.setcbreak(terminal)
        thread.start()
        yield pressed
    finally:
        ended.set()
        with suppress(termios.error):
            termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
