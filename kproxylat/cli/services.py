"""The commands about dummy Services: create, delete, list."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from kproxylat.cli.options import ListFormat
from kproxylat.cli.places import Namespaced, Place
from kproxylat.cli.spread import spread
from kproxylat.cluster.dummies import (
    Dummies,
    check_count,
    create,
    delete,
    plan_creation,
    read_all_dummies,
    read_dummies,
)
from kproxylat.cluster.sync import service_ports, wait_for_rules
from kproxylat.cluster.worker import IMAGE, apply_worker, delete_worker, find_service, find_worker
from kproxylat.console import plain_line, say, show
from kproxylat.errors import refuse_options

if TYPE_CHECKING:
    from kproxylat.cluster.api import Api
    from kproxylat.results import Target

services_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Create, list and delete dummy Services: dummy-service-0, -1, ..., label type=dummy.

    \b
    Examples:
      kproxylat services create --count 1000
      kproxylat services delete
    """,
)


@dataclass(frozen=True)
class How:
    """Options of both services create and services delete."""

    wait: Annotated[
        float | None,
        typer.Option("--wait", metavar="SECONDS", help="On a node: wait up to SECONDS until the kernel's rules match."),
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the changes without applying them.")] = False

    def check(self, place: Place) -> None:
        """Refuse the options of a node without --wait.

        :raises UsageError: one of them was passed.
        """
        if self.wait is None:
            node = {"netns": place.netns, "node_container": place.node_container}
            refuse_options("without --wait no node's rules are read", "add --wait SECONDS", **node)


@services_app.command("create")
@spread
def services_create(
    count: Annotated[int, typer.Option("--count", help="Number of Services; existing ones are kept.")],
    worker: Annotated[
        bool, typer.Option("--worker", help="Also create the Service worker (TCP and UDP 50051) and its Deployment.")
    ] = False,
    image: Annotated[
        str | None, typer.Option("--worker-image", help="Image of the worker (Kubernetes' agnhost).")
    ] = None,
    *,
    how: How,
    cluster: Namespaced,
    place: Place,
) -> None:
    """Create dummy Services with one EndpointSlice each.

    It changes the cluster: each node's kube-proxy writes rules for them. To undo it: kproxylat services delete. To
    resume after an interruption, run the same command again.

    \b
    Examples:
      kproxylat services create --count 10000
      kproxylat services create --count 0 --worker -n default
    """
    check_count(count)
    if not worker:
        refuse_options("without --worker no worker is created", "add --worker", worker_image=image)
    how.check(place)
    api = cluster.connect()
    existing = read_dummies(api)
    missing = plan_creation(existing, count)
    objects = f"{len(missing)} dummy Services and their EndpointSlices in namespace {api.namespace}"
    if how.dry_run:
        show(f"would create {objects}; {len(existing.services)} are there")
        if worker:
            show(f"would apply Service worker and Deployment worker; {len(find_worker(api))} of 2 are there")
        return
    if worker:
        apply_worker(api, image or IMAGE)
        show("applied Service worker and Deployment worker")
    started_s = time.monotonic()
    create(api, existing, missing)
    took_s = time.monotonic() - started_s
    rate = f": {took_s:.1f} s, {len(missing) / took_s:.0f} a second" if missing else ""
    show(f"created {objects}; {len(existing.services)} were there{rate}")
    if how.wait is not None:
        look_up = partial(_find_ports, api, worker)
        took_s = wait_for_rules(look_up(), limit_s=how.wait, node=place.find(), look_up=look_up)
        show(f"kube-proxy's rules hold them: {took_s:.1f} s")


def _find_ports(api: Api, worker: bool) -> set[Target]:
    """Return the Service ports that the rules should hold now: those of the dummies, and the worker's."""
    return service_ports(read_dummies(api), *filter(None, [find_service(api) if worker else None]))


@services_app.command("delete")
@spread
def services_delete(
    worker: Annotated[
        bool, typer.Option("--worker", help="Also delete the worker that create --worker created.")
    ] = False,
    *,
    how: How,
    cluster: Namespaced,
    place: Place,
) -> None:
    """Delete the Services dummy-service-N that have the label type=dummy, and their EndpointSlices.

    It changes the cluster. No other Service is deleted.

    \b
    Examples:
      kproxylat services delete --dry-run
      kproxylat services delete --worker
    """
    how.check(place)
    api = cluster.connect()
    if how.dry_run:
        existing = read_dummies(api)
        objects = f"{len(existing.services)} dummy Services and {len(existing.slices)} EndpointSlices"
        show(f"would delete {objects} in namespace {api.namespace}")
        if worker:
            kinds = ", ".join(f"{kind} worker" for kind in find_worker(api)) or "nothing"
            show(f"would delete of the worker: {kinds}")
        return
    ports = service_ports(read_dummies(api)) if how.wait is not None else set()
    services, slices = delete(api)
    show(f"deleted {services} dummy Services and {slices} EndpointSlices in namespace {api.namespace}")
    if how.wait is not None:
        show(f"kube-proxy's rules are without them: {wait_for_rules(set(), ports, how.wait, place.find()):.1f} s")
    if worker:
        show(f"deleted {delete_worker(api)} objects of the worker")


@services_app.command("list")
@spread
def services_list(
    form: Annotated[
        ListFormat, typer.Option("--format", "-o", help="How the list is written to stdout.")
    ] = ListFormat.TABLE,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="Of all namespaces, whatever --namespace says.")
    ] = False,
    *,
    cluster: Namespaced,
) -> None:
    """List the dummy Services, and those without an EndpointSlice.

    \b
    Examples:
      kproxylat services list
      kproxylat services list --all-namespaces -o wide
      kproxylat services list --format json | jq .count
    """
    api = cluster.connect()
    namespaces = read_all_dummies(api) if all_namespaces else {api.namespace: read_dummies(api)}
    if form is ListFormat.JSON:
        documents = [_describe(namespace, existing) for namespace, existing in namespaces.items()]
        show(json.dumps({"namespaces": documents} if all_namespaces else documents[0], indent=2))
        return
    for namespace, existing in namespaces.items():
        without_slice = existing.without_slice
        for number, service in sorted(existing.services.items()):
            if form is ListFormat.NAME:
                show(f"service/dummy-service-{number}")
                continue
            ports = [f"{port.get('port')}/{port.get('protocol', 'TCP')}" for port in service["spec"].get("ports") or ()]
            columns = (
                f"{namespace:<20}" if all_namespaces else "",
                f"dummy-service-{number:<6}",
                service["spec"].get("clusterIP", ""),
                f" {','.join(ports)}" if form is ListFormat.WIDE else "",
                " no EndpointSlice" if number in without_slice else "",
            )
            show(plain_line(" ".join(filter(None, columns))))
        count = len(existing.services)
        say(f"{count} dummy Services in namespace {plain_line(namespace)}; without EndpointSlice: {len(without_slice)}")
        for name in existing.strange:
            say(f"not ours, though it has the label: {plain_line(name)}")
    if not namespaces:
        say("0 dummy Services in all namespaces")


def _describe(namespace: str, existing: Dummies) -> dict[str, object]:
    addresses = {number: existing.services[number]["spec"].get("clusterIP", "") for number in sorted(existing.services)}
    details = {"without_slice": existing.without_slice, "not_ours": existing.strange, "services": addresses}
    return {"namespace": namespace, "count": len(addresses), **details}
