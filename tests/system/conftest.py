"""Fixtures of the tests of this package."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from kproxylat.system import interrupts


@pytest.fixture
def handlers() -> Iterator[None]:
    """Handle signals as the program does, and restore the handlers of the test run."""
    before = {signum: signal.getsignal(signum) for signum in interrupts.ENDING}
    interrupts.install()
    yield
    interrupts.install()
    for signum, handler in before.items():
        signal.signal(signum, handler)
