"""Fixtures of the tests of this package."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from kproxylat.system import interrupts


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Handle signals as the program does, and restore the handlers of the test run.

    Programs that run for other tests, such as a virtual machine, are not among those that a signal names.
    """
    monkeypatch.setattr(interrupts, "RUNNING", {})
    before = {signum: signal.getsignal(signum) for signum in interrupts.ENDING}
    interrupts.install()
    yield
    interrupts.install()
    for signum, handler in before.items():
        signal.signal(signum, handler)
