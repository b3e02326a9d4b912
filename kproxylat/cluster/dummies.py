"""The dummy Services that make a cluster large: create, list and delete them, with the old scripts' names and labels.

Each has an EndpointSlice of the same name, without which kube-proxy would write no rules for it. A command changes only
the objects that differ from its goal, so the same command resumes an interrupted one.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterable, Sequence, Set
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from kproxylat.cluster.api import PATIENCE_S, Api, join_path
from kproxylat.cluster.kubeconfig import CONNECTIONS, Object
from kproxylat.cluster.target import choose_endpoints
from kproxylat.console import counting
from kproxylat.errors import ApiError, MachineError, UsageError
from kproxylat.lab.services import MAX_SERVICES, dummy_service
from kproxylat.system import interrupts

Item = TypeVar("Item")
SELECTOR = "type=dummy"
LABELS = dict([SELECTOR.split("=")])
NAME = re.compile(r"dummy-service-(0|[1-9][0-9]*)")
"""Without zeros in front: dummy-service-007 is not dummy-service-7."""
SLICE_NAME = re.compile(rf"{NAME.pattern}(-\w+)?")
"""kproxylat's slices have the Service's name; a controller's have a suffix, too, and the Service's labels."""
OWNER = "kubernetes.io/service-name"
POLL_S = 0.05
"""How often the main thread checks for a signal while other threads send requests."""


@dataclass(frozen=True)
class Dummies:
    """The dummy Services that exist.

    :param services: number -> Service.
    :param slices: name -> EndpointSlice.
    :param strange: names of Services that have the label, but a name of another form: never touched.
    """

    services: dict[int, Object]
    slices: dict[str, Object]
    strange: tuple[str, ...]

    @property
    def without_slice(self) -> list[int]:
        """Numbers of the Services without an EndpointSlice of their own; an earlier Service's slice does not count."""
        return self._find_uncovered(self.slices.values())

    @property
    def without_endpoints(self) -> list[int]:
        """Numbers of the Services for which kube-proxy writes no rules: they have no endpoint, or none that serves."""
        return self._find_uncovered(document for document in self.slices.values() if choose_endpoints([document]))

    def _find_uncovered(self, slices: Iterable[Object]) -> list[int]:
        covered = {
            (document["metadata"].get("labels", {}).get(OWNER), owner)
            for document in slices
            for owner in _owners(document) or {""}
        }
        return sorted(
            number
            for number, service in self.services.items()
            if covered.isdisjoint((service["metadata"]["name"], owner) for owner in ("", service["metadata"]["uid"]))
        )


def paths(api: Api) -> tuple[str, str]:
    """Return the API paths of the namespace's Services and EndpointSlices."""
    return (
        join_path("/api/v1/namespaces", api.namespace, "services"),
        join_path("/apis/discovery.k8s.io/v1/namespaces", api.namespace, "endpointslices"),
    )


def read_dummies(api: Api) -> Dummies:
    """List the dummy Services of the API's namespace and their EndpointSlices, by label.

    :raises MachineError: the namespace does not exist: the server would call it empty.
    """
    services, slices = (
        {document["metadata"]["name"]: document for document in api.list(path, labelSelector=SELECTOR)}
        for path in paths(api)
    )
    if not services and not slices:
        check_namespace(api)
    return _sort(services, slices)


def read_all_dummies(api: Api) -> dict[str, Dummies]:
    """List the dummy Services of all namespaces, by namespace."""
    lists: list[dict[str, dict[str, Object]]] = [{}, {}]
    for path, documents in zip(("/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices"), lists, strict=True):
        for document in api.list(path, labelSelector=SELECTOR):
            meta = document["metadata"]
            documents.setdefault(str(meta.get("namespace")), {})[meta["name"]] = document
    services, slices = lists
    return {name: _sort(services.get(name, {}), slices.get(name, {})) for name in sorted({*services, *slices})}


def _sort(services: dict[str, Object], slices: dict[str, Object]) -> Dummies:
    numbered = {int(match[1]): service for name, service in services.items() if (match := NAME.fullmatch(name))}
    own_slices = {name: document for name, document in slices.items() if SLICE_NAME.fullmatch(name)}
    return Dummies(numbered, own_slices, tuple(sorted(name for name in services if not NAME.fullmatch(name))))


def check_namespace(api: Api) -> None:
    """Refuse a namespace that does not exist; without the permission to look, accept it.

    :raises MachineError: it does not exist.
    """
    try:
        exists = api.find(join_path("/api/v1/namespaces", api.namespace))
    except ApiError as error:
        if error.status != 403:
            raise
        return
    if not exists:
        raise MachineError(
            f"namespace {api.namespace} not found in the cluster of context {api.context}",
            "pass another -n NAMESPACE, or create it: kubectl create namespace",
        )


def check_count(count: int) -> None:
    """Refuse an impossible number of Services.

    :raises UsageError: the number is out of range.
    """
    if not 0 <= count <= MAX_SERVICES:
        raise UsageError(f"{count} Services are not possible", f"--count takes 0 to {MAX_SERVICES}")


def choose_numbers(count: int, before: Set[int] = frozenset()) -> set[int]:
    """Return the numbers of at least ``count`` Services: those of ``before``, and the lowest other numbers."""
    unused = (number for number in itertools.count() if number not in before)
    return {*before, *itertools.islice(unused, max(count - len(before), 0))}


def plan_creation(existing: Dummies, count: int, before: Set[int] = frozenset()) -> list[int]:
    """Return the numbers of :func:`choose_numbers` that lack their Service or its EndpointSlice."""
    numbers = choose_numbers(count, before)
    return sorted(numbers - {*existing.services} | numbers & {*existing.without_slice})


def create(api: Api, existing: Dummies, numbers: Sequence[int]) -> None:
    """Create the missing Services and EndpointSlices of these numbers.

    :param existing: the dummy Services that exist.
    :raises ApiError: the server refuses.
    :raises MachineError: another object has the name of a dummy Service.
    """

    def create_pair(number: int) -> None:
        service = existing.services.get(number) or _post(api, paths(api)[0], service_of(number))
        _post(api, paths(api)[1], slice_of(number, service))

    _in_parallel(api, create_pair, numbers, "dummy Services")


def service_of(number: int) -> Object:
    """Return the Service of a number, which counts from 0: one TCP port, no selector."""
    port = {"name": "http", "port": 80, "targetPort": 80, "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"dummy-service-{number}", "labels": LABELS},
        "spec": {"ports": [port]},
    }


def slice_of(number: int, service: Object) -> Object:
    """Return the EndpointSlice of a Service: one endpoint. The server deletes the slice with the Service.

    :param service: as the server returned it, with its uid.
    """
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
    """Create an object, or accept an existing one with the same label and owner: an answer may have been lost.

    If the owner differs, the object is an EndpointSlice whose Service was deleted: delete it, too.
    """
    name, ends_s = document["metadata"]["name"], time.monotonic() + PATIENCE_S
    for attempt in itertools.count(1):
        try:
            return api.request("POST", path, document)
        except ApiError as error:
            if error.reason != "AlreadyExists" or (attempt > 1 and not api.pause(attempt, ends_s)):
                raise
        existing = api.find(join_path(path, name))
        if existing and not _is_ours(existing):
            raise MachineError(
                f"{document['kind']} {api.namespace}/{name} exists without the label {SELECTOR}: it is not touched",
                "use another namespace (-n), or remove it yourself",
            )
        if existing and _owners(existing) in (set(), _owners(document)):
            return existing
        if existing:
            _delete(api, path, existing)
    raise AssertionError("not reached")


def _is_ours(document: Object) -> bool:
    labels: dict[str, Any] = document["metadata"].get("labels") or {}
    return LABELS.items() <= labels.items()


def _owners(document: Object) -> set[str]:
    """Return the uids of an object's owners. The old scripts' slices have no owner."""
    return {owner["uid"] for owner in document["metadata"].get("ownerReferences") or ()}


def delete(api: Api, keep: Set[int] = frozenset()) -> tuple[int, int]:
    """Delete the dummy Services, and then their EndpointSlices, except those of the numbers ``keep``.

    The server deletes an object only as it was listed, with its label; a changed object is read again.

    :return: the numbers of Services and EndpointSlices to delete.
    """
    services = [service for number, service in read_dummies(api).services.items() if number not in keep]
    _in_parallel(api, partial(_delete, api, paths(api)[0]), services, "Services to delete")
    # List them again: the garbage collector may have removed many with their Services.
    left = read_dummies(api).slices
    slices = [document for name, document in left.items() if int(name.split("-")[2]) not in keep]
    _in_parallel(api, partial(_delete, api, paths(api)[1]), slices, "EndpointSlices to delete")
    return len(services), len(slices)


def _delete(api: Api, path: str, listed: Object) -> None:
    document: Object | None = listed
    ends_s = time.monotonic() + PATIENCE_S
    for attempt in itertools.count(1):
        # Do not delete another object of the same name.
        if not document or not _is_ours(document) or document["metadata"]["uid"] != listed["metadata"]["uid"]:
            return
        meta = document["metadata"]
        try:
            api.delete(join_path(path, meta["name"]), uid=meta["uid"], resourceVersion=meta["resourceVersion"])
            return
        except ApiError as error:
            if error.status != 409 or (attempt > 1 and not api.pause(attempt, ends_s)):
                raise
        document = api.find(join_path(path, meta["name"]))


def _in_parallel(api: Api, work: Callable[[Item], None], items: Sequence[Item], text: str) -> None:
    """Call a function for all items, some at a time, and show progress; the first error or signal stops the rest.

    The requests under way end first, so that the cluster's state is the one that the answers describe.

    :param work: the function; it sends requests of ``api``.
    :param text: name of the items, for the progress bar.
    :raises Interrupted: a signal came. Any error of ``work``.
    """
    errors: list[Exception] = []
    completed: SimpleQueue[Future[None]] = SimpleQueue()

    def attempt(item: Item) -> None:
        # Stop the other threads here: they would continue until the main thread learns of the error.
        try:
            work(item)
        except Exception as error:
            errors.append(error)
            api.stop()
            raise

    # A signal must not strike inside the executor while that holds a lock: the threads would wait for ever.
    with interrupts.deferred(), counting(text, len(items)) as advance, ThreadPoolExecutor(CONNECTIONS) as threads:
        for item in items:
            threads.submit(attempt, item).add_done_callback(completed.put)
        try:
            pending = len(items)
            while pending:
                interrupts.check()
                with suppress(Empty):
                    completed.get(timeout=POLL_S).result()
                    pending -= 1
                    advance()
        except BaseException as error:
            api.stop()
            threads.shutdown(cancel_futures=True)
            # The first future to complete may be one that an error in another thread stopped.
            raise errors[0] if isinstance(error, CancelledError) and errors else error from None
        finally:
            api.resume()
    interrupts.check()
