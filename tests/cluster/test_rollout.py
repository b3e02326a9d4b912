"""kube-proxy's mode set on a cluster: what is shown, what is patched, what is waited for, what is refused."""

from __future__ import annotations

import copy
import io
import re
from typing import Any

import pytest

from kproxylat.cluster import proxy_mode, rollout, sync
from kproxylat.cluster.api import Api
from kproxylat.cluster.proxy_config import parse_mode
from kproxylat.cluster.proxy_mode import CLEAN_UP
from kproxylat.cluster.rollout import apply_change, describe_rollout, needs_restart, plan_change, wait_for_rollout
from kproxylat.errors import ApiError, MachineError, UsageError
from kproxylat.node.live_rules import LiveRules
from kproxylat.results import Target
from tests.support import ROOT
from tests.support.command import Captured, call
from tests.support.fake_api import Call, FakeApi, Refused
from tests.support.fakes import Typed
from tests.support.fixtures import cluster, running  # noqa: F401
from tests.support.kube_proxy import CONFIG, CONFIGMAP, DAEMONSET, RECORDED, configmap, daemonset

CM = ("", "configmaps", "kube-system", "kube-proxy")
DS = ("apps", "daemonsets", "kube-system", "kube-proxy")


@pytest.fixture
def kubeadm(fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    """A cluster whose DaemonSet controller replaces a pod each time that it is looked at."""
    monkeypatch.setattr(rollout, "PAUSE_S", 0.01)
    for each in (CONFIGMAP, DAEMONSET):
        fake.add(copy.deepcopy(each))
    fake.objects[DS]["status"] = {"observedGeneration": 1, "desiredNumberScheduled": 3, "updatedNumberScheduled": 3}
    fake.objects[DS]["status"]["numberAvailable"] = 3

    def control(call: Call) -> None:
        document = fake.objects[DS]
        status, generation = document["status"], document["metadata"]["generation"]
        if call.resource != "daemonsets" or call.verb != "get" or generation == 1:
            return
        if status["observedGeneration"] < generation:
            status |= {"observedGeneration": generation, "updatedNumberScheduled": 0, "numberAvailable": 2}
        elif status["updatedNumberScheduled"] < 3:
            status["updatedNumberScheduled"] += 1
        else:
            status["numberAvailable"] = 3

    fake.after = control
    return fake


def test_apply_change_patches_only_the_mode_and_restarts_the_pods(api: Api, kubeadm: FakeApi) -> None:
    change = plan_change(api, "nftables")
    assert change.diff.splitlines() == [
        "--- kube-proxy, config.conf (now)",
        "+++ kube-proxy, config.conf",
        "@@ -52 +52 @@",
        '-mode: ""',
        '+mode: "nftables"',
    ]
    before = copy.deepcopy(kubeadm.objects[CM]["data"])
    apply_change(api, change)
    after = kubeadm.objects[CM]["data"]
    assert parse_mode(after["config.conf"]) == "nftables"
    assert after["kubeconfig.conf"] == before["kubeconfig.conf"]
    template = kubeadm.objects[DS]["spec"]["template"]
    assert [*template["metadata"]["annotations"]] == ["kubectl.kubernetes.io/restartedAt"]
    assert template["spec"] == DAEMONSET["spec"]["template"]["spec"]
    assert wait_for_rollout(api, change) > 0
    assert kubeadm.objects[DS]["status"]["numberAvailable"] == 3
    # And back: the ConfigMap is what it was.
    apply_change(api, plan_change(api, change.old))
    assert kubeadm.objects[CM]["data"]["config.conf"] == CONFIG
    assert not plan_change(api, "default").diff


def test_describe_rollout() -> None:
    document = copy.deepcopy(DAEMONSET)
    assert describe_rollout(document) == "the DaemonSet controller has not seen the change"
    document["status"] = {"observedGeneration": 1, "desiredNumberScheduled": 2, "updatedNumberScheduled": 1}
    assert describe_rollout(document) == "1 of 2 kube-proxy pods are restarted"
    document["status"] |= {"updatedNumberScheduled": 2, "numberAvailable": 1}
    assert describe_rollout(document) == "1 of 2 kube-proxy pods are available"
    document["status"]["numberAvailable"] = 2
    assert describe_rollout(document) is None


def test_an_endless_rollout_fails(api: Api, kubeadm: FakeApi) -> None:
    kubeadm.after = None
    kubeadm.objects[DS]["metadata"]["generation"] = 2
    with pytest.raises(
        MachineError, match=r"waited 0.05 s for kube-proxy's pods: the DaemonSet controller has not seen"
    ):
        wait_for_rollout(api, plan_change(api, "nftables"), 0.05)


def not_ready(name: str) -> dict[str, Any]:
    conditions = [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "Unknown"}]
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"conditions": conditions}}


def test_a_node_that_is_not_ready_is_not_waited_for(api: Api, kubeadm: FakeApi) -> None:
    kubeadm.after = None
    kubeadm.objects[DS]["status"] |= {"updatedNumberScheduled": 2, "numberAvailable": 2}
    change = plan_change(api, "nftables")
    with pytest.raises(MachineError, match=r"waited 0\.05 s for kube-proxy's pods: 2 of 3 kube-proxy pods are re"):
        wait_for_rollout(api, change, 0.05)
    kubeadm.add(not_ready("broken"))
    assert wait_for_rollout(api, change, 0) < 5
    kubeadm.objects[DS]["status"]["updatedNumberScheduled"] = 1
    with pytest.raises(MachineError, match=r"1 of 3 kube-proxy pods are restarted; nodes that are not ready: broken$"):
        wait_for_rollout(api, change, 0.05)
    kubeadm.denied.add(("list", "nodes"))
    with pytest.raises(MachineError, match=r"1 of 3 kube-proxy pods are restarted$"):
        wait_for_rollout(api, change, 0.05)


@pytest.mark.parametrize(
    ("node_mode", "argv", "status", "message"),
    [
        ("iptables", (), 0, "kube-proxy's mode is default already"),
        ("iptables", ("--dry-run",), 0, "kube-proxy's mode is default already"),
        (None, ("--dry-run",), 0, "kube-proxy's mode is default already"),
        (None, ("--timeout", "0"), 1, "waited 0 s for kube-proxy's pods: 1 of 3 kube-proxy pods are restarted"),
        ("nftables", ("--dry-run",), 0, "kube-proxy is set to default already, but its pods were not restarted since"),
        ("nftables", ("--timeout", "0"), 1, "waited 0 s for kube-proxy's pods: 1 of 3 kube-proxy pods are restarted"),
    ],
)
def test_mode_set_to_the_present_mode_during_a_rollout(
    capsys: Captured,
    cluster: FakeApi,  # noqa: F811
    kubeadm: FakeApi,
    monkeypatch: pytest.MonkeyPatch,
    node_mode: str | None,
    argv: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    """A dry run does not wait, and where this node's kube-proxy runs in the mode, the others are not waited for."""
    assert cluster is kubeadm
    kubeadm.after = None
    kubeadm.objects[DS]["status"] |= {"updatedNumberScheduled": 1}
    monkeypatch.setattr(rollout, "running_mode", lambda _: node_mode)
    before = copy.deepcopy(kubeadm.objects)
    found, out, err = call(capsys, "mode", "set", "default", *argv)
    assert (found, kubeadm.objects) == (status, before)
    assert message in out + err
    if "already\n" in out:
        assert err == "its rollout is not complete: 1 of 3 kube-proxy pods are restarted\n"


def test_a_configmap_changed_by_another_client_is_not_patched(api: Api, kubeadm: FakeApi) -> None:
    change = plan_change(api, "nftables")
    kubeadm.objects[CM]["data"]["config.conf"] += "\n# theirs"
    with pytest.raises(MachineError, match="was changed by another client"):
        apply_change(api, change)
    assert kubeadm.objects[DS]["metadata"]["generation"] == 1


def test_an_immutable_configmap(api: Api, kubeadm: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real server's words."""

    def refuse(*argv: Any) -> object:
        if argv[0] == CM:
            raise Refused(422, "data: Forbidden: field is immutable when `immutable` is set")
        return patch(*argv)

    patch = kubeadm._patch
    monkeypatch.setattr(kubeadm, "_patch", refuse)
    with pytest.raises(ApiError, match="field is immutable") as caught:
        apply_change(api, plan_change(api, "nftables"))
    assert "immutable: true" in caught.value.remedy
    assert kubeadm.objects[DS]["metadata"]["generation"] == 1, "no pod is restarted"


@pytest.mark.parametrize("lost", ["the right to restart", "us, between the patches"])
def test_an_interrupted_change_is_resumed(
    api: Api, kubeadm: FakeApi, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """The pods were never restarted: by the API server's times, or by what kube-proxy of this node says."""
    change = plan_change(api, "nftables")
    if lost == "the right to restart":
        kubeadm.denied.add(("patch", "daemonsets"))
        with pytest.raises(ApiError, match="403"):
            apply_change(api, change)
        assert kubeadm.objects[CM]["data"]["config.conf"] == CONFIG, "nothing is half done"
        kubeadm.denied.clear()
    rollout._patch(api, change)
    again = plan_change(api, "nftables")
    assert (again.diff, again.stale) == ("", True)
    monkeypatch.setattr(rollout, "running_mode", lambda _: None)
    assert needs_restart(api, again, None)
    apply_change(api, again)
    wait_for_rollout(api, again)
    done = plan_change(api, "nftables")
    assert (done.stale, needs_restart(api, done, None)) == (False, False)
    for mode, expected in (("iptables", True), ("nftables", False)):
        monkeypatch.setattr(rollout, "running_mode", lambda _, mode=mode: mode)
        assert needs_restart(api, done, None) is expected


def test_a_patch_whose_answer_was_lost(api: Api, kubeadm: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    change, faults = plan_change(api, "nftables"), iter(["", "", "lost after"])
    monkeypatch.setattr(kubeadm, "fault", lambda _: next(faults, ""))
    apply_change(api, change)
    assert parse_mode(kubeadm.objects[CM]["data"]["config.conf"]) == "nftables"
    assert kubeadm.objects[DS]["metadata"]["generation"] == 2


def test_only_daemonsets_that_read_the_configmap_are_restarted(api: Api, kubeadm: FakeApi) -> None:
    for name, volume in (("kube-proxy-arm64", "kube-proxy"), ("kube-proxy-other", "other")):
        each = daemonset(["kube-proxy", "--config=/x/config.conf"], volume, name)
        each["status"] = {"observedGeneration": 9}
        kubeadm.add(each)
    change = plan_change(api, "nftables")
    assert change.daemonsets == ("kube-proxy", "kube-proxy-arm64")
    apply_change(api, change)
    wait_for_rollout(api, change)
    generations = {key[3]: each["metadata"]["generation"] for key, each in kubeadm.objects.items() if key[1] == DS[1]}
    assert generations == {"kube-proxy": 2, "kube-proxy-arm64": 2, "kube-proxy-other": 1}


def test_an_unknown_old_mode_is_restored_by_hand(api: Api, kubeadm: FakeApi) -> None:
    text = CONFIG.replace('mode: ""', 'mode: "userspace"')
    kubeadm.objects[CM]["data"]["config.conf"] = text
    message = plan_change(api, "nftables").undoing(api)
    assert message == "edit it by hand: kubectl -n kube-system edit configmap kube-proxy (mode: userspace)"


@pytest.mark.parametrize(
    ("verb", "resource", "what"), [("list", "daemonsets", "DaemonSets"), ("get", "configmaps", "ConfigMap kube-proxy")]
)
def test_missing_permissions_are_one_short_line(
    api: Api, kubeadm: FakeApi, verb: str, resource: str, what: str
) -> None:
    kubeadm.denied.add((verb, resource))
    with pytest.raises(MachineError, match=f"cannot set kube-proxy's mode: not permitted to read {what}") as caught:
        plan_change(api, "nftables")
    assert len(str(caught.value)) < 100
    assert "docs/rbac.md" in caught.value.remedy


def test_changes_that_are_refused(api: Api, fake: FakeApi) -> None:
    with pytest.raises(UsageError, match="unknown mode 'userspace'"):
        plan_change(api, "userspace")
    with pytest.raises(MachineError, match="no readable ConfigMap of kube-proxy"):
        plan_change(api, "nftables")
    fake.add(configmap(**{"config.conf": "mode: iptables\n"}))
    with pytest.raises(MachineError, match="no readable DaemonSet of kube-proxy"):
        plan_change(api, "nftables")
    fake.add(daemonset(["kube-proxy", "--config=/x/config.conf"]))
    change = plan_change(api, "nftables")
    fake.objects[DS]["spec"]["updateStrategy"] = {"type": "OnDelete"}
    with pytest.raises(MachineError, match="updateStrategy OnDelete: a rollout does not"):
        apply_change(api, change)
    assert fake.objects[CM]["data"]["config.conf"] == "mode: iptables\n"


README = re.findall(r"`kproxylat ((?:services|mode set) [^`]+)`", (ROOT / "README.md").read_text())


def test_commands_of_the_readme(capsys: Captured, cluster: FakeApi, kubeadm: FakeApi) -> None:  # noqa: F811
    assert cluster is kubeadm
    assert len(README) == 3
    for each in README:
        status, _, err = call(capsys, *each.split())
        assert status == 0, err
        assert len(kubeadm.named("services")) == (0 if "delete" in each else 1001 if "create" in each else 0)


def test_mode_set_from_the_command_line(
    capsys: Captured,
    cluster: FakeApi,  # noqa: F811
    kubeadm: FakeApi,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cluster is kubeadm
    # Without a terminal, the question has no answer.
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    status, _, err = call(capsys, "mode", "set", "nftables")
    assert (status, kubeadm.objects[CM]["data"]["config.conf"]) == (2, CONFIG), "no terminal"
    assert err.endswith("and restart kube-proxy?\n  pass --yes\n")
    monkeypatch.setattr("sys.stdin", Typed("n\n"))
    status, out, err = call(capsys, "mode", "set", "nftables")
    assert (status, kubeadm.objects[CM]["data"]["config.conf"]) == (1, CONFIG)
    assert err.endswith("kproxylat: declined: nothing was changed\n")
    assert '+mode: "nftables"' in out
    assert "restart kube-proxy? [y/N]" in err
    port = Target("10.96.0.1", 443, "tcp")
    looks: list[int] = []

    def read_proxy(path: str, **_: object) -> str:
        if path == "/metrics":
            return (RECORDED / "metrics.txt").read_text()
        return "nftables" if kubeadm.objects[DS]["metadata"]["generation"] > 1 else "iptables"

    def live(_: object) -> tuple[LiveRules, ...]:
        """Return iptables' rules, and nftables' after a while."""
        looks.append(1)
        own = LiveRules("nftables", "nft", 1, {port: None})
        return LiveRules("iptables", "nft", 5, {port: 0}), *([own] if len(looks) > 4 else [])

    for module in (rollout, proxy_mode, sync):
        monkeypatch.setattr(module, "read_proxy", read_proxy)
    monkeypatch.setattr(proxy_mode, "read_live_rules", live)
    monkeypatch.setattr(sync, "PAUSE_S", 0.01)
    status, out, err = call(capsys, "mode", "set", "nftables", "--yes")
    assert status == 0, err
    assert "its rules hold the 1 Service ports that were translated before" in out
    assert len(looks) > 4
    assert "kube-proxy's pods are restarted" in out
    assert "kube-proxy of this node is in mode nftables" in out
    assert err.splitlines()[0] == "to restore the old mode: kproxylat mode set default --context fake"
    assert "rules of iptables on nft were left behind" in err
    assert err.endswith(f"leftovers: kube-proxy removes leftover rules when it starts; if they stay, {CLEAN_UP}\n")
    status, out, _ = call(capsys, "mode", "set", "nftables")
    assert (status, out) == (0, "kube-proxy's mode is nftables already\n")
    assert running
