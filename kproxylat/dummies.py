"""The dummy Services that make a cluster large: created, listed and deleted, as the old scripts name and label them.

Each has an EndpointSlice of the same name, without which kube-proxy would write no rules for it. What is done is always
the difference to what is there, so that an interrupted command is resumed by repeating it.
"""

from __future__ import annotations

import itertools
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from kproxylat import interrupts
from kproxylat.cluster import CONNECTIONS, PATIENCE_S, Api, Object
from kproxylat.errors import ApiError, Interrupted, MachineError, UsageError
from kproxylat.lab import MAX_SERVICES, dummy_service
from kproxylat.screen import counting

Item = TypeVar("Item")
SELECTOR = "type=dummy"
LABELS = dict([SELECTOR.split("=")])
NAME = re.compile(r"dummy-service-(\d+)")
SLICE_NAME = re.compile(r"dummy-service-(\d+)(-\w+)?")
"""Ours have the Service's name; those that a controller made have a suffix, and the Service's labels."""
OWNER = "kubernetes.io/service-name"


@dataclass(frozen=True)
class Dummies:
    """The dummy Services that are there.

    :param services: number -> Service. ``slices``: name -> EndpointSlice.
    :param strange: names of Services with the label, but not of our kind: never touched.
    """

    services: dict[int, Object]
    slices: dict[str, Object]
    strange: tuple[str, ...]

    @property
    def without_slice(self) -> list[int]:
        """Numbers of the Services that have no EndpointSlice, or only one that an earlier Service of that name left."""
        covered = {
            (each["metadata"].get("labels", {}).get(OWNER), owner)
            for each in self.slices.values()
            for owner in _owners(each) or {""}
        }
        return sorted(
            number
            for number, each in self.services.items()
            if covered.isdisjoint((each["metadata"]["name"], owner) for owner in ("", each["metadata"]["uid"]))
        )


def paths(api: Api) -> tuple[str, str]:
    """Return where the namespace's Services and EndpointSlices are."""
    return (
        f"/api/v1/namespaces/{api.namespace}/services",
        f"/apis/discovery.k8s.io/v1/namespaces/{api.namespace}/endpointslices",
    )


def read_dummies(api: Api) -> Dummies:
    """List the dummy Services of the API's namespace and their EndpointSlices, by their label."""
    services, slices = (list(api.list(path, labelSelector=SELECTOR)) for path in paths(api))
    named = {each["metadata"]["name"]: each for each in services}
    ours = {int(hit[1]): each for name, each in named.items() if (hit := NAME.fullmatch(name))}
    strange = tuple(sorted(name for name in named if not NAME.fullmatch(name)))
    owned = {each["metadata"]["name"]: each for each in slices if SLICE_NAME.fullmatch(each["metadata"]["name"])}
    return Dummies(ours, owned, strange)


def check_count(count: int) -> None:
    """Refuse an impossible number of Services.

    :raises UsageError: it is.
    """
    if not 0 <= count <= MAX_SERVICES:
        raise UsageError(f"{count} Services are not possible", f"--count takes 0 to {MAX_SERVICES}")


def choose_numbers(count: int, before: Set[int] = frozenset()) -> set[int]:
    """Return the numbers of ``count`` Services: those that are there to stay, and the lowest others."""
    others = (number for number in itertools.count() if number not in before)
    return {*before, *itertools.islice(others, max(count - len(before), 0))}


def plan_creation(found: Dummies, count: int, before: Set[int] = frozenset()) -> list[int]:
    """Return which of the numbers of :func:`choose_numbers` lack their Service or its EndpointSlice."""
    numbers = choose_numbers(count, before)
    return sorted(numbers - {*found.services} | numbers & {*found.without_slice})


def create(api: Api, found: Dummies, numbers: Sequence[int]) -> None:
    """Create what is missing of these numbers.

    :raises ApiError: the server refuses. ``MachineError``: a name is taken by what is not a dummy Service.
    """

    def make(number: int) -> None:
        service = found.services.get(number) or _post(api, paths(api)[0], service_of(number))
        _post(api, paths(api)[1], slice_of(number, service))

    in_parallel(api, make, numbers, "dummy Services")


def service_of(number: int) -> Object:
    """Return the Service of a number, from 0 on: one TCP port, no selector."""
    port = {"name": "http", "port": 80, "targetPort": 80, "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"dummy-service-{number}", "labels": LABELS},
        "spec": {"ports": [port]},
    }


def slice_of(number: int, service: Object) -> Object:
    """Return the EndpointSlice of a Service as the server has it: one endpoint, which goes when the Service goes."""
    name, uid = service["metadata"]["name"], service["metadata"]["uid"]
    family = (service["spec"].get("ipFamilies") or ["IPv4"])[0]
    address = dummy_service(number).pairs[0][0]
    owner = {"apiVersion": "v1", "kind": "Service", "name": name, "uid": uid}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "labels": {**LABELS, OWNER: name, "endpointslice.kubernetes.io/managed-by": "kproxylat"},
            "ownerReferences": [owner],
        },
        "addressType": family,
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address if family == "IPv4" else f"fd00:245::{number + 1:x}"]}],
    }


def _post(api: Api, path: str, document: Object) -> Object:
    """Create an object; one that is there already is fine if it has label and owner: an answer may have been lost.

    That of another owner is an EndpointSlice whose Service was deleted: a garbage collector is about to delete it.
    """
    name, ends_s = document["metadata"]["name"], time.monotonic() + PATIENCE_S
    for attempt in itertools.count(1):
        try:
            return api.request("POST", path, document)
        except ApiError as error:
            if error.reason != "AlreadyExists" or (attempt > 1 and not api.pause(attempt, ends_s)):
                raise
        there = api.find(f"{path}/{name}")
        if there and not _is_ours(there):
            raise MachineError(
                f"{document['kind']} {api.namespace}/{name} is there without the label {SELECTOR}: it is not touched",
                "use another namespace (-n), or remove it yourself",
            )
        if there and _owners(there) in (set(), _owners(document)):
            return there
        if there:
            _delete(api, path, there)
    raise AssertionError("not reached")


def _is_ours(document: Object) -> bool:
    labels: dict[str, Any] = document["metadata"].get("labels") or {}
    return LABELS.items() <= labels.items()


def _owners(document: Object) -> set[str]:
    """Return the uids of an object's owners, with the last of whom it is deleted; the old tools' slices have none."""
    return {each["uid"] for each in document["metadata"].get("ownerReferences") or ()}


def delete(api: Api, keep: Set[int] = frozenset()) -> tuple[int, int]:
    """Delete the dummy Services, and then their EndpointSlices, but for those of the numbers ``keep``.

    Each goes only as it was listed, with its label: if it has changed since, it is looked at again.

    :return: how many Services and EndpointSlices were there to delete.
    """
    services = [each for number, each in read_dummies(api).services.items() if number not in keep]
    in_parallel(api, lambda each: _delete(api, paths(api)[0], each), services, "Services to delete")
    # Listed anew: a garbage collector may have removed many with their Services.
    left = [each for name, each in read_dummies(api).slices.items() if slice_number(name) not in keep]
    in_parallel(api, lambda each: _delete(api, paths(api)[1], each), left, "EndpointSlices to delete")
    return len(services), len(left)


def slice_number(name: str) -> int:
    """Return the number in an EndpointSlice's name."""
    return int(name.split("-")[2])


def _delete(api: Api, path: str, listed: Object) -> None:
    document: Object | None = listed
    ends_s = time.monotonic() + PATIENCE_S
    for attempt in itertools.count(1):
        # Another one of that name is not the one that was listed.
        if not document or not _is_ours(document) or document["metadata"]["uid"] != listed["metadata"]["uid"]:
            return
        meta = document["metadata"]
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]},
        }
        try:
            api.request("DELETE", f"{path}/{meta['name']}", body)
        except ApiError as error:
            if error.status == 404:
                return
            if error.status != 409 or (attempt > 1 and not api.pause(attempt, ends_s)):
                raise
            document = api.find(f"{path}/{meta['name']}")
        else:
            return


def in_parallel(api: Api, work: Callable[[Item], None], items: Sequence[Item], text: str) -> None:
    """Do it for all items, some at a time, with progress; the first error or signal stops the rest.

    Requests under way are let end, so that what is there afterwards is what was answered.
    """
    failed: list[Exception] = []

    def attempt(item: Item) -> None:
        # Stopped from here: until the main thread hears of the error, the others would go on.
        try:
            work(item)
        except Exception as error:
            failed.append(error)
            api.stop()
            raise

    with counting(text, len(items)) as advance, _noting_signals(api), ThreadPoolExecutor(CONNECTIONS) as pool:
        futures = [pool.submit(attempt, each) for each in items]
        try:
            for each in as_completed(futures):
                each.result()
                advance()
        except BaseException as error:
            api.stop()
            pool.shutdown(cancel_futures=True)
            # What completes first may be one that was stopped because of another.
            raise failed[0] if isinstance(error, CancelledError) and failed else error from None


@contextmanager
def _noting_signals(api: Api) -> Iterator[None]:
    """Let a signal stop the threads, and raise it once they are done.

    Raised at once, it could strike inside the executor while that holds a lock, and the threads would wait for ever.

    :raises Interrupted: a signal came.
    """
    if interrupts.is_shielded():
        try:
            yield
        finally:
            api.resume()
        return
    caught: list[int] = []

    def note(signum: int, _frame: object) -> None:
        caught.append(signum)
        api.stop()

    before = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except CancelledError:
        if not caught:
            raise
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        if caught:
            # As after any first signal: what follows is cleaning up.
            interrupts.only_remind()
        api.resume()
    if caught:
        raise Interrupted(caught[0])
