"""The responder in the lab's backend, which answers the SYNs of first packets."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kproxylat.errors import MachineError
from kproxylat.node.network import Network, route_back
from kproxylat.results import Target
from kproxylat.system.processes import Background

RESPONDER = Path(__file__).with_name("responder.py")
LIMIT_S = 30
"""How long the responder may take to begin to listen."""


@contextmanager
def answering(network: Network, endpoints: Sequence[Target]) -> Iterator[None]:
    """Let the backend of a lab answer connections to its endpoints.

    :raises MachineError: the responder does not start.
    """
    route_back(network, [endpoint.ip for endpoint in endpoints])
    said: list[str] = []
    listens = threading.Event()

    def hear(line: str) -> None:
        said.append(line)
        if line.strip() == "listening":
            listens.set()

    ports = dict.fromkeys(str(endpoint.port) for endpoint in endpoints)
    # -I: as for the sender.
    argv = sys.executable, "-I", str(RESPONDER), str(network.family), *ports
    responder = Background(*argv, on_out=hear, on_err=hear, netns=network.backend)
    try:
        responder.wait(LIMIT_S, listens)
        if not listens.is_set():
            raise MachineError(f"the responder in the backend does not listen: {' '.join(said)[-200:]}")
        yield
    finally:
        responder.end()
