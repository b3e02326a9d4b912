"""The fault table's rows that take a real kernel; tests/measure/test_faults.py has the others, with fakes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxylat.modes import MODES
from kproxylat.system.kernel import CAPABILITIES
from tests.vm.conftest import Done, Guest

pytestmark = pytest.mark.long

RUN = ("run", "1", "300", "20", "--lab", "--mode", "nftables", "--services", "10", "--format", "json")
COMMAND = (sys.executable, "-m", "kproxylat")
MODULES = "lsmod | awk 'NR > 1 {print $1}' | sort"


@pytest.fixture
def clean(timing: Guest) -> Iterator[Guest]:
    """Check that the machine is as before: also its sysctls and rules."""
    look = "sysctl -a 2>/dev/null | grep -E 'conntrack_max|ip_forward |udp_timeout '; nft list ruleset; ls /run"
    before = timing.state(), timing.program("bash", "-c", look).out
    yield timing
    assert (timing.state(), timing.program("bash", "-c", look).out) == before


def in_shell(guest: Guest, script: str, *argv: str) -> Done:
    """Run a command line within a script, where it is ``"$@"``; its output directory is $OUT."""
    words = ("bash", "-c", f"OUT={guest.directory}\n{script}", "bash", *COMMAND, *argv)
    return guest.program(*words)


def test_doctor_on_a_machine_that_can(clean: Guest) -> None:
    done = clean.kproxylat("doctor", "--format", "json")
    assert done.status == 0, done.err
    assert done.json["possible"] == [f"{mode.name} on {mode.backend}" for mode in MODES]
    missing = {each["name"] for each in done.json["checks"] if each["state"] == "missing"}
    assert missing == set()


def test_doctor_without_capabilities_and_as_a_user(clean: Guest) -> None:
    drop = ("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin")
    done = clean.program(*drop, *COMMAND, "doctor", "--format", "json")
    assert done.status == 1, done.err
    assert json.loads(done.out)["checks"][0]["found"] == "root lacks CAP_SYS_ADMIN"


def test_the_capabilities_that_suffice(clean: Guest) -> None:
    """Root with these alone measures: those that kernel.check_root asks for, and the one that loads pktgen."""
    names = ",".join(f"+{name.lower()}" for name in (*CAPABILITIES, "SYS_MODULE"))
    caps = f"setpriv --bounding-set=-all,{names} --inh-caps=-all,{names}"
    done = in_shell(clean, f'exec {caps} "$@" --output-dir $OUT', *RUN)
    assert done.status == 0, done.err
    assert done.json["accounting"]["closed"] is True


def test_conntrack_full(clean: Guest) -> None:
    script = """was=$(sysctl -n net.netfilter.nf_conntrack_max); sysctl -qw net.netfilter.nf_conntrack_max=100
    "$@" --output-dir $OUT; status=$?; sysctl -qw net.netfilter.nf_conntrack_max=$was; exit $status"""
    clean.program("modprobe", "nf_conntrack")
    done = in_shell(clean, script, *RUN)
    assert done.status == 1
    assert "320 flows at a time need more room than conntrack has (100)" in done.err


def test_log_disk_full_and_clock_jumping(clean: Guest) -> None:
    """A small tmpfs for the log; the clock jumps back and forth during the run. The result is still shown."""
    script = """mkdir -p /run/small; mount -t tmpfs -o size=4k none /run/small
    (for step in $(seq 40); do date -s '-1 hour' >/dev/null; sleep 0.5; date -s '+1 hour' >/dev/null; sleep 0.5; done) &
    jumps=$!; "$@" --output-dir /run/small; status=$?; kill $jumps
    umount /run/small; rmdir /run/small; exit $status"""
    done = in_shell(clean, script, *RUN)
    assert done.status == 1
    assert "could not be saved whole in /run/small: No space left on device" in done.err
    assert done.json["accounting"]["closed"] is True


def test_veth_vanishing(clean: Guest) -> None:
    script = """("$@" --output-dir $OUT) 2> >(tee /run/said >&2) & run=$!
    until grep -q '7/7' /run/said; do sleep 0.2; done; sleep 1
    ip -n kproxylat-node link delete kpl-pod; wait $run; status=$?; rm /run/said; exit $status"""
    done = in_shell(clean, script, "run", "60", *RUN[2:])
    assert done.status in (1, 4), done.err
    assert "Traceback" not in done.err
    assert done.err.splitlines()[-1].startswith(("kproxylat: ", "  "))


def test_map_limit_of_16_keys(clean: Guest) -> None:
    done = in_shell(clean, 'BPFTRACE_MAP_KEYS_MAX=16 BPFTRACE_MAX_MAP_KEYS=16 "$@" --output-dir $OUT', *RUN)
    assert done.status == 4, done.err
    assert any("full maps (16 keys)" in each for each in done.json["quality"]["warnings"])
    assert Path(done.json["run"]["log"]).with_suffix(".json").exists()


def test_two_runs_at_once(clean: Guest) -> None:
    script = """"$@" --output-dir $OUT & first=$!; until [ -e /run/kproxylat/lock ]; do sleep 0.1; done
    "$@" --output-dir $OUT >/dev/null; second=$?; wait $first; [ $? = 0 ] && exit $second"""
    done = in_shell(clean, script, *RUN)
    assert done.status == 1, done.err
    assert "another run is under way (process " in done.err
    assert done.json["accounting"]["closed"] is True
