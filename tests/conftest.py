"""What all tests need of their surroundings."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxylat.cluster import Api, connect
from tests.fake_api import FakeApi, serving

# Started in the background by a script, we and every program that a test starts would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def fake() -> Iterator[FakeApi]:
    """A fake API server, listening."""
    with serving(FakeApi()) as found:
        yield found


@pytest.fixture
def api(fake: FakeApi, tmp_path: Path) -> Api:
    """A connection to it, through the kubernetes client's configuration."""
    return connect(fake.kubeconfig(tmp_path))
