"""Machines that share a sweep's runs. The machines are fakes that print what real ones print."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest

from kproxylat.errors import Interrupted, KproxylatError, MachineError
from kproxylat.measure.options import Lab, Options, Record, Sending
from kproxylat.results_json import to_json
from kproxylat.sweep import pool, sweep
from kproxylat.sweep.pool import Pool
from kproxylat.system import interrupts
from tests.results import COUNTED, change_run, load, with_values

SENDING = Sending(duration_s=0.3, rate_pps=1000)


class Fake:
    """Answers each order as ``answer`` says: standard error, output, exit status; None: it does not end by itself."""

    made: list[Fake]
    early = 0
    """How many of them have no result when a signal ends their run."""
    answer: Callable[[list[str]], tuple[str, str, int] | None]
    lockstep: threading.Barrier | None = None
    """Where the machines wait for each other in every run but the last, which has no other beside it."""

    def __init__(self, clock: str, *_: Path | None) -> None:
        self.clock, self.kvm, self.image = clock, False, Path("/boot/vmlinuz-6.1.0-9-amd64")
        self.orders: list[list[str]] = []
        self.signals: list[int] = []
        self.state = "made"
        self.made.append(self)

    def begin(self) -> None:
        self.state = "begun"

    def wait_booted(self) -> None:
        assert all(each.state != "made" for each in self.made if each is not self or len(self.made) == 1)
        self.state = "booted"

    def run(
        self, argv: list[str], out: IO[str], err: IO[str], program: bool = False, mode: tuple[str, ...] = ()
    ) -> int:
        if program:
            assert (argv[0], self.state) == ("modprobe", "booted")
            return 0
        assert mode == tuple(argv[:2])
        self.orders.append(argv)
        if self.lockstep and sum(len(each.orders) for each in self.made) < 9:
            self.lockstep.wait(10)
        answer = type(self).answer(argv)
        while not answer:
            if self.state in ("lost", "gone"):
                raise MachineError("the virtual machine ended before it could finish: panic")
            if signum := interrupts.pending():
                self.signals.append(signum)
                text = "" if self.made.index(self) < type(self).early else measured(argv, cut_short=True)
                answer = "kproxylat: ended by SIGINT\n", text, 128 + signum
            threading.Event().wait(0.01)
        err.write(answer[0])
        # In pieces, as a pipe gives it.
        out.write(answer[1][:7])
        out.write(answer[1][7:])
        return answer[2]

    def __exit__(self, *_: object) -> None:
        self.state = "gone"


def measured(argv: list[str], **changes: Any) -> str:
    """What a run prints."""
    mode, backend, services = argv
    result = with_values(load(COUNTED)[0], {2000 + 26 * int(services): 300}, int(services))
    result = change_run(result, mode=mode, backend=backend, log=f"ebpf_{mode}_{backend}_{services}.log", **changes)
    quality = replace(result.quality, warnings=("too few",) if services == "100" else ())
    return to_json(replace(result, quality=quality))


def words(point: Options) -> list[str]:
    return [point.mode.name, point.mode.backend, str(point.where.services)]


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    Fake.made, Fake.answer = [], staticmethod(lambda argv: ("[1/7] Running\n", measured(argv), 0))
    monkeypatch.setattr(Fake, "lockstep", None)
    monkeypatch.setattr(pool, "Machine", Fake)
    monkeypatch.setattr(sweep, "find_version", lambda: ("v0.17.0", (0, 17)))
    monkeypatch.setattr(pool, "count_machines", lambda: 2)
    return Fake.made


def run(directory: Path, clock: str = "instructions", sizes: Sequence[int] = (10, 100, 1000)) -> Any:
    modes = sweep.find_modes(("iptables", "nftables"), ())
    base = Options(modes[0], where=Lab(), sending=SENDING, record=Record(directory))
    return sweep.sweep(sweep.plan_points(base, modes, sizes), place=Pool(clock, None, directory, words))


def test_a_new_mode_takes_part_by_its_loading_cost(machines: list[Fake], tmp_path: Path) -> None:
    known = sweep.find_modes(("iptables", "nftables"), ())
    new = replace(known[0], name="ebpf", backend="ebpf", loading_cost=9)
    base = Options(new, where=Lab(), sending=SENDING, record=Record(tmp_path))
    points = sweep.plan_points(base, [*known, new], (10,))
    found, _ = sweep.sweep(points, place=Pool("instructions", None, tmp_path, words))
    assert found.complete
    assert [machine.orders[0][0] for machine in machines] == ["ebpf", "nftables"]


def test_each_run_is_measured_once_a_series_in_one_machine(
    machines: list[Fake], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fake, "lockstep", threading.Barrier(2))
    found, ended = run(tmp_path)
    assert (ended, found.complete, [each.state for each in machines]) == (None, True, ["gone", "gone"])
    assert [(each.run.mode, each.run.backend, each.run.services) for each in found.results] == [
        (mode, backend, size)
        for mode, backend in (("iptables", "legacy"), ("iptables", "nft"), ("nftables", "nft"))
        for size in (10, 100, 1000)
    ]
    ordered = [each.orders for each in machines]
    assert len(ordered[0] + ordered[1]) == 9
    nftables, legacy, nft = (
        [[mode, backend, str(size)] for size in (10, 100, 1000)]
        for mode, backend in (("nftables", "nft"), ("iptables", "legacy"), ("iptables", "nft"))
    )
    assert [each[:3] for each in ordered] == [nftables, legacy], "the longest first, in each the fewest Services first"
    assert sorted(each[3:] for each in ordered) == [[nft[0], nft[2]], nft[1:2]], "a machine without a series helps"
    err = capsys.readouterr().err
    assert "Booting vmlinuz-6.1.0-9-amd64 in 2 virtual machines (emulated" in err
    assert "[1/7]" not in err, "the steps of two at once would tell nothing"
    assert "      iptables on legacy, 100 Services: 2,106 instructions, 0 s\n" in err
    assert "      iptables on legacy, 100 Services: warning: too few\n" in err


def test_on_the_clock_of_time_there_is_one_machine_and_its_words_are_shown(
    machines: list[Fake], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _ = run(tmp_path, "ns")
    err = capsys.readouterr().err
    assert (len(machines), len(machines[0].orders), err.count("[1/7] Running\n")) == (1, 9, 9)
    assert found.seed is not None
    assert "a virtual machine (emulated" in err


def test_there_are_no_more_machines_than_runs(machines: list[Fake], tmp_path: Path) -> None:
    modes = sweep.find_modes(("nftables",), ())
    points = sweep.plan_points(Options(modes[0], where=Lab(), record=Record(tmp_path)), modes, [10])
    found, _ = sweep.sweep(points, place=Pool("instructions", None, tmp_path, words))
    assert (len(found.results), len(machines)) == (1, 1)


@pytest.mark.usefixtures("machines")
def test_open_books_are_a_result(tmp_path: Path) -> None:
    Fake.answer = staticmethod(lambda argv: ("kproxylat: the books don't close\n", measured(argv), 4))
    found, ended = run(tmp_path)
    assert (len(found.results), ended) == (9, None)


@pytest.mark.parametrize("early", [0, 1, 2])
def test_a_signal_ends_both_and_keeps_what_was_measured(
    machines: list[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: int
) -> None:
    def answer(argv: list[str]) -> tuple[str, str, int] | None:
        if argv[2] == "10":
            return "", measured(argv), 0
        if sum(len(each.orders) for each in Fake.made) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return None

    before = {each: signal.getsignal(each) for each in interrupts.ENDING}
    interrupts.install()
    Fake.answer = staticmethod(answer)
    monkeypatch.setattr(Fake, "early", early)
    found = None
    try:
        found, ended = run(tmp_path)
    except Interrupted as interrupt:
        ended = interrupt
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert isinstance(ended, Interrupted)
    assert ended.exit_code == 130
    assert [(each.signals, each.state) for each in machines] == [([2], "gone")] * 2
    assert (found is None) == (early == 2)
    if found:
        assert sorted(each.run.cut_short for each in found.results) == [False] * 2 + [True] * (2 - early)
    Fake.answer = staticmethod(lambda argv: ("", measured(argv), 0))
    for mode, backend in (("iptables", "legacy"), ("nftables", "nft")):
        (tmp_path / f"ebpf_{mode}_{backend}_10.json").write_text(measured([mode, backend, "10"]))
    found, _ = run(tmp_path)
    assert (found.resumed, found.complete) == (2, True)


@pytest.mark.parametrize(
    ("err", "status", "said", "remedy"),
    [
        ("[1/7] Running\nkproxylat: pktgen is missing\n  modprobe it\n", 1, "pktgen is missing", "modprobe it"),
        ("kproxylat: no such mode\n", 2, "no such mode", ""),
        ("Killed", -9, "a run ended with status -9: Killed", ""),
    ],
)
def test_a_run_that_fails_ends_the_sweep_with_its_words_and_status(
    machines: list[Fake],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    err: str,
    status: int,
    said: str,
    remedy: str,
) -> None:
    monkeypatch.setattr(Fake, "lockstep", threading.Barrier(2))
    Fake.answer = staticmethod(lambda argv: (err, "", status) if argv[2] == "100" else ("", measured(argv), 0))
    with pytest.raises(KproxylatError) as caught:
        run(tmp_path)
    assert (str(caught.value), caught.value.remedy, caught.value.exit_code) == (
        said,
        remedy,
        1 if status < 0 else status,
    )
    assert "2 of 9 runs are kept" in capsys.readouterr().err
    assert [each.state for each in machines] == ["gone", "gone"]


@pytest.mark.usefixtures("machines")
def test_a_result_that_could_not_be_saved_is_kept_and_ends_it(tmp_path: Path) -> None:
    full = "kproxylat: log.json cannot be written: No space left on device\n  pass another --output-dir\n"
    Fake.answer = staticmethod(lambda argv: (full, measured(argv), 1))
    found, ended = run(tmp_path)
    assert isinstance(ended, MachineError)
    assert "No space left" in str(ended)
    assert ended.remedy == "pass another --output-dir"
    assert 1 <= len(found.results) <= 2


def test_a_machine_that_dies_ends_the_sweep(machines: list[Fake], tmp_path: Path) -> None:
    def die(_: list[str]) -> None:
        for each in Fake.made:
            each.state = "lost" if each.state == "booted" else each.state

    Fake.answer = staticmethod(die)
    with pytest.raises(MachineError, match="panic"):
        run(tmp_path)
    assert [each.state for each in machines] == ["gone", "gone"]


@pytest.mark.parametrize(("free_gib", "machines_count"), [(1, 1), (5, 1), (7, 2), (900, 2)])
def test_machines_are_counted_by_memory_and_processors(
    monkeypatch: pytest.MonkeyPatch, free_gib: int, machines_count: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(Path, "read_text", lambda _: f"MemTotal: 1 kB\nMemAvailable:  {free_gib << 20} kB\n")
    assert pool.count_machines() == machines_count
