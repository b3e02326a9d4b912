"""Options that say where: which cluster, and which of its nodes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kproxylat.errors import refuse_options

if TYPE_CHECKING:
    from kproxylat.cluster.api import Api
    from kproxylat.node.node import Node


@dataclass(frozen=True)
class Cluster:
    """Which cluster's API."""

    kubeconfig: Annotated[
        Path | None, typer.Option("--kubeconfig", help="As kubectl has it (KUBECONFIG, ~/.kube/config).")
    ] = None
    context: Annotated[str | None, typer.Option("--context", help="The kubeconfig's context (the current one).")] = None
    cluster_name: Annotated[str | None, typer.Option("--cluster", help="The kubeconfig's cluster (the context's).")] = (
        None
    )
    as_user: Annotated[str | None, typer.Option("--as", metavar="USER", help="Act as this user, as in kubectl.")] = None
    as_group: Annotated[
        list[str] | None,
        typer.Option("--as-group", metavar="GROUP", help="With --as: act as in this group; repeatable."),
    ] = None
    request_timeout: Annotated[
        str | None,
        typer.Option(
            "--request-timeout", metavar="TIME", help="Give up a request after TIME: 10, 10s, 1m; 0 is never (60s)."
        ),
    ] = None

    def connect(self) -> Api:
        """Connect to the API: it is where this is called first that it is needed.

        :raises UsageError: an option is invalid.
        """
        from kproxylat.cluster.api import connect
        from kproxylat.cluster.transport import parse_timeout

        if not self.as_user:
            refuse_options("without --as the kubeconfig names the user", "add --as", as_group=self.as_group)
        identity = {"as": self.as_user, "as-groups": self.as_group}
        return connect(
            self.kubeconfig,
            self.context,
            getattr(self, "namespace", None),
            self.cluster_name,
            {name: value for name, value in identity.items() if value},
            None if self.request_timeout is None else parse_timeout(self.request_timeout),
        )

    @property
    def api_options(self) -> dict[str, object]:
        """The options of the API, as :func:`kproxylat.errors.refuse_options` takes them."""
        renamed = {"cluster_name": "cluster", "as_user": "as"}
        return {renamed.get(field.name, field.name): getattr(self, field.name) or None for field in fields(Cluster)}


@dataclass(frozen=True)
class Namespaced(Cluster):
    """Which namespace of it."""

    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace (the context's).")] = None


@dataclass(frozen=True)
class Place:
    """Which node, where it is not this machine."""

    node_container: Annotated[
        str | None,
        typer.Option("--node-container", metavar="NAME", help="The node is a container: kind, minikube, k3d."),
    ] = None
    netns: Annotated[
        str | None, typer.Option("--netns", metavar="PATH", help="The node is a network namespace on this machine.")
    ] = None

    def find(self) -> Node:
        """Find it."""
        from kproxylat.node.node import find_node

        return find_node(self.netns, self.node_container)


@dataclass(frozen=True)
class OnNode(Namespaced, Place):
    """What is measured on a node of a cluster, and how."""

    service: Annotated[str | None, typer.Option("--service", help="The Service to measure (worker).")] = None
    port: Annotated[str | None, typer.Option("--port", help="Its port, by number or name, if it has several.")] = None
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="SETTING", help="May be set, and back: net.netfilter.nf_conntrack_max."),
    ] = None

    @property
    def asked(self) -> tuple[str, str | None]:
        """The name and the port of the Service to measure."""
        return "worker" if self.service is None else self.service, self.port

    def check(self, lab: bool, target: str | None = None) -> None:
        """Refuse options that have no effect in the lab, or because the target needs no look-up.

        :param target: ``--target``.
        :raises UsageError: one of them was passed.
        """
        cluster = self.api_options | {name: getattr(self, name) for name in ("namespace", "service", "port")}
        if lab:
            node: dict[str, Any] = {name: getattr(self, name) or None for name in ("netns", "node_container", "allow")}
            refuse_options("--lab makes its own node, without a cluster", "leave out --lab", **node, **cluster)
        elif target is not None:
            refuse_options("with --target no cluster is asked", "leave out --target", **cluster)
