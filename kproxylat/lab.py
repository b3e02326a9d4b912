"""A node without a cluster: the rules that kube-proxy would write for N dummy Services and the worker."""

from __future__ import annotations

from base64 import b32encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from kproxylat.errors import UsageError
from kproxylat.modes import Mode
from kproxylat.proc import run
from kproxylat.render import render_rules

CLUSTER_CIDR = "10.244.0.0/16"
SERVICE_CIDR = "10.96.0.0/12"
NODE_IP = "10.99.0.2"
WORKER_IP = "10.96.100.50"
WORKER_PORT = 50051
ENDPOINT_IP = "10.244.1.10"
POSITIONS = ("first", "middle", "last")
WORKER_PORTS = {"both": ("tcp", "udp"), "tcp": ("tcp",), "udp": ("udp",)}
MAX_SERVICES = 60_000
LARGE_CLUSTER = 1000
"""Endpoints above which kube-proxy leaves the comments out of the endpoint rules that it writes from then on; those
that stand keep theirs (Kubernetes, pkg/proxy/iptables/proxier.go, largeClusterEndpointsThreshold)."""


def _hash(text: str, length: int) -> str:
    """Kubernetes, pkg/proxy/iptables/proxier.go (portProtoHash), pkg/proxy/nftables/proxier.go (hashAndTruncate)."""
    return b32encode(sha256(text.encode()).digest()).decode()[:length]


@dataclass(frozen=True)
class Service:
    """One port of a Service.

    :param port_name: ``namespace/name:port``.
    :param protocol: lower case.
    :param endpoints: ``IP:PORT`` each.
    :param commented: whether the rules of its endpoints have comments, in mode iptables.
    """

    port_name: str
    protocol: str
    ip: str
    port: int
    endpoints: tuple[str, ...]
    commented: bool = True

    @cached_property
    def svc_chain(self) -> str:
        """The chain that picks an endpoint, in mode iptables."""
        return "KUBE-SVC-" + _hash(self.port_name + self.protocol, 16)

    def sep_chain(self, endpoint: str) -> str:
        """The chain that translates to one endpoint, in mode iptables."""
        return "KUBE-SEP-" + _hash(self.port_name + self.protocol + endpoint, 16)

    @cached_property
    def nft_chain(self) -> str:
        """The chain that picks an endpoint, in mode nftables."""
        name, _, port = self.port_name.partition(":")
        text = f"{name}/{self.protocol}/{port}"
        return f"service-{_hash(text, 8)}-{text}"

    @property
    def hairpins(self) -> list[str]:
        """Elements of mode nftables' set hairpin-connections: an endpoint that talks to itself."""
        pairs = [each.rsplit(":", 1) for each in self.endpoints]
        return [f"{ip} . {ip} . {self.protocol} . {port}" for ip, port in pairs]


def dummy_service(number: int, commented: bool = True) -> Service:
    """Return the dummy Service of a number from 0 on: dummy-service-<number>, one TCP port, one endpoint."""
    address = f"{number // 250}.{number % 250 + 1}"
    name = f"default/dummy-service-{number}:http"
    return Service(name, "tcp", f"10.97.{address}", 80, (f"10.245.{address}:80",), commented)


def worker_services(ports: str) -> list[Service]:
    """Return the worker's ports: gRPC over TCP, and the same over UDP for pktgen to hit.

    :param ports: "both", "tcp" or "udp".
    """
    names = {"tcp": "grpc", "udp": "grpc-udp"}
    endpoint = f"{ENDPOINT_IP}:{WORKER_PORT}"
    return [
        Service(f"default/worker:{names[each]}", each, WORKER_IP, WORKER_PORT, (endpoint,))
        for each in WORKER_PORTS[ports]
    ]


def place_services(count: int, position: str, ports: str) -> list[Service]:
    """Return the worker among ``count`` dummy Services, in the order of KUBE-SERVICES, as in a cluster that grew from
    the worker on.

    :param position: where the worker stands: "first", "middle" or "last" (of its ports, the UDP one outermost).
    :raises UsageError: another position, or an impossible count.
    """
    if position not in POSITIONS:
        raise UsageError(f"unknown position {position!r}", f"it takes one of: {', '.join(POSITIONS)}")
    if ports not in WORKER_PORTS:
        raise UsageError(f"unknown worker ports {ports!r}", f"--worker-ports takes one of: {', '.join(WORKER_PORTS)}")
    if not 0 <= count <= MAX_SERVICES:
        raise UsageError(f"{count} Services are not possible", f"--services takes 0 to {MAX_SERVICES}")
    worker = worker_services(ports)
    dummies = [dummy_service(number, number + len(worker) < LARGE_CLUSTER) for number in range(count)]
    before = {"first": 0, "middle": count // 2, "last": count}[position]
    return dummies[:before] + (worker[::-1] if position == "first" else worker) + dummies[before:]


def render_ruleset(mode: Mode, services: Sequence[Service]) -> str:
    """Render what kube-proxy 1.36 writes for these Services: text for iptables-restore or ``nft -f``."""
    return render_rules(
        mode.name,
        {
            "services": services,
            "cluster_cidr": CLUSTER_CIDR,
            "service_cidr": SERVICE_CIDR,
            "node_ip": NODE_IP,
        },
    )


def load_ruleset(mode: Mode, ruleset: str, netns: str) -> None:
    """Load a ruleset into a network namespace.

    :raises CommandError: the tool refuses it.
    """
    if mode.name == "nftables":
        run("nft", "-f", "-", netns=netns, stdin=ruleset)
        return
    # kube-proxy makes this counter, which its rule in KUBE-FORWARD names.
    run("nfacct", "add", "ct_state_invalid_dropped_pkts", netns=netns)
    run(f"iptables-{mode.backend}-restore", netns=netns, stdin=ruleset)
