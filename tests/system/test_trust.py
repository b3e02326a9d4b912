"""Rights and injection: input cannot inject code, root trusts no file of other users, and one run holds the lock."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest

from kproxylat.cli import app
from kproxylat.console import say
from kproxylat.errors import KproxylatError, MachineError, TemplateError
from kproxylat.lab import services
from kproxylat.logs import writer
from kproxylat.measure import run, watch
from kproxylat.measure.plan import check_template
from kproxylat.modes import find_mode
from kproxylat.node import lock, network, service_rule
from kproxylat.node.service_rule import read_service_rule
from kproxylat.report.tables import show_result
from kproxylat.results import Probe, Quality, Result, Run, Target
from kproxylat.system import files, processes, trust
from kproxylat.system.trust import check_trusted, find_caller
from kproxylat.trace import bpftrace, engine
from kproxylat.trace.script import render_script
from kproxylat.traffic import generators
from tests.support import ROOT
from tests.support.plans import PLAN

LAB, TARGET = ("run", "--lab"), ("run", "--mode", "nftables", "--target")
SHELL, QUOTED, TICKS = "x;touch pwned", "x$(touch pwned)", "x`touch pwned`"
BT = '1 } BEGIN { system("touch pwned") } /*'
NFT = "0.0.0.0/0 } ; flush ruleset ; #"
LINES = "10.0.0.0/8\nlink delete eth0"


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let no program run, and work in a directory where ``pwned`` would be seen."""

    def start(argv: tuple[str, ...], _: str | None) -> None:
        raise AssertionError(f"{argv} was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "_command", start)
    monkeypatch.setattr(app.signal, "signal", lambda *_: None)
    for name in ("SUDO_UID", "SUDO_GID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param((*LAB, "--mode", SHELL), id="mode-shell"),
        pytest.param((*LAB, "--mode", BT), id="mode-bpftrace"),
        pytest.param((*LAB, "--backend", QUOTED), id="backend-shell"),
        pytest.param((*LAB, "--backend", "nft\n-F"), id="backend-newline"),
        pytest.param((*TARGET, f"10.96.0.10:{SHELL}"), id="port-shell"),
        pytest.param((*TARGET, f"10.96.0.10{BT}:80"), id="address-bpftrace"),
        pytest.param((*TARGET, "10.96.0.10 accept; flush ruleset:80"), id="address-nft"),
        pytest.param((*TARGET, "10.96.0.10 -j ACCEPT:80"), id="address-iptables"),
        pytest.param((*TARGET, "10.96.0.10\nremove all:80"), id="address-pktgen-line"),
        pytest.param((*TARGET, "10.96.0.10:80", "--source", NFT), id="source-nft"),
        pytest.param((*LAB, "--source", LINES), id="source-ip-batch"),
        pytest.param((*LAB, "--source", TICKS), id="source-shell"),
        pytest.param((*LAB, "--set", f"limit={BT}"), id="set-value-bpftrace"),
        pytest.param((*LAB, "--set", f"limit={QUOTED}"), id="set-value-shell"),
        pytest.param((*LAB, "--set", 'limit=1"'), id="set-value-quote"),
        pytest.param((*LAB, "--set", "limit=1\n#include </etc/shadow>"), id="set-value-newline"),
        pytest.param((*LAB, "--set", "limit={{7*7}}"), id="set-value-template"),
        pytest.param((*LAB, "--set", "__class__.x=1"), id="set-name-attribute"),
        pytest.param((*LAB, "--set", "plan=1"), id="set-name-plan"),
        pytest.param((*LAB, "--services", SHELL), id="services-shell"),
        pytest.param((*LAB, "--position", SHELL), id="position-shell"),
        pytest.param((*LAB, "--worker-ports", "udp -j ACCEPT"), id="worker-ports-iptables"),
        pytest.param(("trace", "--mode", "nftables", "--target", "10.0.0.1:1", "--protocol", NFT), id="protocol-nft"),
        pytest.param((*LAB, "--template", f"{QUOTED}.j2"), id="template-name-shell"),
        pytest.param((*LAB, "--", "1", "1\nstart"), id="rate-pktgen-line"),
    ],
)
def test_no_option_injects_code(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        app.main(list(argv))
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert "Traceback" not in err
    assert not Path("pwned").exists()


@pytest.mark.parametrize("value", [
    "5; touch pwned", "", "-5", "0", "1e3", "٣", "9" * 5000, "99999999999"],
    ids=["shell", "empty", "negative", "zero", "float", "other-digits", "endless", "too-many"],
)  # fmt: skip
def test_a_map_limit_from_the_environment(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(engine, "find_version", lambda: ("v0.17.0", (0, 17)))
    monkeypatch.setenv("BPFTRACE_MAP_KEYS_MAX", value)
    with pytest.raises(MachineError, match="the environment has BPFTRACE_MAP_KEYS_MAX="):
        engine.find_map_limit("ns")


@pytest.mark.parametrize("value", ["0; touch pwned", "", "-1", "4294967295", "9" * 30, "٣"])
@pytest.mark.parametrize("name", ["SUDO_UID", "SUDO_GID"])
def test_a_caller_from_the_environment(monkeypatch: pytest.MonkeyPatch, name: str, value: str, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_UID", "1000")
    monkeypatch.setenv("SUDO_GID", "1000")
    assert find_caller() == (1000, 1000)
    monkeypatch.setenv(name, value)
    with pytest.raises(MachineError, match=f"the environment has {name}="):
        files.make_directory(tmp_path / "logs")


@pytest.mark.parametrize("path", [None, "", ".", "bin:", ":/usr/bin"], ids=["unset", "empty", "dot", "relative", "gap"])
def test_no_program_comes_from_the_current_directory(tmp_path: Path, path: str | None) -> None:
    for place in (tmp_path, tmp_path / "bin"):
        place.mkdir(exist_ok=True)
        program = place / "kproxylat-trap"
        program.write_text("#!/bin/sh\ntouch pwned\n")
        program.chmod(0o755)
    environment = {**os.environ, "PATH": path or ""}
    if path is None:
        del environment["PATH"]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from kproxylat.system.processes import run; "
    code += "run('kproxylat-trap')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "the program 'kproxylat-trap' is missing" in done.stderr
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("text", [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ plan.__init__.__globals__['sys'].modules['os'].system('touch pwned') }}",
    "{{ cycler.__init__.__globals__.os.system('touch pwned') }}",
    "{% include '../../../../../../../etc/passwd' %}",
    "{% include '/etc/passwd' %}",
], ids=["subclasses", "globals", "cycler", "include-up", "include-absolute"])  # fmt: skip
def test_a_template_cannot_reach_python_or_files(tmp_path: Path, text: str) -> None:
    template = tmp_path / "mine.bt.j2"
    template.write_text(text)
    with pytest.raises(TemplateError):
        render_script(PLAN, template)
    assert not (tmp_path / "pwned").exists()


def test_bpftrace_never_runs_unsafe(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, ...]] = []

    def start(argv: tuple[str, ...], _: str | None) -> None:
        started.append(argv)
        raise KproxylatError("not today")

    monkeypatch.setattr(processes, "_command", start)
    monkeypatch.setattr(engine, "find_version", lambda: ("v0.17.0", (0, 17)))
    with suppress(KproxylatError):
        bpftrace.Tracer('BEGIN { system("touch pwned"); }', lambda _: None)
    assert started == [("bpftrace", "-")]
    modules = [*(ROOT / "kproxylat").rglob("*.py")]
    assert len(modules) > 60
    assert not [path for path in modules if re.search(r"[\"']--unsafe", path.read_text())]


@pytest.mark.parametrize(("rule", "position"), [
    ('-A KUBE-SERVICES -d 10.0.0.1/32 -p udp -m comment --comment "a/b:c" -m udp --dport 53 -c 7 420 -j X', 1),
    ('-A KUBE-SERVICES -d 10.0.0.1/32 -p udp -m comment --comment "--dport 53 -c 9 9 " -m udp --dport 5 -c 7 420 -j X',
     None),
    ('-A KUBE-SERVICES -m comment --comment "\\" -d 10.0.0.1/32 -p udp --dport 53 -c 9 9 " -d 10.0.0.2/32 -c 7 4 -j X',
     None),
], ids=["honest", "port-in-comment", "escaped-quote"])  # fmt: skip
def test_a_comment_is_not_parsed_as_a_rule(monkeypatch: pytest.MonkeyPatch, rule: str, position: int | None) -> None:
    monkeypatch.setattr(service_rule, "run", lambda *_, **__: f"-N KUBE-SERVICES\n{rule}\n")
    result = read_service_rule(find_mode("iptables", "nft"), Target("10.0.0.1", 53, "udp"), None)
    assert result.position == position
    assert result.packets == (7 if position else 0)


def test_a_chain_name_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    trap = "\x1b]0;pwned\x07[/bold]\x1b[2J"
    probe = Probe("nft_do_chain", "nat", trap, "PREROUTING", False, 1, 1, 1, 1.0, 1, 1, "ns")
    show_result(Result(Run(clock="ns"), probes=(probe,), quality=Quality(warnings=(f"WARNING: {trap}",))))
    say(f"bpftrace says {trap}")
    out, err = capsys.readouterr()
    assert "[/bold]" in out
    assert not {each for each in out + err if not each.isprintable()} - {"\n"}


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Act as root, called by the user who owns the files of the test."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_UID", str(os.getuid()))
    monkeypatch.setenv("SUDO_GID", str(os.getgid()))


Make = Callable[[Path], Path]


def template_in(directory: Path, name: str = "mine.bt.j2", mode: int = 0o644) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text("BEGIN { }\n")
    path.chmod(mode)
    return path


def in_open_directory(root: Path, mode: int = 0o777) -> Path:
    path = template_in(root / "open")
    (root / "open").chmod(mode)
    return path


def below_open_directory(root: Path) -> Path:
    in_open_directory(root)
    return template_in(root / "open" / "sub")


def linked_from_open_directory(root: Path) -> Path:
    path = in_open_directory(root).with_name("link")
    path.symlink_to(template_in(root / "good"))
    return path


def linked_into_open_directory(root: Path) -> Path:
    path = root / "link"
    path.symlink_to(in_open_directory(root))
    return path


def linked_through_open_directory(root: Path) -> Path:
    """The first and the last directory are safe, the link between them is not."""
    in_open_directory(root)
    (root / "open/second").symlink_to(template_in(root / "good"))
    path = root / "first"
    path.symlink_to("open/second")
    return path


def owned_by_group(root: Path) -> Path:
    """Group 0 is a group as any other."""
    path = template_in(root, mode=0o664)
    if os.getuid() == 0:
        os.chown(path, 0, 0)
    return path


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("make", [
    pytest.param(linked_through_open_directory, id="second-link-that-others-may-turn"),
    pytest.param(owned_by_group, id="file-of-group-0"),
    pytest.param(lambda root: template_in(root, mode=0o646), id="file-of-everybody"),
    pytest.param(in_open_directory, id="directory-of-everybody"),
    pytest.param(below_open_directory, id="directory-further-up"),
    pytest.param(linked_from_open_directory, id="link-that-others-may-turn"),
    pytest.param(linked_into_open_directory, id="link-to-a-file-that-others-may-change"),
])  # fmt: skip
def test_root_refuses_a_template_that_other_users_can_change(make: Make, tmp_path: Path) -> None:
    path = make(tmp_path)
    for use in (check_template, lambda each: render_script(PLAN, each)):
        with pytest.raises(MachineError, match="is not read as root: other users can change") as caught:
            use(path)
        assert "chmod go-w" in caught.value.remedy


@pytest.mark.usefixtures("as_root")
def test_root_refuses_an_untrusted_base_template(tmp_path: Path) -> None:
    main = template_in(tmp_path)
    main.write_text('{% extends "base.j2" %}')
    template_in(tmp_path, "base.j2", 0o646)
    with pytest.raises(MachineError, match=r"base\.j2 is not read as root"):
        render_script(PLAN, main)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("kind", ["soft", "hard", "directory"])
def test_an_include_cannot_leave_the_directory_of_the_template(tmp_path: Path, kind: str) -> None:
    """Root would show the caller of sudo any file."""
    main, secret = template_in(tmp_path / "mine"), template_in(tmp_path / "elsewhere", "secret.j2", 0o600)
    name = "link/secret.j2" if kind == "directory" else "link.j2"
    if kind == "soft":
        (main.parent / name).symlink_to(secret)
    elif kind == "hard":
        (main.parent / name).hardlink_to(secret)
    else:
        (main.parent / "link").symlink_to(secret.parent)
    main.write_text(f"{{% include '{name}' %}}")
    with pytest.raises(MachineError, match=rf"{name} is not read as root: it is a link out of {main.parent}$"):
        render_script(PLAN, main)
    (main.parent / "own.j2").write_text("BEGIN { }")
    (main.parent / "inner.j2").symlink_to("own.j2")
    main.write_text("{% include 'inner.j2' %}")
    assert render_script(PLAN, main) == "BEGIN { }"


@pytest.mark.usefixtures("as_root")
def test_root_reads_the_file_that_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name may stand for another file by then."""
    path, other = template_in(tmp_path), template_in(tmp_path, "other")
    other.write_text("another")
    original = trust.open_path

    def replace_opened(opened: Path, check: trust.Check) -> int:
        descriptor = original(opened, check)
        other.rename(path)
        return descriptor

    monkeypatch.setattr(trust, "open_path", replace_opened)
    assert trust.read_trusted(path) == b"BEGIN { }\n"


def test_root_refuses_a_template_of_another_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = template_in(tmp_path)
    if os.getuid() == 0:
        os.chown(path, 65534, 65534)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(MachineError, match="is not read as root"):
        check_trusted(path)
    monkeypatch.setenv("SUDO_UID", str(path.stat().st_uid))
    monkeypatch.setenv("SUDO_GID", "0")
    check_trusted(path)


@pytest.mark.usefixtures("as_root")
def test_root_takes_a_template_in_a_sticky_directory(tmp_path: Path) -> None:
    check_template(in_open_directory(tmp_path, 0o1777))
    assert render_script(PLAN, template_in(tmp_path)) == "BEGIN { }\n"


def test_an_ordinary_user_may_read_any_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    check_template(in_open_directory(tmp_path))


@pytest.fixture
def lock_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lock, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(network, "NETNS", tmp_path / "netns")
    (tmp_path / "netns").mkdir()
    return tmp_path / "lock"


def test_the_lock_is_private_and_removed_at_the_end(lock_path: Path) -> None:
    with lock.lock():
        assert lock_path.stat().st_mode & 0o777 == 0o600
        assert lock_path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(MachineError, match=f"another run is under way \\(process {os.getpid()}\\)"), lock.lock():
            pass
    assert not lock_path.exists()


def test_a_symbolic_link_at_the_lock_is_not_followed(lock_path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    lock_path.symlink_to(victim)
    with pytest.raises(MachineError, match="cannot be taken") as caught, lock.lock():
        pass
    assert caught.value.remedy == f"rm {lock_path}"
    assert victim.read_text() == "precious"
    assert lock_path.is_symlink()


@pytest.mark.parametrize("kind", ["pipe", "directory", "nowhere"])
def test_a_lock_that_is_not_a_file(lock_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "pipe":
        os.mkfifo(lock_path)
    elif kind == "directory":
        lock_path.mkdir()
    else:
        monkeypatch.setattr(lock, "LOCK", lock_path / "nowhere/lock")
    with pytest.raises(MachineError, match="cannot be taken"), lock.lock():
        pass


def test_a_lock_that_was_removed_while_held(lock_path: Path) -> None:
    """The second run takes the new file, but not the first one's namespaces; the first leaves the second's file."""
    with lock.lock():
        (network.NETNS / network.CLIENT).touch()
        with network._claim(network.CLIENT):
            lock_path.unlink()
            with (
                lock.lock(),
                pytest.raises(MachineError, match="another run is under way: it holds kproxylat-client"),
            ):
                network.remove_leftovers()
            lock_path.write_text("the third's")
    assert lock_path.read_text() == "the third's"


def test_a_lock_that_its_holder_removes_while_we_take_it(lock_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock, removed = fcntl.flock, []

    def remove_once(file: object, how: int) -> None:
        if not removed:
            removed.append(lock_path.unlink())
        flock(file, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", remove_once)
    with lock.lock():
        assert lock_path.read_text() == f"{os.getpid()}\n"
    assert removed


def test_the_lock_of_a_killed_run_has_its_notes(lock_path: Path) -> None:
    note = '["module", "", "1", "pktgen"]\n'
    lock_path.write_text(f'4711\n{note}rubbish\n[1]\n[]\n{{}}\n["torn", "')
    with lock.lock() as held:
        assert held.notes == [("module", "", "1", "pktgen")]
        assert lock_path.read_text() == f"{os.getpid()}\n{note}", "the note is kept for the next run"


def test_the_lock_stays_while_it_holds_a_note(lock_path: Path) -> None:
    notes = [("module", "", "1", "pktgen"), ("sysctl", "", "1", "a", "0", "1")]
    with lock.lock() as held:
        for note in notes:
            held.note(*note)
    with lock.lock() as held:
        assert held.notes == notes
        held.forget(notes[0])
        assert lock_path.read_text() == f'{os.getpid()}\n["sysctl", "", "1", "a", "0", "1"]\n'
    with suppress(MachineError), lock.lock():
        raise MachineError("an error under the lock")
    with lock.lock() as held:
        assert held.notes == notes[1:]
        held.forget(notes[1])
    assert not lock_path.exists()


def test_saving_follows_no_symbolic_link(tmp_path: Path) -> None:
    """Root saves into the directory of a user, who may have put links there."""
    from datetime import UTC, datetime

    victim, when = tmp_path / "victim", datetime(2025, 1, 1, tzinfo=UTC)
    victim.write_text("precious")
    (tmp_path / "ebpf_nftables_20250101_000000.log").symlink_to(victim)
    (tmp_path / "ebpf_nftables_20250101_000000_1.json").symlink_to(victim)
    log = writer.RunLog(tmp_path, "nftables", when)
    log.save(Result(Run()))
    assert log.path.name == "ebpf_nftables_20250101_000000_2.log"
    assert json.loads(log.path.with_suffix(".json").read_text())
    assert victim.read_text() == "precious"


def test_no_module_makes_temporary_files() -> None:
    for module in (bpftrace, files, services, run, network, processes, writer, generators, watch):
        assert "tempfile" not in Path(module.__file__).read_text()


def test_root_without_cap_chown_warns_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Tracing works without CAP_CHOWN."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", refuse)
    for name in ("SUDO_UID", "SUDO_GID"):
        monkeypatch.setenv(name, "1000")
    files._warn_of_owner.cache_clear()
    log = writer.RunLog(tmp_path / "logs/ebpf", "ipvs", datetime(2026, 11, 25))
    assert log.save(Result(Run())) is None
    message = "warning: logs and results belong to root: giving them to the caller of sudo needs CAP_CHOWN\n"
    assert capsys.readouterr().err == message
    assert len(list((tmp_path / "logs/ebpf").iterdir())) == 2


def test_a_directory_that_root_cannot_write_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(MachineError, match="cannot be written to") as caught:
        files.make_directory(tmp_path)
    assert caught.value.remedy == "pass another --output-dir that root owns"
