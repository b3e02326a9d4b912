"""Every other way through the program, on a real kernel: a node without API, signals, faults, the seed's habits."""

from __future__ import annotations

import io
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from kproxylat.lab.rules import render_ruleset
from kproxylat.lab.services import place_services
from kproxylat.modes import find_mode
from tests.vm.commands import Trigger
from tests.vm.conftest import Done, Guest

LAB = ("--lab", "--mode", "iptables", "--backend", "legacy", "--services", "10")
SEED = Path(__file__).parent / "seed"


def interrupt(guest: Guest, after: str, signum: int, delay_s: float = 0) -> Done:
    out, err = io.StringIO(), Trigger(guest, after, signum, delay_s)
    argv = ("run", "60", "500", *LAB, "--format", "json", "--output-dir", str(guest.directory))
    return Done(guest.machine.run(argv, out, err), out.getvalue(), err.getvalue())


@pytest.mark.parametrize(("step", "signum"), [
    pytest.param("[1/7]", signal.SIGTERM, marks=pytest.mark.long),
    pytest.param("[3/7]", signal.SIGINT, marks=pytest.mark.long),
    pytest.param("[5/7]", signal.SIGHUP, marks=pytest.mark.long),
    pytest.param("[6/7]", signal.SIGINT, marks=pytest.mark.long),
])  # fmt: skip
def test_signal_leaves_nothing(timing: Guest, step: str, signum: int) -> None:
    done = interrupt(timing, step, signum)
    assert done.status == 128 + signum
    assert "Traceback" not in done.err
    assert timing.state() == ["lo"]


def test_signal_while_sending_saves_what_there_is(timing: Guest) -> None:
    done = interrupt(timing, "[7/7]", signal.SIGTERM, delay_s=4)
    assert done.status == 128 + signal.SIGTERM
    result = done.json
    assert result["run"]["cut_short"] is True
    assert 0 < result["traffic"]["sent"] < result["traffic"]["asked"] == 30000
    assert result["accounting"]["closed"] is True
    assert Path(result["run"]["log"]).with_suffix(".json").exists()
    assert timing.state() == ["lo"]


@pytest.mark.long
def test_signal_before_the_first_packet(timing: Guest) -> None:
    done = interrupt(timing, "[7/7]", signal.SIGINT)
    assert done.status == 128 + signal.SIGINT
    counts = done.json["accounting"]
    assert counts["sent"] == counts["lookups"] == counts["delivered"] < 30000
    assert done.json["run"]["cut_short"] is True
    assert timing.state() == ["lo"]


def test_cleanup_removes_what_sigkill_left(timing: Guest) -> None:
    assert interrupt(timing, "[7/7]", signal.SIGKILL).status == -signal.SIGKILL
    left, ends_s = timing.state(), time.monotonic() + 30
    # On a busy machine the kernel takes a while to end it.
    while "bpftrace" in "".join(left) and time.monotonic() < ends_s:
        left = timing.state()
    assert {"kproxylat-backend", "kproxylat-client", "kproxylat-node"} <= {line.split()[0] for line in left}
    assert "bpftrace" not in "".join(left), "the tracer dies with us"
    done = timing.kproxylat("cleanup")
    assert (done.status, "removed kproxylat-backend" in done.err) == (0, True)
    assert done.err.endswith(", pktgen\n"), "the module that the run had loaded"
    assert timing.state() == ["lo"]
    assert "nothing was left" in timing.kproxylat("cleanup").err


def test_second_run_is_refused(timing: Guest) -> None:
    script = 'mkdir -p /run/kproxylat; exec 9>/run/kproxylat/lock; flock 9; "$@"'
    done = timing.program(
        "bash",
        "-c",
        script,
        "bash",
        sys.executable,
        "-m",
        "kproxylat",
        "run",
        "1",
        "100",
        *LAB,
        "--output-dir",
        str(timing.directory),
    )
    assert done.status == 1
    assert "another run is under way" in done.err
    timing.program("rm", "-r", "/run/kproxylat")


@pytest.mark.parametrize(("text", "said"), [
    ("kfunc:ip_tables:ipt_do_table\n{\n  @x = nonsense(1);\n}\n", "template bad.bt.j2, line 3: Unknown function"),
    pytest.param(
        '{% extends "trace-kubeproxy.bt.j2" %}\n{% block call %}\n  @x = $no;\n{% endblock %}', "bad.bt.j2, line 3: ",
        marks=pytest.mark.long,
    ),
    pytest.param(
        "kfunc:ip_tables:no_such_function { @x = count(); }\n", "no_such_function", marks=pytest.mark.long
    ),
    pytest.param("{{ plan.nothing }}\n", "nothing", marks=pytest.mark.long),
])  # fmt: skip
def test_bad_template_is_one_line(timing: Guest, text: str, said: str) -> None:
    template = timing.directory / "bad.bt.j2"
    template.write_text(text)
    done = timing.kproxylat("run", "1", "500", *LAB, "--template", str(template))
    assert done.status == 1
    assert said in done.err
    assert "Traceback" not in done.err
    assert timing.state() == ["lo"]


@pytest.mark.long
def test_own_template_lands_in_the_result(timing: Guest) -> None:
    template = timing.directory / "own.bt.j2"
    template.write_text(
        '{% extends "trace-kubeproxy.bt.j2" %}\n{% block begin %}BEGIN { @mine["{{ word }}"] = 7; }\n{% endblock %}\n'
    )
    done = timing.kproxylat(
        *("run", "0.5", "400", *LAB, "--template", str(template), "--set", "word=hello", "--format", "json")
    )
    assert done.status == 0, done.err
    assert done.json["maps"]["mine"]["entries"] == [{"key": ["hello"], "value": 7}]
    assert done.json["accounting"]["closed"] is True
    assert done.json["run"]["clock"] == "ns"
    assert done.json["run"]["emulated"] in (True, False)


NODE = """
set -e
modprobe -a nf_tables nft_compat nfnetlink_acct xt_nfacct
nfacct add ct_state_invalid_dropped_pkts
iptables-nft-restore < {rules}
ip netns add be
ip link add vbe type veth peer name vbe0 netns be address 02:00:00:00:00:99
ip address add 10.244.1.1/24 dev vbe; ip link set vbe up
ip -n be address add 10.244.1.10/24 dev vbe0; ip -n be link set vbe0 up
ip neighbour replace 10.244.1.10 lladdr 02:00:00:00:00:99 dev vbe nud permanent
ip route add default via 10.244.1.10
sysctl -q -w net.ipv4.ip_forward=1
ip netns exec be nft -f - <<END
table ip count {{ chain in {{ type filter hook prerouting priority raw; udp dport 50051 counter drop; }}; }}
END
"""


@pytest.fixture(scope="module")
def node(timing: Guest) -> Guest:
    """The guest itself as a node: kube-proxy's rules in its own namespace, a backend behind it."""
    rules = timing.directory / "rules"
    rules.write_text(render_ruleset(find_mode("iptables", "nft"), place_services(10, "last", "both"))[-1][1])
    done = timing.program("bash", "-c", NODE.format(rules=rules))
    assert done.status == 0, done.err
    return timing


def test_node_without_api(node: Guest) -> None:
    before = node.state()
    done = node.kproxylat(
        *("run", "1", "500", "--target", "10.96.100.50:50051", "--mode", "iptables", "--backend", "nft"),
        *("--source", "10.244.7.0/24", "--format", "json"),
    )
    assert done.status == 0, done.err
    counts = done.json["accounting"]
    assert counts["sent"] == counts["lookups"] == counts["rule_hits"] == 500
    assert counts["delivered"] is None
    assert counts["closed"] is True
    assert done.json["run"]["position"] == 12
    counter = node.program("ip", "netns", "exec", "be", "nft", "list", "table", "ip", "count").out
    assert "packets 600 " in counter, "500 and the warm-up, by a counter that is not ours"
    assert node.state() == before
    assert not node.program("conntrack", "-L", "-s", "10.244.7.0/24").out


@pytest.mark.long
def test_a_wrong_port_is_the_miss_path(node: Guest) -> None:
    done = node.kproxylat(
        *("run", "0.5", "500", "--target", "10.96.100.50:50052", "--mode", "iptables", "--backend", "nft"),
        *("--source", "10.244.7.0/24", "--format", "json"),
    )
    assert done.status == 0, done.err
    assert "miss path: no rule matches" in done.err
    assert done.json["run"]["path"] == "miss"
    counts = done.json["accounting"]
    assert (counts["sent"], counts["lookups"], counts["rule_hits"]) == (250, 250, 0)


@pytest.mark.long
def test_mode_is_detected_on_a_node(node: Guest) -> None:
    """With the rules of one backend, of two, and of two after a packet: the counters say which of them translates."""
    argv = ("run", "1", "500", "--target", "10.96.100.50:50051", "--source", "10.244.8.0/24", "--format", "json")
    done = node.kproxylat(*argv)
    assert done.status == 0, done.err
    assert (done.json["run"]["mode"], done.json["run"]["backend"]) == ("iptables", "nft")
    assert done.json["accounting"]["closed"] is True
    state = "nft list tables; cat /proc/net/ip_tables_names"
    before = node.program("bash", "-c", state).out
    shown = node.kproxylat("mode", "show", "--format", "json")
    assert (shown.status, shown.json["backend"], shown.json["sure"]) == (0, "nft", "likely")
    assert node.program("bash", "-c", state).out == before, "looking changed something"
    node.program("bash", "-c", f"modprobe iptable_nat; iptables-legacy-restore < {node.directory / 'rules'}")
    done = node.kproxylat(*argv)
    assert (done.status, done.err.count("ambiguous")) == (1, 1)
    shown = node.kproxylat("mode", "show", "--probe", "--format", "json")
    assert (shown.status, shown.json["sure"]) == (0, "certain"), shown.out
    # The kernel's own word: the worker's TCP rule of that backend has counted the probe, the other's has not.
    for backend in ("legacy", "nft"):
        rules = node.program(f"iptables-{backend}-save", "-c", "-t", "nat").out
        counted = [line for line in rules.splitlines() if "-A KUBE-SERVICES" in line and "-p tcp" in line]
        assert any(not line.startswith("[0:0]") for line in counted) == (backend == shown.json["backend"])
    node.program(
        "bash", "-c", "iptables-legacy-restore < /dev/null; iptables-legacy -t nat -F; iptables-legacy -t nat -X"
    )


def test_trace_reports_in_the_old_form(node: Guest) -> None:
    sends = "for i in $(seq 1000); do echo >/dev/udp/10.244.1.1/9; sleep 0.2; done"
    traffic = f"ip netns exec be bash -c '{sends}' 2>/dev/null & "
    argv = ("trace", "--mode", "iptables", "--backend", "nft", "--duration", "8", "--output-dir", str(node.directory))
    script = traffic + 'sender=$!; "$@"; status=$?; kill $sender; exit $status'
    done = node.program("bash", "-c", script, "bash", sys.executable, "-m", "kproxylat", *argv)
    assert done.status == 0, done.err
    assert re.search(
        r"\n\d\d:\d\d:\d\d Statistics:\n  \[iptables\] Count: \d+, Min: \d+ us, Avg: \d+ us, Max: \d+ us\n", done.out
    )
    assert re.search(
        r"--- IPTABLES MODE ---\nTotal invocations: \d+\nMin latency: \d+ us\nAvg latency: \d+ us", done.out
    )


def test_render_prints_what_run_would_use(node: Guest) -> None:
    done = node.kproxylat("render", "--mode", "iptables", "--backend", "nft", "--target", "10.96.0.10:53")
    assert done.status == 0, done.err
    assert "nf_tables:nft_do_chain" in done.out


@pytest.mark.parametrize("counts", ["100", pytest.param("100 500 1000 5000 10000", marks=pytest.mark.long)])
def test_seed_readmes_loop_runs_as_it_stands(timing: Guest, counts: str) -> None:
    """The loop, its grep and awk are the seed README's; go, sudo and the sleeps are stand-ins."""
    work = timing.directory / f"seed{len(counts)}"
    shutil.copytree(SEED, work)
    (work / "logs/ebpf").mkdir(parents=True)
    (work / "bin/kproxylat").write_text(f'#!/bin/sh\nexec {sys.executable} -m kproxylat "$@"\n')
    for each in (work / "bin").iterdir():
        each.chmod(0o755)
    loop = work / "loop.sh"
    loop.write_text(loop.read_text().replace("in 100 500 1000 5000 10000;", f"in {counts};"))
    done = timing.program("bash", "-c", f"cd {work} && PATH={work}/bin:$PATH bash loop.sh")
    assert done.status == 0, done.err
    results = re.findall(r"^Result: (\d+) services → (\d+) µs$", done.out, re.M)
    assert " ".join(count for count, _ in results) == counts, done.out
    assert all(int(latency) > 0 for _, latency in results)


def test_first_packets_are_timed_and_traced(timing: Guest) -> None:
    words = ("1", "100", *LAB, "--first-packet", "--places", "5", "--format", "json")
    done = timing.kproxylat("run", *words)
    assert done.status == 0, done.err
    counts, times = done.json["accounting"], done.json["first_packet"]
    assert (counts["closed"], counts["sent"], counts["lookups"], counts["rule_hits"], counts["delivered"]) == (
        *(True, 100, 100, 100, 100),
    )
    assert times["probe"]["count"] + times["preempted"] == 100
    assert 0 < times["lookup_share"] < 1
    assert [place["before"] for place in times["places"]] == [1, 3, 5, 7, 9]
