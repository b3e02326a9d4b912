"""A sweep on a cluster: dummy Services created and mode set for each point, kube-proxy waited for, all put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from kproxylat.cluster.api import Api
from kproxylat.cluster.dummies import check_count, choose_numbers, create, delete, plan_creation, read_dummies
from kproxylat.cluster.proxy_config import BY_HAND, DEFAULT_MODE
from kproxylat.cluster.proxy_mode import detect_mode
from kproxylat.cluster.rollout import (
    MODES,
    Change,
    apply_change,
    needs_restart,
    plan_change,
    running_mode,
    wait_for_mode,
    wait_for_rollout,
)
from kproxylat.cluster.sync import live_ports, service_ports, wait_for_rules
from kproxylat.cluster.target import miss_path
from kproxylat.console import say
from kproxylat.errors import KproxylatError, MachineError
from kproxylat.measure.defaults import look_up
from kproxylat.measure.options import Options, add_warnings
from kproxylat.modes import Mode, find_mode
from kproxylat.node.live_rules import METRICS_PORT
from kproxylat.node.node import Node
from kproxylat.results import Destination
from kproxylat.sweep.sweep import Ended, Here, Sweep, plan_points, sweep
from kproxylat.system import interrupts
from kproxylat.system.kernel import check_root


@dataclass(frozen=True)
class Asking:
    """What is asked for.

    :param modes: kube-proxy's, one after another (none: the one that it is in). ``backend``: None: it is detected.
    :param service: the target's name and port. ``family``: which of its ClusterIPs (None: the first).
    :param confirm: asks a person before the cluster's mode is set, as :func:`kproxylat.console.confirm` does (None: the
        mode may be set).
    """

    modes: Sequence[str]
    backend: str | None
    service: tuple[str, str | None]
    family: int | None
    confirm: Callable[[str, str], None] | None


class Preparation:
    """Makes the cluster what a point says: its mode, and its number of dummy Services.

    :param api: the dummy Services are in its namespace.
    :param mode: the one that kube-proxy is in. ``backend``: None: it is detected.
    """

    def __init__(self, api: Api, node: Node, mode: str, backend: str | None) -> None:
        self._api = api
        self._node = node
        self._mode = mode
        self._backend = backend
        self._undoing: Change | None = None
        self._changed = False
        self._target: frozenset[Destination] = frozenset()
        self._before = frozenset(read_dummies(api).services)

    def check(self, counts: Sequence[int]) -> None:
        """Make sure that no dummy Service is there that would have to go for a smaller number.

        :raises MachineError: there are such.
        """
        before = len(self._before)
        if before > min(counts):
            raise MachineError(
                f"namespace {self._api.namespace} has {before} dummy Services already, more than {min(counts)}",
                f"kproxylat services delete -n {self._api.namespace}, or begin with --services {before}",
            )

    def __call__(self, point: Options) -> tuple[Options, float | None]:
        """Prepare the cluster for a point.

        :return: the point with the backend that kube-proxy has in this mode; and how many seconds kube-proxy took from
            the last change of its Services on (None: there was none).
        :raises MachineError: kube-proxy does not get there.
        """
        self._set_mode(point.mode.name)
        if point.service and not miss_path(point.service):
            self._target = frozenset([point.target])
        sync_s = self._set_count(point.where.services or 0)
        row, warnings = detect_mode(lambda: self._api, point.mode.name, self._backend, self._node)
        return add_warnings(replace(point, mode=row), *warnings), sync_s

    def _set_mode(self, mode: str) -> None:
        if mode == self._mode:
            return
        change = plan_change(self._api, mode)
        if needs_restart(self._api, change, self._node.netns):
            self._undoing = self._undoing or change
            say(f"      kube-proxy's mode: {change.old} -> {mode}; its pods are restarted")
            apply_change(self._api, change)
            wait_for_rollout(self._api, change)
        wait_for_mode(mode, netns=self._node.netns)
        self._mode = mode

    def _set_count(self, count: int) -> float | None:
        found = read_dummies(self._api)
        missing = plan_creation(found, count, self._before)
        numbers = choose_numbers(count, self._before)
        unwanted = service_ports(replace(found, services={n: s for n, s in found.services.items() if n not in numbers}))
        if missing or unwanted:
            self._changed = True
            say(f"      dummy Services: {len(found.services)} -> {count}")
            if unwanted:
                delete(self._api, numbers)
            create(self._api, found, missing)
        took_s = self._wait_for_rules(service_ports(read_dummies(self._api)), unwanted)
        return round(took_s, 3) if missing or unwanted else None

    def _wait_for_rules(self, wanted: Set[Destination], unwanted: Set[Destination] = frozenset()) -> float:
        """Wait for the target's rule, too: after a switch there are none at first."""
        read = partial(live_ports, mode=self._mode, backend=self._backend)
        return wait_for_rules(wanted | self._target, unwanted, node=self._node, read=read)

    def delete_services(self) -> None:
        """Delete the dummy Services that were not there before.

        :raises MachineError: the API does not let us.
        """
        more = f" (and the {len(self._before)} that were there before)" if self._before else ""
        with _or_say(f"kproxylat services delete -n {self._api.namespace} --context {self._api.context}{more}"):
            if self._changed:
                services, _ = delete(self._api, self._before)
                say(f"      deleted {services} dummy Services")

    def set_old_mode(self) -> None:
        """Set the mode that kube-proxy was told before.

        :raises MachineError: the API does not let us, or kube-proxy's pods do not come up.
        """
        if self._undoing is None:
            return
        with _or_say(self._undoing.undoing(self._api)):
            say(f"      kube-proxy's mode: back to {self._undoing.old}")
            change = plan_change(self._api, self._undoing.old)
            if needs_restart(self._api, change, self._node.netns):
                apply_change(self._api, change)
                wait_for_rollout(self._api, change)
            wait_for_mode(change.runs_as, netns=self._node.netns)
            self._mode = change.runs_as
            self._wait_for_rules(frozenset())


@contextmanager
def _or_say(command: str) -> Iterator[None]:
    """Put something back, whatever signals come; where that fails, say how it is done by hand."""
    with interrupts.shielded():
        try:
            yield
        except KproxylatError as error:
            say(f"not put back: {error}\n      by hand: {command}")
            raise


def sweep_cluster(
    api: Api, base: Options, counts: Sequence[int], asking: Asking, repeats: int, fresh: bool
) -> tuple[Sweep, Ended]:
    """Measure the lookup on a node, over numbers of dummy Services, mode after mode.

    :param base: what all points have in common.
    :return: as :func:`kproxylat.sweep.sweep.sweep`. Whatever happens, Services and mode are put back.
    :raises KproxylatError: it cannot be measured, or what was changed cannot be put back.
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
    others = [name for name in modes if name != running.name]
    if others:
        _check_old_mode(api, base.node, running.name)
    question = f"Set kube-proxy's mode in the cluster of context {api.context} to {', '.join(others)}, and back?"
    if others and asking.confirm:
        asking.confirm(question, f"--mode {running.name}")
    options = replace(options, mode=running)
    rows = [running if name == running.name else find_mode(name, asking.backend or _usual(name)) for name in modes]
    points = plan_points(options, rows, sorted(counts))
    with interrupts.deferred(), ExitStack() as stack:
        preparation = Preparation(api, base.node, running.name, asking.backend)
        preparation.check(counts)
        # Each whether the other fails or not; the Services first.
        stack.callback(preparation.set_old_mode)
        stack.callback(preparation.delete_services)
        return sweep(points, repeats, None, fresh, Here(preparation, read_target), in_order=True)


def _detect(api: Api, node: Node, asking: Asking) -> Mode:
    """Return what kube-proxy is in; where that is not clear, what is asked for settles it, as in a run."""
    try:
        return detect_mode(lambda: api, None, None, node)[0]
    except MachineError:
        if not asking.backend:
            raise
        only = asking.modes[0] if len({*asking.modes}) == 1 else None
        return detect_mode(lambda: api, only, asking.backend, node)[0]


def _check_old_mode(api: Api, node: Node, running: str) -> None:
    """Make sure that a change can be seen, that there is one old mode, and that it can be put back, before any change.

    :raises MachineError: kube-proxy does not answer, or runs in another mode than its ConfigMap has, or in one that we
        cannot set.
    """
    if running_mode(node.netns) is None:
        raise MachineError(
            "kube-proxy of this node does not say which mode it is in, so that a change could not be seen",
            f"is its metricsBindAddress another than port {METRICS_PORT}? Or pass --mode {running} alone",
        )
    change = plan_change(api, running)
    if change.old not in MODES:
        raise MachineError(f"kube-proxy was told mode {change.old}, which could not be put back", BY_HAND)
    if (told := MODES[change.old] or DEFAULT_MODE) != running:
        raise MachineError(
            f"kube-proxy runs in mode {running}, but its ConfigMap says {told}: which is to be put back, is not clear",
            f"decide first: kproxylat mode set {running}, or mode set {told}; or pass --mode {running} alone",
        )


def _usual(mode: str) -> str | None:
    """Return a backend to plan with; which one it really is, is seen when kube-proxy runs in the mode."""
    return "nft" if mode == DEFAULT_MODE else None
