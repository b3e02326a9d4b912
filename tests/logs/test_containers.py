"""Logs as container runtimes store them: lines in parts, and Docker's JSON."""

from __future__ import annotations

import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxylat.logs.containers import unwrap
from kproxylat.logs.files import read_pieces
from kproxylat.logs.reader import LogReader
from tests.support import TESTS

DUMP = (TESTS / "dumps" / "0.11.3--hist_basic.txt").read_bytes()
TIME = b"2026-11-28T12:00:01.123456789Z "


def store_as_docker(text: bytes, size: int) -> bytes:
    """Store a text as Docker's json-file does, in parts of at most ``size`` characters."""
    lines = re.findall(r"[^\n]*\n", text.decode())
    parts = [line[at : at + size] for line in lines for at in range(0, len(line), size)]
    return b"".join(
        json.dumps({"log": part, "stream": "stdout", "time": TIME.decode().strip()}, separators=(",", ":")).encode()
        + b"\n"
        for part in parts
    )


def store_as_cri(text: bytes, size: int, *, interrupted: bool = False) -> bytes:
    """Store a text as the kubelet's runtimes do; a line of stderr may stand between any two."""
    stored = []
    for line in text.decode().removesuffix("\n").split("\n"):
        parts = [line[at : at + size] for at in range(0, len(line), size)] or [""]
        for at, part in enumerate(parts):
            stored.append(TIME + b"stdout " + (b"F " if at == len(parts) - 1 else b"P ") + part.encode() + b"\n")
            if interrupted:
                stored.append(TIME + b"stderr F Attaching\n")
    return b"".join(stored)


def read_maps(text: bytes) -> object:
    (result,) = LogReader("a.log").read(io.BytesIO(text))
    return result.maps


@pytest.mark.parametrize("size", [1, 7, 4000])
def test_a_log_in_parts_is_read_as_the_whole_one(size: int) -> None:
    assert read_maps(store_as_docker(DUMP, size)) == read_maps(DUMP)
    assert read_maps(store_as_cri(DUMP, size)) == read_maps(DUMP)


def test_lines_of_the_other_stream_stand_between_parts() -> None:
    text = store_as_cri(b"@n[a long key]: 5\n@m: 4\n", 6, interrupted=True)
    joined = b"".join(unwrap(iter([text])))
    assert [line.split(b" ", 3)[3] for line in joined.splitlines() if b"stdout" in line] == [
        b"@n[a long key]: 5",
        b"@m: 4",
    ]


@given(st.binary(max_size=200), st.integers(1, 50))
def test_other_texts_stay_as_they_are(text: bytes, size: int) -> None:
    if not text.startswith(b'{"log":"') and b" P " not in text:
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert b"".join(unwrap(iter(pieces))) == text


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=100), st.integers(1, 50))
def test_a_line_in_parts_is_joined_whatever_pieces_it_comes_in(line: str, size: int) -> None:
    class Pipe(io.BytesIO):
        def read1(self, _: int | None = -1) -> bytes:
            return self.readline()

    text = line.encode() + b"\n"
    assert b"".join(read_pieces(Pipe(store_as_docker(text, size)), [])) == text
    assert b"".join(read_pieces(Pipe(store_as_cri(text, size)), [])) == TIME + b"stdout F " + text


def test_a_log_that_ends_in_a_part_keeps_it() -> None:
    assert b"".join(unwrap(iter([TIME + b"stdout P @n: 1"]))) == TIME + b"stdout F @n: 1"
    assert b"".join(unwrap(iter([b'{"log":"@n: 1","stream":"stdout"}\n', b'{"log":3}\n', b"rubbish"]))) == (
        b'@n: 1{"log":3}\nrubbish'
    )
