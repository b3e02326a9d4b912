"""The cost of each Service, from the values of a lookup by target; the most expensive first. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from kproxylat.lab.services import Service
from kproxylat.results import Probe, Result, ServiceCost, Target
from kproxylat.trace.probes import exact_probe


def rank_services(lookup: Probe, services: Sequence[Service]) -> tuple[ServiceCost, ...]:
    """Rank the Services that were measured, those that cost the same in the order of the rules.

    :param lookup: with the values of each target. ``services``: all of the rules, in their order.
    """
    costs = []
    # In modes with an order, a Service without endpoints has no rule on the way.
    for before, service in enumerate(service for service in services if service.endpoints):
        target = str(Target(service.ip, service.port, service.protocol))
        values = {int(value): count for value, count in (lookup.targets or {}).get(target, {}).items()}
        if values:
            every = [value for value, count in sorted(values.items()) for _ in range(count)]
            commonest = min(values, key=lambda value: (-values[value], value))
            cost = commonest if lookup.unit == "instructions" else round(median(every))
            costs.append(ServiceCost(service.port_name, target, before, len(every), cost, every[0], every[-1]))
    return tuple(sorted(costs, key=lambda row: -row.cost))


def split_services(result: Result) -> list[Result]:
    """Split the result of many Services by Service; ``run.services`` is the number of Services before it."""
    lookup = result.lookup
    parts = []
    for row in sorted(result.services, key=lambda service: service.before):
        values = {int(value): count for value, count in ((lookup and lookup.targets) or {})[row.target].items()}
        if lookup:
            place = lookup.table, lookup.chain, lookup.hook
            probe = exact_probe(lookup.engine, place, Counter(values), lookup.unit, lookup=True, percents=())
            address, _, protocol = row.target.partition("/")
            ip, _, port = address.partition(":")
            about = replace(result.run, services=row.before, position=None)
            parts.append(replace(result, run=about, target=Target(ip, int(port), protocol, row.name), probes=(probe,),
                                 path=None, services=(), maps={}))  # fmt: skip
    return parts
