"""A node without a cluster: the rules that kube-proxy would write for N dummy Services and the worker."""

from __future__ import annotations

from base64 import b32encode
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address

from kproxylat.errors import UsageError
from kproxylat.results import join_host_port


@dataclass(frozen=True)
class Addresses:
    """A cluster's addresses of one IP family.

    :param source: a part of ``cluster_cidr`` without endpoints, to send from.
    :param dummy_ip: the first dummy's ClusterIP.
    :param dummy_endpoint: the first dummy's endpoint.
    """

    cluster_cidr: str
    service_cidr: str
    node_ip: str
    worker_ip: str
    endpoint_ip: str
    source: str
    dummy_ip: IPv4Address | IPv6Address
    dummy_endpoint: IPv4Address | IPv6Address


ADDRESSES = {
    4: Addresses(
        cluster_cidr="10.244.0.0/16",
        service_cidr="10.96.0.0/12",
        node_ip="10.99.0.2",
        worker_ip="10.96.100.50",
        endpoint_ip="10.244.1.10",
        source="10.244.128.0/17",
        dummy_ip=IPv4Address("10.97.0.1"),
        dummy_endpoint=IPv4Address("10.245.0.1"),
    ),
    6: Addresses(
        cluster_cidr="fd00:10:244::/56",
        service_cidr="fd00:10:96::/108",
        node_ip="fd00:10:99::2",
        worker_ip="fd00:10:96::50",
        endpoint_ip="fd00:10:244:1::10",
        source="fd00:10:244:80::/64",
        dummy_ip=IPv6Address("fd00:10:96::1:1"),
        dummy_endpoint=IPv6Address("fd00:10:245::1:1"),
    ),
}
"""IP family -> the lab's addresses."""
WORKER_PORT = 50051
NODE_PORT = 30051
"""The worker's NodePort, of both protocols."""
POSITIONS = ("first", "middle", "last")
WORKER_PORTS = {"both": ("tcp", "udp"), "tcp": ("tcp",), "udp": ("udp",)}
MAX_SERVICES = 60_000
MAX_ENDPOINTS = 200
"""Endpoints of a Service: the worker's have consecutive addresses in the backend's network."""
MAX_ENDPOINTS_IN_ALL = 500_000
LARGE_CLUSTER = 1000
"""Endpoints above which kube-proxy leaves the comments out of the endpoint rules that it writes from then on; those
that stand keep theirs (Kubernetes, pkg/proxy/iptables/proxier.go, largeClusterEndpointsThreshold)."""


def _hash(text: str, length: int) -> str:
    """Kubernetes, pkg/proxy/iptables/proxier.go (portProtoHash), pkg/proxy/nftables/proxier.go (hashAndTruncate)."""
    # Eight letters for each five bytes: encoding the rest would take most of a large ruleset's time.
    return b32encode(sha256(text.encode()).digest()[: length * 5 // 8]).decode()


@dataclass(frozen=True)
class Service:
    """One port of a Service.

    :param port_name: ``namespace/name:port``.
    :param protocol: lower case.
    :param endpoints: the endpoints, as ``IP:PORT``.
    :param commented: whether the rules of the endpoints have comments, in mode iptables.
    :param affinity: whether the packets of a client go to the same endpoint (``sessionAffinity: ClientIP``).
    :param node_port: the port of the node's own addresses that leads to the endpoints, too (0: none).
    """

    port_name: str
    protocol: str
    ip: str
    port: int
    endpoints: tuple[str, ...]
    commented: bool = True
    affinity: bool = False
    node_port: int = 0

    @cached_property
    def svc_chain(self) -> str:
        """The chain that picks an endpoint, in mode iptables."""
        return "KUBE-SVC-" + _hash(self.port_name + self.protocol, 16)

    @property
    def ext_chain(self) -> str:
        """The chain of packets to the NodePort, in mode iptables."""
        return self.svc_chain.replace("SVC", "EXT", 1)

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
    def external_chain(self) -> str:
        """The chain of packets to the NodePort, in mode nftables."""
        return self.nft_chain.replace("service", "external", 1)

    def endpoint_chain(self, ip: str, port: str) -> str:
        """The chain that translates to one endpoint, in mode nftables: up to kube-proxy 1.35, or with affinity."""
        return f"endpoint-{self._name_endpoint(ip, port)}"

    def affinity_set(self, ip: str, port: str) -> str:
        """The set of the clients of one endpoint, in mode nftables."""
        return f"affinity-{self._name_endpoint(ip, port)}"

    def _name_endpoint(self, ip: str, port: str) -> str:
        name, _, port_name = self.port_name.partition(":")
        # A colon is not allowed in a chain's name.
        text = f"{name}/{self.protocol}/{port_name}__{ip.replace(':', '.')}/{port}"
        return f"{_hash(text, 8)}-{text}"

    @property
    def address(self) -> str:
        """``IP:PORT``."""
        return join_host_port(self.ip, self.port)

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """Address and port of each endpoint."""
        return [(ip.strip("[]"), port) for ip, _, port in (endpoint.rpartition(":") for endpoint in self.endpoints)]

    @property
    def hairpins(self) -> list[str]:
        """Elements of mode nftables' set hairpin-connections: an endpoint that talks to itself."""
        return [f"{ip} . {ip} . {self.protocol} . {port}" for ip, port in self.pairs]

    @property
    def loop_backs(self) -> list[str]:
        """The same as elements of mode ipvs' set KUBE-LOOP-BACK."""
        return [f"{ip},{self.protocol}:{port},{ip}" for ip, port in self.pairs]


@lru_cache(None)
def dummy_service(
    number: int, commented: bool = True, family: int = 4, endpoints: int = 1, affinity: bool = False
) -> Service:
    """Return the dummy Service of a number from 0 on: dummy-service-<number>, one TCP port.

    The cache keeps the names of its chains, which a sweep needs for each backend and number of Services.
    """
    # 250 to 256 addresses, so that none ends in 0 or 255.
    offset = number // 250 * 256 + number % 250
    ip, first = str(ADDRESSES[family].dummy_ip + offset), ADDRESSES[family].dummy_endpoint + offset
    # Each dummy Service has the same place in the network of its first, second, ... endpoint.
    ips = (str(first + (place << 16)) for place in range(endpoints))
    name = f"default/dummy-service-{number}:http"
    return Service(name, "tcp", ip, 80, tuple(join_host_port(ip, 80) for ip in ips), commented, affinity)


def list_worker_endpoints(family: int = 4, endpoints: int = 1) -> list[str]:
    """Return the addresses of the worker's endpoints."""
    first = ip_address(ADDRESSES[family].endpoint_ip)
    return [str(first + place) for place in range(endpoints)]


def worker_services(
    ports: str, family: int = 4, endpoints: int = 1, affinity: bool = False, has_node_port: bool = False
) -> list[Service]:
    """Return the worker's ports: gRPC over TCP, and the same over UDP for pktgen to hit.

    :param ports: "both", "tcp" or "udp". ``has_node_port``: whether each has :data:`NODE_PORT`.
    """
    names, ip = {"tcp": "grpc", "udp": "grpc-udp"}, ADDRESSES[family].worker_ip
    pods = tuple(join_host_port(pod, WORKER_PORT) for pod in list_worker_endpoints(family, endpoints))
    node_port = NODE_PORT if has_node_port else 0
    return [
        Service(
            f"default/worker:{names[protocol]}", protocol, ip, WORKER_PORT, pods, affinity=affinity, node_port=node_port
        )
        for protocol in WORKER_PORTS[ports]
    ]


def place_services(
    count: int,
    position: str,
    ports: str,
    family: int = 4,
    endpoints: int = 1,
    affinity: bool = False,
    has_node_port: bool = False,
) -> list[Service]:
    """Return the worker among ``count`` dummy Services, in the order of KUBE-SERVICES, as in a cluster that grew from
    the worker on.

    :param position: the worker's place: "first", "middle" or "last" (of its ports, the UDP one outermost).
    :param ports: the worker's ports: "both", "tcp" or "udp".
    :param family: the addresses' IP family, 4 or 6.
    :param endpoints: the number of endpoints of each Service; ``affinity``: whether the Services have session affinity.
    :param has_node_port: whether the worker has a NodePort.
    :raises UsageError: see :func:`check_services`.
    """
    check_services(count, position, ports, endpoints)
    worker = worker_services(ports, family, endpoints, affinity, has_node_port)
    dummies = [
        dummy_service(number, (number + 1 + len(worker)) * endpoints <= LARGE_CLUSTER, family, endpoints, affinity)
        for number in range(count)
    ]
    before = {"first": 0, "middle": count // 2, "last": count}[position]
    return dummies[:before] + (worker[::-1] if position == "first" else worker) + dummies[before:]


def check_services(count: int, position: str, ports: str, endpoints: int = 1) -> None:
    """Check arguments of :func:`place_services`.

    :raises UsageError: the position, the ports, the count or the number of endpoints is invalid.
    """
    if position not in POSITIONS:
        raise UsageError(f"unknown position {position!r}", f"it takes one of: {', '.join(POSITIONS)}")
    if ports not in WORKER_PORTS:
        raise UsageError(f"unknown worker ports {ports!r}", f"--worker-ports takes one of: {', '.join(WORKER_PORTS)}")
    if not 0 <= count <= MAX_SERVICES:
        raise UsageError(f"{count} Services are not possible", f"--services takes 0 to {MAX_SERVICES}")
    if not 1 <= endpoints <= MAX_ENDPOINTS:
        raise UsageError(f"{endpoints} endpoints are not possible", f"--endpoints takes 1 to {MAX_ENDPOINTS}")
    if count * endpoints > MAX_ENDPOINTS_IN_ALL:
        raise UsageError(
            f"{count} Services with {endpoints} endpoints each are too many",
            f"fewer Services or --endpoints: {MAX_ENDPOINTS_IN_ALL} endpoints in all",
        )
