"""A sweep on a cluster: Services, mode and kube-proxy around each run, and all as it was afterwards. Runs are fakes."""

from __future__ import annotations

import copy
import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kproxylat.cli.sweep import save_csv
from kproxylat.cluster import proxy_mode, rollout, sources, sync
from kproxylat.cluster.api import Api
from kproxylat.cluster.dummies import create, delete, plan_creation, read_dummies
from kproxylat.cluster.proxy_config import parse_mode
from kproxylat.errors import DeclinedError, Interrupted, MachineError
from kproxylat.measure import defaults
from kproxylat.measure.options import Options, Record, Sending
from kproxylat.modes import find_mode
from kproxylat.node.live_rules import LiveRules
from kproxylat.results import Result, Target
from kproxylat.results_json import to_json
from kproxylat.sweep import on_cluster, sweep
from kproxylat.sweep.on_cluster import Asking, sweep_cluster
from kproxylat.sweep.sweep import Sweep
from kproxylat.system import kernel
from tests.results import COUNTED, change_run, load, with_values
from tests.support import ROOT
from tests.support.command import Captured, call
from tests.support.fake_api import FakeApi
from tests.support.fakes import Typed
from tests.support.kube_proxy import CONFIGMAP, DAEMONSET, RECORDED
from tests.support.nodes import ADDRESSES, BRIDGE, node_of
from tests.support.rights import MANIFESTS, made, rights

pytestmark = pytest.mark.slow

LATE = 3
"""Looks after which kube-proxy's rules hold what the API holds."""


class KubeProxy:
    """kube-proxy on this node: in the mode that its ConfigMap had when it was restarted; its rules are late."""

    def __init__(self, fake: FakeApi) -> None:
        self.fake = fake
        self.restarted = ""
        self.mode = "iptables"
        self.late: list[set[Target]] = [set()] * LATE
        self.modes = ["iptables"]

    def config(self) -> str:
        [text] = [each["data"]["config.conf"] for key, each in self.fake.objects.items() if key[1] == "configmaps"]
        return parse_mode(text) or "iptables"

    def read(self, path: str, netns: str | None = None) -> str:
        assert netns is None
        if path == "/metrics":
            return (RECORDED / "metrics.txt").read_text()
        template = self.fake.objects["apps", "daemonsets", "kube-system", "kube-proxy"]["spec"]["template"]
        restarted = template["metadata"].get("annotations", {}).get(rollout.RESTARTED, "")
        if restarted != self.restarted:
            # A mode that is new has no rules yet.
            self.late = [set()] * LATE if self.mode != self.config() else self.late
            self.restarted, self.mode = restarted, self.config()
            self.modes.append(self.mode)
        return self.mode

    def rules(self, netns: str | None) -> tuple[LiveRules, ...]:
        assert netns is None
        now = {
            Target(each["spec"]["clusterIP"], port["port"], port["protocol"].lower())
            for key, each in self.fake.objects.items()
            if key[1] == "services"
            for port in each["spec"]["ports"]
        }
        held, *self.late = [*self.late, now]
        backend = {"iptables": "legacy", "nftables": "nft"}[self.mode]
        return (LiveRules(self.mode, backend, len(held), dict.fromkeys(held)),) if held else ()


@pytest.fixture
def proxy(fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> KubeProxy:
    for each in (CONFIGMAP, DAEMONSET):
        fake.add(copy.deepcopy(each))
    fake.objects["apps", "daemonsets", "kube-system", "kube-proxy"]["status"] = {"observedGeneration": 99}
    for path in RECORDED.glob("*worker-dual.json"):
        fake.add(path)
    fake.add(node_of("here", "192.0.2.2", "10.244.1.0/24"))
    made = KubeProxy(fake)
    for module in (proxy_mode, rollout, sync):
        monkeypatch.setattr(module, "read_proxy", made.read)
    monkeypatch.setattr(proxy_mode, "read_live_rules", made.rules)
    listed = {"address": ADDRESSES, "route": [BRIDGE], "neighbour": []}
    monkeypatch.setattr(sources, "run", lambda *argv, **_: json.dumps(listed[argv[3]]))
    for module in (on_cluster, defaults):
        monkeypatch.setattr(module, "check_root", lambda: None)
    monkeypatch.setattr(kernel, "check_root", lambda: None)
    monkeypatch.setattr(sweep, "find_version", lambda: ("v0.17.0", (0, 17)))
    for module in (sync, rollout):
        monkeypatch.setattr(module, "PAUSE_S", 0.001)
    for _ in range(LATE):
        made.rules(None)
    return made


class Runs:
    """In place of measuring: what there is at that moment, and a result."""

    def __init__(self, directory: Path, proxy: KubeProxy) -> None:
        self.directory, self.proxy = directory, proxy
        self.seen: list[tuple[str, str, int, int]] = []
        self.end_at: int | None = None
        self.error: BaseException | None = None

    def measure(self, options: Options, sync_s: float | None, *_: object) -> tuple[Result, Interrupted | None]:
        there = len([each for each in self.proxy.fake.named("services") if each.startswith("dummy")])
        held = self.proxy.rules(None)[0].rules - 2
        mode = options.mode
        assert mode.name == self.proxy.mode
        assert str(options.sending.source) == "10.244.1.252/30" or options.sending.source
        if len(self.seen) == self.end_at and self.error:
            raise self.error
        self.seen.append((mode.name, mode.backend, there, held))
        log = self.directory / f"ebpf_{mode.name}_{len(list(self.directory.glob('ebpf_*.json'))):03}.log"
        ended = Interrupted(2) if len(self.seen) == self.end_at and not self.error else None
        result = change_run(
            with_values(load(COUNTED)[0], {2000 + there: 20}, options.where.services or 0),
            mode=mode.name, backend=mode.backend, script_sha256=mode.backend, log=str(log), cut_short=bool(ended),
            clock="ns", sync_s=sync_s,
        )  # fmt: skip
        log.with_suffix(".json").write_text(to_json(result))
        return result, ended


@pytest.fixture
def runs(proxy: KubeProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    made = Runs(tmp_path, proxy)
    monkeypatch.setattr(sweep, "measure", made.measure)
    yield made
    assert [each for each in proxy.fake.named("services") if each.startswith("dummy")] == []
    assert [each for each in proxy.fake.named("endpointslices") if each.startswith("dummy")] == []
    proxy.read("/proxyMode")
    assert proxy.mode == proxy.config() == "iptables", "the mode is the old one again"


def sweep_it(
    api: Api,
    runs: Runs,
    *modes: str,
    counts: tuple[int, ...] = (5, 20),
    confirm: Callable[[str, str], None] | None = None,
    backend: str | None = None,
) -> tuple[Sweep, Interrupted | MachineError | None]:
    sending, record = Sending(duration_s=1, rate_pps=1000), Record(runs.directory)
    base = Options(find_mode("nftables", None), sending=sending, record=record)
    return sweep_cluster(api, base, counts, Asking(modes, backend, ("worker-dual", None), None, confirm), 1, False)


def test_services_grow_and_are_gone_at_the_end(api: Api, runs: Runs, capsys: Captured) -> None:
    found, ended = sweep_it(api, runs, counts=(20, 5))
    assert (ended, found.complete) == (None, True)
    assert runs.seen == [("iptables", "legacy", 5, 5), ("iptables", "legacy", 20, 20)]
    assert runs.proxy.modes == ["iptables"], "kube-proxy is left alone"
    save_csv(found)
    [saved] = runs.directory.glob("sweep_*.csv")
    rows = list(csv.DictReader(io.StringIO(saved.read_text())))
    assert [(row["ServiceCount"], row["ProxyMode"]) for row in rows] == [("5", "iptables"), ("20", "iptables")]
    err = capsys.readouterr().err
    assert "dummy Services: 0 -> 5" in err
    assert "dummy Services: 5 -> 20" in err
    assert f"saved: {saved}" in err


def test_modes_are_set_one_after_another_and_back(api: Api, runs: Runs) -> None:
    found, _ = sweep_it(api, runs, "iptables", "nftables")
    assert runs.seen == [
        *(("iptables", "legacy", 5, 5), ("iptables", "legacy", 20, 20)),
        *(("nftables", "nft", 5, 5), ("nftables", "nft", 20, 20)),
    ]
    runs.proxy.read("/proxyMode")
    assert runs.proxy.modes == ["iptables", "nftables", "iptables"]
    assert [(each.mode, each.backend) for each in found.series] == [("iptables", "legacy"), ("nftables", "nft")]
    assert made(runs.proxy.fake) <= rights(MANIFESTS["sweep"])


def test_without_dummy_services_the_targets_rule_is_waited_for(api: Api, runs: Runs) -> None:
    sweep_it(api, runs, "nftables", counts=(0,))
    assert runs.seen == [("nftables", "nft", 0, 0)]


def test_a_mode_is_not_set_against_somebodys_will(api: Api, runs: Runs) -> None:
    asked: list[str] = []

    def refuse(question: str, alternative: str) -> None:
        asked.append(question)
        raise DeclinedError(alternative)

    with pytest.raises(DeclinedError, match="--mode iptables"):
        sweep_it(api, runs, "iptables", "nftables", confirm=refuse)
    assert asked == ["Set kube-proxy's mode in the cluster of context fake to nftables, and back?"]
    assert runs.seen == []
    sweep_it(api, runs, "iptables", confirm=refuse)
    assert len(asked) == 1, "the mode that it is in needs no leave"


def test_a_kube_proxy_that_does_not_answer_is_not_changed(
    api: Api, runs: Runs, fake: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(rollout, "running_mode", lambda _: None)
        with pytest.raises(MachineError, match="does not report its mode"):
            sweep_it(api, runs, "iptables", "nftables")
    assert {call.verb for call in fake.calls} == {"get", "list"}


@pytest.mark.parametrize(("told", "says"), [
    ("nftables", "runs in mode iptables, but its ConfigMap has nftables"),
    ("userspace", "is set to mode userspace, which could not be restored"),
])  # fmt: skip
def test_an_old_mode_that_is_not_clear_is_not_touched(
    api: Api, runs: Runs, fake: FakeApi, told: str, says: str
) -> None:
    """The ConfigMap was changed, and the pods were not restarted since."""
    config = fake.objects["", "configmaps", "kube-system", "kube-proxy"]["data"]
    before = config["config.conf"]
    config["config.conf"] = before.replace('mode: ""', f"mode: {told}")
    with pytest.raises(MachineError, match=says):
        sweep_it(api, runs, "iptables", "nftables")
    assert runs.seen == []
    assert {call.verb for call in fake.calls} == {"get", "list"}
    sweep_it(api, runs, "iptables")
    assert len(runs.seen) == 2, "no mode was set, so none is restored"
    config["config.conf"] = before


@pytest.mark.parametrize("error", [None, MachineError("the machine broke"), Interrupted(15)], ids=repr)
def test_whatever_ends_it_all_is_put_back_and_gone_on_with(api: Api, runs: Runs, error: BaseException | None) -> None:
    runs.end_at, runs.error = 3, error
    if error:
        with pytest.raises(type(error)):
            sweep_it(api, runs, "iptables", "nftables")
    else:
        assert sweep_it(api, runs, "iptables", "nftables")[1]
    runs.proxy.read("/proxyMode")
    assert runs.proxy.mode == "iptables"
    runs.end_at = None
    found, _ = sweep_it(api, runs, "iptables", "nftables")
    # The one that was cut short is measured again.
    assert found.resumed == (3 if error else 2)
    assert found.complete
    assert [each.run.services for each in found.results] == [5, 20, 5, 20]
    # kube-proxy's time is that of a change, and is in each result as it was saved.
    saved = [load(path)[0] for path in runs.directory.glob("ebpf_*.json")]
    assert all(each.run.sync_s is not None for each in saved)
    assert all(each.run.sync_s is not None and 0 < each.run.sync_s < 60 for each in found.results)


def test_dummy_services_that_are_there_stay(api: Api, runs: Runs, fake: FakeApi) -> None:
    create(api, read_dummies(api), plan_creation(read_dummies(api), 7))
    with pytest.raises(MachineError, match="namespace default has 7 dummy Services already, more than 5"):
        sweep_it(api, runs)
    sweep_it(api, runs, counts=(7, 9))
    assert [there for _, _, there, _ in runs.seen] == [7, 9]
    assert len(fake.named("services")) == 1 + 7
    for key in [key for key in fake.objects if key[3].startswith("dummy")]:
        del fake.objects[key]


def test_only_what_was_not_there_before_is_deleted(api: Api, runs: Runs, fake: FakeApi) -> None:
    """Whatever numbers it has."""
    create(api, read_dummies(api), [5, 6, 50])
    before = fake.named("services")
    sweep_it(api, runs, "iptables", "nftables", counts=(4, 9))
    assert [there for _, _, there, _ in runs.seen] == [4, 9, 4, 9]
    assert fake.named("services") == before
    assert fake.named("endpointslices") == [each for each in before if each.startswith("dummy")] + ["worker-dual-1"]
    for key in [key for key in fake.objects if key[3].startswith("dummy")]:
        del fake.objects[key]


def test_each_is_put_back_whether_the_other_fails_or_not(
    api: Api, runs: Runs, fake: FakeApi, proxy: KubeProxy, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    measure = runs.measure

    def lose_rights(options: Options, sync_s: float | None, *_: object) -> tuple[Result, Interrupted | None]:
        if proxy.mode == "nftables":
            fake.denied.add(("delete", "services"))
        return measure(options, sync_s)

    monkeypatch.setattr(sweep, "measure", lose_rights)
    with pytest.raises(MachineError, match="403 Forbidden"):
        sweep_it(api, runs, "iptables", "nftables", counts=(5,))
    proxy.read("/proxyMode")
    assert proxy.mode == "iptables"
    assert "by hand: kproxylat services delete -n default --context fake\n" in capsys.readouterr().err
    fake.denied.clear()
    delete(api)

    def lose_others(options: Options, sync_s: float | None, *_: object) -> tuple[Result, Interrupted | None]:
        if proxy.mode == "nftables":
            fake.denied.add(("patch", "daemonsets"))
        return measure(options, sync_s)

    monkeypatch.setattr(sweep, "measure", lose_others)
    with pytest.raises(MachineError, match="403 Forbidden"):
        sweep_it(api, runs, "nftables", counts=(6,))
    assert "by hand: kproxylat mode set default --context fake\n" in capsys.readouterr().err
    fake.denied.clear()
    change = rollout.plan_change(api, "default")
    rollout.apply_change(api, change)


def test_what_is_not_clear_is_settled_by_what_is_asked_for(
    api: Api, runs: Runs, proxy: KubeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rules of both backends are there, those of nft left behind."""

    def both(netns: str | None) -> tuple[LiveRules, ...]:
        rules = proxy.rules(netns)
        return (*rules, LiveRules("iptables", "nft", 3, dict.fromkeys(rules[0].services, 0))) if rules else ()

    monkeypatch.setattr(proxy_mode, "read_live_rules", both)
    with pytest.raises(MachineError, match="ambiguous"):
        sweep_it(api, runs)
    found, _ = sweep_it(api, runs, "iptables", backend="legacy")
    assert found.complete
    assert {each[:2] for each in runs.seen} == {("iptables", "legacy")}


def test_the_cause_is_told_first(api: Api, runs: Runs, fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("detected first")

    monkeypatch.setattr(on_cluster, "detect_mode", forbidden)
    fake.objects["", "services", "default", "worker-dual"]["spec"] |= {"clusterIP": "None", "clusterIPs": ["None"]}
    with pytest.raises(MachineError, match="it is headless"):
        sweep_it(api, runs)
    fake.denied.add(("get", "services"))
    with pytest.raises(MachineError, match="403 Forbidden"):
        sweep_it(api, runs)


README = re.findall(r"`kproxylat (sweep (?!--lab)[^`]+)`", (ROOT / "README.md").read_text())


@pytest.mark.parametrize(("command", "seen"), [
    (README[0], [("iptables", 5), ("iptables", 20)]),
    (README[1], [("iptables", 1000), ("nftables", 1000)]),
])  # fmt: skip
def test_the_readmes_commands(
    runs: Runs, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, seen: object
) -> None:
    for path in RECORDED.glob("*worker.json"):
        runs.proxy.fake.add(path)
    monkeypatch.setenv("KUBECONFIG", str(runs.proxy.fake.kubeconfig(tmp_path)))
    monkeypatch.setattr("kproxylat.cli.app.signal.signal", lambda *_: None)
    status, out, err = call(
        capsys, *command.replace("100,500,1000,5000,10000", "5,20").split(), "--output-dir", str(tmp_path)
    )
    assert status == 0, err
    assert [(mode, there) for mode, _, there, _ in runs.seen] == seen
    assert "books closed: 2 of 2 runs" in out


def test_from_the_command_line(
    api: Api, runs: Runs, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert api
    monkeypatch.setenv("KUBECONFIG", str(runs.proxy.fake.kubeconfig(tmp_path)))
    monkeypatch.setattr("kproxylat.cli.app.signal.signal", lambda *_: None)
    argv = ("sweep", "1", "1000", "--services", "5,20", "--service", "worker-dual", "--output-dir", str(tmp_path))
    status, out, err = call(capsys, *argv)
    assert status == 0, err
    assert "iptables/legacy" in out
    assert "books closed: 2 of 2 runs" in out
    monkeypatch.setattr("sys.stdin", Typed("no\n"))
    status, _, err = call(capsys, *argv, "--mode", "nftables")
    assert status == 1
    assert err.endswith(
        "to nftables, and back? [y/N] "
        "kproxylat: declined: nothing was changed\n  to go on without this question: --mode iptables\n"
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
    status, _, err = call(capsys, *argv, "--mode", "nftables")
    assert status == 2
    assert err.endswith("to nftables, and back?\n  pass --yes, or --mode iptables\n")
    status, out, err = call(capsys, *argv, "--mode", "iptables,nftables", "--yes", "--format", "csv")
    assert status == 0, err
    assert [line.split(",")[:2] for line in out.splitlines()[1:]] == [
        *(["5", "iptables"], ["20", "iptables"], ["5", "nftables"], ["20", "nftables"]),
    ]
