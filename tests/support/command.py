"""One command line, run in this process; the parameters of every command."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from kproxylat.cli import app
from tests.support import ROOT

RULES = str(ROOT / "tests/kube-proxy-rules/iptables-nft/n0/iptables-nft-save.txt")
Captured = pytest.CaptureFixture[str]

COMMON = ("help", "quiet", "verbose", "file")
"""Options of all commands, which tests/cli/test_program.py tries."""


def list_parameters() -> dict[str, list[Any]]:
    """Return the parameters of every command, as click has them."""
    found: dict[str, list[Any]] = {}

    def walk(command: Any, name: str) -> None:
        for each, below in getattr(command, "commands", {}).items():
            walk(below, f"{name} {each}".strip())
        if not hasattr(command, "commands"):
            found[name] = [each for each in command.params if each.name not in COMMON]

    walk(typer.main.get_command(app.build()), "")
    return found


PARAMETERS = list_parameters()


def name_of(parameter: Any) -> str:
    """Return an argument's name, or the longest of an option's."""
    return str(max(parameter.opts, key=len))


def call(capsys: Captured, *argv: str) -> tuple[int, str, str]:
    """Run one command line in this process: status, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        app.main(list(argv))
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err
