"""A node: its object in the API, and what ip(8) lists on it."""

from __future__ import annotations

from typing import Any

BRIDGE = {"dst": "10.244.1.0/24", "dev": "cni0", "scope": "link"}
ADDRESSES = [{"ifname": "eth0", "addr_info": [{"family": "inet", "local": "192.0.2.2"}]}]


def node_of(name: str, address: str, *pod_cidrs: str) -> dict[str, Any]:
    spec = {"podCIDR": pod_cidrs[0], "podCIDRs": list(pod_cidrs)} if pod_cidrs else {}
    status = {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address}]}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec, "status": status}
