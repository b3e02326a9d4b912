"""Fixtures that tests of several packages use."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from kproxylat.cli import app
from kproxylat.cluster import proxy_mode, sync
from kproxylat.errors import MachineError
from kproxylat.measure.options import Options
from kproxylat.node.live_rules import LiveRules
from kproxylat.results import Result, Run
from kproxylat.system import processes
from tests.support.fake_api import FakeApi
from tests.support.kube_proxy import CONFIGMAP, DAEMONSET, RECORDED


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no program run and no signal handler stay: what bad input starts would fail the test."""

    def start(*argv: object, **_: object) -> None:
        raise AssertionError(f"{argv} was started")

    monkeypatch.setattr(processes, "_command", start)
    monkeypatch.setattr(app.signal, "signal", lambda *_: None)


RULES = LiveRules("iptables", "nft", 5, {})


@pytest.fixture
def cluster(fake: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    """A cluster as kubeadm makes it, and this machine as a node whose kube-proxy is not reached."""
    for each in (CONFIGMAP, DAEMONSET):
        fake.add(copy.deepcopy(each))
    monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path)))
    monkeypatch.setattr("kproxylat.cli.app.signal.signal", lambda *_: None)
    running(monkeypatch, None, RULES)
    return fake


def running(monkeypatch: pytest.MonkeyPatch, mode: str | None, *rules: LiveRules) -> None:
    """Let a kube-proxy in a mode run on this machine (None: none), and the kernel hold rules."""

    def read_proxy(path: str, netns: str | None = None) -> str:
        assert netns is None
        if mode is None:
            raise MachineError("no kube-proxy answers on port 10249 of this machine: Connection refused")
        return (RECORDED / "metrics.txt").read_text() if path == "/metrics" else mode

    for module in (proxy_mode, sync):
        monkeypatch.setattr(module, "read_proxy", read_proxy)
    monkeypatch.setattr(proxy_mode, "read_live_rules", lambda _: rules)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """What would be measured."""
    found: list[Options] = []

    def measure(options: Options, **_: object) -> tuple[Result, None]:
        found.append(options)
        return Result(Run(), options.target), None

    monkeypatch.setattr("kproxylat.measure.run.measure", measure)
    monkeypatch.setattr("kproxylat.system.kernel.check_root", lambda: None)
    return found
