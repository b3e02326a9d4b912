"""The Service rules in the node's kernel, of every mode and backend, and the running kube-proxy's own answers.

Reading changes nothing: ``iptables-legacy -t nat -S`` would create a missing table, so only existing tables are listed.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from ipaddress import ip_address

from kproxylat.errors import CommandError, MachineError
from kproxylat.modes import CHAIN, MODES, SERVERS, Mode
from kproxylat.node.iptables_save import read_chain
from kproxylat.node.service_rule import call_nft, parse_elements
from kproxylat.results import Target
from kproxylat.system import kernel
from kproxylat.system.http import TooLargeError, read_answer
from kproxylat.system.processes import call_inside, run

METRICS_PORT = 10249
PROBE_S = 2.0
ANSWER_S, LARGEST = 10.0, 16 << 20
"""Seconds and bytes of kube-proxy's whole answer; a large node's /metrics has less than 1 MiB."""
_SERVICE_CHAINS = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-")
"""Chains of ClusterIPs, external addresses and load balancers: map service-ips holds all of these."""


@dataclass(frozen=True)
class LiveRules:
    """The rules of one mode on one backend.

    :param rules: the number of rules in KUBE-SERVICES of table nat, elements in service-ips, or virtual servers.
    :param services: Service port that the rules translate -> packets counted (None: the rules have no counters).
    :param owned: the number of all rules in kube-proxy's chains of table nat; 0 in other modes.
    """

    mode: str
    backend: str
    rules: int
    services: Mapping[Target, int | None] = field(default_factory=dict)
    owned: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return self.mode if self.mode == self.backend else f"{self.mode} on {self.backend}"


def parse_nat(text: str, mode: Mode) -> LiveRules | None:
    """Parse table nat, as ``iptables-save -c -t nat`` prints it.

    Sample::

        [7:420] -A KUBE-SERVICES -d 10.96.100.50/32 -p tcp -m comment --comment "default/worker:grpc cluster IP" -m tcp
        --dport 50051 -j KUBE-SVC-NSEVGQHS4O2VOO3X

    :return: None if the table has no Service rules: empty base chains and KUBE-FIREWALL stay after a switch. Also None
        for the rules of mode ipvs, whose KUBE-SERVICES looks addresses up in an ipset.
    """
    rules = read_chain(text, "KUBE-SERVICES")
    if not rules or any("--match-set" in rule.text for rule in rules):
        return None
    services = {
        service: rule.packets or 0
        for rule in rules
        if rule.jump.startswith(_SERVICE_CHAINS) and (service := rule.service)
    }
    owned = len(re.findall(r"^(?:\[[\d:]+\] )?-A KUBE-", text, re.M))
    return LiveRules(mode.name, mode.backend, len(rules), services, owned)


def parse_service_ips(text: str, mode: Mode) -> LiveRules | None:
    """Parse map service-ips, see :func:`kproxylat.node.service_rule.parse_elements`.

    :return: None if the map is empty.
    :raises MachineError: the text has another form.
    """
    services = dict.fromkeys(parse_elements(text))
    return LiveRules(mode.name, mode.backend, len(services), services) if services else None


def parse_ip_vs(text: str, mode: Mode) -> LiveRules | None:
    """Parse /proc/net/ip_vs (kernel, net/netfilter/ipvs/ip_vs_ctl.c, ip_vs_info_seq_show).

    Samples: ``TCP  0A600001:01BB rr``, with address and port in hexadecimal; ``TCP  [fd00:0010:...:0001]:01BB rr``. A
    virtual server without a following line ``  -> 0A630002:192B`` has no endpoint and translates nothing.

    :return: None if there is no virtual server.
    """
    server = r"^(TCP|UDP|SCTP) +([0-9A-F]{8}|\[[0-9a-f:]+\]):([0-9A-F]{4}) .*"
    lines = re.findall(server, text, re.M)
    services = {
        Target(str(ip_address(ip[1:-1] if ip[0] == "[" else int(ip, 16))), int(port, 16), protocol.lower()): None
        for protocol, ip, port in re.findall(rf"{server}\n +->", text, re.M)
    }
    return LiveRules(mode.name, mode.backend, len(lines), services) if lines else None


def read_live_rules(netns: str | None = None) -> tuple[LiveRules, ...]:
    """Return the Service rules of every backend, for IPv4 and IPv6 together.

    kube-proxy always writes a few rules of both families.

    :param netns: the node's network namespace (None: the current one).
    :raises MachineError: kproxylat does not run as root, or the program of an existing table is missing.
    """
    if os.geteuid() != 0:
        raise MachineError("reading the kernel's rules requires root", "run it with sudo on a node")
    merged: dict[str, LiveRules] = {}
    for mode in MODES:
        families = [4] if mode.form == SERVERS else [4, 6]  # one file holds the virtual servers of both families
        for rules in [_read_rules(mode.for_family(family), netns) for family in families]:
            if rules:
                first = merged.get(str(rules), LiveRules(rules.mode, rules.backend, 0))
                services = {**first.services, **rules.services}
                rule_count, owned = first.rules + rules.rules, first.owned + rules.owned
                merged[str(rules)] = replace(first, rules=rule_count, services=services, owned=owned)
    return tuple(merged.values())


def _read_rules(mode: Mode, netns: str | None) -> LiveRules | None:
    if mode.form == SERVERS:
        return parse_ip_vs(run("cat", "/proc/net/ip_vs", netns=netns, ok=(0, 1)), mode)
    if not has_table(mode, netns):
        return None
    if mode.form == CHAIN:
        return parse_nat(run(f"{mode.iptables}-save", "-c", "-t", "nat", netns=netns), mode)
    try:
        listed = call_nft("--json", "list", "map", mode.ip, f"{mode.table}", "service-ips", netns=netns)
    except CommandError as error:
        if "No such file" in error.output:
            return None
        raise
    return parse_service_ips(listed, mode)


def has_table(mode: Mode, netns: str | None) -> bool:
    """Return whether the kernel has the mode's table; looking neither creates it nor loads a module."""
    if not kernel.has_module(mode.module):
        return False
    if mode.module == "nf_tables":
        return f"table {mode.ip} {mode.table}" in call_nft("list", "tables", netns=netns).splitlines()
    return mode.table in run("cat", f"/proc/net/{mode.module}_names", netns=netns, ok=(0, 1)).split()


def read_proxy(path: str, netns: str | None = None) -> str:
    """Return kube-proxy's answer to ``GET path`` on its ``metricsBindAddress``, e.g. to /proxyMode or /metrics.

    :param netns: the node's network namespace (None: the current one).
    :raises MachineError: no kube-proxy answers, or its status is not 200.
    """
    return call_inside(netns, lambda: _read_proxy(path))


def _read_proxy(path: str) -> str:
    port, ends_s, reason = METRICS_PORT, time.monotonic() + ANSWER_S, "no connection"
    try:
        with socket.create_connection(("localhost", port), PROBE_S) as connection:
            # Another program than kube-proxy may listen on the port.
            reason = f"its answer has no end within {LARGEST >> 20} MiB and {ANSWER_S:.0f} s"
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer, _ = read_answer(connection, ends_s, LARGEST, may_end=True)
    except (TimeoutError, TooLargeError):
        raise MachineError(f"no kube-proxy answers on port {port} of this machine: {reason}") from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise MachineError(f"no kube-proxy answers on port {port} of this machine: {reason}") from None
    if answer.status != 200:
        raise MachineError(f"port {port} of this machine answers {answer.status} to {path}")
    return answer.data.decode(errors="replace")


def probe(rules: Iterable[LiveRules], netns: str | None = None) -> frozenset[str]:
    """Open a TCP connection to a Service that all of these rules hold, and find out which of them count its packets.

    Only the increase of a counter is evidence: leftover rules keep their old counts, and a sync resets those in use.
    This is the only function of the module that sends traffic.

    :return: names of the :class:`LiveRules` that counted the packets.
    :raises MachineError: the rules have no TCP Service in common, no packet could be sent, or kube-proxy wrote the
        rules anew meanwhile.
    """
    before = tuple(rules)
    shared = set.intersection(*(set(held.services) for held in before)) if before else set()
    target = min((service for service in shared if service.protocol == "tcp"), default=None)
    if target is None:
        raise MachineError("these rules have no TCP Service in common")
    try:
        call_inside(netns, lambda: socket.create_connection((target.ip, target.port), PROBE_S).close())
    except (ConnectionRefusedError, ConnectionResetError, TimeoutError):
        pass  # The kernel looked up the first packet nevertheless.
    except OSError as error:
        raise MachineError(f"cannot send a packet to {target}: {error.strerror}; has the node a route?") from None
    after = {str(held): held.services.get(target) for held in read_live_rules(netns)}
    added = {str(held): (after.get(str(held)) or 0) - (held.services[target] or 0) for held in before}
    if min(added.values()) < 0:
        raise MachineError("kube-proxy wrote its rules anew meanwhile: try again")
    return frozenset(name for name, packets in added.items() if packets)
