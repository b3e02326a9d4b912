"""Options that say where: which cluster, and which of its nodes."""

from __future__ import annotations

from dataclasses import dataclass
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

    def connect(self) -> Api:
        """Connect to the API: it is where this is called first that it is needed."""
        from kproxylat.cluster.api import connect

        return connect(self.kubeconfig, self.context, getattr(self, "namespace", None))


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
        typer.Option("--allow", metavar="SETTING", help="What may be set for the run, and back: net.ipv4.ip_forward."),
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
        names = ("kubeconfig", "context", "namespace", "service", "port")
        cluster: dict[str, Any] = {name: getattr(self, name) for name in names}
        if lab:
            node: dict[str, Any] = {name: getattr(self, name) or None for name in ("netns", "node_container", "allow")}
            refuse_options("--lab makes its own node, without a cluster", "leave out --lab", **node, **cluster)
        elif target is not None:
            refuse_options("with --target no cluster is asked", "leave out --target", **cluster)
