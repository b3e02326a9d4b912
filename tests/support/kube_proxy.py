"""kube-proxy's objects, as kubeadm makes them."""

from __future__ import annotations

import copy
import json
from typing import Any

from tests.support import TESTS

RECORDED = TESTS / "kube-api"
CONFIGMAP = json.loads((RECORDED / "configmap-kube-proxy.json").read_text())
DAEMONSET = json.loads((RECORDED / "daemonset-kube-proxy.json").read_text())
NODE = json.loads((RECORDED / "node.json").read_text())
CONFIG = CONFIGMAP["data"]["config.conf"]


def configmap(name: str = "kube-proxy", **data: str) -> dict[str, Any]:
    return {**copy.deepcopy(CONFIGMAP), "metadata": {"name": name, "namespace": "kube-system"}, "data": data}


def daemonset(command: list[str], volume: str = "kube-proxy", name: str = "kube-proxy") -> dict[str, Any]:
    found = copy.deepcopy(DAEMONSET)
    found["metadata"]["name"] = name
    spec = found["spec"]["template"]["spec"]
    spec["containers"][0] |= {"command": command, "name": name}
    spec["volumes"][0]["configMap"]["name"] = volume
    return found
