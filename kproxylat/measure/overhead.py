"""What tracing adds to an engine call, measured from outside, after the run and with further packets of its own.

Three bursts of equal packets, each with the whole hook (nf_hook_slow) traced in the same way: nothing inside; an empty
pair of probes on the engine; our script. What the hook takes longer, by the engine's calls in it, is what each adds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import sub
from random import Random

from kproxylat.analysis.stats import LEVEL, Distribution, bounds
from kproxylat.console import say
from kproxylat.errors import Interrupted, MachineError
from kproxylat.logs.record import OVERHEAD_MARK
from kproxylat.measure.completion import add_further
from kproxylat.measure.send_time import bound_median
from kproxylat.modes import Mode
from kproxylat.results import HOOKS, Bounded, LookupCheck, Map, Overhead, Result
from kproxylat.trace.bpftrace import trace
from kproxylat.trace.dump import parse_dump
from kproxylat.trace.plan import Plan
from kproxylat.trace.probes import ENVELOPE, read_hooks, split_call, values_by_hook
from kproxylat.trace.script import OVERHEAD_SCRIPT, render_script
from kproxylat.traffic.burst import Burst, Sent

INNER = {"none": "without a probe", "empty": "with an empty pair of probes", "script": "with our script"}
"""What traces the engine, in the order of the bursts, and how it is called."""

Send = Callable[[Burst], tuple[Sent, Interrupted | None]]


def add_overhead(
    result: Result, mode: Mode, plan: Plan, bursts: Sequence[Burst], send: Send, write: Callable[[str], None]
) -> tuple[Result, Interrupted | None]:
    """Measure what tracing adds, and put it into a result, which stays as it is where that fails, but for a warning.

    :param plan: what the run's script was rendered from.
    :param bursts: one for each of :data:`INNER`.
    :param write: receives what bpftrace prints, each line marked and without its ``@``, for the log.
    :return: the result, and the signal that came, if one did.
    """

    def measure() -> Result:
        done = [_send_traced(inner, plan, burst, send, write) for inner, burst in zip(INNER, bursts, strict=True)]
        maps, sent = zip(*done, strict=True)
        overhead = compute_overhead(mode, maps, sent, result.run.clock or "")
        _check_stored(overhead, result)
        return replace(result, overhead=overhead)

    return add_further(result, "what tracing adds was not measured", measure)


def _send_traced(
    inner: str, plan: Plan, burst: Burst, send: Send, write: Callable[[str], None]
) -> tuple[dict[str, Map], int]:
    """Send a burst whose hooks are traced, with one of :data:`INNER` inside; return the maps, and the packets sent."""
    say(f"      what tracing adds: {burst.count} packets {INNER[inner]}...")
    script = render_script(replace(plan, envelope=True), None, {"inner": inner}, OVERHEAD_SCRIPT)
    # Without @, or they would be read as maps of the run.
    with trace(script, lambda line: write(f"{OVERHEAD_MARK}{inner}: {line.replace('@', '')}")) as tracer:
        sent, interrupted = send(burst)
        if interrupted:
            raise interrupted
        tracer.stop()
    return parse_dump("".join(tracer.stdout)), sent.count or 0


def compute_overhead(mode: Mode, maps: Sequence[Mapping[str, Map]], sent: Sequence[int], unit: str) -> Overhead:
    """Compute what tracing adds from what bpftrace printed.

    :param maps: of each burst of :data:`INNER`, in that order. ``sent``: its packets.
    :param unit: "ns" or "instructions".
    :raises MachineError: packets are missing in a burst, or they make different numbers of calls.
    """
    hook = mode.overhead_hook
    hooks = [values_by_hook(burst.get("envelope"))[hook] for burst in maps]
    for name, count, values in zip(INNER.values(), sent, hooks, strict=True):
        if not count or values.total() != count:
            raise MachineError(f"{ENVELOPE} was called {values.total()} times at {HOOKS[hook]} {name}, not {count}")
    entries, hooks_of = maps[2]["n"].entries if "n" in maps[2] else (), read_hooks(maps[2])
    at_hook = [entry.value for entry in entries if split_call(entry.key[0], hooks_of)[1] == hook]
    calls, rest = divmod(sum(at_hook), sent[2])
    if rest or not calls:
        raise MachineError(f"the packets do not all make the same number of calls at {HOOKS[hook]}")
    stored: Counter[int] = Counter()
    for burst in maps:
        stored.update({entry.key[0]: entry.value for entry in burst["stored"].entries})
    empty, script = (_difference(hooks[0], values, calls, unit) for values in hooks[1:])
    return Overhead(unit, HOOKS[hook], min(sent), calls, empty, script, _middle(stored, unit))


def cross_check(result: Result) -> LookupCheck | None:
    """Hold the lookup by the probe against the sender's clock; None where a figure is missing."""
    overhead, times, lookup = result.overhead, result.send_time, result.lookup
    if not (overhead and times and lookup and lookup.middle is not None):
        return None
    way = bound_median(times.target.counts, times.blocks, overhead.unit)
    lo, hi = overhead.untraced(lookup.middle)
    part = Bounded((lo + hi) / 2, lo, hi)
    return LookupCheck(overhead.unit, part, way, times.over_endpoint, lo <= way.hi) if way else None


def _check_stored(found: Overhead, result: Result) -> None:
    """Refuse what cannot be: part of a call that took longer, after the run, than whole calls in it.

    :raises MachineError: it did: the machine was slower then.
    """
    least = min((each.middle for each in result.calls if each.middle is not None), default=None)
    if least is not None and found.stored >= least:
        raise MachineError(
            f"the machine's speed changed: storing the time of entry took {found.stored:,} {found.unit} after the run, "
            f"whole calls in it {least:,.0f}"
        )


def _middle(values: Counter[int], unit: str) -> int:
    """Return the commonest value, which on the instruction clock is exact, or the median."""
    if unit == "instructions":
        return min(values, key=lambda value: (-values[value], value))
    return int(Distribution.of_values(values).quantile(0.5)[0])


def _difference(a: Counter[int], b: Counter[int], calls: int, unit: str) -> Bounded:
    """Return how much longer B takes than A, by calls: of the commonest values, or of the medians with bounds."""
    apart = _middle(b, unit) - _middle(a, unit)
    each = apart / calls if apart % calls else apart // calls
    if unit == "instructions":
        return Bounded(each, each, each)
    rng = Random(0)  # noqa: S311 - chance for statistics
    lo, hi = bounds(map(sub, *(Distribution.of_values(side).draw(0.5, rng)[0] for side in (b, a))), LEVEL)
    return Bounded(each, lo / calls, hi / calls)
