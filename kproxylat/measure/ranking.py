"""The cost of each Service, from the values of a lookup by target; the most expensive first. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from kproxylat.lab.services import Service
from kproxylat.results import Destination, Probe, Result, ServiceCost, Target
from kproxylat.trace.probes import build_histogram


def rank_services(lookup: Probe, services: Sequence[Service]) -> tuple[ServiceCost, ...]:
    """Rank the Services that were measured, those that cost the same in the order of the rules.

    :param lookup: with the values of each target. ``services``: all of the rules, in their order.
    """
    found = []
    for before, each in enumerate(services):
        target = str(Destination(each.ip, each.port, each.protocol))
        values = {int(value): count for value, count in (lookup.targets or {}).get(target, {}).items()}
        if values:
            every = [value for value, count in sorted(values.items()) for _ in range(count)]
            commonest = min(values, key=lambda value: (-values[value], value))
            cost = commonest if lookup.unit == "instructions" else round(median(every))
            found.append(ServiceCost(each.port_name, target, before, len(every), cost, every[0], every[-1]))
    return tuple(sorted(found, key=lambda each: -each.cost))


def split_services(result: Result) -> list[Result]:
    """Make a result for each Service of one that measured many: ``run.services`` is the number of those before it."""
    lookup = result.lookup
    found = []
    for each in sorted(result.services, key=lambda each: each.before):
        values = {int(value): count for value, count in ((lookup and lookup.targets) or {})[each.target].items()}
        if lookup:
            total = sum(value * count for value, count in values.items())
            probe = replace(
                lookup, count=each.calls, min=each.min, max=each.max, mean=total / each.calls, mode=each.cost,
                sum=total, histogram=build_histogram(values), percentiles={}, targets=None,
                values={str(value): values[value] for value in sorted(values)},
            )  # fmt: skip
            address, _, protocol = each.target.partition("/")
            ip, _, port = address.partition(":")
            about = replace(result.run, services=each.before, position=None)
            found.append(replace(result, run=about, target=Target(ip, int(port), protocol, each.name), probes=(probe,),
                                 path=None, services=(), maps={}))  # fmt: skip
    return found
