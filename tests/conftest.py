"""What all tests need of their surroundings."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from kproxylat.cluster.api import Api, connect
from tests.support.fake_api import FakeApi, serving
from tests.support.fixtures import cluster, measured, nothing_starts  # noqa: F401 - fixtures of all tests

# Started in the background by a script, we and every program that a test starts would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Of one commit the same texts are tried each time: what passed passes again; `make test-long` looks for others. A busy
# machine may take its time for each.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracebacks of internal errors stay out of the user's own state directory."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))


@pytest.fixture
def fake() -> Iterator[FakeApi]:
    """A fake API server, listening."""
    with serving(FakeApi()) as found:
        yield found


@pytest.fixture
def api(fake: FakeApi, tmp_path: Path) -> Api:
    """A connection to it, through the kubernetes client's configuration."""
    return connect(fake.kubeconfig(tmp_path))


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a test by the first characters of a long text, so that a line of the report can be read."""
    return f"{val[:40]!r}..." if isinstance(val, (str, bytes)) and len(val) > 60 else None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the fault table: each row's name and how it went, and what a row notes of itself."""

    def name(report: Any) -> str:
        """Return a row's name: its test's, without the group that pytest-xdist appends."""
        return str(report.nodeid).partition("::")[2].removeprefix("test_").partition("@")[0]

    states = {"passed": "ok", "failed": "FAILED", "error": "FAILED", "skipped": "skipped"}
    rows = [
        (name(each), states[state], *dict(each.user_properties).values())
        for state in states
        for each in terminalreporter.stats.get(state, ())
        if "test_faults.py::" in each.nodeid
    ]
    if rows:
        terminalreporter.section(f"fault table, {len(rows)} rows")
    for row, *words in sorted(rows):
        terminalreporter.write_line(f"{row}: {', '.join(map(str, words))}")
