"""A sweep on a cluster: for each point, set the mode and the number of dummy Services, and wait for kube-proxy.

The sweep restores the mode and deletes its Services at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from kproxylat.cluster import rollout
from kproxylat.cluster.api import Api
from kproxylat.cluster.dummies import check_count, choose_numbers, create, delete, plan_creation, read_dummies
from kproxylat.cluster.proxy_config import BY_HAND
from kproxylat.cluster.proxy_mode import detect_mode
from kproxylat.cluster.sync import keep_existing, live_ports, service_ports, wait_for_rules
from kproxylat.cluster.target import miss_path
from kproxylat.console import say
from kproxylat.errors import KproxylatError, MachineError
from kproxylat.measure.defaults import look_up
from kproxylat.measure.options import Options, add_warnings
from kproxylat.modes import DEFAULT_MODE, Mode, find_mode
from kproxylat.node.live_rules import METRICS_PORT
from kproxylat.node.node import Node
from kproxylat.results import Target
from kproxylat.sweep.sweep import Ended, Here, Sweep, plan_points, sweep
from kproxylat.system import interrupts
from kproxylat.system.kernel import check_root


@dataclass(frozen=True)
class Asking:
    """The request of a sweep on a cluster.

    :param modes: kube-proxy's modes, one after another (none: the present mode).
    :param backend: the backend (None: detect it).
    :param service: the target's name and port.
    :param family: the IP family of its ClusterIP (None: that of the first ClusterIP).
    :param confirm: asks a person before the cluster's mode changes, as :func:`kproxylat.console.confirm` does (None:
        do not ask).
    """

    modes: Sequence[str]
    backend: str | None
    service: tuple[str, str | None]
    family: int | None
    confirm: Callable[[str, str], None] | None


class Preparation:
    """Prepares the cluster for a point: kube-proxy's mode and the number of dummy Services.

    :param api: the API; the dummy Services are in its namespace.
    :param node: the node under test.
    :param mode: kube-proxy's present mode.
    :param backend: the backend (None: detect it).
    """

    def __init__(self, api: Api, node: Node, mode: str, backend: str | None) -> None:
        self._api = api
        self._node = node
        self._mode = mode
        self._backend = backend
        self._undoing: rollout.Change | None = None
        self._changed = False
        self._target: frozenset[Target] = frozenset()
        self._before = frozenset(read_dummies(api).services)

    def check(self, counts: Sequence[int]) -> None:
        """Refuse a number below that of the existing dummy Services, which a sweep does not delete.

        :raises MachineError: a number is too small.
        """
        before = len(self._before)
        if before > min(counts):
            raise MachineError(
                f"namespace {self._api.namespace} has {before} dummy Services already, more than {min(counts)}",
                f"kproxylat services delete -n {self._api.namespace}, or begin with --services {before}",
            )

    def __call__(self, point: Options) -> tuple[Options, float | None]:
        """Prepare the cluster for a point.

        :return: the point with kube-proxy's backend in this mode, and the seconds from the last change of the Services
            until kube-proxy had written its rules (None: no Service changed).
        :raises MachineError: kube-proxy does not reach this state in time.
        """
        self._set_mode(point.mode.name)
        if point.target.service and not miss_path(point.target):
            self._target = frozenset([point.target])
        sync_s = self._set_count(point.where.services or 0)
        row, warnings = detect_mode(lambda: self._api, point.mode.name, self._backend, self._node)
        return add_warnings(replace(point, mode=row), *warnings), sync_s

    def _set_mode(self, mode: str) -> None:
        if mode == self._mode:
            return
        change = rollout.plan_change(self._api, mode)
        if rollout.needs_restart(self._api, change, self._node.netns):
            self._undoing = self._undoing or change
            say(f"      kube-proxy's mode: {change.old} -> {mode}; its pods are restarted")
            rollout.apply_change(self._api, change)
            rollout.wait_for_rollout(self._api, change)
        rollout.wait_for_mode(mode, netns=self._node.netns)
        self._mode = mode

    def _set_count(self, count: int) -> float | None:
        existing = read_dummies(self._api)
        missing = plan_creation(existing, count, self._before)
        numbers = choose_numbers(count, self._before)
        surplus = {number: service for number, service in existing.services.items() if number not in numbers}
        if missing or surplus:
            self._changed = True
            say(f"      dummy Services: {len(existing.services)} -> {count}")
            if surplus:
                delete(self._api, numbers)
            create(self._api, existing, missing)
        removed = service_ports(replace(existing, services=surplus))
        took_s = self._wait_for_rules(self._find_ports(), removed, self._find_ports)
        return round(took_s, 3) if missing or surplus else None

    def _find_ports(self) -> Set[Target]:
        """Return the ports of the dummy Services, and the target's: after a switch of the mode, no rules exist."""
        return service_ports(read_dummies(self._api)) | self._target

    def _wait_for_rules(self, required: Set[Target], removed: Set[Target], look_up: Callable[[], Set[Target]]) -> float:
        read = partial(live_ports, mode=self._mode, backend=self._backend)
        return wait_for_rules(required, removed, node=self._node, read=read, look_up=look_up)

    def delete_services(self) -> None:
        """Delete the dummy Services that the sweep created.

        :raises MachineError: the API server refuses, or cannot be reached.
        """
        more = f" (and the {len(self._before)} that were there before)" if self._before else ""
        with _or_say(f"kproxylat services delete -n {self._api.namespace} --context {self._api.context}{more}"):
            if self._changed:
                services, _ = delete(self._api, self._before)
                say(f"      deleted {services} dummy Services")

    def set_old_mode(self) -> None:
        """Restore the mode that kube-proxy's ConfigMap had before the sweep.

        :raises MachineError: the API server refuses, or kube-proxy's pods do not become available.
        """
        if self._undoing is None:
            return
        with _or_say(self._undoing.undoing(self._api)):
            say(f"      kube-proxy's mode: back to {self._undoing.old}")
            change = rollout.plan_change(self._api, self._undoing.old)
            if rollout.needs_restart(self._api, change, self._node.netns):
                rollout.apply_change(self._api, change)
                rollout.wait_for_rollout(self._api, change)
            rollout.wait_for_mode(change.runs_as, netns=self._node.netns)
            self._mode = change.runs_as
            self._wait_for_rules(self._target, frozenset(), partial(keep_existing, self._api, self._target))


@contextmanager
def _or_say(command: str) -> Iterator[None]:
    """Shield the block, which restores something, from signals; if it fails, print the command that does it by hand."""
    with interrupts.shielded():
        try:
            yield
        except KproxylatError as error:
            say(f"not restored: {error}\n      by hand: {command}")
            raise


def sweep_cluster(
    api: Api, base: Options, counts: Sequence[int], asking: Asking, repeats: int, fresh: bool
) -> tuple[Sweep, Ended]:
    """Measure the lookup on a node, over numbers of dummy Services, mode after mode.

    :param base: the options that all points have in common.
    :param counts: the numbers of dummy Services.
    :param repeats: the number of rounds.
    :param fresh: measure all points again, and do not resume.
    :return: as :func:`kproxylat.sweep.sweep.sweep`. In any case, Services and mode are restored.
    :raises KproxylatError: a measurement is not possible, or Services or mode cannot be restored.
    """
    for count in counts:
        check_count(count)
    check_root()
    # The target first: a fault of the cluster must not look like an unknown mode.
    options, read_target = look_up(
        base, base.mode.name, base.mode.backend, None, asking.service, asking.family, lambda: api
    )
    running = _detect(api, base.node, asking)
    modes = list(dict.fromkeys(asking.modes)) or [running.name]
    new_modes = [name for name in modes if name != running.name]
    if new_modes:
        _check_old_mode(api, base.node, running.name)
    question = f"Set kube-proxy's mode in the cluster of context {api.context} to {', '.join(new_modes)}, and back?"
    if new_modes and asking.confirm:
        asking.confirm(question, f"--mode {running.name}")
    options = replace(options, mode=running)
    rows = [running if name == running.name else find_mode(name, asking.backend, usual=True) for name in modes]
    points = plan_points(options, rows, sorted(counts))
    with interrupts.deferred(), ExitStack() as stack:
        preparation = Preparation(api, base.node, running.name, asking.backend)
        preparation.check(counts)
        # Last in, first out: delete the Services, then restore the mode, even if the first fails.
        stack.callback(preparation.set_old_mode)
        stack.callback(preparation.delete_services)
        place = Here(preparation, read_target)
        return sweep(points, repeats, None, fresh, place, order=lambda run: points.index(run[0]))


def _detect(api: Api, node: Node, asking: Asking) -> Mode:
    """Return kube-proxy's mode; if it is ambiguous, the request decides, as in a run."""
    try:
        return detect_mode(lambda: api, None, None, node)[0]
    except MachineError:
        if not asking.backend:
            raise
        only = asking.modes[0] if len({*asking.modes}) == 1 else None
        return detect_mode(lambda: api, only, asking.backend, node)[0]


def _check_old_mode(api: Api, node: Node, running: str) -> None:
    """Check before any change that a change can be observed, and that the old mode is unique and can be restored.

    :raises MachineError: kube-proxy does not answer, runs in another mode than its ConfigMap has, or in a mode that
        kproxylat cannot set.
    """
    if rollout.running_mode(node.netns) is None:
        raise MachineError(
            "kube-proxy of this node does not report its mode, so a change could not be observed",
            f"is its metricsBindAddress another than port {METRICS_PORT}? Or pass --mode {running} alone",
        )
    change = rollout.plan_change(api, running)
    if change.old not in rollout.MODES:
        raise MachineError(f"kube-proxy is set to mode {change.old}, which could not be restored", BY_HAND)
    if (configured := rollout.MODES[change.old] or DEFAULT_MODE) != running:
        raise MachineError(
            f"kube-proxy runs in mode {running}, but its ConfigMap has {configured}: unclear which mode to restore",
            f"decide first: kproxylat mode set {running}, or mode set {configured}; or pass --mode {running} alone",
        )
