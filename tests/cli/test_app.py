"""The command line: bad input ends with one clear line, a remedy and the right status; nothing is started before."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from kproxylat import __version__
from kproxylat.errors import MachineError
from kproxylat.measure import options as plan
from kproxylat.measure import plan as measure_plan
from kproxylat.measure.options import Options
from kproxylat.node import lock
from kproxylat.system import btf, kernel, processes, virtual_machine
from kproxylat.trace import plan as trace_plan
from kproxylat.trace.script import render_script
from tests.support import ROOT
from tests.support.command import RULES, Captured, call
from tests.support.fakes import PROGRAMS, make_world

pytestmark = pytest.mark.usefixtures("nothing_starts")

COMMANDS = (*("run", "sweep", "trace", "render", "cleanup", "parse", "compare", "plot", "doctor", "mode", "services"),
            *("bill", "capture", "demo", "report", "reproduce", "whatif"))  # fmt: skip
HEAVY = ("sh", "kubernetes", "jinja2", "rich", "numpy", "matplotlib")
LAB = ("run", "--lab")
SWEEP = ("sweep", "--lab", "--services", "10")
TARGET = ("run", "--mode", "nftables", "--target")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((*LAB, "--mode", "ipvs4"), "unknown mode 'ipvs4'"),
        (("bill", "--for", "1"), "a duration of '1' is not possible"),
        (("bill", "--for", "25h"), "a duration of '25h' is not possible"),
        (("bill", "--for", "nan"), "a duration of 'nan' is not possible"),
        (("bill", "--for", "-5"), "a duration of '-5' is not possible"),
        (("bill", "--for", ""), "a duration of '' is not possible"),
        (("bill", "--budget", "0"), "a budget of 0 % is not possible"),
        (("bill", "--budget", "6"), "a budget of 6 % is not possible"),
        (("bill", "--budget", "nan"), "a budget of nan % is not possible"),
        (("render", "--lab", "--probe", "none"), "--probe none: this command has nothing to trace"),
        (("trace", "--mode", "nftables", "--probe", "none"), "--probe none: this command has nothing to trace"),
        (("compare", "a.json", "--fail-if-worse", "5"), "without B no side is before the other"),
        (("bill", "--probe", "none"), "--probe none: this command has nothing to trace"),
        (("bill", "--serve", "9105"), "invalid address '9105'"),
        (("bill", "--serve", "127.0.0.1:99999"), "invalid address"),
        (("bill", "--serve", "127.0.0.1:0"), "invalid address"),
        (("bill", "--serve", ":9105", "--format", "json"), "--format"),
        (("bill", "--whatif", "/nowhere"), "--whatif /nowhere: "),
        (("bill", "--whatif", "/"), "--whatif /: "),
        (("bill", "--whatif", "/dev/zero"), "--whatif /dev/zero: is a device"),
        (("bill", "--whatif", RULES), f"--whatif {RULES}: "),
        ((*LAB, "--mode", "iptables; reboot"), "unknown mode"),
        ((*LAB, "--mode", ""), "unknown mode ''"),
        ((*LAB, "--backend", ""), "no backend ''"),
        ((*LAB, "--mode", "iptables", "--backend", "ipvs"), "no backend 'ipvs'"),
        ((*LAB, "--mode", "nftables", "--backend", "legacy"), "no backend 'legacy'"),
        ((*LAB, "--ruleset", "/nowhere"), "/nowhere does not exist"),
        (("run", "--ruleset", "/nowhere"), "--ruleset is for the lab"),
        ((*LAB, "--every-service"), "--every-service is for a --ruleset"),
        ((*LAB, "--ruleset", RULES), "either --target IP:PORT or --every-service"),
        ((*LAB, "--ruleset", RULES, "--target", "10.96.0.1:443"), "no Service 10.96.0.1:443 with an endpoint"),
        ((*LAB, "--ruleset", RULES, "--every-service", "--generator", "pktgen"), "pktgen sends to one Service only"),
        ((*LAB, "--ruleset", RULES, "--every-service", "0.001", "1000"), "1 packets are too few for 4 Services"),
        ((*LAB, "--ruleset", RULES, "--mode", "ipvs", "--every-service"), "no rules of mode ipvs"),
        ((*LAB, "--ruleset", RULES, "--every-service", "--services", "5"), "--ruleset brings its own Services"),
        ((*LAB, "--ruleset", RULES, "--every-service", "--position", "last"), "--ruleset brings its own Services"),
        ((*LAB, "--ruleset", RULES, "--every-service", "--worker-ports", "udp"), "--ruleset brings its own Services"),
        ((*LAB, "--ruleset", RULES, "--every-service", "1", "1000", "100", "first"), "--ruleset brings its own"),
        (("sweep", "--lab", "--ruleset", RULES, "--every-service", "--services", "5"), "--ruleset brings its own"),
        (("sweep", "--lab", "--ruleset", RULES, "--every-service", "--position", "last"), "--ruleset brings its own"),
        (("whatif", RULES, "--packets", "0"), "0 packets to each Service"),
        (("whatif", "/nowhere"), "/nowhere does not exist"),
        (("whatif", RULES, "--kernel", "/boot/vmlinuz"), "add --vm"),
        ((*LAB, "0"), "duration"),
        ((*LAB, "--", "-5"), "duration"),
        ((*LAB, "nan"), "duration"),
        ((*LAB, "inf"), "duration"),
        ((*LAB, "1e9"), "duration"),
        ((*LAB, "soon"), "DURATION takes a number, not 'soon'\n  see kproxylat run --help"),
        ((*LAB, "1", "0"), "rate"),
        ((*LAB, "--", "1", "-1"), "rate"),
        (("sweep", "--services", "10", "--protocol", "both"), "one protocol at a time"),
        (
            ("sweep", "--lab", "--services", "10", "--protocol", "both", "--generator", "pktgen"),
            "pktgen sends no 'tcp'",
        ),
        (("sweep", "--lab", "--services", "10", "--protocol", "sctp"), "sends no 'sctp'"),
        ((*LAB, "1", "99999999"), "rate"),
        ((*LAB, "1", "1.5"), "RATE takes a whole number, not '1.5'"),
        ((*LAB, "0.001", "1"), "number of packets"),
        ((*LAB, "86400", "10000000"), "number of packets"),
        ((*LAB, "1", "10", "99999999"), "warm-up"),
        ((*LAB, "--", "1", "10", "-1"), "warm-up"),
        ((*LAB, "--generator", "iperf"), "unknown generator 'iperf'"),
        ((*LAB, "--protocol", "tcp"), "pktgen sends no 'tcp'"),
        ((*LAB, "--generator", "hping3", "--protocol", "udp"), "hping3 sends no 'udp'"),
        ((*LAB, "--generator", "hping3"), "more than the 63499 flows"),
        ((*LAB, "--services", "-1"), "-1 Services"),
        ((*LAB, "--services", "60001"), "60001 Services"),
        ((*LAB, "--services", "many"), "--services takes a whole number, not 'many'"),
        ((*LAB, "--position", "second"), "second"),
        ((*LAB, "1", "10", "10", "second"), "second"),
        ((*LAB, "--worker-ports", "sctp"), "sctp"),
        ((*LAB, "--source", "10.244.0.0"), "source addresses"),
        ((*LAB, "--source", "10.244.0.1/16"), "invalid network"),
        ((*LAB, "--source", "10.244.0.0/33"), "invalid network"),
        ((*LAB, "--source", "fd00::/64x"), "invalid network"),
        ((*LAB, "--source", "fd00::/64"), "source fd00::/64 is not IPv4, as the target is"),
        ((*LAB, "--family", "5"), "'5' is not one of '4', '6'"),
        ((*LAB, "--family", "6", "--generator", "hping3"), "generator hping3 sends no IPv6"),
        ((*LAB, "--family", "6", "7", "10000"), "more than the 63499 flows that this generator can make"),
        ((*LAB, "--source", "here"), "invalid network"),
        ((*LAB, "--source", "10.244.0.0/30", "86400", "20000"), "source addresses"),
        ((*LAB, "--template", "nowhere.bt.j2"), "nowhere.bt.j2 does not exist"),
        ((*LAB, "--template", "/"), "does not exist"),
        ((*LAB, "--set", "threshold"), "no value"),
        ((*LAB, "--set", "a-b=5"), "invalid name of a variable"),
        ((*LAB, "--set", "a=$(id)"), "a value takes letters"),
        ((*LAB, "--set", "plan=5"), "invalid name of a variable"),
        ((*LAB, "--target", "10.96.0.10:80", "--mode", "nftables"), "--lab or --target"),
        ((*TARGET, "worker:80"), "invalid target 'worker:80'"),
        ((*TARGET, "10.96.0.10"), "invalid target"),
        ((*TARGET, "10.96.0.256:80"), "invalid target"),
        ((*TARGET, "10.96.0.10:http"), "invalid target"),
        ((*TARGET, "10.96.0.10:0"), "1 to 65535"),
        ((*TARGET, "10.96.0.10:70000"), "1 to 65535"),
        ((*TARGET, "10.96.0.10:-1"), "invalid target"),
        ((*TARGET, "127.0.0.1:80"), "ClusterIP"),
        ((*TARGET, "224.0.0.1:80"), "ClusterIP"),
        ((*TARGET, "0.0.0.0:80"), "ClusterIP"),
        ((*TARGET, "fd00::1:80"), "invalid target"),
        ((*TARGET, "[10.96.0.10]:80"), "invalid target"),
        ((*TARGET, "[fe80::1%eth0]:80"), "invalid target"),
        ((*TARGET, "[ff02::1]:80"), "invalid target of a Service"),
        ((*TARGET, "[fd00::1]:80", "--family", "4"), "target [fd00::1]:80 is IPv6, and --family 4 is passed"),
        ((*TARGET, ""), "invalid target ''"),
        ((*LAB, "--clock", "instructions"), "--vm"),
        ((*LAB, "--kernel", "/boot/vmlinuz"), "--vm"),
        ((*LAB, "--clock", "sundial", "--vm"), "--clock: 'sundial' is not one of 'ns', 'instructions'"),
        ((*LAB, "-q", "-v"), "--quiet and --verbose exclude each other"),
        ((*LAB, "--format", "xml"), "xml"),
        ((*LAB, "--no-such-option"), "--no-such-option"),
        ((*LAB, "--netns", "/run/netns/x"), "--lab makes its own node"),
        ((*LAB, "--allow", "net.ipv4.ip_forward"), "--lab makes its own node"),
        ((*TARGET, "10.96.0.10:80", "--allow", "kernel.panic"), "--allow kernel.panic is never needed"),
        ((*TARGET, "10.96.0.10:80", "--netns", "/nowhere"), "/nowhere is not a network namespace"),
        ((*TARGET, "10.96.0.10:80", "--netns", "/etc/passwd"), "/etc/passwd is not a network namespace"),
        ((*TARGET, "10.96.0.10:80", "--netns", "/x", "--node-container", "y"), "exclude each other"),
        ((*TARGET, "10.96.0.10:80", "--node-container", "--privileged"), "invalid container name"),
        (("sweep", "--lab", "--services", "10,many"), "invalid list of numbers"),
        (("sweep", "--lab", "--services", ""), "no numbers of Services are given"),
        (("sweep", "--lab"), "no numbers of Services are given"),
        (("sweep", "--lab", "--services", "5,10,5"), "5,10,5 names a number twice"),
        ((*SWEEP, "--ruleset", RULES, "--every-service"), "--ruleset brings its own Services"),
        ((*SWEEP, "--target", "10.96.0.9:80"), "--target is for a --ruleset here"),
        (("sweep", "--lab", "--ruleset", RULES), "either --target IP:PORT or --every-service"),
        (
            ("sweep", "--lab", "--ruleset", RULES, "--every-service", "--backend", "ipvs"),
            "mode iptables has no backend",
        ),
        (("sweep", "--lab", "--services", "10,-1"), "-1 Services"),
        ((*SWEEP, "--mode", "iptables,ipvs4"), "unknown mode 'ipvs4'"),
        ((*SWEEP, "--backend", "xt"), "unknown backend 'xt'"),
        ((*SWEEP, "--mode", "nftables", "--backend", "legacy"), "no mode has these backends"),
        ((*SWEEP, "0"), "duration"),
        ((*SWEEP, "--repeats", "0"), "0 repeats"),
        ((*SWEEP, "--repeats", "1001"), "1001 repeats"),
        ((*SWEEP, "--clock", "instructions"), "--vm"),
        (("trace",), "--mode"),
        (("trace", "--mode", "ipvs4"), "unknown mode"),
        (("trace", "--mode", "iptables"), "--backend legacy or nft"),
        (("trace", "--mode", "nftables", "--duration", "0"), "duration"),
        (("trace", "--mode", "nftables", "--duration", "nan"), "duration"),
        (("trace", "--mode", "nftables", "--target", "x"), "invalid target"),
        (("render", "--mode", "ipvs4"), "unknown mode"),
        (("render", "--lab", "--target", "10.96.0.10:80"), "--lab brings its own target"),
        (("render", "--lab", "--kernel", "/boot/vmlinuz"), "add --vm"),
        (("render", "--mode", "nftables", "--target", "10.96.0.10:0"), "1 to 65535"),
        (("render", "--mode", "nftables", "--source", "x"), "invalid network"),
        (("render", "--mode", "nftables", "--template", "nowhere.j2"), "nowhere.j2 does not exist"),
        (("measure",), "measure"),
        (("parse",), "FILE"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_wrong_usage_is_status_2_and_one_clear_line(capsys: Captured, argv: tuple[str, ...], message: str) -> None:
    status, out, err = call(capsys, *argv)
    lines = err.splitlines()
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert lines[0].startswith("kproxylat: ")
    assert len(lines) in (1, 2)


def below_a_file(directory: Path) -> str:
    """Return a directory that not even root can make."""
    (directory / "file").touch()
    return str(directory / "file" / "sub")


@pytest.mark.parametrize("command", [LAB, SWEEP], ids=" ".join)
def test_an_unwritable_output_directory_is_refused_before_booting(
    capsys: Captured, tmp_path: Path, command: tuple[str, ...]
) -> None:
    status, out, err = call(capsys, *command, "--vm", "--output-dir", below_a_file(tmp_path))
    assert (status, out) == (1, "")
    assert re.fullmatch(r"kproxylat: .*/file/sub cannot be made: Not a directory\n  pass another --output-dir\n", err)


def test_a_missing_kernel_image(capsys: Captured, tmp_path: Path) -> None:
    argv = (*LAB, "--vm", "--kernel", "/nowhere/vmlinuz", "--output-dir", str(tmp_path))
    status, _, err = call(capsys, *argv)
    assert status == 1
    assert "kernel image /nowhere/vmlinuz cannot be read" in err


@pytest.mark.parametrize(
    "argv",
    [LAB, SWEEP, (*TARGET, "10.96.0.10:80"), ("trace", "--mode", "nftables"), ("cleanup",), ("render", "--lab")],
    ids=" ".join,
)
def test_an_ordinary_user_reads_that_root_is_required(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, argv: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    status, out, err = call(capsys, *argv)
    assert (status, out) == (1, "")
    assert "need root" in err
    assert "sudo" in err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_no_bpftrace(capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(processes, "PATH", str(tmp_path))
    for argv, others in ((LAB, ", 'setpriv', 'modprobe', "), (("trace", "--mode", "nftables"), "")):
        status, _, err = call(capsys, *argv)
        message, remedy = [line for line in err.splitlines() if not line.startswith(("[", "This takes about "))]
        assert (status, f"'bpftrace'{others}" in message, "apt-get install bpftrace" in remedy) == (1, True, True)


def test_a_second_run_at_the_same_time(capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lock, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(kernel, "check_root", lambda: None)
    with lock.lock():
        status, _, err = call(capsys, "cleanup")
    assert status == 1
    assert f"another run is under way (process {os.getpid()})" in err
    assert not (tmp_path / "lock").exists()


@pytest.fixture
def internal_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let every run end with an internal error, and return the user's state directory."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("surprise \x1b[2J\nof two lines")

    monkeypatch.setattr("kproxylat.measure.run.measure", fail)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path / "state"


SURPRISE = r"RuntimeError: surprise \x1b[2J of two lines"


def test_an_internal_error_is_one_line_and_its_traceback_a_file(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, internal_error: Path
) -> None:
    given: list[object] = []
    monkeypatch.setattr("kproxylat.system.files.give_to_user", given.append)
    status, out, err = call(capsys, *LAB, "--mode", "nftables", "7")
    (report,) = internal_error.glob("kproxylat/traceback_*.txt")
    line = "This takes about 13 s.\n"
    line += f"kproxylat: internal error, please report it (traceback: {report}): {SURPRISE}\n"
    assert (status, out, err) == (3, "", line)
    head, _, trace = report.read_text().partition("\n\n")
    assert head.splitlines() == [
        f"kproxylat: {__version__}",
        f"Python: {sys.version.split()[0]}",
        f"kernel: {os.uname().release}",
        "arguments: ['run', '--lab', '--mode', 'nftables', '7']",
    ]
    assert trace.startswith("Traceback (most recent call last):\n")
    assert "in fail\n" in trace
    assert (report.stat().st_mode & 0o777, len(given)) == (0o600, 3), "the two directories and the report"
    call(capsys, *LAB)
    assert len(list(internal_error.glob("kproxylat/*"))) == 2, "a report replaces no other"


def test_a_traceback_goes_to_the_temporary_directory_or_to_stderr(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, internal_error: Path, tmp_path: Path
) -> None:
    internal_error.touch()
    status, _, err = call(capsys, *LAB)
    (report,) = (tmp_path / "temporary").iterdir()
    assert (status, f"(traceback: {report})" in err) == (3, True)
    assert "in fail\n" in report.read_text()
    monkeypatch.setattr("tempfile.tempdir", str(internal_error / "none"))
    status, _, err = call(capsys, *LAB)
    assert status == 3
    assert "Traceback (most recent call last):\n" in err
    assert "\x1b" not in err
    assert err.endswith(f"kproxylat: internal error, please report it (traceback: above): {SURPRISE}\n")


@pytest.mark.parametrize("state", ["", "relative"])
def test_a_traceback_goes_to_the_home_directory(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, internal_error: Path, tmp_path: Path, state: str
) -> None:
    assert not internal_error.exists()
    monkeypatch.setenv("XDG_STATE_HOME", state)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SUDO_UID", raising=False)
    assert f"(traceback: {tmp_path}/.local/state/kproxylat/traceback_" in call(capsys, *LAB)[2]


def test_a_traceback_under_sudo_is_the_callers(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, internal_error: Path, tmp_path: Path
) -> None:
    assert not internal_error.exists()
    owners = []
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda *owner, **_: owners.append(owner[1:]))
    monkeypatch.setattr("pwd.getpwuid", lambda number: SimpleNamespace(pw_dir=str(tmp_path / str(number))))
    monkeypatch.setenv("SUDO_UID", "1234")
    monkeypatch.setenv("SUDO_GID", "100")
    assert f"(traceback: {tmp_path}/1234/.local/state/kproxylat/traceback_" in call(capsys, *LAB)[2]
    assert set(owners) == {(1234, 100)}


NODE = ("--target", "10.96.0.10:53", "--mode", "iptables", "--backend", "nft")


@pytest.mark.parametrize(
    ("options", "holds"),
    [
        (("--lab",), ") == 0x3264600a00000000 "),
        (("--lab", "--backend", "legacy", "--from", "node", "--generator", "sockets"), ":ipt_do_table"),
        (("--lab", "--from", "node", "--protocol", "tcp", "--generator", "sockets"), f"port_protocol == {0x000683C3} "),
        (("--lab", "--family", "6", "--mode", "nftables", "2", "1000"), "daddr3"),
        (("--lab", "--envelope", "--source", "10.244.7.0/24"), "nf_hook_slow"),
        (("--lab", "--ruleset", RULES, "--target", "10.96.100.52:50051", "--protocol", "tcp"), ") == 0x3464600a000"),
        (("--lab", "--ruleset", RULES, "--every-service"), "saddr0"),
        (NODE, f"saddr0 & {0xFEFF}) == {0x12C6}"),
        ((*NODE, "--source", "10.244.7.0/24"), f"saddr0 & {0xFFFFFF}) == {0x07F40A}"),
        ((*NODE, "--generator", "none"), "if (!@seen[$priv])"),
        ((*NODE, "--generator", "none"), f"port_protocol == {0x00113500})"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_render_prints_what_run_would_use(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], holds: str
) -> None:
    used = list[str]()

    def measure(options: plan.Options, **_: object) -> None:
        tracing = options.tracing
        used.append(render_script(measure_plan.plan_script(options), tracing.template, tracing.settings))
        raise MachineError("enough")

    monkeypatch.setattr("kproxylat.measure.run.measure", measure)
    monkeypatch.setattr(trace_plan, "find_engine", lambda mode, _: (mode.engines[0], "fentry"))
    monkeypatch.setattr(trace_plan, "find_version", lambda: ("", (0, 23)))
    monkeypatch.setattr(btf, "struct_offset", lambda *_: 64)
    for name in ("check_root", "load_module"):
        monkeypatch.setattr(kernel, name, lambda *_: None)
    monkeypatch.setattr("kproxylat.measure.defaults.check_root", lambda: None)
    assert call(capsys, "run", *options)[0] == 1
    status, out, err = call(capsys, "render", *options)
    assert (status, [out]) == (0, used), err
    assert holds in out


def test_render_prints_what_bpftrace_reads(tmp_path: Path) -> None:
    make_world(tmp_path, {"bpftrace": PROGRAMS["bpftrace"].replace("$(cat) in", "$(tee script) in")})
    argv = ("--lab", "--mode", "nftables", "0.2", "1000")
    ran, rendered = (
        python("-m", "tests.support.fakes", name, *argv, *more, cwd=tmp_path)
        for name, *more in (("run", "--output-dir", "out"), ("render",))
    )
    assert (ran.returncode, rendered.returncode) == (0, 0), ran.stderr + rendered.stderr
    assert rendered.stdout == (tmp_path / "script").read_text()


def test_render_in_a_virtual_machine_writes_nothing(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = []

    class Machine(virtual_machine.Machine):
        def begin(self) -> None:
            made.append(virtual_machine.build_command(self, None))
            raise MachineError("enough")

    image = tmp_path / "vmlinuz-6.1"
    image.touch()
    monkeypatch.setattr(virtual_machine, "find_kernel", lambda *_: image)
    monkeypatch.setattr(virtual_machine, "Machine", Machine)
    monkeypatch.chdir("/proc")
    status, _, err = call(capsys, "render", "--lab", "--vm")
    assert (status, err.splitlines()[-1]) == (1, "kproxylat: enough")
    assert not [word for word in made[0] if word.startswith("--rwdir")]
    assert "exec chroot" in made[0][made[0].index("--script-sh") + 1]


def test_a_virtual_machine_gets_the_command_line_without_the_options_that_choose_it(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inside: list[list[str]] = []

    class Machine(virtual_machine.Machine):
        def __init__(self, *_: object) -> None:
            self.image, self.kvm = tmp_path / "vmlinuz-6.1", True

        def run(self, argv: Sequence[str], *_: object, **__: object) -> int:
            inside.append([*argv])
            return 4

    monkeypatch.setattr(virtual_machine, "Machine", Machine)
    monkeypatch.setattr(virtual_machine, "boot", lambda *_: None)
    words = ["--kernel", "IMAGE", "--services", "3", "--clock=instructions", "--mode", "ipvs", "--clock", "ns", "2"]
    status, _, err = call(capsys, "run", "--lab", "--vm", *words, "--output-dir", str(tmp_path))
    assert (status, err) == (4, "")
    assert inside == [["run", "--lab", "--services", "3", "--mode", "ipvs", "2", "--output-dir", str(tmp_path)]]


SUBCOMMANDS = ("mode show", "mode set", "services create", "services delete", "services list")


@pytest.mark.parametrize("command", ["", *COMMANDS, *SUBCOMMANDS])
def test_help_has_an_example_and_fits(capsys: Captured, command: str) -> None:
    status, out, err = call(capsys, *command.split(), "--help")
    assert (status, err) == (0, "")
    assert "Example" in out
    assert f"kproxylat {command}" in out.split("Example")[1]
    assert max(map(len, out.splitlines())) <= 80


def test_every_subcommand_is_tested(capsys: Captured) -> None:
    for group in ("mode", "services"):
        listed = re.findall(r"^  ([a-z]+)  ", call(capsys, group, "--help")[1].split("Commands:")[1], re.M)
        assert [f"{group} {each}" for each in listed] == [each for each in SUBCOMMANDS if each.startswith(group)]


def test_every_command_is_tested_and_listed(capsys: Captured) -> None:
    status, out, _ = call(capsys, "--help")
    assert status == 0
    listed = re.findall(r"^  ([a-z]+)  ", out.split("Commands:")[1], re.M)
    assert sorted(listed) == sorted(COMMANDS)


def test_every_command_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"`(?:sudo )?kproxylat ([a-z]+)", (ROOT / "README.md").read_text()))
    assert named <= set(COMMANDS)


def test_the_version(capsys: Captured) -> None:
    assert call(capsys, "--version") == (0, f"kproxylat {__version__}\n", "")


def python(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False, cwd=cwd
    )


@pytest.mark.parametrize(("file", "name"), [("kproxylat", "kproxylat"), ("kubectl-kproxylat", "kubectl kproxylat")])
def test_messages_name_the_program_that_was_started(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, file: str, name: str
) -> None:
    monkeypatch.setattr(sys, "argv", [f"/usr/bin/{file}"])
    assert call(capsys, "doctor", "--wrong")[2].endswith(f"\n  see {name} doctor --help\n")


def test_the_program_itself() -> None:
    done = python("-m", "kproxylat", "run", "--lab", "--mode", "ipvs4")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "kproxylat: unknown mode 'ipvs4'\n  --mode takes one of: iptables, ipvs, nftables\n"


@pytest.mark.parametrize(
    ("code", "libraries"),
    [
        ("pass", HEAVY),
        ("app.build('parse')", HEAVY),
        ("app.build()", ("kubernetes", "urllib3", "yaml", "jinja2", "rich", "numpy", "matplotlib")),
        ("app.build('services')", ("kubernetes", "urllib3", "yaml", "prometheus_client", "jinja2", "rich")),
    ],
)
def test_the_command_line_imports_nothing_heavy(code: str, libraries: tuple[str, ...]) -> None:
    """Without a command, for parse, for the help of the whole program, and for a command that asks the API."""
    names = f"[library for library in {libraries} if library in sys.modules]"
    process = python("-c", f"import sys; from kproxylat.cli import app; {code}; print({names})")
    assert process.stdout == "[]\n", process.stderr


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_a_directory_of_rulesets_is_swept_on_the_backend_that_is_passed(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: str
) -> None:
    from kproxylat.sweep import sweep

    for each in ("legacy", "nft"):
        file = ROOT / f"tests/kube-proxy-rules/iptables-{each}/n0/iptables-{each}-save.txt"
        (tmp_path / file.name).write_bytes(file.read_bytes())
    planned: list[str] = []

    def stop(points: list[Options], *_: object) -> None:
        planned.extend(
            f"{each.mode.backend} {each.lab.ruleset.source}" for each in points if each.lab and each.lab.ruleset
        )
        raise MachineError("enough")

    monkeypatch.setattr(sweep, "sweep", stop)
    argv = ("sweep", "--lab", "--ruleset", str(tmp_path), "--every-service")
    assert call(capsys, *argv, "--backend", backend) == (1, "", "kproxylat: enough\n")
    assert planned == [f"{backend} {tmp_path / f'iptables-{backend}-save.txt'}"]
    assert "holds several rulesets" in call(capsys, *argv)[2]


@pytest.mark.parametrize(
    ("clock", "options", "duration_s"),
    [
        ("ns", ("--services", "10"), 2),
        ("instructions", ("--services", "10"), 0.3),
        ("instructions", ("--services", "10", "5"), 5),
        ("instructions", ("--ruleset", RULES, "--every-service"), 2),
    ],
)
def test_a_sweep_sends_fewer_packets_on_the_instruction_clock(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, clock: str, options: tuple[str, ...], duration_s: float
) -> None:
    from kproxylat.sweep import sweep

    planned: list[float] = []

    def stop(points: list[Options], *_: object) -> None:
        planned.extend(each.sending.duration_s for each in points)
        raise MachineError("enough")

    monkeypatch.setattr(sweep, "sweep", stop)
    monkeypatch.setattr("kproxylat.cli.sweep.detect_clock", lambda: (clock, True))
    backend = ("--mode", "iptables", "--backend", "nft")
    assert call(capsys, "sweep", "--lab", *options, *backend) == (1, "", "kproxylat: enough\n")
    assert planned == [duration_s]
