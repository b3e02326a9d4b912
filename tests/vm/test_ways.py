"""Every other way through the program, on a real kernel: a node without API, signals, faults, the seed's habits."""

from __future__ import annotations

import io
import re
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest

from kproxylat.lab import place_services, render_ruleset
from kproxylat.modes import find_mode
from tests.vm.conftest import Done, Guest

LAB = ("--lab", "--mode", "iptables", "--backend", "legacy", "--services", "10")
SEED = Path(__file__).parent / "seed"


class Trigger(io.StringIO):
    """Standard error of a command line, which gets a signal once it has said something, ``delay_s`` later."""

    def __init__(self, guest: Guest, after: str, signum: int, delay_s: float = 0) -> None:
        super().__init__()
        self._guest, self._after, self._signum, self._delay_s = guest, after, signum, delay_s

    def write(self, text: str) -> int:
        written = super().write(text)
        if self._signum and self._after in self.getvalue():
            threading.Timer(self._delay_s, self._guest.machine.signal, (self._signum,)).start()
            self._signum = 0
        return written


def interrupt(guest: Guest, after: str, signum: int, delay_s: float = 0) -> Done:
    out, err = io.StringIO(), Trigger(guest, after, signum, delay_s)
    argv = ("run", "60", "500", *LAB, "--format", "json", "--output-dir", str(guest.directory))
    return Done(guest.machine.run(argv, out, err), out.getvalue(), err.getvalue())


@pytest.mark.parametrize(("step", "signum"), [
    ("[1/7]", signal.SIGTERM),
    ("[3/7]", signal.SIGINT),
    ("[5/7]", signal.SIGHUP),
    ("[6/7]", signal.SIGINT),
])  # fmt: skip
def test_signal_leaves_nothing(timing: Guest, step: str, signum: int) -> None:
    done = interrupt(timing, step, signum)
    assert done.status == 128 + signum
    assert "Traceback" not in done.err
    assert timing.state() == ["lo"]


def test_signal_while_sending_saves_what_there_is(timing: Guest) -> None:
    done = interrupt(timing, "[7/7]", signal.SIGTERM, delay_s=10)
    assert done.status == 128 + signal.SIGTERM
    result = done.json
    assert result["run"]["cut_short"] is True
    assert 0 < result["traffic"]["sent"] < result["traffic"]["asked"] == 30000
    assert result["accounting"]["closed"] is True
    assert Path(result["run"]["log"]).with_suffix(".json").exists()
    assert timing.state() == ["lo"]


def test_signal_before_the_first_packet(timing: Guest) -> None:
    done = interrupt(timing, "[7/7]", signal.SIGINT)
    assert done.status == 128 + signal.SIGINT
    counts = done.json["accounting"]
    assert counts["sent"] == counts["lookups"] == counts["delivered"] < 30000
    assert done.json["run"]["cut_short"] is True
    assert timing.state() == ["lo"]


def test_cleanup_removes_what_sigkill_left(timing: Guest) -> None:
    assert interrupt(timing, "[7/7]", signal.SIGKILL).status == -signal.SIGKILL
    left = timing.state()
    assert {"kproxylat-backend", "kproxylat-client", "kproxylat-node"} <= {line.split()[0] for line in left}
    assert not [line for line in left if "bpftrace" in line], "the tracer dies with us"
    done = timing.kproxylat("cleanup")
    assert (done.status, "removed kproxylat-backend" in done.err) == (0, True)
    timing.program("modprobe", "-r", "pktgen")
    assert timing.state() == ["lo"]
    assert "nothing was left" in timing.kproxylat("cleanup").err


def test_second_run_is_refused(timing: Guest) -> None:
    script = 'exec 9>/run/kproxylat.lock; flock 9; "$@"'
    done = timing.program("bash", "-c", script, "bash", sys.executable, "-m", "kproxylat", "run", "1", "100", *LAB)
    assert done.status == 1
    assert "another run is under way" in done.err
    timing.program("rm", "-f", "/run/kproxylat.lock")


@pytest.mark.parametrize(("text", "status", "said"), [
    ("kfunc:ip_tables:ipt_do_table { @x = nonsense(1); }\n", 1, "nonsense"),
    ("kfunc:ip_tables:no_such_function { @x = count(); }\n", 1, "no_such_function"),
    ("{{ plan.nothing }}\n", 1, "nothing"),
])  # fmt: skip
def test_bad_template_is_one_line(timing: Guest, text: str, status: int, said: str) -> None:
    template = timing.directory / "bad.bt.j2"
    template.write_text(text)
    done = timing.kproxylat("run", "1", "500", *LAB, "--template", str(template))
    assert done.status == status
    assert said in done.err
    assert "Traceback" not in done.err
    assert timing.state() == ["lo"]


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
sysctl -q -w net.ipv4.ip_forward=1
ip netns exec be nft -f - <<END
table ip count {{ chain in {{ type filter hook prerouting priority raw; udp dport 50051 counter drop; }}; }}
END
"""


@pytest.fixture(scope="module")
def node(timing: Guest) -> Guest:
    """The guest itself as a node: kube-proxy's rules in its own namespace, a backend behind it."""
    rules = timing.directory / "rules"
    rules.write_text(render_ruleset(find_mode("iptables", "nft"), place_services(10, "last", "both")))
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


def test_trace_reports_in_the_old_form(node: Guest) -> None:
    sends = "for i in $(seq 1000); do echo >/dev/udp/10.244.1.1/9; sleep 0.2; done"
    traffic = f"ip netns exec be bash -c '{sends}' 2>/dev/null & "
    argv = ("trace", "--mode", "iptables", "--backend", "nft", "--duration", "12", "--output-dir", str(node.directory))
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


def test_seed_readmes_loop_runs_as_it_stands(timing: Guest) -> None:
    """The loop, its grep and awk are the seed README's, unchanged; go, sudo and the sleeps are stand-ins."""
    work = timing.directory / "seed"
    shutil.copytree(SEED, work)
    (work / "logs/ebpf").mkdir(parents=True)
    (work / "bin/kproxylat").write_text(f'#!/bin/sh\nexec {sys.executable} -m kproxylat "$@"\n')
    for each in (work / "bin").iterdir():
        each.chmod(0o755)
    script = f"cd {work} && PATH={work}/bin:$PATH bash loop.sh"
    done = timing.program("bash", "-c", script)
    assert done.status == 0, done.err
    results = re.findall(r"^Result: (\d+) services → (\d+) µs$", done.out, re.M)
    assert [count for count, _ in results] == ["100", "500", "1000", "5000", "10000"], done.out
    assert all(int(latency) > 0 for _, latency in results)
