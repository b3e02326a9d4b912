"""The targets of fuzzing without atheris: their seeds, and these with some bytes changed."""

from __future__ import annotations

from random import Random

import pytest

from tests.fuzz.targets import SEEDS, TARGETS

ODD = (
    b"",
    b"\0",
    b"\xff\xfe",
    b"\x1b[2J",
    b"[" * 2000,
    b"{" * 2000,
    b"9" * 400,
    b"NaN",
    b"\n" * 50,
    b"@",
    b"]: ",
    b"-A ",
)


@pytest.mark.parametrize("target", TARGETS)
def test_target(target: str) -> None:
    """A few hundred inputs; only documented errors may come out, which the target takes."""
    dice = Random(16)
    seeds = [path.read_bytes()[:10_000] for path in SEEDS[target]]
    for _ in range(50):
        data = bytearray(dice.choice(seeds))
        for _ in range(dice.randrange(4)):
            begin = dice.randrange(len(data) + 1)
            data[begin : begin + dice.randrange(20)] = dice.choice(ODD)
        TARGETS[target](bytes(data))
