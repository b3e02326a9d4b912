"""A lab that a run left standing, for the next run to continue in."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import NamedTuple

from kproxylat import __version__
from kproxylat.errors import MachineError
from kproxylat.measure.options import Options
from kproxylat.measure.plan import plan_bursts
from kproxylat.node import lock as node_lock
from kproxylat.node import network as net
from kproxylat.node.changes import clean_up


class Standing(NamedTuple):
    """A lab that a run left standing: what is the same for all of its runs, the dummy Services whose rules it has, and
    how many source addresses have been used, so that no flow comes twice."""

    kind: str
    services: int
    skip: int


def find_standing(options: Options) -> Standing | None:
    """Return the lab that stands, if a run can go on from it.

    :raises CommandError: ip(8) cannot look.
    """
    grows = options.lab and not options.ruleset and options.mode.growing
    label = net.read_label() if grows else ""
    if not options.lab or not label:
        return None
    try:
        standing = Standing(*json.loads(label))
        used = _count_used(options, net.Network(None, None, None, skip=standing.skip))
        enough = used <= options.sources.num_addresses - 2
        fits = enough and standing.kind == _kind(options) and standing.services <= options.lab.services
    except (ValueError, TypeError):
        return None
    return standing if fits else None


def leave(options: Options, network: net.Network) -> None:
    """Leave the lab standing, if it is to be, after a run that went well."""
    if options.lab and options.lab.keep:
        standing = Standing(_kind(options), options.lab.services, _count_used(options, network))
        net.write_label(json.dumps(standing))


def _count_used(options: Options, network: net.Network) -> int:
    """Return how many source addresses of a network are used after a run in it."""
    last = plan_bursts(options, network)[-1]
    return last.skip + last.addresses


def clear() -> None:
    """Remove the lab that stands, if there is one. One that a run has taken over is that run's."""
    if net.read_label():
        with suppress(MachineError), node_lock.lock() as lock:
            clean_up(lock)


def _kind(options: Options) -> str:
    mode, lab = options.mode, options.lab
    own = (lab.position, lab.worker_ports, lab.variant) if lab else ()
    words = __version__, mode.name, mode.backend, mode.origin, *own
    target = f"{lab.places} places" if lab and lab.places else options.target
    return " ".join(map(str, (*words, options.sources, target, options.sending.connects)))
