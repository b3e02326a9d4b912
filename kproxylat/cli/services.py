"""The commands about dummy Services: create, delete, list."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import typer

from kproxylat.cli.options import Format, Namespaced, Place, spread
from kproxylat.errors import refuse_options

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
    """How Services are created and deleted."""

    wait: Annotated[
        float | None,
        typer.Option("--wait", metavar="SECONDS", help="On a node: until the kernel's rules hold it, so long at most."),
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False

    def check(self, place: Place) -> None:
        """Refuse the options of a node without --wait.

        :raises UsageError: it is named.
        """
        if self.wait is None:
            node = {"netns": place.netns, "node_container": place.node_container}
            refuse_options("no node's rules are waited for", "add --wait SECONDS", **node)


@services_app.command("create")
@spread
def services_create(
    count: Annotated[int, typer.Option("--count", help="How many there are to be: 0 to N-1, each if it is missing.")],
    worker: Annotated[
        bool, typer.Option("--worker", help="Make Service worker, TCP and UDP 50051, and its Deployment, too.")
    ] = False,
    image: Annotated[str | None, typer.Option("--worker-image", help="Its image (Kubernetes' agnhost).")] = None,
    *,
    how: How,
    cluster: Namespaced,
    place: Place,
) -> None:
    """Create dummy Services with an EndpointSlice each; what is there stays, so an interrupted command is repeated.

    \b
    Examples:
      kproxylat services create --count 10000
      kproxylat services create --count 0 --worker -n default
    """
    import time

    from kproxylat.cluster.dummies import check_count, create, plan_creation, read_dummies
    from kproxylat.cluster.worker import IMAGE, apply_worker, read_service

    check_count(count)
    if not worker:
        refuse_options("no worker is made", "add --worker", worker_image=image)
    how.check(place)
    api = cluster.connect()
    found = read_dummies(api)
    missing = plan_creation(found, count)
    objects = f"{len(missing)} dummy Services and their EndpointSlices in namespace {api.namespace}"
    if how.dry_run:
        print(f"would create {objects}; {len(found.services)} are there")
        if worker:
            print("would apply Service worker and Deployment worker")
        return
    if worker:
        apply_worker(api, image or IMAGE)
        print("applied Service worker and Deployment worker")
    started_s = time.monotonic()
    create(api, found, missing)
    took_s = time.monotonic() - started_s
    rate = f": {took_s:.1f} s, {len(missing) / took_s:.0f} a second" if missing else ""
    print(f"created {objects}; {len(found.services)} were there{rate}")
    if how.wait is not None:
        from kproxylat.cluster.sync import service_ports, wait_for_rules

        others = [read_service(api)] if worker else []
        took_s = wait_for_rules(service_ports(read_dummies(api), *others), limit_s=how.wait, node=place.find())
        print(f"kube-proxy's rules hold them: {took_s:.1f} s")


@services_app.command("delete")
@spread
def services_delete(
    worker: Annotated[bool, typer.Option("--worker", help="And the worker that create --worker made.")] = False,
    *,
    how: How,
    cluster: Namespaced,
    place: Place,
) -> None:
    """Delete the dummy Services and their EndpointSlices: those with the label type=dummy and such a name, no others.

    \b
    Examples:
      kproxylat services delete --dry-run
      kproxylat services delete --worker
    """
    from kproxylat.cluster.dummies import delete, read_dummies
    from kproxylat.cluster.sync import service_ports, wait_for_rules
    from kproxylat.cluster.worker import delete_worker

    how.check(place)
    api = cluster.connect()
    if how.dry_run:
        found = read_dummies(api)
        numbers = f"{len(found.services)} dummy Services and {len(found.slices)} EndpointSlices"
        print(f"would delete {numbers} in namespace {api.namespace}{' and the worker' if worker else ''}")
        return
    ports = service_ports(read_dummies(api)) if how.wait is not None else set()
    services, slices = delete(api)
    print(f"deleted {services} dummy Services and {slices} EndpointSlices in namespace {api.namespace}")
    if how.wait is not None:
        print(f"kube-proxy's rules are without them: {wait_for_rules(set(), ports, how.wait, place.find()):.1f} s")
    if worker:
        print(f"deleted {delete_worker(api)} objects of the worker")


@services_app.command("list")
@spread
def services_list(
    form: Annotated[Format, typer.Option("--format", help="How the list is written to stdout.")] = Format.TABLE,
    *,
    cluster: Namespaced,
) -> None:
    """List the dummy Services, and say what is incomplete.

    \b
    Examples:
      kproxylat services list
      kproxylat services list --format json | jq .count
    """
    from kproxylat.cluster.dummies import read_dummies
    from kproxylat.console import say

    api = cluster.connect()
    found = read_dummies(api)
    addresses = {number: found.services[number]["spec"].get("clusterIP", "") for number in sorted(found.services)}
    if form is Format.JSON:
        rest = {"without_slice": found.without_slice, "not_ours": found.strange, "services": addresses}
        print(json.dumps({"namespace": api.namespace, "count": len(addresses), **rest}, indent=2))
        return
    for number, address in addresses.items():
        print(f"dummy-service-{number:<6} {address}{'  no EndpointSlice' if number in found.without_slice else ''}")
    lacking = len(found.without_slice)
    say(f"{len(addresses)} dummy Services in namespace {api.namespace}; without EndpointSlice: {lacking}")
    for name in found.strange:
        say(f"not ours, though it has the label: {name}")
