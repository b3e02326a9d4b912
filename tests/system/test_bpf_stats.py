"""The kernel's account of BPF programs, as it prints it; and a kernel that gives none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kproxylat.system import bpf_stats

PROGRAM = """\
pos:	0
flags:	02000002
mnt_id:	15
ino:	1055
prog_type:	26
prog_jited:	1
prog_tag:	5d9c8b6a7f3e2d1c
memlock:	4096
prog_id:	{number}
run_time_ns:	{ns}
run_cnt:	{calls}
recursion_misses:	0
verified_insns:	120
"""
"""/proc/PID/fdinfo/N of Linux 6.1."""


def test_programs_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "7": PROGRAM.format(number=70, ns=1_500_000, calls=10),
        "8": PROGRAM.format(number=71, ns=500_000, calls=5),
        "9": "pos:\t0\nflags:\t0\n",
    }
    monkeypatch.setattr(Path, "read_text", lambda path: texts[path.name])
    assert bpf_stats.read_used([7, 8, 9]) == (0.002, 15)


def test_programs_of_a_process_are_opened_once_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def open_program(command: int, number: int) -> int:
        opened.append((command, number))
        return os.open(os.devnull, os.O_RDONLY)

    monkeypatch.setattr(bpf_stats, "_bpf", open_program)
    monkeypatch.setattr(Path, "iterdir", lambda path: iter([path / "3", path / "4", path / "5"]))
    monkeypatch.setattr(
        Path, "read_text", lambda path: "pos: 0\n" if path.name == "3" else PROGRAM.format(number=70, ns=1, calls=1)
    )
    with bpf_stats.programs_of(1) as fds:
        assert opened == [(bpf_stats._GET_FD_BY_ID, 70)]
        [fd] = fds
        os.fstat(fd)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_a_kernel_that_refuses_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(bpf_stats, "_bpf", refuse)
    with bpf_stats.counting() as measured:
        assert not measured
    with bpf_stats.programs_of(os.getpid()) as fds:
        assert fds == []


def test_an_unknown_machine_has_no_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "unknown")
    with bpf_stats.counting() as measured:
        assert not measured
