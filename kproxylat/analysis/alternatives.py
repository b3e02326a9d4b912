"""What the same Services cost in each mode."""

from __future__ import annotations

from dataclasses import dataclass

from kproxylat.analysis.series import Series
from kproxylat.results import Result, ServiceCost
from kproxylat.results_json import list_to_json


@dataclass(frozen=True)
class Alternative:
    """One mode on one backend: what the lookups of the ruleset's Services cost, each Service alike.

    :param captured: whether the rules are the captured ones, not what kube-proxy 1.36 would write.
    :param equal_at: with so many Services before it, a Service's lookup costs the same as now (None: nowhere).
    """

    mode: str
    backend: str
    captured: bool
    least: int
    mean: float
    most: int
    per_service: float | None
    base: float | None
    verdict: str
    equal_at: float | None


@dataclass(frozen=True)
class WhatIf:
    """What came out.

    :param results: a result for each Service in each mode, ``run.services`` the number of those before it: a sweep's
        shape, which compare and plot take.
    :param dearest: the Services as they are now, the dearest first.
    :param notes: what of the captured rules is left out, a sentence each.
    """

    source: str
    unit: str
    services: int
    alternatives: tuple[Alternative, ...]
    series: tuple[Series, ...]
    dearest: tuple[ServiceCost, ...]
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Write one document: results and series as a sweep's, and what if."""
        names = ("source", "unit", "services", "alternatives", "dearest", "notes")
        return list_to_json(self.results, series=self.series, whatif={name: getattr(self, name) for name in names})
