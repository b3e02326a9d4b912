"""A worker Service with a TCP and a UDP port, and a Deployment behind it, for clusters that have no such Service."""

from __future__ import annotations

from kproxylat.cluster import APPLY_PATCH, Api, Object
from kproxylat.errors import ApiError, MachineError
from kproxylat.lab import WORKER_PORT
from kproxylat.target import SERVICE

MANAGER = "kproxylat"
OURS = {"app.kubernetes.io/managed-by": MANAGER}
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 65534,
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""What a namespace asks for that enforces the Pod Security Standard "restricted"."""
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
        "ports": [{**each, "containerPort": WORKER_PORT} for each in ports],
        "securityContext": RESTRICTED,
    }
    deployment = {
        "replicas": 1,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
    }
    service = {
        "selector": labels,
        "ports": [{**each, "port": WORKER_PORT, "targetPort": WORKER_PORT} for each in ports],
    }
    meta = {"name": SERVICE, "labels": {**labels, **OURS}}
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": deployment},
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service},
    ]


def _path(api: Api, document: Object) -> str:
    version = document["apiVersion"]
    root = "/api" if "/" not in version else "/apis"
    return f"{root}/{version}/namespaces/{api.namespace}/{document['kind'].lower()}s/{SERVICE}"


def apply_worker(api: Api, image: str = IMAGE) -> None:
    """Make the worker, or make it again what it should be, by server-side apply.

    :raises MachineError: there is a worker that is not ours.
    """
    for document in documents(image):
        _is_ours(api, document, None)
    for document in documents(image):
        api.request("PATCH", _path(api, document), document, {"fieldManager": MANAGER}, APPLY_PATCH)


def read_service(api: Api) -> Object:
    """Read the worker's Service, which has its addresses by then.

    :raises ApiError: it is not there.
    """
    return api.get(_path(api, documents(IMAGE)[1]))


def delete_worker(api: Api) -> int:
    """Delete the worker that :func:`apply_worker` made.

    :return: how many objects were there.
    :raises MachineError: there is a worker that is not ours.
    """
    deleted = 0
    for document in documents(IMAGE):
        there = api.find(_path(api, document))
        if there is None:
            continue
        _is_ours(api, document, there)
        body = {"propagationPolicy": "Background", "preconditions": {"uid": there["metadata"]["uid"]}}
        try:
            api.request("DELETE", _path(api, document), {"apiVersion": "v1", "kind": "DeleteOptions", **body})
            deleted += 1
        except ApiError as error:
            if error.status != 404:
                raise
    return deleted


def _is_ours(api: Api, document: Object, there: Object | None) -> None:
    there = there or api.find(_path(api, document))
    if there and not OURS.items() <= (there["metadata"].get("labels") or {}).items():
        raise MachineError(
            f"{document['kind']} {api.namespace}/{SERVICE} is there, and not kproxylat's: it is not touched",
            "measure it as it is, or use another namespace (-n)",
        )
