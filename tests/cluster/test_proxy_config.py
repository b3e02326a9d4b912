"""kube-proxy's settings as distributions keep them, read from the fake API."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kproxylat.cluster import proxy_mode
from kproxylat.cluster.api import Api
from kproxylat.cluster.proxy_config import change_mode, parse_flags, parse_mode, parse_node_arguments, read_configured
from kproxylat.cluster.proxy_mode import decide, gather
from kproxylat.cluster.rollout import plan_change
from kproxylat.errors import MachineError
from tests.support.fake_api import FakeApi
from tests.support.kube_proxy import CONFIG, CONFIGMAP, DAEMONSET, NODE, configmap, daemonset


def pod(command: list[str], labels: dict[str, str], node: str = "node") -> dict[str, Any]:
    meta = {"name": f"kube-proxy-{node}", "namespace": "kube-system", "labels": labels}
    spec = {"containers": [{"name": "kube-proxy", "command": command}], "nodeName": node}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def node(name: str, arguments: str) -> dict[str, Any]:
    return {**copy.deepcopy(NODE), "metadata": {"name": name, "annotations": {"k3s.io/node-args": arguments}}}


WITH_CONFIG = ["/usr/local/bin/kube-proxy", "--config=/var/lib/kube-proxy/config.conf"]
IPVS = ["kube-proxy", "--proxy-mode=ipvs"]
CASES: dict[str, tuple[list[dict[str, Any]], list[tuple[str, str]]]] = {
    "kubeadm": ([CONFIGMAP, DAEMONSET], [("ConfigMap kube-proxy, config.conf: empty, the default", "iptables")]),
    "kubeadm, nftables": (
        [configmap(**{"config.conf": change_mode(CONFIG, "nftables")}), DAEMONSET],
        [("ConfigMap kube-proxy, config.conf", "nftables")],
    ),
    "the older key": ([configmap(config="mode: ipvs\n"), DAEMONSET], [("ConfigMap kube-proxy, config", "ipvs")]),
    "EKS": (
        [
            configmap("kube-proxy-config", config='mode: "iptables"\n'),
            configmap("kube-proxy", kubeconfig="x"),
            daemonset(["kube-proxy", "--v=2", "--config=/var/lib/kube-proxy-config/config"], "kube-proxy-config"),
        ],
        [("ConfigMap kube-proxy-config, config", "iptables")],
    ),
    "flags win where there is no --config": (
        [CONFIGMAP, daemonset(["kube-proxy", "--proxy-mode", "nftables"])],
        [("DaemonSet kube-proxy: --proxy-mode", "nftables")],
    ),
    "no flag at all": (
        [daemonset(["kube-proxy"])],
        [("DaemonSet kube-proxy: no --proxy-mode, the default", "iptables")],
    ),
    "--config wins over flags": (
        [CONFIGMAP, daemonset([*WITH_CONFIG, "--proxy-mode=ipvs"])],
        [("ConfigMap kube-proxy, config.conf: empty, the default", "iptables")],
    ),
    "a ConfigMap alone": ([CONFIGMAP], [("ConfigMap kube-proxy, config.conf: empty, the default", "iptables")]),
    "GKE's static pod": (
        [pod(["/bin/sh", "-c", "exec kube-proxy --proxy-mode=iptables 1>>/var/log/x"], {"component": "kube-proxy"})],
        [("pod kube-proxy-node: --proxy-mode", "iptables")],
    ),
    "RKE2's static pod": (
        [pod(["kube-proxy", "--cluster-cidr=10.42.0.0/16", "--proxy-mode=ipvs"], {"component": "kube-proxy"})],
        [("pod kube-proxy-node: --proxy-mode", "ipvs")],
    ),
    "static pods of several nodes, this one's": (
        [pod(["kube-proxy"], {"component": "kube-proxy"}, "a"), pod(IPVS, {"component": "kube-proxy"}, "here")],
        [("pod kube-proxy-here: --proxy-mode", "ipvs")],
    ),
    "static pods of other nodes, which disagree": (
        [pod(IPVS if name == "c" else ["kube-proxy"], {"component": "kube-proxy"}, name) for name in "abc"],
        [("pod kube-proxy-a: no --proxy-mode, the default", "iptables"), ("pod kube-proxy-c: --proxy-mode", "ipvs")],
    ),
    "k3s": ([node("a", '["server"]')], [("node a: k3s.io/node-args, the default", "iptables")]),
    "k3s with a mode": (
        [node("a", '["agent","--kube-proxy-arg","proxy-mode=ipvs"]')],
        [("node a: k3s.io/node-args", "ipvs")],
    ),
    "k3s, this node": (
        [node("a", '["server"]'), node("here", '["agent","--kube-proxy-arg=proxy-mode=nftables"]')],
        [("node here: k3s.io/node-args", "nftables")],
    ),
    "k3s without kube-proxy": ([node("a", '["server","--disable-kube-proxy"]')], []),
    "a broken annotation": ([node("a", '["server"')], []),
    "nothing": ([], []),
}


@pytest.mark.parametrize("case", CASES)
def test_distributions(api: Api, fake: FakeApi, case: str) -> None:
    objects, expected = CASES[case]
    for each in objects:
        fake.add(copy.deepcopy(each))
    found = read_configured(api, "here")
    assert [(each.source, each.mode) for each in found.settings] == expected
    assert found.unasked == []
    assert bool(found.workloads) == (bool(expected) and case != "a ConfigMap alone")
    assert {call.verb for call in fake.calls} <= {"get", "list"}


def test_replacements(api: Api, fake: FakeApi) -> None:
    """A DaemonSet's name proves nothing."""
    fake.add(daemonset(["cilium-agent"], name="cilium"))
    configured = read_configured(api, "here")
    assert (configured.replacements, configured.candidates) == ([], ["Cilium (DaemonSet cilium)"])
    fake.add(configmap("cilium-config", **{"kube-proxy-replacement": "true"}))
    configured = read_configured(api, "here")
    assert configured.replacements == ["Cilium (ConfigMap cilium-config: kube-proxy-replacement)"]
    assert configured.candidates == []
    fake.add(configmap("cilium-config", **{"kube-proxy-replacement": "false"}))
    configured = read_configured(api, "here")
    assert (configured.replacements, configured.candidates) == ([], [])
    for each in (CONFIGMAP, DAEMONSET):
        fake.add(copy.deepcopy(each))
    assert read_configured(api, "here").replacements == []


def empty(selector: dict[str, str], generation: int | None = 1) -> dict[str, Any]:
    """Return kube-proxy's DaemonSet with 0 pods."""
    document = copy.deepcopy(DAEMONSET)
    document["spec"]["template"]["spec"]["nodeSelector"] = {"kubernetes.io/os": "linux", **selector}
    numbers = {"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0}
    document["status"] = {**numbers, **({"observedGeneration": generation} if generation else {})}
    return document


def static_pod(config: str, mount: str, volume: dict[str, Any]) -> dict[str, Any]:
    document = pod(["kube-proxy", f"--config={config}"], {"component": "kube-proxy"})
    document["spec"]["volumes"] = [{"name": "x", **volume}]
    document["spec"]["containers"][0]["volumeMounts"] = [{"name": "x", "mountPath": mount}]
    return document


NO_PODS = "DaemonSet kube-proxy has no pods"
GKE = {"node.kubernetes.io/kube-proxy-ds-ready": "true"}
TWO_DOCUMENTS = configmap(**{"config.conf": "mode: iptables\n---\nmode: nftables\n"})
CALICO = daemonset(["x"], name="calico-node")
CILIUM = daemonset(["x"], name="cilium")
STRANGE: dict[str, tuple[list[dict[str, Any]], str, str]] = {
    "Calico's nodeSelector": (
        [CONFIGMAP, empty({"non-calico": "true"})],
        "none",
        f"the cluster has no kube-proxy, but Calico (DaemonSet kube-proxy: nodeSelector non-calico) ({NO_PODS})",
    ),
    "Calico's nodeSelector, a status without a generation": (
        [CONFIGMAP, empty({"non-calico": "true"}, None)],
        "none",
        f"the cluster has no kube-proxy, but Calico (DaemonSet kube-proxy: nodeSelector non-calico) ({NO_PODS})",
    ),
    "GKE without static pods": ([CONFIGMAP, empty(GKE)], "unknown", NO_PODS),
    "GKE with static pods": (
        [CONFIGMAP, empty(GKE), pod(["kube-proxy", "--proxy-mode=ipvs"], {"component": "kube-proxy"})],
        "likely",
        "kube-proxy is set to ipvs",
    ),
    "no pods, and Calico": (
        [CONFIGMAP, empty({}), CALICO],
        "unknown",
        f"{NO_PODS}; Calico (DaemonSet calico-node) can replace kube-proxy",
    ),
    "microk8s": ([CALICO], "unknown", "Calico (DaemonSet calico-node) can replace kube-proxy"),
    "Cilium beside a kube-proxy from systemd": (
        [CILIUM, configmap("cilium-config", **{"kube-proxy-replacement": "false"})],
        "unknown",
        "no source knows of a kube-proxy",
    ),
    "Cilium": (
        [CILIUM, configmap("cilium-config", **{"kube-proxy-replacement": "true"})],
        "none",
        "the cluster has no kube-proxy, but Cilium (ConfigMap cilium-config: kube-proxy-replacement)",
    ),
    "two YAML documents": (
        [TWO_DOCUMENTS, DAEMONSET],
        "unknown",
        "ConfigMap kube-proxy, config.conf: kube-proxy's ConfigMap holds 2 YAML documents instead of one",
    ),
    "no YAML": (
        [configmap(**{"config.conf": "a: [\n"}), DAEMONSET],
        "unknown",
        "ConfigMap kube-proxy, config.conf: kube-proxy's ConfigMap does not hold a KubeProxyConfiguration",
    ),
    "a file of the node, in a directory": (
        [CONFIGMAP, static_pod("/etc/k/p.conf", "/etc/k", {"hostPath": {"path": "/srv/kube"}})],
        "unknown",
        "pod kube-proxy-node reads its configuration from the file /srv/kube/p.conf of its node",
    ),
    "a file of the node": (
        [CONFIGMAP, static_pod("/p.conf", "/p.conf", {"hostPath": {"path": "/srv/p.conf"}})],
        "unknown",
        "pod kube-proxy-node reads its configuration from the file /srv/p.conf of its node",
    ),
    "a static pod's ConfigMap": (
        [configmap("mine", config="mode: ipvs\n"), static_pod("/c/config", "/c", {"configMap": {"name": "mine"}})],
        "likely",
        "kube-proxy is set to ipvs",
    ),
    "k3s": (
        [node("a", '["server","--disable-kube-proxy"]')],
        "none",
        "the cluster has no kube-proxy (node a: k3s.io/node-args: --disable-kube-proxy)",
    ),
    "k3s with Cilium": (
        [node("a", '["server","--disable-kube-proxy=true"]'), CILIUM],
        "none",
        "the cluster has no kube-proxy (node a: k3s.io/node-args: --disable-kube-proxy)",
    ),
}


@pytest.mark.parametrize("case", STRANGE)
def test_clusters_whose_kube_proxy_is_not_what_it_seems(
    api: Api, fake: FakeApi, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Asked from a machine that is no node."""
    objects, sure, reason = STRANGE[case]
    for document in objects:
        fake.add(copy.deepcopy(document))

    def refuse(*_: object, **__: object) -> str:
        raise MachineError("not a node")

    monkeypatch.setattr(proxy_mode, "read_proxy", refuse)
    monkeypatch.setattr(proxy_mode, "read_live_rules", refuse)
    finding = decide(gather(lambda: api))
    assert finding.sure == sure
    assert finding.reason == reason + ("" if sure == "none" else "; this kernel could not be read")


def test_mode_set_where_kube_proxy_is_not_what_it_seems(api: Api, fake: FakeApi) -> None:
    for document in (TWO_DOCUMENTS, DAEMONSET):
        fake.add(copy.deepcopy(document))
    with pytest.raises(MachineError, match=r"cannot set kube-proxy's mode: .*2 YAML documents instead of one"):
        plan_change(api, "nftables")
    for document in (CONFIGMAP, empty({"non-calico": "true"})):
        fake.add(copy.deepcopy(document))
    with pytest.raises(MachineError, match=f"cannot set kube-proxy's mode: {NO_PODS}"):
        plan_change(api, "nftables")


def test_missing_permissions_are_named(api: Api, fake: FakeApi) -> None:
    fake.add(copy.deepcopy(CONFIGMAP))
    fake.denied |= {("list", "daemonsets"), ("list", "pods"), ("list", "nodes"), ("get", "configmaps")}
    found = read_configured(api, "here")
    assert found.settings == []
    message = " ".join(found.unasked)
    for resource in ("daemonsets", "pods", "nodes", "configmaps"):
        assert f'resource "{resource}"' in message


def test_only_the_mode_changes() -> None:
    changed = change_mode(CONFIG, "nftables")
    assert parse_mode(changed) == "nftables"
    difference = set(changed.splitlines()) ^ set(CONFIG.splitlines())
    assert difference == {'mode: ""', 'mode: "nftables"'}
    assert change_mode("a: 1\n", "ipvs") == 'a: 1\nmode: "ipvs"\n'
    assert parse_mode(change_mode("mode: iptables # ours\n", "ipvs")) == "ipvs"
    assert change_mode("mode: iptables # ours\r\na: 1\r\n", "ipvs") == 'mode: "ipvs" # ours\r\na: 1\r\n'
    assert change_mode("a: |\n  mode: x\nmode:\n", "ipvs") == 'a: |\n  mode: x\nmode: "ipvs"\n'
    with pytest.raises(MachineError, match="does not hold a KubeProxyConfiguration"):
        change_mode("- a\n", "ipvs")


@pytest.mark.parametrize(
    "text",
    [
        '{"mode": "iptables"}',
        '{"a": 1}',
        '"mode": iptables\n',
        "mode : iptables\n",
        "mode: >-\n  iptables\n",
        "mode: &a iptables\n",
        "mode: iptables\nmode: ipvs\n",
    ],
)
def test_a_mode_that_is_not_on_one_plain_line_is_refused(text: str) -> None:
    with pytest.raises(MachineError, match="not on one line of the form mode: NAME") as caught:
        change_mode(text, "nftables")
    assert "edit it by hand" in caught.value.remedy


def test_flags() -> None:
    assert parse_flags(["--a=1", "--b", "2", "--c", "--d"]) == {"a": "1", "b": "2", "c": "true", "d": "true"}


@pytest.mark.parametrize("text", ["mode: !!int ''", "mode: !!bool x", "mode: !!timestamp x", "mode: !!float x", "- 1"])
def test_a_configuration_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(MachineError, match="does not hold a KubeProxyConfiguration"):
        parse_mode(text)


def test_a_nodes_arguments_may_be_anything() -> None:
    assert parse_node_arguments([node("a", "[" * 100_000), node("b", "5"), node("c", "{")]) == []
