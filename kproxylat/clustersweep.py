"""A sweep on a cluster: dummy Services created and mode set for each point, kube-proxy waited for, all put back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from kproxylat import interrupts
from kproxylat.cluster import Api
from kproxylat.dummies import check_count, create, delete, plan_creation, read_dummies
from kproxylat.errors import Interrupted, MachineError, UsageError
from kproxylat.kernel import check_root
from kproxylat.lookup import look_up
from kproxylat.modes import find_mode
from kproxylat.nodes import Node
from kproxylat.plan import Options
from kproxylat.proxyconfig import DEFAULT_MODE
from kproxylat.proxymode import detect_mode
from kproxylat.rollout import apply_change, plan_change, wait_for_mode, wait_for_rollout
from kproxylat.screen import say
from kproxylat.sweep import Sweep, plan_points, sweep
from kproxylat.sync import service_ports, wait_for_rules


@dataclass(frozen=True)
class Asking:
    """What is asked for.

    :param modes: kube-proxy's, one after another (none: the one that it is in). ``backend``: None: it is detected.
    :param service: the target's name and port. ``family``: which of its ClusterIPs (None: the first).
    :param confirm: asks a person before the cluster's mode is set (None: that is allowed).
    """

    modes: Sequence[str]
    backend: str | None
    service: tuple[str, str | None]
    family: int | None
    confirm: Callable[[str], bool] | None


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
        self._old_mode: str | None = None
        self._changed = False
        self._before = len(read_dummies(api).services)

    def check(self, counts: Sequence[int]) -> None:
        """Make sure that no dummy Service is there that would have to go for a smaller number.

        :raises MachineError: there are such.
        """
        if self._before > min(counts):
            raise MachineError(
                f"namespace {self._api.namespace} has {self._before} dummy Services already, more than {min(counts)}",
                f"kproxylat services delete -n {self._api.namespace}, or begin with --services {self._before}",
            )

    def __call__(self, point: Options) -> Options:
        """Prepare the cluster for a point.

        :return: the point with the backend that kube-proxy has in this mode.
        :raises MachineError: kube-proxy does not get there.
        """
        self._set_mode(point.mode.name)
        self._set_count(point.services or 0)
        row, warnings = detect_mode(lambda: self._api, point.mode.name, self._backend, self._node)
        return replace(point, mode=row, warnings=point.warnings + warnings)

    def _set_mode(self, mode: str) -> None:
        if mode == self._mode:
            return
        change = plan_change(self._api, mode)
        if change.diff:
            self._old_mode = self._old_mode or change.old
            say(f"      kube-proxy's mode: {change.old} -> {mode}; its pods are restarted")
            apply_change(self._api, change)
            wait_for_rollout(self._api, change.daemonset)
        wait_for_mode(mode, netns=self._node.netns)
        self._mode = mode

    def _set_count(self, count: int) -> None:
        found = read_dummies(self._api)
        missing = plan_creation(found, count)
        unwanted = service_ports(replace(found, services={n: s for n, s in found.services.items() if n >= count}))
        if missing or unwanted:
            self._changed = True
            say(f"      dummy Services: {len(found.services)} -> {count}")
            if unwanted:
                delete(self._api, keep=count)
            create(self._api, found, missing)
        wait_for_rules(service_ports(read_dummies(self._api)), unwanted, node=self._node)

    def put_back(self) -> None:
        """Delete the dummy Services that we created, and set the old mode."""
        with interrupts.shielded():
            if self._changed:
                services, _ = delete(self._api, keep=self._before)
                say(f"      deleted {services} dummy Services")
            if self._old_mode:
                say(f"      kube-proxy's mode: back to {self._old_mode}")
                change = plan_change(self._api, self._old_mode)
                if change.diff:
                    apply_change(self._api, change)
                    wait_for_rollout(self._api, change.daemonset)


def sweep_cluster(
    api: Api, base: Options, counts: Sequence[int], asking: Asking, repeats: int, fresh: bool
) -> tuple[Sweep, Interrupted | MachineError | None]:
    """Measure the lookup on a node, over numbers of dummy Services, mode after mode.

    :param base: what all points have in common.
    :return: as :func:`kproxylat.sweep.sweep`. Whatever happens, Services and mode are put back.
    :raises KproxylatError: it cannot be measured, or what was changed cannot be put back.
    """
    for count in counts:
        check_count(count)
    check_root()
    running = detect_mode(lambda: api, None, None, base.node)[0]
    modes = list(dict.fromkeys(asking.modes)) or [running.name]
    others = [name for name in modes if name != running.name]
    question = f"Set kube-proxy's mode in the cluster of context {api.context} to {', '.join(others)}, and back?"
    if others and asking.confirm and not asking.confirm(question):
        raise UsageError("the cluster's mode is not to be set", f"pass --yes, or --mode {running.name}")
    options = look_up(
        replace(base, mode=running), running.name, running.backend, None, asking.service, asking.family, lambda: api
    )
    rows = [running if name == running.name else find_mode(name, asking.backend or _usual(name)) for name in modes]
    points = plan_points(options, rows, sorted(counts))
    with interrupts.deferred(), ExitStack() as stack:
        preparation = Preparation(api, base.node, running.name, asking.backend)
        preparation.check(counts)
        stack.callback(preparation.put_back)
        return sweep(points, repeats, None, fresh, preparation)


def _usual(mode: str) -> str | None:
    """Return a backend to plan with; which one it really is, is seen when kube-proxy runs in the mode."""
    return "nft" if mode == DEFAULT_MODE else None
