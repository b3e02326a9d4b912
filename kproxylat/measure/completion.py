"""The facts of a result that the trace does not know: the options, the target's rule, what each Service cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from kproxylat.errors import Interrupted, KproxylatError, MachineError
from kproxylat.measure.accounting import check_rate
from kproxylat.measure.options import Options
from kproxylat.measure.ranking import rank_services
from kproxylat.node.service_rule import ServiceRule
from kproxylat.results import Quality, Result, ServiceCost, Target


def complete(
    result: Result,
    options: Options,
    rule: ServiceRule,
    after: ServiceRule,
    interrupted: Interrupted | None,
    read_target: Callable[[], Target] | None,
) -> Result:
    """Add the facts that the trace does not know: the options, and the target's rule before and ``after`` the run."""
    run = replace(
        result.run,
        duration_s=options.sending.duration_s,
        arguments=options.record.arguments,
        services=options.where.services,
        kube_proxy=(options.lab and options.lab.release) or None,
        endpoints=options.lab.endpoints if options.lab and not options.ruleset else None,
        affinity=bool(options.lab and options.lab.affinity),
        node_port=bool(options.lab and options.lab.node_port),
        position=rule.position,
        chain_length=rule.chain_length,
        position_after=after.position,
        chain_length_after=after.chain_length,
        path=rule.path,
        masqueraded=options.masqueraded,
        cut_short=interrupted is not None,
    )
    late = () if interrupted or not result.traffic else check_rate(result.traffic, run.clock)
    changed = check_target(options.target, read_target) if read_target else ()
    quality = replace(result.quality, warnings=options.record.warnings + result.quality.warnings + late + changed)
    return replace(result, run=run, target=options.target, quality=quality)


def check_target(before: Target, read_target: Callable[[], Target]) -> tuple[str, ...]:
    """Look the target up again, and return a warning if it has changed."""
    try:
        now = read_target()
    except MachineError as error:
        return (f"the target could not be looked up after the run: {error}",)
    if vars(now) == vars(before):
        return ()
    then = f"{before.ip}, endpoints {', '.join(before.endpoints)}"
    return (f"the target changed during the run: {then}; now {now.ip}, endpoints {', '.join(now.endpoints)}",)


def rank(result: Result, options: Options) -> Result:
    """Say what each Service cost, where packets were sent to many."""
    if not (options.ruleset and result.lookup and result.lookup.targets):
        return result
    ranked = rank_services(result.lookup, options.ruleset.services)
    return replace(result, services=ranked, quality=check_shares(result, ranked, len(options.targets)))


def check_shares(result: Result, ranked: Sequence[ServiceCost], targets: int) -> Quality:
    """Add a warning where a Service was not looked up as often as packets were sent to it."""
    sent = (result.traffic and result.traffic.sent) or 0
    uneven = targets - sum(service.calls * targets == sent for service in ranked)
    warning = f"{uneven} of {targets} Services were not looked up {sent / targets:g} times"
    return result.warn(*((warning,) if uneven else ())).quality


def add_further(result: Result, failure: str, measure: Callable[[], Result]) -> tuple[Result, Interrupted | None]:
    """Add what is measured after the run; where that fails the result stays as it is, but for a warning.

    :param failure: the warning's beginning: what was not measured.
    :param measure: returns the result with what it measured.
    :return: the result, and the signal that came, if one did.
    """
    try:
        return measure(), None
    except (Interrupted, KproxylatError) as error:
        reason = "a signal came" if isinstance(error, Interrupted) else str(error)
        return result.warn(f"{failure}: {reason}"), error if isinstance(error, Interrupted) else None
