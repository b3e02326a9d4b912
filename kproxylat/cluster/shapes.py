"""The types of what kproxylat reads of Kubernetes' objects: a server may answer anything. Pure.

No member has another type in another kind, so that one table serves all. A member that is missing or null is as if it
were not there; what code asks for all the same ends in an error of its own (:func:`.transport.parse_object`).
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from kproxylat.results_json import HALF_CHARACTER

_CONDITIONS = [{"type": "text", "status": "text", "reason": "text", "message": "text"}]
_PORT = {"name": "text", "protocol": "text", "port": "port", "nodePort": "port"}
_META = {
    **dict.fromkeys(("name", "namespace", "uid", "resourceVersion", "continue"), "text"),
    "generation": "number",
    "labels": {"*": "text"},
    "annotations": {"*": "text"},
    "ownerReferences": [{"uid": "text"}],
    "managedFields": [{"time": "text", "subresource": "text"}],
}
_CONTAINER = {
    **dict.fromkeys(("name", "image"), "text"),
    "command": ["text"],
    "args": ["text"],
    "volumeMounts": [{"mountPath": "text", "name": "text"}],
}
_POD = {
    "nodeName": "text",
    "nodeSelector": {"*": "text"},
    "containers": [_CONTAINER],
    "volumes": [{"name": "text", "configMap": {"name": "text"}, "hostPath": {"path": "text"}}],
}
_ENDED = {"reason": "text", "message": "text", "exitCode": "number"}
SHAPE = {
    "metadata": _META,
    "spec": {
        **dict.fromkeys(("type", "internalTrafficPolicy", "externalTrafficPolicy", "podCIDR"), "text"),
        "clusterIP": "ip",
        "clusterIPs": ["ip"],
        "externalIPs": ["text"],
        "podCIDRs": ["text"],
        "ipFamilies": ["text"],
        "ports": [_PORT],
        "updateStrategy": {"type": "text"},
        "activeDeadlineSeconds": "number",
        "template": {"spec": _POD},
        **_POD,
    },
    "status": {
        **dict.fromkeys(("phase", "reason", "message"), "text"),
        **dict.fromkeys(("observedGeneration", "desiredNumberScheduled"), "number"),
        **dict.fromkeys(("updatedNumberScheduled", "numberAvailable", "numberReady"), "number"),
        "conditions": _CONDITIONS,
        "addresses": [{"type": "text", "address": "text"}],
        "podIPs": [{"ip": "ip"}],
        "loadBalancer": {"ingress": [{"ip": "text"}]},
        "containerStatuses": [{"state": {"waiting": _ENDED, "terminated": _ENDED}}],
    },
    "data": {"*": "text"},
    "addressType": "text",
    "ports": [_PORT],
    "endpoints": [
        {
            "addresses": ["text"],
            "nodeName": "text",
            "conditions": dict.fromkeys(("ready", "serving", "terminating"), "truth"),
        }
    ],
    **dict.fromkeys(("message", "reason"), "text"),
}
"""Member -> its shape: a kind of :data:`_KINDS`, a list of a shape, or members ("*": any name)."""
_KINDS: dict[str, tuple[type, str]] = {
    "text": (str, "a text"),
    "ip": (str, "an IP address"),
    "number": (int, "an integer"),
    "port": (int, "a port"),
    "truth": (bool, "true or false"),
}
"""Kind -> its type in JSON, and what it is called."""


def find_misfit(document: dict[str, Any]) -> str:
    """Return what of an object or a list has another type than in Kubernetes, e.g. ``spec.ports: not a list``.

    :return: "" if all is well.
    """
    return _find(document, {**SHAPE, "items": [SHAPE]}, "")


def _find(value: Any, shape: Any, path: str) -> str:
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{path}: not an object"
        names = value if "*" in shape else shape.keys() & value.keys()
        parts = ((f"{path}.{name}", value[name], shape.get(name, shape.get("*"))) for name in names)
        return next((found for at, part, kind in parts if part is not None and (found := _find(part, kind, at))), "")
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{path}: not a list"
        return next((found for at, part in enumerate(value) if (found := _find(part, shape[0], f"{path}[{at}]"))), "")
    kind, name = _KINDS[shape]
    is_right = type(value) is kind
    if is_right and shape == "port":
        is_right = 0 <= value < 1 << 16
    elif is_right and shape == "text":
        is_right = not HALF_CHARACTER.search(value)
    elif is_right and shape == "ip" and value not in ("", "None"):
        is_right = _is_address(value)
    return "" if is_right else f"{path}: not {name}"


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
