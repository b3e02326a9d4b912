"""What the lookups of a captured ruleset cost, and what they would cost in each other mode and backend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import fmean

from kproxylat.analysis.alternatives import Alternative, WhatIf
from kproxylat.analysis.crossings import find_crossing
from kproxylat.analysis.series import build_series, choose_lines
from kproxylat.console import say
from kproxylat.errors import Interrupted, KproxylatError, UsageError
from kproxylat.lab.ruleset import Ruleset
from kproxylat.measure.options import Options
from kproxylat.measure.plan import check_options, keep_possible
from kproxylat.measure.ranking import split_services
from kproxylat.measure.replay import plan_replay
from kproxylat.measure.run import measure
from kproxylat.modes import MAP, Mode
from kproxylat.results import Result, name_unit
from kproxylat.system.files import save_file

MAX_PACKETS = 10_000
MAX_MEASURED = 1000
"""Of more Services than these, so many are measured, evenly spread over the rules."""


def check(base: Options, packets: int) -> None:
    """Refuse what cannot be, before anything is measured.

    :raises UsageError: it cannot.
    """
    if not 1 <= packets <= MAX_PACKETS:
        raise UsageError(f"{packets} packets to each Service are not possible", f"--packets takes 1 to {MAX_PACKETS}")
    check_options(replace(base, sending=replace(base.sending, duration_s=1)))


def whatif(ruleset: Ruleset, planned: Sequence[Options]) -> tuple[WhatIf, Interrupted | KproxylatError | None]:
    """Measure the ruleset as it is, and its Services in other modes.

    :param planned: the runs, as :func:`plan_modes` returns them.
    :return: what was measured, and what cut it short: a signal, or a mode that cannot be measured.
    :raises KproxylatError: as :func:`kproxylat.measure.run.measure`, of the rules as they are.
    """
    first, *others = planned
    plans = [first, *keep_possible(others, "trace", needs_one=False)]
    measured: list[Result] = []
    ended: Interrupted | KproxylatError | None = None
    for options in plans:
        kind = "rewritten" if options.ruleset and options.ruleset.rewritten else "as captured"
        say(f"== {options.mode.name} on {options.mode.backend}, {kind}: {len(measured) + 1} of {len(plans)}")
        if len(ruleset.targets) > len(options.targets):
            say(f"      {len(options.targets)} of {len(ruleset.targets)} Services are measured")
        try:
            result, ended = measure(options)
        except (KproxylatError, Interrupted) as error:
            if not measured:
                raise
            say(f"      {len(measured)} of {len(plans)} are measured, and shown")
            ended = error
            break
        measured.append(result)
        if ended:
            break
    return judge(ruleset, measured), ended


def plan_modes(
    base: Options,
    ruleset: Ruleset,
    modes: Iterable[Mode],
    packets: int,
    protocol: str = "",
    releases: Sequence[str] = ("",),
) -> list[Options]:
    """Plan a run of the ruleset as it is, and one in each other mode.

    :param base: what all runs have in common.
    :param modes: the other modes. ``packets``: how many to send to each Service.
    :param protocol: measure only the Services of this protocol ("": all).
    :param releases: kube-proxy's, of which one run each is planned in the modes whose rules differ between them.
    """
    others = [
        ruleset.rewrite(row, release)
        for row in modes
        for release in (releases if row.form == MAP else ("",))
        if release or (row.name, row.backend) != (ruleset.mode.name, ruleset.mode.backend)
    ]
    plans = []
    for rules in (ruleset, *others):
        options = plan_replay(base, rules, None, True, "", protocol)
        targets = options.targets[:: -(-len(options.targets) // MAX_MEASURED)]
        sending = replace(options.sending, duration_s=packets * len(targets) / base.sending.rate_pps)
        plans.append(replace(options, targets=targets, target=targets[0], sending=sending))
    return plans


def judge(ruleset: Ruleset, measured: Sequence[Result]) -> WhatIf:
    """Put the runs side by side; the first is the ruleset as it is. Pure."""
    results = [part for result in measured for part in split_services(result)]
    series = build_series(results)
    lines = choose_lines(series)
    now = lines.get(measured[0].run.rules)
    alternatives = []
    for result in measured:
        key = result.run.rules
        costs = [service.cost for service in result.services]
        if not costs:
            continue
        own = lines[key]
        per, start = own.per_service, own.base
        equal = find_crossing(now, own) if now and now is not own else None
        alternatives.append(
            Alternative(*key, result is measured[0], min(costs), fmean(costs), max(costs),
                        per.estimate if per else None, start.estimate if start else None,
                        own.verdict, equal.estimate if equal else None)
        )  # fmt: skip
    unit = name_unit(series[0].unit, series[0].emulated) if series else ""
    most_expensive = measured[0].services
    notes = ruleset.rewrite(ruleset.mode).notes
    return WhatIf(
        ruleset.source, unit, len(ruleset.services), tuple(alternatives), series, most_expensive, tuple(results), notes
    )


def save(answer: WhatIf, directory: Path) -> Path:
    """Save the document.

    :raises MachineError: it cannot be written.
    """
    path = directory / f"whatif_{datetime.now().astimezone():%Y%m%d_%H%M%S}.json"
    save_file(path, answer.to_json() + "\n")
    return path
