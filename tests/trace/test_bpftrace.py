"""Runs of bpftrace, played by small programs on the PATH: late, dead, deaf, talkative; and the limits of its output."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kproxylat.errors import MachineError, TemplateError
from kproxylat.modes import find_mode
from kproxylat.system import processes
from kproxylat.trace import bpftrace, engine
from kproxylat.trace.bpftrace import LineBuffer, Tracer, count_lost, trace
from kproxylat.trace.engine import find_map_limit, find_version, probe_words
from kproxylat.trace.script import Script

NOTIFY = "__BPFTRACE_NOTIFY_PROBES_ATTACHED"
NOTIFY_ERR = f"/bin/echo {NOTIFY} >&2"
"""By a program: bash's own echo holds one more file while it is redirected, which passes for a closed probe."""
WAIT = "while :; do sleep 0.02; done"
PRINTS_AT_SIGINT = "trap 'echo \"@n[1, 0, 5]: 3\"; exit 0' INT"
Fake = Callable[..., Script]
SCRIPT = "BEGIN { exit(); }\n"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """Put a shell script in bpftrace's place; returns the program that a tracer is started on."""
    monkeypatch.setattr(processes, "PATH", f"{tmp_path}{os.pathsep}{processes.PATH}")
    for name in ("BPFTRACE_MAX_MAP_KEYS", "BPFTRACE_MAP_KEYS_MAX"):
        monkeypatch.delenv(name, raising=False)

    def write(body: str, version: str = "bpftrace v0.17.0") -> str:
        program = tmp_path / "bpftrace"
        program.write_text(f'#!/bin/bash\n[ "$1" = --version ] && {{ echo "{version}"; exit 0; }}\n{body}\n')
        program.chmod(0o755)
        return Script(SCRIPT)

    find_version.cache_clear()
    engine.find_engine.cache_clear()
    yield write
    find_version.cache_clear()
    engine.find_engine.cache_clear()


def start(script: Script) -> tuple[Tracer, list[str]]:
    lines: list[str] = []
    return Tracer(script, lines.append), lines


def wait_for_line(lines: list[str]) -> None:
    """Wait until the program has printed its first line, so that a limit of 0 seconds cannot pass before it."""
    ends_s = time.monotonic() + 30
    while not lines and time.monotonic() < ends_s:
        time.sleep(0.01)
    assert lines


@pytest.mark.parametrize(
    "ready",
    [f"echo {NOTIFY}", NOTIFY_ERR, "/bin/echo Attached 3 probes >&2", "echo Attached 1 probe"],
)
def test_attached_is_read_and_the_maps_come_at_the_end(fake: Fake, ready: str) -> None:
    script = fake(f"{PRINTS_AT_SIGINT}; echo Attaching 3 probes...; {ready}; {WAIT}")
    lines: list[str] = []
    with trace(script, lines.append) as tracer:
        assert tracer.alive
        tracer.stop()
    assert list(tracer.stdout) == ["Attaching 3 probes...\n", "@n[1, 0, 5]: 3\n"]
    assert lines == list(tracer.stdout)
    assert not tracer.alive


@pytest.mark.parametrize(
    ("files", "skipped"),
    [
        ([], None),
        (["pos:\t0\nflags:\t02\n"], None),
        (["prog_type:\t26\nrun_cnt:\t600\nrecursion_misses:\t0\n"], 0),
        (["prog_type:\t26\nrecursion_misses:\t3\n", "link_type:\tkprobe\nmissed:\t4\n", "pos:\t9\n"], 7),
    ],
)
def test_the_kernels_count_of_skipped_calls_is_read_while_the_programs_are_loaded(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], skipped: int | None
) -> None:
    """Formats: fdinfo of Linux 6.1 and 6.12."""
    script = fake(f"{PRINTS_AT_SIGINT}; echo {NOTIFY}; {WAIT}")
    directory = tmp_path / "fdinfo"
    directory.mkdir()
    for number, text in enumerate(files):
        (directory / str(number)).write_text(text)
    monkeypatch.setattr(bpftrace, "FILES", str(directory))
    with trace(script, lambda _: None) as tracer:
        assert tracer.skipped is None
        tracer.stop()
    assert tracer.skipped == skipped


def test_attaching_is_not_attached(fake: Fake) -> None:
    tracer, lines = start(fake(f"echo Attaching 3 probes...; {WAIT}"))
    wait_for_line(lines)
    with pytest.raises(MachineError, match="attached no probes within 0 s: "):
        tracer.wait_attached(0)
    assert not tracer.alive


def test_one_that_never_attaches_is_ended_and_quoted(fake: Fake) -> None:
    tracer, lines = start(fake(f"echo thinking about it >&2; {WAIT}"))
    wait_for_line(lines)
    with pytest.raises(MachineError, match="thinking about it"):
        tracer.wait_attached(0)
    assert not tracer.alive


def test_one_that_dies_before_attaching(fake: Fake) -> None:
    tracer, lines = start(fake("echo 'ERROR: Could not resolve symbol' >&2; echo bla >&2; exit 7"))
    with pytest.raises(MachineError) as caught:
        tracer.wait_attached(10)
    assert "before its probes were attached (status 7): ERROR: Could not resolve symbol" in str(caught.value)
    assert not isinstance(caught.value, TemplateError)
    assert "bla" not in str(caught.value)
    assert "bla\n" in lines


def test_one_that_lacks_headers_says_what_brings_them(fake: Fake) -> None:
    """As 0.17 does on Linux 5.10."""
    said = "/bpftrace/include/clang_workarounds.h:14:10: fatal error: 'linux/types.h' file not found"
    tracer, _ = start(fake(f'echo "{said}" >&2; exit 1'))
    with pytest.raises(MachineError, match=re.escape(said)) as caught:
        tracer.wait_attached(10)
    assert "apt-get install linux-libc-dev, or dnf install kernel-headers" in caught.value.remedy


def test_one_that_dies_by_a_signal(fake: Fake) -> None:
    tracer, _ = start(fake("kill -SEGV $$"))
    with pytest.raises(MachineError, match=r"status -11\): \(it printed nothing\)"):
        tracer.wait_attached(10)


def test_a_script_that_does_not_compile_is_the_templates_fault(fake: Fake) -> None:
    said = "stdin:2:2-9: ERROR: Unknown function: 'foo'"
    script = fake(f'echo "{said}" >&2; echo "        ~~~~" >&2; echo "{said}" >&2; exit 1')
    script.origins = (("mine.bt.j2", 1), ("mine.bt.j2", 7))
    tracer, _ = start(script)
    with pytest.raises(TemplateError) as caught:
        tracer.wait_attached(10)
    assert str(caught.value) == "template mine.bt.j2, line 7: Unknown function: 'foo' (and 1 more)"
    assert caught.value.remedy.startswith("bpftrace does not compile: ")
    assert "kproxylat render" in caught.value.remedy


def test_one_that_ignores_sigint_is_ended(fake: Fake) -> None:
    with trace(fake(f"trap '' INT; echo {NOTIFY}; {WAIT}"), lambda _: None) as tracer:
        with pytest.raises(MachineError, match="did not end within 0 s of SIGINT"):
            tracer.stop(0.3)
        assert not tracer.alive


def test_one_that_overhears_sigint_is_asked_again(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one does so up to 0.17, now and then: outside of epoll_wait."""
    monkeypatch.setattr(bpftrace, "OVERHEARD_S", 0.1)
    body = "trap 'if ((asked++)); then exec 9<&-; echo \"@n: 1\"; exit 0; fi' INT"
    with trace(fake(f"exec 9</dev/null; asked=0; {body}; echo {NOTIFY}; {WAIT}"), lambda _: None) as tracer:
        tracer.stop(20)
    assert list(tracer.stdout) == ["@n: 1\n"]


def test_one_that_is_slow_to_end_is_not_asked_again(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes three times as long as we wait before we ask again."""
    monkeypatch.setattr(bpftrace, "OVERHEARD_S", 0.4)
    body = 'trap \'exec 9<&-; trap "exit 4" INT; for i in {1..60}; do sleep 0.02; done; echo "@n: 1"; exit 0\' INT'
    with trace(fake(f"exec 9</dev/null; {body}; echo {NOTIFY}; {WAIT}"), lambda _: None) as tracer:
        tracer.stop(20)
    assert list(tracer.stdout) == ["@n: 1\n"]


def test_the_end_of_one_that_has_ended_waits_for_its_output() -> None:
    """Else it would come when the log is closed already."""
    came, taken = threading.Event(), threading.Event()

    def take(_: str) -> None:
        came.set()
        taken.wait(30)

    process = processes.Background("echo", "the last words", on_out=take, on_err=print)
    assert came.wait(30)
    while process.count_files():
        pass
    threading.Timer(0.3, taken.set).start()
    process.end()
    assert not process.alive


def test_one_that_dies_while_tracing(fake: Fake) -> None:
    with trace(fake(f"echo {NOTIFY}; echo out of memory >&2; exit 9"), lambda _: None) as tracer:
        tracer.wait(10)
        with pytest.raises(MachineError, match=r"died while tracing \(status 9\): out of memory"):
            tracer.stop()


def test_one_that_fails_at_its_end(fake: Fake) -> None:
    with (
        trace(fake(f"trap 'exit 3' INT; echo {NOTIFY}; {WAIT}"), lambda _: None) as tracer,
        pytest.raises(MachineError, match=r"failed at its end \(status 3\)"),
    ):
        tracer.stop()


def test_nothing_runs_after_the_block(fake: Fake) -> None:
    with trace(fake(f"echo {NOTIFY}; {WAIT}"), lambda _: None) as tracer:
        assert tracer.alive
    assert not tracer.alive


def test_20000_lines_come_whole_and_in_order(fake: Fake) -> None:
    script = fake(f"trap 'seq -f \"@n[1, 0, %.0f]: 1\" 20000; exit 0' INT; echo {NOTIFY}; {WAIT}")
    with trace(script, lambda _: None) as tracer:
        tracer.stop()
    assert list(tracer.stdout) == [f"@n[1, 0, {number}]: 1\n" for number in range(1, 20001)]


def test_a_line_buffer_keeps_the_last_lines_and_logs_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpftrace, "KEEP_CHARS", 6)
    monkeypatch.setattr(bpftrace, "LOG_CHARS", 8)
    logged: list[str] = []

    def log(line: str) -> bool:
        logged.append(line)
        return line != "no\n"

    buffer = LineBuffer(log)
    for line in ("a\n", "no\n", "b\n", "c\n"):
        buffer.add_out(line)
    buffer.add_err("e\n")
    assert (logged, buffer.unlogged) == (["a\n", "no\n", "b\n", "c\n", "e\n"], 0)
    buffer.add_out("no\n")
    assert (logged[5:], buffer.unlogged) == ([], 1), "8 characters are logged"
    assert (list(buffer.stdout), buffer.forgotten, buffer.stderr) == (["c\n", "no\n"], 2, ["e\n"])


def test_of_a_flood_on_stdout_the_end_is_kept(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpftrace, "KEEP_CHARS", 1000)
    lines: list[str] = []
    with trace(fake(f"{PRINTS_AT_SIGINT}; seq 5000; echo {NOTIFY}; {WAIT}"), lines.append) as tracer:
        tracer.stop()
    assert lines[:5000] == [f"{number}\n" for number in range(1, 5001)], "the log has all"
    assert 900 < sum(map(len, tracer.stdout)) <= 1000
    assert tracer.stdout[-1] == "@n[1, 0, 5]: 3\n"
    assert tracer.forgotten == 5001 - len(tracer.stdout)


def test_lines_that_are_not_wanted_do_not_use_the_log_up(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the interval lines of a trace of hours, after which the last maps are still to come."""
    monkeypatch.setattr(bpftrace, "LOG_CHARS", 1000)
    asked: list[str] = []

    def take(line: str) -> bool:
        asked.append(line)
        return line.startswith("@")

    with trace(fake(f"{PRINTS_AT_SIGINT}; seq 5000; echo {NOTIFY}; {WAIT}"), take) as tracer:
        tracer.stop()
    assert len(asked) == 5001
    assert list(tracer.stdout) == ["@n[1, 0, 5]: 3\n"]
    assert tracer.unlogged == 0


def test_of_more_than_the_log_may_hold_the_end_is_kept(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpftrace, "LOG_CHARS", 1000)
    lines: list[str] = []
    with trace(fake(f"{PRINTS_AT_SIGINT}; seq 5000; echo {NOTIFY}; {WAIT}"), lines.append) as tracer:
        tracer.stop()
    assert 1000 <= sum(map(len, lines)) < 1010
    assert tracer.stdout[-1] == "@n[1, 0, 5]: 3\n"
    assert tracer.unlogged == 5001 - len(lines) > 0


def test_a_line_without_end_comes_in_pieces(fake: Fake) -> None:
    flood = "head -c 3000000 /dev/zero | tr '\\0' x"
    with trace(fake(f"trap 'echo; echo \"@n: 3\"; exit 0' INT; {flood}; {NOTIFY_ERR}; {WAIT}"), len) as tracer:
        tracer.stop()
    assert max(map(len, tracer.stdout)) == processes.MAX_LINE
    assert "".join(tracer.stdout) == "x" * 3_000_000 + "\n@n: 3\n"


def test_lines_that_are_not_wanted_are_not_kept(fake: Fake) -> None:
    script = fake(f"{PRINTS_AT_SIGINT}; seq 50; echo {NOTIFY}; {WAIT}")
    with trace(script, lambda line: line.startswith("@")) as tracer:
        tracer.stop()
    assert list(tracer.stdout) == ["@n[1, 0, 5]: 3\n"]


def test_of_a_flood_on_stderr_the_beginning_is_kept(fake: Fake) -> None:
    with trace(fake(f"{PRINTS_AT_SIGINT}; seq 5000 >&2; echo {NOTIFY}; {WAIT}"), lambda _: None) as tracer:
        tracer.stop()
    assert tracer.stderr == [f"{number}\n" for number in range(1, 1001)]


def test_bytes_that_are_no_text(fake: Fake) -> None:
    with trace(fake(f"{PRINTS_AT_SIGINT}; printf '@s: \\377\\n'; echo {NOTIFY}; {WAIT}"), lambda _: None) as tracer:
        tracer.stop()
    assert tracer.stdout[0] == "@s: \ufffd\n"


def test_it_gets_the_script_the_limit_and_the_order_to_notify(fake: Fake) -> None:
    script = fake('echo "$1 $(cat) $BPFTRACE_MAP_KEYS_MAX $BPFTRACE_MAX_MAP_KEYS $__BPFTRACE_NOTIFY_PROBES_ATTACHED"')
    tracer, lines = start(script)
    tracer.wait(10)
    assert lines == [f"- {SCRIPT.strip()} {tracer.map_limit}  1\n"]


@pytest.mark.parametrize(
    ("said", "shown", "version"),
    [
        ("bpftrace v0.17.0", "v0.17.0", (0, 17)),
        ("bpftrace v0.23.2", "v0.23.2", (0, 23)),
        ("bpftrace v0.25.0-16-gabc", "v0.25.0-16-gabc", (0, 25)),
        ("bpftrace 1.0.1", "1.0.1", (1, 0)),
    ],
)
def test_versions(fake: Fake, said: str, shown: str, version: tuple[int, int]) -> None:
    fake("", said)
    assert find_version() == (shown, version)


@pytest.mark.parametrize(("said", "named"), [("what?", r"'what\?'"), ("", "''"), ("bpftrace v0.16.9", "too old")])
def test_versions_that_will_not_do(fake: Fake, said: str, named: str) -> None:
    fake("", said)
    with pytest.raises(MachineError, match=named) as caught:
        find_version()
    assert "0.17 or newer" in caught.value.remedy


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ((0, 17), ("kfunc", "kretfunc", "args->")),
        ((0, 20), ("kfunc", "kretfunc", "args->")),
        ((0, 21), ("fentry", "fexit", "args.")),
        ((1, 0), ("fentry", "fexit", "args.")),
    ],
)
def test_words(version: tuple[int, int], words: tuple[str, str, str]) -> None:
    assert probe_words(version) == words


def test_the_map_limit_is_named_as_the_version_names_it(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("", "bpftrace v0.17.0")
    assert find_map_limit("ns") == ("BPFTRACE_MAP_KEYS_MAX", 65536)
    find_version.cache_clear()
    fake("", "bpftrace v0.23.2")
    assert find_map_limit("instructions") == ("BPFTRACE_MAX_MAP_KEYS", 8192)
    monkeypatch.setenv("BPFTRACE_MAX_MAP_KEYS", "77")
    assert find_map_limit("ns") == ("BPFTRACE_MAX_MAP_KEYS", 77)
    monkeypatch.setenv("BPFTRACE_MAX_MAP_KEYS", "many")
    with pytest.raises(MachineError, match="BPFTRACE_MAX_MAP_KEYS='many'"):
        find_map_limit("ns")


LISTED = """echo "kfunc:vmlinux:ipt_do_table"
echo "    void * priv"; echo "    struct sk_buff * skb"; echo "    const struct nf_hook_state * {last}"
echo "    unsigned int retval"
"""
LEGACY = find_mode("iptables", "legacy")
NOTHING = "echo 'stdin:1:1-2: WARNING: nothing' >&2; exit 1"


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Be another kernel, of which all is built in, with probes of each kind."""
    for kind in engine.KINDS:
        monkeypatch.setitem(engine.KINDS, kind, lambda: "on")
    monkeypatch.setattr(engine, "btf_module", lambda _: "vmlinux")
    monkeypatch.setattr(engine, "has_function", lambda name: name == "ipt_do_table")
    return lambda *version: monkeypatch.setattr(engine, "version_numbers", lambda: version)


def test_an_engine_with_the_arguments_that_we_expect(fake: Fake, kernel: Callable[[int, int], None]) -> None:
    kernel(6, 1)
    fake(LISTED.format(last="state"))
    assert engine.find_engine(LEGACY, "auto") == (LEGACY.engines[0], "fentry")
    assert engine.find_engine(LEGACY, "kprobe") == (LEGACY.engines[0], "kprobe")


def test_kprobes_are_for_x86_64(
    fake: Fake, kernel: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel(6, 1)
    fake(LISTED.format(last="state"))
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert engine.find_engine.__wrapped__(LEGACY, "fentry")[1] == "fentry"
    with pytest.raises(MachineError, match="kprobes need x86-64; aarch64 stores"):
        engine.find_engine.__wrapped__(LEGACY, "kprobe")


@pytest.mark.parametrize(("version", "refused"), [("v0.26.0", True), ("v0.26.1", False), ("v0.27.1", False)])
def test_a_version_that_reads_kprobes_wrongly_is_refused_for_them(
    fake: Fake, kernel: Callable[[int, int], None], version: str, refused: bool
) -> None:
    kernel(6, 12)
    fake(LISTED.format(last="state"), f"bpftrace {version}")
    if refused:
        with pytest.raises(MachineError, match=r"bpftrace 0\.26\.0 reads wrong"):
            engine.find_engine(LEGACY, "kprobe")
    else:
        assert engine.find_engine(LEGACY, "kprobe")[1] == "kprobe"


def test_an_older_engine_is_found_by_its_arguments(fake: Fake, kernel: Callable[[int, int], None]) -> None:
    kernel(5, 14)
    lines = (
        LISTED.format(last="table")
        .replace('echo "    void * priv"; ', "")
        .replace("struct sk_buff * skb", "void * skb")
    )
    fake(lines.replace("nf_hook_state * table", 'nf_hook_state * state"; echo "    struct xt_table * table'))
    assert engine.find_engine(LEGACY, "auto") == (LEGACY.engines[1], "fentry")


def test_without_types_it_is_kprobes_and_the_kernels_version(fake: Fake, kernel: Callable[[int, int], None]) -> None:
    fake(NOTHING)
    kernel(5, 10)
    assert engine.find_engine(LEGACY, "auto") == (LEGACY.engines[1], "kprobe")
    kernel(6, 1)
    engine.find_engine.cache_clear()
    assert engine.find_engine(LEGACY, "auto") == (LEGACY.engines[0], "kprobe")
    with pytest.raises(MachineError, match="no function ipt_do_table that fentry can trace"):
        engine.find_engine(LEGACY, "fentry")


def test_an_engine_with_other_arguments_is_refused(fake: Fake, kernel: Callable[[int, int], None]) -> None:
    kernel(6, 1)
    fake(LISTED.format(last="table"))
    with pytest.raises(MachineError, match=r"takes \(priv, skb, table\), not \(priv, skb, state\)"):
        engine.find_engine(LEGACY, "fentry")


def test_an_engine_that_is_not_there_is_refused(fake: Fake, kernel: Callable[[int, int], None]) -> None:
    kernel(6, 1)
    fake(NOTHING)
    with pytest.raises(MachineError, match="no function ip_vs_in_hook that kprobe can trace"):
        engine.find_engine(find_mode("ipvs", None), "auto")


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("", 0),
        ("Lost 3 events\n@n: 1\nLost 4 events\n", 7),
        ("WARNING: Total lost event count: 3\nWARNING: Total lost event count: 5\n", 5),
        ("@s: Lost 3 events\n", 0),
        ("Lost no events\n", 0),
    ],
)
def test_lost_events(text: str, lost: int) -> None:
    assert count_lost(text) == lost


def test_no_bpftrace_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATH", str(tmp_path))
    with pytest.raises(MachineError, match="program 'bpftrace' is missing") as caught, trace(SCRIPT, lambda _: None):
        pass
    assert caught.value.remedy == "apt-get install bpftrace"
