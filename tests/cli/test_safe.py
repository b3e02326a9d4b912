"""A live Service is not surprised: a bare run says what it does, and asks a person; progress does not stand still."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest

from kproxylat.console import say, waiting
from kproxylat.measure.expected import expect_s, say_expected
from kproxylat.measure.options import Lab, Options, Sending
from kproxylat.modes import find_mode
from kproxylat.node.node import Node
from kproxylat.results import Result, Run
from tests.support.command import Captured, call

NODE = ("run", "--target", "10.96.0.10:53", "--mode", "iptables", "--backend", "nft")


class Person(io.StringIO):
    """A terminal, at which somebody types."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """Return what was measured."""
    options: list[Options] = []

    def measure(plan: Options, **_: object) -> tuple[Result, None]:
        options.append(plan)
        return Result(Run()), None

    monkeypatch.setattr("kproxylat.measure.run.measure", measure)
    monkeypatch.setattr("kproxylat.measure.defaults.check_root", lambda: None)
    monkeypatch.setattr("kproxylat.node.node.find_node", lambda *_: Node(None, "here"))
    return options


def test_a_bare_run_says_what_it_does_and_asks(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, measured: list[Options]
) -> None:
    monkeypatch.setattr(sys, "stdin", Person("n\n"))
    status, out, err = call(capsys, *NODE)
    assert (status, out, measured) == (1, "", [])
    for fact in ("300,100 UDP packets", "10,000 a second for 30 s", "each a new flow", "10.96.0.10:53/udp", "36 s"):
        assert fact in err, fact
    assert "Go on? [y/N] kproxylat: declined: nothing was changed" in err
    monkeypatch.setattr(sys, "stdin", Person("y\n"))
    assert call(capsys, *NODE)[0] == 0
    assert len(measured) == 1


@pytest.mark.parametrize("words", [("30", "10000"), ("--yes",), ("--generator", "none"), ("5", "1000", "0")])
def test_it_does_not_ask(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, measured: list[Options], words: tuple[str, ...]
) -> None:
    """Nobody answers here: a question would end the command."""
    monkeypatch.setattr(sys, "stdin", Person(""))
    status, _, err = call(capsys, *NODE, *words)
    assert (status, len(measured), "[y/N]" in err) == (0, 1, False)


def test_it_does_not_ask_in_a_pipe(capsys: Captured, monkeypatch: pytest.MonkeyPatch, measured: list[Options]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    status, _, err = call(capsys, *NODE)
    assert (status, len(measured), "[y/N]" in err) == (0, 1, False)
    assert "300,100 UDP packets" in err


def test_a_long_run_says_how_long(capsys: Captured) -> None:
    options = Options(find_mode("iptables", "nft"), where=Lab(1000, "last", "both"), sending=Sending(duration_s=30))
    here, emulated = expect_s(options, False), expect_s(options, True)
    assert 30 < here < 60 < emulated
    for seconds in (5, here, 400):
        say_expected(seconds)
    assert re.fullmatch(r"This takes about 3\d s\.\nThis takes about 6 min 40 s\.\n", capsys.readouterr().err)


def test_a_message_ends_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Person()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "40")
    say("warning: conntrack-entries are closed " * 4 + "\n  " + "copy this " * 9)
    *lines, remedy = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= 40
    assert " ".join(lines).split() == ["warning:", "conntrack-entries", "are", "closed"] * 4
    assert remedy.split() == ["copy", "this"] * 9


def test_a_bar_goes_on_after_the_expected_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text names the load."""
    screen = Person()
    screen.fileno = lambda: 2  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    begun_s = time.monotonic()
    with waiting("booting", 2):
        while "longer than usual (load" not in screen.getvalue() and time.monotonic() < begun_s + 20:
            time.sleep(0.1)
        reached_s = time.monotonic()
        while "0:00:03" not in screen.getvalue() and time.monotonic() < reached_s + 20:
            time.sleep(0.1)
    assert "longer than usual (load" in screen.getvalue()
    assert "0:00:03" in screen.getvalue(), "the elapsed time goes on"
