"""Options that several commands have; a dataclass of them stands for all of its fields in a command's parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from kproxylat.cluster import Api
    from kproxylat.nodes import Node


class Format(StrEnum):
    """How a result is written to stdout."""

    TABLE = "table"
    JSON = "json"


@dataclass(frozen=True)
class Cluster:
    """Which cluster's API."""

    kubeconfig: Annotated[
        Path | None, typer.Option("--kubeconfig", help="As kubectl has it (KUBECONFIG, ~/.kube/config).")
    ] = None
    context: Annotated[str | None, typer.Option("--context", help="The kubeconfig's context (the current one).")] = None

    def connect(self) -> Api:
        """Connect to the API: it is where this is called first that it is needed."""
        from kproxylat.cluster import connect

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
        from kproxylat.nodes import find_node

        return find_node(self.netns, self.node_container)


@dataclass(frozen=True)
class OnNode(Namespaced, Place):
    """What is measured on a node of a cluster, and how."""

    service: Annotated[str, typer.Option("--service", help="The Service to measure.")] = "worker"
    port: Annotated[str | None, typer.Option("--port", help="Its port, by number or name, if it has several.")] = None
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="SETTING", help="What may be set for the run, and back: net.ipv4.ip_forward."),
    ] = None


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take dataclasses of options, which typer does not know: each of their fields becomes an option."""
    parameters: list[inspect.Parameter] = []
    shared: dict[str, Any] = {}
    for each in inspect.signature(command, eval_str=True).parameters.values():
        if is_dataclass(each.annotation):
            hints = get_type_hints(each.annotation, include_extras=True)
            shared[each.name] = each.annotation
            parameters += [
                inspect.Parameter(one.name, each.KEYWORD_ONLY, default=one.default, annotation=hints[one.name])
                for one in fields(each.annotation)
            ]
        else:
            parameters.append(each.replace(kind=each.KEYWORD_ONLY))

    @wraps(command)
    def called(**values: Any) -> None:
        made = {name: kind(**{one.name: values.pop(one.name) for one in fields(kind)}) for name, kind in shared.items()}
        command(**values, **made)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called
