"""A program that answers connections in the lab's backend; traffic/answering starts it in that network namespace.

    python responder.py FAMILY PORT...

It listens on the TCP ports, of all local addresses, prints ``listening``, and waits for SIGTERM or SIGINT. The kernel
answers each SYN; the sender ends each connection before it is complete, so that there is nothing to accept.
"""

from __future__ import annotations

import signal
import socket
import sys

STOP = (signal.SIGTERM, signal.SIGINT)
BACKLOG = 4096


def main(family: str, *ports: str) -> None:
    """Listen until a signal comes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    kind = socket.AF_INET6 if family == "6" else socket.AF_INET
    listeners = [socket.create_server(("", int(port)), family=kind, backlog=BACKLOG) for port in ports]
    print("listening", flush=True)
    signal.sigwait(STOP)
    for listener in listeners:
        listener.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
