"""What kube-proxy's live rules say of the target, without changing anything."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kproxylat.errors import CommandError
from kproxylat.model import Destination
from kproxylat.modes import Mode
from kproxylat.proc import run


@dataclass(frozen=True)
class ServiceRule:
    """The target's rule in KUBE-SERVICES, or element of map service-ips.

    :param position: its place in the chain from 1 on; ``chain_length``: the chain's rules. None in mode nftables.
    :param packets: what it has counted. None in mode nftables, whose rules don't count.
    """

    found: bool
    position: int | None = None
    chain_length: int | None = None
    packets: int | None = None

    @property
    def path(self) -> str:
        """Which path the target's packets take: "hit", or "miss" where no rule matches them."""
        return "hit" if self.found else "miss"


def read_service_rule(mode: Mode, target: Destination, netns: str | None) -> ServiceRule:
    """Look the target up in the live rules.

    :raises CommandError: the rules cannot be read; there is no KUBE-SERVICES or no table kube-proxy.

    Sample, of ``iptables -t nat -v -S KUBE-SERVICES``::

        -A KUBE-SERVICES -d 10.96.100.50/32 -p udp -m comment --comment "default/worker:grpc-udp cluster IP" -m udp
        --dport 50051 -c 7 420 -j KUBE-SVC-EKYUYKKUPLX2PJGI
    """
    if mode.name == "nftables":
        element = f"{{ {target.ip} . {target.protocol} . {target.port} }}"
        try:
            run("nft", "get", "element", "ip", "kube-proxy", "service-ips", element, netns=netns)
        except CommandError:
            run("nft", "list", "chain", "ip", "kube-proxy", "services", netns=netns)
            return ServiceRule(False)
        return ServiceRule(True)
    listed = run(f"iptables-{mode.backend}", "-t", "nat", "-v", "-S", "KUBE-SERVICES", netns=netns)
    rules = [line for line in listed.splitlines() if line.startswith("-A ")]
    wanted = re.compile(rf"-d {re.escape(target.ip)}/32 -p {target.protocol} .*--dport {target.port} .*-c (\d+) ")
    for position, rule in enumerate(rules, 1):
        hit = wanted.search(rule)
        if hit:
            return ServiceRule(True, position, len(rules), int(hit[1]))
    return ServiceRule(False, None, len(rules), 0)
