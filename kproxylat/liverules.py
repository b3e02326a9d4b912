"""The Service rules that the kernel holds now, of every mode and backend, and what the running kube-proxy says.

Looking changes nothing: ``iptables-legacy -t nat -S`` would create the table that it looks for, so only tables that are
there are listed.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from kproxylat.detect import parse_elements
from kproxylat.errors import CommandError, MachineError
from kproxylat.iptables_save import read_chain
from kproxylat.model import Destination
from kproxylat.proc import call_inside, run

METRICS_PORT = 10249
LINK = "kube-ipvs0"
"""The link that mode ipvs gives every Service's address, but NodePorts'."""
PROBE_S = 2.0
_SERVICE_CHAINS = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-")
"""Chains of ClusterIPs, external addresses and load balancers: map service-ips holds all of these."""


@dataclass(frozen=True)
class LiveRules:
    """What the kernel holds of one mode on one backend.

    :param rules: rules of KUBE-SERVICES in table nat, elements of service-ips, or virtual servers.
    :param services: the Service ports that are translated -> packets counted (None: these rules don't count).
    """

    mode: str
    backend: str
    rules: int
    services: Mapping[Destination, int | None] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.mode if self.mode == self.backend else f"{self.mode} on {self.backend}"


def parse_nat(text: str, backend: str) -> LiveRules | None:
    """Read table nat as ``iptables-save -c -t nat`` prints it.

    Sample::

        [7:420] -A KUBE-SERVICES -d 10.96.100.50/32 -p tcp -m comment --comment "default/worker:grpc cluster IP" -m tcp
        --dport 50051 -j KUBE-SVC-NSEVGQHS4O2VOO3X

    :return: None where no Service rules are: empty base chains and KUBE-FIREWALL stay behind after a switch. In mode
        ipvs, too, whose KUBE-SERVICES looks addresses up in an ipset.
    """
    rules = read_chain(text, "KUBE-SERVICES")
    if not rules or any("--match-set" in rule.text for rule in rules):
        return None
    services = {
        service: rule.packets or 0
        for rule in rules
        if rule.jump.startswith(_SERVICE_CHAINS) and (service := rule.service)
    }
    return LiveRules("iptables", backend, len(rules), services)


def parse_service_ips(text: str) -> LiveRules | None:
    """Read map service-ips, as :func:`kproxylat.detect.parse_elements` does.

    :return: None where it has no element.
    """
    services = dict.fromkeys(parse_elements(text))
    return LiveRules("nftables", "nft", len(services), services) if services else None


def parse_ip_vs(text: str) -> LiveRules | None:
    """Read /proc/net/ip_vs (kernel, net/netfilter/ipvs/ip_vs_ctl.c, ip_vs_info_seq_show).

    Sample: ``TCP  0A600001:01BB rr``, the address and port in hexadecimal; ``TCP  [fd00:0010:...:0001]:01BB rr``. One
    that no ``  -> 0A630002:192B`` follows has no endpoint, and translates nothing.
    """
    server = r"^(TCP|UDP|SCTP) +([0-9A-F]{8}|\[[0-9a-f:]+\]):([0-9A-F]{4}) .*"
    lines = re.findall(server, text, re.M)
    services = {
        Destination(str(ip_address(ip[1:-1] if ip[0] == "[" else int(ip, 16))), int(port, 16), protocol.lower()): None
        for protocol, ip, port in re.findall(rf"{server}\n +->", text, re.M)
    }
    return LiveRules("ipvs", "ipvs", len(lines), services) if lines else None


def read_live_rules(netns: str | None = None) -> tuple[LiveRules, ...]:
    """Look at every backend's rules of a network namespace (None: ours): IPv4's and IPv6's together.

    kube-proxy writes a few rules of both families, whatever the cluster has.

    :raises MachineError: we are not root, or a backend holds tables whose program is missing.
    """
    if os.geteuid() != 0:
        raise MachineError("reading the kernel's rules takes root", "run it with sudo on a node")
    tables = run("nft", "list", "tables", netns=netns).splitlines()
    ip_vs = parse_ip_vs(run("cat", "/proc/net/ip_vs", netns=netns, ok=(0, 1)))
    merged: dict[str, LiveRules] = {}
    for each in [*_read_family("ip", tables, netns), *_read_family("ip6", tables, netns), ip_vs]:
        if each:
            one = merged.setdefault(str(each), LiveRules(each.mode, each.backend, 0))
            merged[str(each)] = replace(one, rules=one.rules + each.rules, services={**one.services, **each.services})
    return tuple(merged.values())


def _read_family(ip: str, tables: Sequence[str], netns: str | None) -> Iterator[LiveRules | None]:
    if "nat" in run("cat", f"/proc/net/{ip}_tables_names", netns=netns, ok=(0, 1)).split():
        yield parse_nat(run(f"{ip}tables-legacy-save", "-c", "-t", "nat", netns=netns), "legacy")
    if f"table {ip} nat" in tables:
        yield parse_nat(run(f"{ip}tables-nft-save", "-c", "-t", "nat", netns=netns), "nft")
    if f"table {ip} kube-proxy" in tables:
        yield _read_service_ips(ip, netns)


def _read_service_ips(ip: str, netns: str | None) -> LiveRules | None:
    try:
        return parse_service_ips(run("nft", "--json", "list", "map", ip, "kube-proxy", "service-ips", netns=netns))
    except CommandError as error:
        if "No such file" in error.output:
            return None
        raise


def read_proxy(path: str, port: int = METRICS_PORT, netns: str | None = None) -> str:
    """Ask the kube-proxy that runs on this machine (its ``metricsBindAddress``): /proxyMode, /metrics.

    :param netns: the node's network namespace (None: ours).
    :raises MachineError: none answers.
    """
    return call_inside(netns, lambda: _read_proxy(path, port))


def _read_proxy(path: str, port: int) -> str:
    connection = http.client.HTTPConnection("localhost", port, timeout=PROBE_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        said = getattr(error, "strerror", None) or type(error).__name__
        raise MachineError(f"no kube-proxy answers on port {port} of this machine: {said}") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise MachineError(f"port {port} of this machine answers {answer.status} to {path}")
    return text


def probe(rules: Iterable[LiveRules], netns: str | None = None) -> frozenset[str]:
    """Open a connection to a Service that several backends have, and see whose rule counts it.

    Only a difference tells: rules that were left behind keep their old counts, those in use lose theirs at a sync.
    It opens one TCP connection to a ClusterIP, which is the one thing here that is more than looking.

    :return: names of the :class:`LiveRules` that counted it.
    :raises MachineError: no packet could be sent, or the rules were written anew in between.
    """
    before = tuple(rules)
    shared = set.intersection(*(set(each.services) for each in before)) if before else set()
    target = min((each for each in shared if each.protocol == "tcp"), default=None)
    if target is None:
        raise MachineError("no TCP Service is in all of these rules")
    try:
        call_inside(netns, lambda: socket.create_connection((target.ip, target.port), PROBE_S).close())
    except (ConnectionRefusedError, ConnectionResetError, TimeoutError):
        pass  # Its first packet was looked up all the same.
    except OSError as error:
        raise MachineError(f"no packet could be sent to {target}: {error.strerror}; has the node a route?") from None
    after = {str(each): each.services.get(target) for each in read_live_rules(netns)}
    added = {str(each): (after.get(str(each)) or 0) - (each.services[target] or 0) for each in before}
    if min(added.values()) < 0:
        raise MachineError("kube-proxy wrote its rules anew in between: try again")
    return frozenset(name for name, packets in added.items() if packets)
