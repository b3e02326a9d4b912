"""The entry point in a pod of ``--node``: runs one command line, and writes what it printed and saved into the log.

cluster/job starts it as ``python3 -m kproxylat.pod VERSION WORD...``. It is the container's first process: the kubelet
sends its SIGTERM here, the command cleans up, and the result so far is written.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from kproxylat import __version__
from kproxylat.cli import app
from kproxylat.cluster.envelope import Envelope, write_begin, write_envelope
from kproxylat.cluster.job import COMMANDS, OUTPUT
from kproxylat.console import say, show
from kproxylat.errors import ENDING, MachineError, UsageError
from kproxylat.system import processes
from kproxylat.system.files import make_directory


def run(words: list[str]) -> tuple[int, str]:
    """Run a command line of kproxylat.

    :return: its exit status, and its standard output; its messages go to the log.
    """
    with tempfile.TemporaryFile() as file:
        log = os.dup(1)
        os.dup2(log, 2)
        os.dup2(file.fileno(), 1)
        status = 1
        try:
            app.main(words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        finally:
            # The command has ended: a later signal must not cut its result short.
            for ending in ENDING:
                signal.signal(ending, signal.SIG_IGN)
            sys.stdout.flush()
            os.dup2(log, 1)
        file.seek(0)
        return status, file.read().decode(errors="replace")


def open_settings() -> None:
    """Make /proc/sys writable, which container runtimes mount read-only: a run makes settings in its own namespaces."""
    try:
        processes.run("mount", "-o", "remount,bind,rw", "/proc/sys")
    except MachineError as error:
        say(f"warning: /proc/sys stays read-only: {error}")


def main(arguments: list[str]) -> int:
    """Run a client's command line, if the client is of this version.

    :return: the exit status.
    """
    show(write_begin(__version__), end="", flush=True)
    version, *words = arguments
    if version != __version__:
        say(f"kproxylat: this image has version {__version__}, and the client is {version}")
        return UsageError.exit_code
    make_directory(Path(OUTPUT))
    if COMMANDS.get(words[0]) == "measure":
        open_settings()
    status, stdout = run(words)
    files = {path.name: path.read_text(errors="replace") for path in sorted(Path(OUTPUT).iterdir()) if path.is_file()}
    show(write_envelope(Envelope(__version__, status, stdout, time.time(), files)), end="", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
