"""What a measurement will take and do: about how long, and to whom."""

from __future__ import annotations

from kproxylat.console import can_ask, confirm, say
from kproxylat.measure.options import Options

LONG_S = 5
"""A run that takes longer says so before it starts."""
_PREPARED_S, _ATTACHED_S = 2, 4
_SERVICES_PER_S = 2000
_EMULATED = 7
"""How many times as long an emulated machine takes."""


def expect_s(options: Options, emulated: bool) -> float:
    """Estimate how long a run takes, from its packets and rules."""
    sending = options.sending
    # Packets to the controls go beside the others, at the same rate.
    packets = options.packets_in_all / options.round_packets + sending.warmup
    sent_s = packets / sending.rate_pps if sending.generator.sends else 0
    services = options.lab.services * options.mode.loading_cost if options.lab else 0
    tracing_s = _ATTACHED_S if options.tracing.traces else 0
    taken_s = _PREPARED_S + services / _SERVICES_PER_S + tracing_s + max(sent_s, sending.duration_s)
    return taken_s * (_EMULATED if emulated else 1)


def write_duration(seconds: float) -> str:
    """Write a duration, e.g. ``6 min 40 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{f'{minutes} min ' if minutes else ''}{rest} s"


def say_expected(seconds: float) -> None:
    """Say beforehand how long a command takes, if it takes long."""
    if seconds > LONG_S:
        say(f"This takes about {write_duration(seconds)}.")


def announce(plan: Options, asks: bool) -> None:
    """Say what a run does to a live Service and its pods, and ask a person for permission.

    :param asks: ask, if there is a terminal.
    :raises DeclinedError: the answer is not yes.
    """
    sending, target = plan.sending, plan.target
    name, pods = target.service or str(target), target.endpoints
    packets = (
        "TCP connections, each closed at once" if sending.connects else f"{(target.protocol or '').upper()} packets"
    )
    more = f" and {len(pods) - 3} more" if pods[3:] else ""
    text = f"This sends {plan.packets_in_all + sending.warmup:,} {packets}, {sending.rate_pps:,} a second for "
    text += f"{sending.duration_s:g} s, each a new flow, to the pods of {name}"
    text += f": {', '.join(pods[:3])}{more}" if pods else ""
    text += f". It takes about {write_duration(expect_s(plan, False))}."
    say(text)
    if asks and can_ask():
        confirm("Go on?", "DURATION and RATE")
