"""A node that is a network namespace, as kind's and k3d's are: found, measured, and afterwards what it was before."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator

import pytest

from kproxylat.lab.rules import render_ruleset
from kproxylat.lab.services import place_services
from kproxylat.modes import find_mode
from tests.vm.commands import COMMANDS, Trigger, words
from tests.vm.conftest import Guest

NETNS = "/run/netns/n1"
NODE = """
set -e
modprobe -a nf_tables nft_compat nfnetlink_acct xt_nfacct
ip netns add n1
ip -n n1 link set lo up
ip -n n1 link add vbe type veth peer name vbe0 netns "$(ip netns add pods; echo pods)"
ip -n n1 address add 10.244.1.1/24 dev vbe; ip -n n1 link set vbe up
ip -n pods address add 10.244.1.10/24 dev vbe0; ip -n pods link set vbe0 up
ip -n pods route add default via 10.244.1.1
ip netns exec n1 sysctl -q -w net.ipv4.ip_forward=0 net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1
ip netns exec n1 nfacct add ct_state_invalid_dropped_pkts
ip netns exec n1 iptables-nft-restore < {rules}
ip netns exec pods nft -f - <<END
table ip count {{ chain in {{ type filter hook prerouting priority raw; udp dport 50051 counter drop; }}; }}
END
printf iptables > {directory}/proxyMode
cd {directory}
setsid ip netns exec n1 {python} -m http.server 10249 --bind 127.0.0.1 >/dev/null 2>&1 &
for each in $(seq 100); do
    ip netns exec n1 bash -c ': < /dev/tcp/127.0.0.1/10249' 2>/dev/null && exit
    sleep 0.2
done
exit 1
"""
"""A node with a stand-in for kube-proxy that only says its mode; strict reverse-path filtering; it does not forward."""
RUN = ("run", "1", "500", "--netns", NETNS, "--target", "10.96.100.50:50051", "--format", "json")
SOURCE = ("--source", "10.244.1.192/27")
FORWARD = ("--allow", "net.ipv4.ip_forward")


@pytest.fixture(scope="module")
def node(timing: Guest) -> Iterator[Guest]:
    """The guest with a node in namespace n1."""
    rules = timing.directory / "rules"
    rules.write_text(render_ruleset(find_mode("iptables", "nft"), place_services(10, "middle", "both"))[-1][1])
    script = NODE.format(rules=rules, directory=timing.directory, python=sys.executable)
    done = timing.program("bash", "-c", script)
    try:
        assert done.status == 0, done.err
        yield timing
    finally:
        timing.program("bash", "-c", "kill $(ip netns pids n1); ip netns delete n1; ip netns delete pods")


def look(node: Guest) -> list[str]:
    """What a run must leave as it was: the node's links, routes, settings, rules in their order; the guest's own."""
    inside = "ip netns exec n1"
    script = (
        f"{inside} ip -brief link; {inside} ip route show table all; {inside} sysctl net.ipv4.ip_forward;"
        f"{inside} iptables-nft -t nat -S; {inside} nft list tables; nft list tables; sysctl -a -r ip_forward$"
    )
    return node.program("bash", "-c", script).out.splitlines() + node.state()


@pytest.mark.long
def test_a_node_that_is_a_namespace(node: Guest) -> None:
    before = look(node)
    shown = node.kproxylat("mode", "show", "--netns", NETNS, "--format", "json")
    assert (shown.status, shown.json["mode"], shown.json["backend"], shown.json["sure"]) == (
        *(0, "iptables", "nft", "certain"),
    ), shown.out
    assert node.kproxylat("mode", "show").status == 1, "the guest itself is no node"
    refused = node.kproxylat(*RUN, *SOURCE)
    assert (refused.status, "net.ipv4.ip_forward is 0" in refused.err) == (1, True), refused.err
    done = node.kproxylat(*RUN, *SOURCE, *FORWARD, "--position", "first")
    assert done.status == 0, done.err
    result = done.json
    counts = result["accounting"]
    assert counts["sent"] == counts["lookups"] == counts["rule_hits"] == 500
    assert (counts["closed"], counts["drops"]["rp_filter"]) == (True, 0)
    assert (result["run"]["mode"], result["run"]["position"], result["run"]["masqueraded"]) == ("iptables", 1, False)
    assert result["quality"]["warnings"] == []
    counter = node.program("ip", "netns", "exec", "pods", "nft", "list", "table", "ip", "count").out
    assert "packets 600 " in counter, "500 and the warm-up, by a counter that is not ours"
    assert look(node) == before
    assert not node.program("ip", "netns", "exec", "n1", "conntrack", "-L", "-s", "10.244.1.192/27").out


def test_the_readmes_run_on_a_container(node: Guest) -> None:
    """The node is what docker calls kind-worker; docker is a stand-in, which knows one container and its process."""
    [command] = [each for each in COMMANDS if "--node-container" in each]
    path = node.directory / "bin"
    path.mkdir()
    docker = path / "docker"
    docker.write_text('#!/bin/sh\n[ "$6" = kind-worker ] && exec head -1 "${0%/bin/docker}/pids"\n')
    docker.chmod(0o755)
    script = 'cd "$0" && ip netns pids n1 > pids && PATH="$0/bin:$PATH" "$@"'
    argv = (sys.executable, "-m", "kproxylat", *words(command), *RUN[5:], *SOURCE, *FORWARD, "--output-dir", ".")
    done = node.program("bash", "-c", script, str(node.directory), *argv)
    assert done.status == 0, done.err
    counts = done.json["accounting"]
    assert counts["sent"] == counts["lookups"] == counts["rule_hits"] == 200
    assert counts["closed"] is True


@pytest.mark.long
def test_flows_are_removed_as_we_go(node: Guest) -> None:
    """They would stay for 30 s: conntrack, shared with the whole guest, has room for those of little more than 2 s."""
    script = "sysctl -n net.netfilter.nf_conntrack_max; sysctl -q -w net.netfilter.nf_conntrack_max=1700"
    old = node.program("bash", "-c", script).out.strip()
    argv = (*RUN[3:], *SOURCE, *FORWARD)
    try:
        refused = node.kproxylat("run", "5", "1000", *argv)
        done = node.kproxylat("run", "5", "500", *argv)
    finally:
        node.program("sysctl", "-q", "-w", f"net.netfilter.nf_conntrack_max={old}")
    assert refused.status == 1
    assert re.search(r"2100 flows at a time need more room than conntrack has \(1[67]\d\d\)", refused.err), refused.err
    assert re.search(r"there is room for [78]\d\d pps", refused.err)
    assert done.status == 0, done.err
    assert "; ours are removed every 1 s" in done.err
    counts = done.json["accounting"]
    assert counts["sent"] == counts["lookups"] == counts["rule_hits"] == 2500
    assert (counts["closed"], counts["drops"]["conntrack drop"], counts["drops"]["conntrack early_drop"]) == (
        True,
        0,
        0,
    )


@pytest.mark.long
def test_cleanup_puts_back_what_sigkill_left(node: Guest) -> None:
    before = look(node)
    err = Trigger(node, "[7/7]", signal.SIGKILL)
    argv = ("run", "60", "500", *RUN[3:], *SOURCE, *FORWARD, "--position", "last", "--output-dir", str(node.directory))
    assert node.machine.run(argv, err, err) == -signal.SIGKILL
    assert look(node) != before
    done = node.kproxylat("cleanup")
    assert done.status == 0
    assert "the place of 10.96.100.50:50051/udp's rule, pktgen" in done.err
    assert look(node) == before


@pytest.mark.long
def test_a_chain_that_kube_proxy_writes_meanwhile_is_left_alone(node: Guest) -> None:
    before = [line for line in look(node) if "KUBE-SERVICES" in line]
    sync = f"ip netns exec n1 iptables-nft-restore < {node.directory}/rules"
    # More than the warm-up's 100.
    sending = "ip netns exec kproxylat-client grep -qsE 'sofar: ([2-9]|[1-9][0-9])[0-9]{2}' /proc/net/pktgen/pod0"
    script = f'(until {sending}; do sleep 0.2; done; {sync}) & "$@"; status=$?; wait; exit $status'
    argv = ("run", "20", "100", *RUN[3:], *SOURCE, *FORWARD, "--position", "first")
    command = ("bash", "-c", script, "bash", sys.executable, "-m", "kproxylat", *argv)
    done = node.program(*command, "--output-dir", str(node.directory))
    assert done.status == 4, done.err
    warning = "kube-proxy rewrote KUBE-SERVICES during the run: its order is left as it is now"
    assert warning in done.json["quality"]["warnings"]
    assert "kube-proxy's rules changed during the run" in done.json["accounting"]["difference"]
    assert [line for line in look(node) if "KUBE-SERVICES" in line] == before


@pytest.mark.long
def test_trace_sees_one_node_alone(node: Guest) -> None:
    """Packets of the guest's own namespace meet the same engine, and are not that node's."""
    node.program(
        "bash", "-c", "nft add table ip other; nft add chain ip other out '{ type filter hook output priority 0; }'"
    )
    sends = "while :; do for i in $(seq 600); do echo >/dev/udp/127.0.0.1/$i; sleep 0.05; done; done"
    traffic = f"bash -c '{sends}' 2>/dev/null & "
    argv = ("trace", "--mode", "iptables", "--backend", "nft", "--duration", "8", "--output-dir", str(node.directory))
    script = traffic + 'sender=$!; "$@"; status=$?; kill $sender; exit $status'
    calls = []
    for place in ((), ("--netns", NETNS)):
        done = node.program("bash", "-c", script, "bash", sys.executable, "-m", "kproxylat", *argv, *place)
        assert done.status == 0, done.err
        calls.append(sum(map(int, re.findall(r"Total invocations: (\d+)", done.out))))
    node.program("nft", "delete", "table", "ip", "other")
    assert calls[0] > 20
    assert calls[1] == 0
