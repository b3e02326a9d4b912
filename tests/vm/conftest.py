"""A booted guest for each clock; many tests run in one boot. A guest that is missing or lost is no failed test."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kproxylat.errors import MachineError
from kproxylat.system.virtual_machine import Machine


@dataclass
class Done:
    """How a command line in the guest ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The document on its stdout."""
        assert self.out, self.err
        document: dict[str, Any] = json.loads(self.out)
        return document


class Guest:
    """Runs command lines in a machine."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self.machine = machine
        self.directory = directory

    def kproxylat(self, *argv: str) -> Done:
        """Run kproxylat; what it saves goes into ``directory``."""
        if argv[0] in ("run", "sweep", "trace", "whatif"):
            argv = (*argv, "--output-dir", str(self.directory))
        return self._run(argv, program=False)

    def program(self, *argv: str) -> Done:
        """Run another program."""
        return self._run(argv, program=True)

    def _run(self, argv: tuple[str, ...], program: bool) -> Done:
        out, err = io.StringIO(), io.StringIO()
        status = self.machine.run(argv, out, err, program)
        return Done(status, out.getvalue(), err.getvalue())

    def state(self) -> list[str]:
        """What a run may leave behind: namespaces, links, its lock, processes, temporary files, pktgen."""
        script = (
            "ip netns list; ip -brief link | cut -d' ' -f1; ls /run | grep kproxylat; lsmod | grep pktgen;"
            "ps -eo args | grep -E 'bpftrac[e]|te[e] |nsente[r]'; true"
        )
        return self.program("bash", "-c", script).out.splitlines()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what the counting guest runs, and group the tests by guest: one worker runs a group, and boots one guest."""
    if "counting" in getattr(item, "fixturenames", ()):
        item.add_marker("counting")
        item.add_marker(pytest.mark.xdist_group("counting"))
    else:
        item.add_marker(pytest.mark.xdist_group("timing"))


def _boot(clock: str, directory: Path) -> Iterator[Guest]:
    try:
        with Machine(clock, directory) as machine:
            yield Guest(machine, directory)
    except MachineError as error:
        if "vm" in os.environ.get("KPROXYLAT_REQUIRE", ""):
            raise
        pytest.skip(f"no virtual machine: {error}")


@pytest.fixture(scope="session")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest whose clock counts instructions, of one processor."""
    yield from _boot("instructions", tmp_path_factory.mktemp("counting"))


@pytest.fixture(scope="session")
def timing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest whose clock counts nanoseconds, of two processors."""
    yield from _boot("ns", tmp_path_factory.mktemp("timing"))
