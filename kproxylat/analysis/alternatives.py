"""The cost of the same Services in each mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from kproxylat.analysis.series import Series
from kproxylat.results import Result, ServiceCost
from kproxylat.results_json import build, list_to_json


@dataclass(frozen=True)
class Alternative:
    """One mode on one backend: the cost of lookups of the ruleset's Services, all with the same weight.

    :param captured: whether the rules are the captured ones, not those that kube-proxy 1.36 would write.
    :param equal_at: number of Services before a Service at which its lookup costs the same as now (None: nowhere).
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
    """The outcome of ``whatif``; the Services in their present mode, the most expensive first, are a field, too.

    :param results: one for each Service in each mode; ``run.services`` is the number of Services before it. compare and
        plot read this shape as a sweep.
    :param notes: sentences on the parts of the captured rules that are left out.
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
        """Write one document: results and series as in a sweep's, and the alternatives."""
        names = [field.name for field in fields(self) if field.name not in ("series", "results")]
        return list_to_json(self.results, series=self.series, whatif={name: getattr(self, name) for name in names})


def build_outcome(document: Mapping[str, Any]) -> WhatIf:
    """Build the outcome that a document holds, without its results.

    :raises LookupError: the document has no outcome.
    :raises TypeError: a field is missing, or has another type.
    """
    parts = {"results": [], "series": document.get("series", [])}
    outcome: WhatIf = build(WhatIf, document["whatif"] | parts)
    return outcome
