"""A burst sent from its start to its end, whatever ends it."""

from __future__ import annotations

import time
from collections.abc import Callable

from kproxylat.console import say, waiting
from kproxylat.errors import Interrupted, MachineError
from kproxylat.traffic.burst import Burst, Sent
from kproxylat.traffic.generators import Generator


def send(
    burst: Burst, generator: Generator, pause_s: float | None = None, meanwhile: Callable[[], None] = lambda: None
) -> tuple[Sent, Interrupted | None]:
    """Send a burst and wait for its end. A signal stops it, and so does a limit of twice its time.

    :param meanwhile: called every ``pause_s`` seconds (None: never).
    :return: what was sent, and the signal, if one came.
    :raises MachineError: the generator fails, or does not stop.
    """
    limit_s = 2 * burst.count / burst.rate_pps + 60
    sender = None
    try:
        sender = generator.start(burst)
        with waiting(f"{burst.count} packets", burst.count / burst.rate_pps):
            ends_s = time.monotonic() + limit_s
            while not (done := sender.wait(pause_s or limit_s)) and time.monotonic() < ends_s:
                meanwhile()
        if not done:
            say(f"      {generator.name} was not done after {limit_s:.0f} s: stopped")
            generator.stop(burst, sender)
            if not sender.wait(10):
                raise MachineError(f"{generator.name} does not stop", "try a lower rate")
        if sender.status not in generator.ok:
            output = " ".join("".join(sender.said).split())[-200:]
            raise MachineError(f"{generator.name} failed (status {sender.status}): {output or '(it printed nothing)'}")
    except Interrupted as interrupt:
        generator.stop(burst, sender)
        if not sender:
            return Sent(0, 0, 0.0) if generator.sends else Sent(), interrupt
        sender.wait(10)
        return generator.read(burst, sender), interrupt
    finally:
        if sender:
            sender.end()
    return generator.read(burst, sender), None
