"""A worker Service with a TCP and a UDP port, and a Deployment behind it, for clusters that have no such Service."""

from __future__ import annotations

from collections.abc import Iterator

from kproxylat.cluster.api import APPLY_PATCH, Api, join_path
from kproxylat.cluster.kubeconfig import Object
from kproxylat.cluster.target import SERVICE
from kproxylat.errors import MachineError
from kproxylat.lab.services import WORKER_PORT

MANAGER = "kproxylat"
OURS = {"app.kubernetes.io/managed-by": MANAGER}
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 65534,
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""The security context that a namespace with the Pod Security Standard "restricted" requires."""
IMAGE = "registry.k8s.io/e2e-test-images/agnhost:2.53"
"""Kubernetes' own test image: ``netexec`` listens on TCP and UDP."""


def documents(image: str) -> list[Object]:
    """Return the Deployment and the Service."""
    labels = {"app": SERVICE}
    ports = [{"name": "grpc", "protocol": "TCP"}, {"name": "grpc-udp", "protocol": "UDP"}]
    container = {
        "name": SERVICE,
        "image": image,
        "args": ["netexec", f"--http-port={WORKER_PORT}", f"--udp-port={WORKER_PORT}"],
        "ports": [{**port, "containerPort": WORKER_PORT} for port in ports],
        "securityContext": RESTRICTED,
    }
    deployment = {
        "replicas": 1,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
    }
    service = {
        "selector": labels,
        "ports": [{**port, "port": WORKER_PORT, "targetPort": WORKER_PORT} for port in ports],
    }
    meta = {"name": SERVICE, "labels": {**labels, **OURS}}
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": deployment},
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service},
    ]


def _path(api: Api, document: Object) -> str:
    version = document["apiVersion"]
    root = "/api" if "/" not in version else "/apis"
    return join_path(f"{root}/{version}/namespaces", api.namespace, f"{document['kind'].lower()}s", SERVICE)


def apply_worker(api: Api, image: str = IMAGE) -> None:
    """Create or repair the worker, by server-side apply.

    :param image: the image of the Deployment's container.
    :raises MachineError: another client created such a Service or Deployment.
    """
    find_worker(api)
    for document in documents(image):
        api.request("PATCH", _path(api, document), document, {"fieldManager": MANAGER}, APPLY_PATCH)


def _list_existing(api: Api) -> Iterator[Object]:
    """Yield the worker's objects that exist.

    :raises MachineError: another client created one.
    """
    for document in documents(IMAGE):
        existing = api.find(_path(api, document))
        if existing and not OURS.items() <= (existing["metadata"].get("labels") or {}).items():
            raise MachineError(
                f"kproxylat did not create {document['kind']} {api.namespace}/{SERVICE}: it is not touched",
                "measure it as it is, or use another namespace (-n)",
            )
        if existing:
            yield document | existing


def find_worker(api: Api) -> list[str]:
    """Return the kinds of the worker's objects that exist.

    :raises MachineError: another client created such a Service or Deployment.
    """
    return [existing["kind"] for existing in _list_existing(api)]


def find_service(api: Api) -> Object | None:
    """Return the worker's Service, with the addresses that the server chose; None if it does not exist."""
    return api.find(_path(api, documents(IMAGE)[1]))


def delete_worker(api: Api) -> int:
    """Delete the worker that :func:`apply_worker` created.

    :return: the number of deleted objects.
    :raises MachineError: another client created such a Service or Deployment.
    """
    return sum(api.delete(_path(api, one), uid=one["metadata"]["uid"]) for one in _list_existing(api))
