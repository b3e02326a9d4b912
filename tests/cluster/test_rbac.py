"""docs/rbac.md against the calls that the commands make: enough, and not more than that."""

from __future__ import annotations

import copy
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kproxylat.cluster import dummies, nodes, sources
from kproxylat.cluster.api import Api
from kproxylat.cluster.dummies import Dummies, create, delete, paths, read_dummies
from kproxylat.cluster.job import make_job
from kproxylat.cluster.proxy_config import read_configured
from kproxylat.cluster.rollout import apply_change, plan_change, wait_for_rollout
from kproxylat.cluster.service_names import read_names
from kproxylat.cluster.sources import choose_source
from kproxylat.cluster.target import read_target
from kproxylat.cluster.worker import apply_worker, delete_worker
from kproxylat.measure.options import Options
from kproxylat.node.node import Node
from tests.support.command import Captured, call
from tests.support.fake_api import Call, FakeApi
from tests.support.fixtures import cluster, measured  # noqa: F401
from tests.support.kube_proxy import CONFIGMAP, DAEMONSET, RECORDED
from tests.support.kubelet import Kubelet
from tests.support.nodes import node_of
from tests.support.rights import MANIFESTS, made, rights


def mode_show(api: Api, fake: FakeApi) -> None:
    """On a cluster with a DaemonSet, and on one that has nothing of kube-proxy."""
    read_configured(api, "here")
    kubeadm(fake)
    read_configured(api, "here")


def kubeadm(fake: FakeApi) -> None:
    for each in (CONFIGMAP, DAEMONSET):
        fake.add(copy.deepcopy(each))


def run(api: Api, fake: FakeApi) -> None:
    for each in RECORDED.glob("*worker-udp.json"):
        fake.add(each)
    read_target(api, "worker-udp")
    node = node_of("here", "192.0.2.2", "10.244.1.0/24")
    fake.add(node)
    with pytest.MonkeyPatch().context() as patch:
        patch.setattr(sources, "run", lambda *_, **__: "[]")
        choose_source(api, Node(None, "here"), 6, 4)


def sweep(api: Api, fake: FakeApi) -> None:
    """All of what it calls; tests/sweep/test_on_cluster.py holds that it calls nothing else."""
    for each in (run, mode_set, services_create):
        each(api, fake)
    fake_calls = fake.calls[:]
    services_delete(api, fake)
    fake.calls[:0] = fake_calls


def services_list(api: Api, _: FakeApi) -> None:
    read_dummies(api)


def services_create(api: Api, fake: FakeApi) -> None:
    """Of two at a time, each finds that the other was faster; of an earlier Service, a slice is left."""
    read_dummies(api)
    nothing = Dummies({}, {}, ())
    for _ in range(2):
        create(api, nothing, [0])
    del fake.objects["", "services", "default", "dummy-service-0"]
    create(api, nothing, [0])


def services_delete(api: Api, fake: FakeApi) -> None:
    """With both changed in between."""
    services_create(api, fake)
    fake.calls.clear()
    found = read_dummies(api)
    for path, document in zip(paths(api), (found.services[0], *found.slices.values()), strict=True):
        stale = copy.deepcopy(document)
        stale["metadata"]["resourceVersion"] = "1"
        dummies._delete(api, path, stale)
    delete(api)


def worker_delete(api: Api, fake: FakeApi) -> None:
    apply_worker(api)
    fake.calls.clear()
    delete_worker(api)


def mode_set(api: Api, fake: FakeApi) -> None:
    kubeadm(fake)
    fake.objects["apps", "daemonsets", "kube-system", "kube-proxy"]["status"] = {"observedGeneration": 9}
    change = plan_change(api, "nftables")
    apply_change(api, change)
    wait_for_rollout(api, change)


def run_on_nodes(api: Api, fake: FakeApi) -> None:
    """On a node that measures, on one whose quota is exceeded, and on one that loses its pod."""
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch().context() as patch:
        patch.setattr(nodes, "POLL_S", 0.02)
        patch.setattr(nodes, "EVENTS_S", 0)
        kubelet = Kubelet(fake, Path(directory), events={"n2": "exceeded quota"}, wrap=lambda _: ["sleep", "0.3"])

        def lose(call: Call) -> None:
            kubelet.note(call)
            if call.resource == "pods/log" and "-n3-" in call.name:
                fake.objects.pop(("", "pods", call.namespace, call.name), None)

        fake.after = lose
        for name in ("n1", "n2", "n3"):
            fake.add(node_of(name, "192.0.2.2", "10.244.1.0/24"))
        names = [node["metadata"]["name"] for node in nodes.find_nodes(api, [], "")]
        jobs = {name: make_job("run", name, [], "kproxylat", "image", 1) for name in names}
        errors = {outcome.node: outcome.error for outcome in nodes.run_jobs(api, jobs, 3)}
        kubelet.end()
    assert [errors[name][: len(text)] for name, text in zip(names, ENDS, strict=True)] == list(ENDS)


ENDS = ("the pod ended", "the pod does not start: exceeded quota", "the pod was deleted")
WAYS: dict[str, Callable[[Api, FakeApi], object]] = {
    "mode show": mode_show,
    "run": run,
    "run --node": run_on_nodes,
    "bill": lambda api, _: read_names(api),
    "sweep": sweep,
    "services list": services_list,
    "services create": services_create,
    "services create --worker": lambda api, _: apply_worker(api),
    "services delete": services_delete,
    "services delete --worker": worker_delete,
    "mode set": mode_set,
}


def test_every_command_is_documented() -> None:
    assert set(MANIFESTS) == set(WAYS)


@pytest.mark.parametrize("command", WAYS)
def test_the_documented_permissions_suffice(api: Api, fake: FakeApi, command: str) -> None:
    WAYS[command](api, fake)
    assert made(fake) == rights(MANIFESTS[command])


COMMANDS = (
    (("mode", "show"), ["mode show"], 0),
    (("mode", "set", "nftables", "--dry-run"), ["mode set"], 0),
    (("mode", "set", "nftables", "--yes"), ["mode set"], 0),
    (("run", "2", "1000", "--service", "worker-dual"), ["run", "mode show"], 0),
    (("run", "2", "1000", "--service", "worker-dual", "--mode", "nftables"), ["run"], 0),
    (("run", "2", "1000", "--target", "10.96.0.10:1", "--mode", "nftables"), [], 0),
    (("services", "create", "--count", "3"), ["services create"], 0),
    (("services", "create", "--count", "3", "--dry-run"), ["services list"], 0),
    (
        ("services", "create", "--count", "3", "--worker", "--wait", "0"),
        ["services create", "services create --worker"],
        1,
    ),
    (("services", "list"), ["services list"], 0),
    (("services", "delete"), ["services delete"], 0),
    (("services", "delete", "--wait", "0"), ["services delete"], 0),
    (("services", "delete", "--worker"), ["services delete", "services delete --worker"], 0),
)
"""Command line, the manifests that it takes, and its status where this machine holds no Service's rules."""


@pytest.mark.parametrize(("argv", "manifests", "expected"), COMMANDS, ids=lambda each: " ".join(map(str, [each])))
def test_the_commands_need_no_other_permissions(
    capsys: Captured,
    cluster: FakeApi,  # noqa: F811
    measured: list[Options],  # noqa: F811
    argv: tuple[str, ...],
    manifests: list[str],
    expected: int,
) -> None:
    """From the first word to the last, against a server that permits what the manifests have, and no more."""
    for each in RECORDED.glob("*worker-dual.json"):
        cluster.add(each)
    cluster.add(node_of(socket.gethostname(), "192.0.2.2", "10.244.1.0/24"))
    cluster.objects["apps", "daemonsets", "kube-system", "kube-proxy"]["status"] = {"observedGeneration": 9}
    cluster.permitted = set().union(*(rights(MANIFESTS[each]) for each in manifests))
    status, _, err = call(capsys, *argv)
    assert (status, "Forbidden" in err) == (expected, False), err
    assert bool(cluster.calls) == bool(manifests)
    assert len(measured) == (argv[0] == "run")
