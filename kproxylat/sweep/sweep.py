"""Many runs: modes and backends over numbers of Services, in an order that hides no drift, and resumed where they were
interrupted.

While a sweep is under way, ``sweep_<YYYYmmdd_HHMMSS>.state`` lies in the output directory: its options as a line of
JSON, then a line of JSON for each run that is saved. At its end a ``sweep_<YYYYmmdd_HHMMSS>.json`` takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Protocol

from kproxylat import __version__
from kproxylat.analysis.series import Series, build_series, name_key
from kproxylat.console import say
from kproxylat.errors import Interrupted, KproxylatError, MachineError, UsageError
from kproxylat.lab.rules import check_release
from kproxylat.measure.expected import LONG_S, expect_s, write_duration
from kproxylat.measure.options import Lab, Options, Tracing
from kproxylat.measure.plan import check_options
from kproxylat.measure.ranking import split_services
from kproxylat.measure.run import measure
from kproxylat.measure.standing_lab import clear
from kproxylat.modes import MAP, MODES, Mode
from kproxylat.results import Result, Target
from kproxylat.results_json import list_to_json
from kproxylat.sweep.state import Key, State
from kproxylat.system import kernel
from kproxylat.trace.engine import find_version

MAX_REPEATS = 1000
Run = tuple[Options, int]
"""A point, and the number of its repeat, from 0 on."""
Ended = Interrupted | MachineError | None
"""What cut a run or a sweep short: a signal, or a result that could not be saved."""


@dataclass(frozen=True)
class Done:
    """A run that ended.

    :param seconds: how long it took.
    """

    run: Run
    result: Result
    ended: Ended
    seconds: float


class Place(Protocol):
    """Where runs are measured, ``at_once`` of them side by side."""

    at_once: int

    def describe(self) -> dict[str, Any]:
        """Return what must be the same for runs to be comparable: clock, and whether it is emulated; kernel.

        :raises KproxylatError: nothing can be measured there.
        """

    def measure(self, runs: Sequence[Run], begin: Callable[[Run], None]) -> Iterator[Done]:
        """Measure runs, and return each as it ends; begin none after one that was cut short.

        :param begin: called at the beginning of each.
        :raises KproxylatError: as :func:`kproxylat.measure.run.measure`.
        """


class Here:
    """This machine: one run after another, each on the lab of the one before where its rules can grow.

    :param prepare: prepares a cluster for a point, and returns the options to measure and the seconds that kube-proxy
        took.
    :param read_target: reads the target from the API again after each run (None: a run needs no API).
    """

    at_once = 1

    def __init__(
        self,
        prepare: Callable[[Options], tuple[Options, float | None]] | None = None,
        read_target: Callable[[], Target] | None = None,
    ) -> None:
        self._prepare = prepare
        self._read_target = read_target

    def describe(self) -> dict[str, Any]:
        """As :class:`Place` says."""
        kernel.check_root()
        about = {"clock": list(kernel.detect_clock()), "kernel": kernel.release()}
        return about | {"processor": kernel.describe_processor()}

    def measure(self, runs: Sequence[Run], begin: Callable[[Run], None]) -> Iterator[Done]:
        """As :class:`Place` says."""
        with ExitStack() as stack:
            stack.callback(clear)
            for run in runs:
                begin(run)
                begun_s = kernel.user_clock_s()
                prepared, sync_s = self._prepare(run[0]) if self._prepare else (keep_lab(run[0]), None)
                result, ended = measure(prepared, sync_s, self._read_target)
                yield Done(run, result, ended, kernel.user_clock_s() - begun_s)
                if ended:
                    return


def keep_lab(point: Options) -> Options:
    """Leave a point's lab standing after its run, so that its rules grow to the next point's."""
    return replace(point, where=replace(point.lab, keep=True)) if point.lab and not point.ruleset else point


@dataclass
class Sweep:
    """What came out.

    :param seed: of the order (None: as planned, which on the instruction clock is as good).
    :param complete: whether all points were measured. ``resumed``: how many of them before an interruption.
    :param seconds: how long each run took, by its log's name.
    :param saved: the document's file, once all runs are measured.
    """

    seed: int | None
    repeats: int
    complete: bool = False
    resumed: int = 0
    results: list[Result] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    saved: Path | None = None

    @property
    def series(self) -> tuple[Series, ...]:
        """The results by mode and backend, with their verdicts; those of many Services by the Services before each."""
        every = [part for one in self.results for part in (split_services(one) if one.services else [one])]
        return build_series(every)

    def to_json(self) -> str:
        """Write one document: the results of all runs, the series, and how it was measured."""
        about = {name: getattr(self, name) for name in ("seed", "repeats", "complete", "resumed", "seconds")}
        return list_to_json(self.results, series=self.series, sweep=about)


def find_modes(modes: Iterable[str], backends: Iterable[str]) -> list[Mode]:
    """Return the rows of these modes and backends; of all, where none is named.

    :raises UsageError: a name that no row has, or names that no row has together.
    """
    names, kinds = set(modes), set(backends)
    known = {row.name for row in MODES}, {row.backend for row in MODES}
    for kind, passed, valid in zip(("mode", "backend"), (names, kinds), known, strict=True):
        if passed - valid:
            raise UsageError(f"unknown {kind} {min(passed - valid)!r}", f"there are: {', '.join(sorted(valid))}")
    rows = [row for row in MODES if row.name in (names or known[0]) and row.backend in (kinds or known[1])]
    if not rows:
        raise UsageError("no mode has these backends", "leave --backend out")
    return rows


def plan_points(
    base: Options, modes: Sequence[Mode], services: Iterable[int], releases: Iterable[str] = ("",)
) -> list[Options]:
    """Return what to measure, point by point: each mode at each number of Services.

    :param base: what all points have in common.
    :param releases: kube-proxy's, whose rules a lab has one after the other, in the modes in which they differ.
    :raises UsageError: one is named twice, or the modes' rules are the same in all.
    """
    names = list(releases)
    if len(set(names)) < len(names):
        raise UsageError(f"--kube-proxy {','.join(names)} names a release twice", "name each once")
    if names != [""] and not any(mode.form == MAP for mode in modes):
        check_release(names[0], modes[0])
    places = [replace(base.where, services=count) for count in dict.fromkeys(services)]
    return [
        replace(base, mode=mode, where=replace(place, release=release) if isinstance(place, Lab) else place)
        for mode in modes
        for release in (names if mode.form == MAP else [""])
        for place in places
    ]


def check_points(points: Iterable[Options], repeats: int = 1) -> None:
    """Refuse what cannot be, before anything is measured.

    :raises UsageError: as :func:`kproxylat.measure.plan.check_options`, or so many repeats are not possible.
    """
    if not 1 <= repeats <= MAX_REPEATS:
        raise UsageError(f"{repeats} repeats are not possible", f"--repeats takes 1 to {MAX_REPEATS}")
    for point in points:
        check_options(point)


def order_points(points: Sequence[Options], repeats: int, seed: int | None) -> list[Run]:
    """Return the runs in the order in which they are measured: each point once in every round.

    :param seed: shuffles each round, so that a drift of the machine does not look like the Services' doing (None: not).
    """
    rng, ordered = Random(seed), []  # noqa: S311 - chance for an order
    for number in range(repeats):
        ordered += [(point, number) for point in (points if seed is None else rng.sample(points, len(points)))]
    return ordered


def name_series(point: Options) -> str:
    """Name mode, backend, what the lab's rules were asked to be, and protocol.

    On a cluster the backend is known only once kube-proxy runs in the mode.
    """
    if not point.lab:
        return point.mode.name
    backend = " ".join(filter(None, (point.mode.backend, point.lab.variant)))
    return name_key((point.mode.name, backend, "" if point.ruleset else point.target.protocol or ""))


def title(point: Options) -> str:
    """Name a point for people: ``iptables on nft, 100 Services``."""
    return f"{name_series(point).replace('/', ' on ')}, {point.where.services:,} Services"


def _key(point: Options, repeat: int) -> Key:
    return Key(name_series(point), point.where.services or 0, repeat)


def _describe(point: Options, about: dict[str, Any]) -> dict[str, Any]:
    """Return what must be the same for the runs of a sweep to belong together; ``about`` is the place's share."""
    lab, sending = point.lab or Lab(), point.sending
    targets = [str(target) for target in point.targets or (point.target,)]
    return {
        **({"ruleset": {**lab.ruleset.digest, "targets": targets}} if lab.ruleset else {}),
        **{name: getattr(sending, name) for name in ("duration_s", "rate_pps", "warmup")},
        **{"generator": sending.generator.name, "probe": point.tracing.probe},
        **_describe_extras(point),
        **{"position": point.where.position or lab.position, "worker_ports": lab.worker_ports},
        "place": str(point.sources) if point.lab else [point.node.name, point.node.netns, str(point.target)],
        **{**about, "bpftrace": find_version()[0] if point.tracing.traces else None, "kproxylat": __version__},
    }


def _describe_extras(point: Options) -> dict[str, Any]:
    """Return the options that are not the default ones: a state from before they existed can still be resumed."""
    tracing = replace(point.tracing, probe="auto")
    extras = {name: value for name, value in vars(tracing).items() if value != getattr(Tracing(), name)}
    if point.tracing.template:
        extras["template"] = sha256(point.tracing.template.read_bytes()).hexdigest()
    if point.sending.origin != "pod":
        extras["origin"] = str(point.sending.origin)
    if point.sending.connects:
        extras["first_packet"] = point.lab.places if point.lab else 0
    if point.lab and (point.lab.endpoints, point.lab.affinity) != (1, False):
        extras |= {"endpoints": point.lab.endpoints, "affinity": point.lab.affinity}
    if point.lab and point.lab.node_port:
        extras |= {"node_port": True}
    if point.lab and point.target.protocol != "udp" and not point.ruleset:
        extras["protocol"] = point.target.protocol
    return extras


def _time_left(runs: Sequence[Run], state: State, at_once: int, emulated: bool = False) -> str:
    """Estimate the time that runs take by that of measured ones: of the same series with as many Services or the next
    larger number, else of the nearest number; where more Services than ever are to come, it is the least that is left.
    """
    known = [(key.series, key.services, seconds) for key, seconds in state.seconds.items()]
    if not known:
        left_s = sum(expect_s(point, emulated) for point, _ in runs) / at_once
        return f"; this takes about {write_duration(left_s)}" if left_s > LONG_S else ""
    left_s = 0.0
    for point, _ in runs:
        size, series = point.where.services or 0, name_series(point)
        larger = [row for row in known if row[0] == series and row[1] >= size]
        left_s += min(larger or known, key=lambda row: (abs(row[1] - size), row[0] != series))[2] / at_once
    most = max(services for _, services, _ in known)
    words = "about" if all((point.where.services or 0) <= most for point, _ in runs) else "more than"
    return f"; {words} {write_duration(left_s)} left"


def sweep(
    points: Sequence[Options],
    repeats: int = 1,
    seed: int | None = None,
    fresh: bool = False,
    place: Place | None = None,
    order: Callable[[Run], Any] | None = None,
) -> tuple[Sweep, Ended]:
    """Measure point after point, those that an interrupted sweep of the same options has measured excepted.

    :param seed: of the order on the ns clock (None: the interrupted sweep's, or a new one).
    :param fresh: measure all of them.
    :param place: where (None: here).
    :param order: sorts the runs by what it returns, since going from point to point takes long (None: rounds, each in a
        random order on the ns clock).
    :return: what was measured, and what cut the sweep short.
    :raises KproxylatError: as :func:`kproxylat.measure.run.measure`.
    """
    place = place or Here()
    about = place.describe()
    shuffle = not order and about["clock"][0] != "instructions"
    state = State(points[0].record.output_dir, _describe(points[0], about), seed if shuffle else None, fresh, shuffle)
    runs = order_points(points, repeats, state.seed)
    if order:
        runs.sort(key=order)
    to_do = [run for run in runs if _key(*run) not in state.results]
    finished = Sweep(state.seed, repeats, resumed=len(runs) - len(to_do))
    if finished.resumed:
        say(f"Resuming {state.path.name}: {finished.resumed} of {len(runs)} runs are there (--fresh measures all anew)")
    if state.seed is not None:
        say(f"Order randomised, seed {state.seed}")
    numbers = count(finished.resumed + 1)

    def begin(run: Run) -> None:
        undone = [other for other in runs if _key(*other) not in state.results]
        left = _time_left(undone, state, place.at_once, about["clock"][1])
        say(f"== run {next(numbers)} of {len(runs)}: {title(run[0])}{left}")

    ended: Ended = None
    try:
        for done in place.measure(to_do, begin):
            state.add(_key(*done.run), done.result, done.seconds)
            ended = ended or done.ended
    except (KproxylatError, Interrupted):
        _say_kept(runs, state)
        raise
    for key in [_key(*run) for run in runs if _key(*run) in state.results]:
        result = state.results[key]
        finished.results.append(result)
        finished.seconds[Path(result.run.log).name if result.run.log else str(key)] = round(state.seconds[key], 1)
    if ended:
        _say_kept(runs, state)
        return finished, ended
    finished.complete = True
    finished.saved = state.close([_key(*run) for run in runs], finished.to_json())
    say(f"saved: {finished.saved}")
    return finished, None


def _say_kept(runs: Sequence[Run], state: State) -> None:
    kept = sum(_key(*run) in state.results for run in runs)
    say(f"      {kept} of {len(runs)} runs are kept: the same command goes on from there")
