"""The dummy Services against the fake API, faults and interruptions included: none missing, none left, no duplicate."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kproxylat.cluster import api as cluster
from kproxylat.cluster import dummies
from kproxylat.cluster.api import Api
from kproxylat.cluster.dummies import create, delete, paths, plan_creation, read_dummies, service_of
from kproxylat.cluster.kubeconfig import CONNECTIONS
from kproxylat.errors import ApiError, Interrupted, MachineError
from kproxylat.system import interrupts
from tests.support.agent import Agent
from tests.support.fake_api import Call, FakeApi
from tests.support.kube_proxy import RECORDED

WAIT_S = 0.01
"""How long a client waits here at most before it tries again."""
INTERRUPTIONS, INTERRUPTED = 20, 400
"""How often, half of them while creating and half while deleting; and how many Services there are to be then."""


def fill(api: Api, count: int) -> None:
    found = read_dummies(api)
    create(api, found, plan_creation(found, count))


def names(count: int) -> list[str]:
    return sorted(f"dummy-service-{number}" for number in range(count))


def test_services_and_slices_have_the_old_scripts_names(api: Api, fake: FakeApi) -> None:
    fill(api, 3)
    assert fake.named("services") == fake.named("endpointslices") == names(3)
    service = fake.objects["", "services", "default", "dummy-service-2"]
    endpoints = fake.objects["discovery.k8s.io", "endpointslices", "default", "dummy-service-2"]
    assert service["metadata"]["labels"] == {"type": "dummy"}
    assert "selector" not in service["spec"]
    assert endpoints["metadata"]["labels"]["type"] == "dummy"
    assert endpoints["metadata"]["labels"]["kubernetes.io/service-name"] == "dummy-service-2"
    assert endpoints["metadata"]["ownerReferences"][0]["uid"] == service["metadata"]["uid"]
    assert endpoints["endpoints"] == [{"addresses": ["10.245.0.3"]}]


def test_existing_objects_are_not_created_again(api: Api, fake: FakeApi) -> None:
    fill(api, 5)
    del fake.objects["", "services", "default", "dummy-service-1"]
    del fake.objects["discovery.k8s.io", "endpointslices", "default", "dummy-service-3"]
    fake.calls.clear()
    fill(api, 6)
    assert fake.named("services") == fake.named("endpointslices") == names(6)
    # The Services 1 and 5, and the slices of 1 (twice: one of the old Service is there), 3 and 5.
    assert Counter(call.resource for call in fake.calls if call.verb == "create") == {
        "services": 2,
        "endpointslices": 4,
    }
    fake.calls.clear()
    fill(api, 4)
    assert {call.verb for call in fake.calls} == {"list"}


def owners_are_there(fake: FakeApi) -> bool:
    """Whether each slice is its Service's, so that a garbage collector takes none away."""
    before = fake.named("endpointslices")
    fake.collect_garbage()
    return fake.named("endpointslices") == before == fake.named("services")


def test_slices_of_deleted_services_do_not_count(api: Api, fake: FakeApi) -> None:
    """Deleting was interrupted between its stages, and the garbage collector has not come yet."""
    fill(api, 4)
    for number in (0, 1, 2):
        del fake.objects["", "services", "default", f"dummy-service-{number}"]
    # A slice of an old script has no owner, and so belongs to the Service of that name.
    del fake.objects["discovery.k8s.io", "endpointslices", "default", "dummy-service-2"]["metadata"]["ownerReferences"]
    fill(api, 4)
    assert owners_are_there(fake)
    assert fake.named("services") == names(4)
    # Interrupted again, between a new Service and its slice.
    del fake.objects["", "services", "default", "dummy-service-1"]
    create_service(api, 1)
    assert read_dummies(api).without_slice == [1]
    fill(api, 4)
    assert owners_are_there(fake)


def create_service(api: Api, number: int) -> None:
    api.request("POST", paths(api)[0], service_of(number))


@pytest.mark.parametrize("when", ["create", "get", "delete"])
def test_the_garbage_collector_runs_in_between(api: Api, fake: FakeApi, when: str) -> None:
    fill(api, 1)
    del fake.objects["", "services", "default", "dummy-service-0"]
    fake.after = lambda call: fake.collect_garbage() if call.verb == when else None
    fill(api, 1)
    assert owners_are_there(fake)
    assert fake.named("services") == names(1)


def test_an_endless_conflict_fails(api: Api, fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(api, 1)
    answer, tries = fake.answer, []

    def refuse(method: str, *rest: Any) -> Any:
        if method != "DELETE":
            return answer(method, *rest)
        tries.append(method)
        return 409, {"kind": "Status", "message": "Operation cannot be fulfilled", "reason": "Conflict"}, ""

    monkeypatch.setattr(fake, "answer", refuse)
    monkeypatch.setattr(dummies, "PATIENCE_S", 1)
    with pytest.raises(ApiError, match="409 Conflict") as caught:
        delete(api)
    assert "another client changes" in caught.value.remedy
    assert len(tries) < 6


def test_ipv6_services_get_ipv6_endpoints(api: Api, fake: FakeApi) -> None:
    service = {"metadata": {"name": "dummy-service-15", "uid": "x"}, "spec": {"ipFamilies": ["IPv6", "IPv4"]}}
    from kproxylat.cluster.dummies import slice_of

    made = slice_of(15, service)
    assert (made["addressType"], made["endpoints"]) == ("IPv6", [{"addresses": ["fd00:245::10"]}])
    assert api.namespace
    assert fake.port


def test_only_services_with_label_and_name_are_deleted(api: Api, fake: FakeApi) -> None:
    fill(api, 4)
    worker = fake.add(RECORDED / "service-worker.json")
    bare = fake.objects["", "services", "default", "dummy-service-1"]["metadata"]
    del bare["labels"]
    strange = copy.deepcopy(worker)
    strange["metadata"] |= {"name": "theirs", "labels": {"type": "dummy"}}
    fake.add(strange)
    assert read_dummies(api).strange == ("theirs",)
    delete(api)
    assert fake.named("services") == ["dummy-service-1", "theirs", "worker"]
    deleted = {call.name for call in fake.calls if call.verb == "delete" and call.resource == "services"}
    assert deleted == {"dummy-service-0", "dummy-service-2", "dummy-service-3"}


def test_a_service_that_loses_its_label_after_listing_is_kept(api: Api, fake: FakeApi) -> None:
    fill(api, 3)

    def change(call: Call) -> None:
        """Somebody adopts number 0, and changes number 1, while number 2 goes."""
        if call.verb == "delete":
            fake.after = None
            for number, labels in ((0, {}), (1, {"type": "dummy", "a": "b"})):
                document = fake.objects["", "services", "default", f"dummy-service-{number}"]
                document["metadata"]["labels"] = labels
                fake._stamp(document)

    services = read_dummies(api).services
    fake.after = change
    from kproxylat.cluster.dummies import _delete, paths

    for number in (2, 0, 1):
        _delete(api, paths(api)[0], services[number])
    assert fake.named("services") == ["dummy-service-0"]


def test_delete_keeps_the_first_services(api: Api, fake: FakeApi) -> None:
    fill(api, 12)
    delete(api, {*range(10)})
    assert fake.named("services") == fake.named("endpointslices") == names(10)


def test_another_service_with_a_dummy_name(api: Api, fake: FakeApi) -> None:
    worker = json.loads((RECORDED / "service-worker.json").read_text())
    worker["metadata"]["name"] = "dummy-service-1"
    fake.add(worker)
    with pytest.raises(MachineError, match=r"default/dummy-service-1 exists without the label type=dummy"):
        fill(api, 3)


def test_a_refusal_stops_the_other_threads(api: Api, fake: FakeApi) -> None:
    fake.denied.add(("create", "services"))
    with pytest.raises(ApiError, match="403 Forbidden"):
        fill(api, 2000)
    assert len(fake.calls) < 2 + 4 * CONNECTIONS, "two lists, and what was under way"
    fake.denied.clear()
    fill(api, 3)
    assert fake.named("services") == names(3)


def test_a_signal_stops_threads_that_wait_for_an_overloaded_server(
    api: Api, fake: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_dummies(api)
    fake.retry_after = "20"
    refused: list[str] = []

    def overload(verb: str) -> str:
        refused.append(verb)
        if len(refused) == CONNECTIONS:
            os.kill(os.getpid(), signal.SIGTERM)
        return "overload"

    monkeypatch.setattr(fake, "fault", overload)
    before = {signum: signal.getsignal(signum) for signum in interrupts.ENDING}
    interrupts.install()
    started_s = time.monotonic()
    try:
        with pytest.raises(Interrupted) as caught:
            create(api, found, range(100))
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert time.monotonic() - started_s < 5
    assert len(refused) == CONNECTIONS
    monkeypatch.setattr(fake, "fault", lambda _: "")
    fill(api, 3)
    assert fake.named("services") == names(3)


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "LONGEST_WAIT_S", WAIT_S)


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.long)])
def test_many_with_faults(api: Api, fake: FakeApi, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """One request in twenty fails: refused, overloaded, answered late, or its connection lost before or after."""
    monkeypatch.setattr(cluster, "PAGE", count // 10)
    api.get("/api/v1/nodes")
    fake.fault_rate = 0.05
    fill(api, count)
    assert fake.named("services") == fake.named("endpointslices") == names(count)
    assert len({each["metadata"]["uid"] for each in fake.objects.values()}) == 2 * count
    found = read_dummies(api)
    assert (len(found.services), len(found.slices), found.without_slice) == (count, count, [])
    delete(api)
    assert fake.objects == {}
    assert sum(fake.faults.values()) > count / 10
    assert {*fake.faults} == {*fake.FAULTS}


@pytest.fixture
def agent(fake: FakeApi, tmp_path: Path) -> Iterator[Agent]:
    """Serve command lines from one process that has imported all, and waits only shortly between tries."""
    preload = "import kubernetes.client; from kproxylat import guest; from kproxylat.cluster import api"
    preload += f"; api.LONGEST_WAIT_S = {WAIT_S}"
    started = Agent("-c", f"{preload}; guest.serve()", KUBECONFIG=str(fake.kubeconfig(tmp_path)))
    started.next()
    yield started
    started.close()


@pytest.mark.slow
def test_the_same_command_resumes_after_ctrl_c(fake: FakeApi, agent: Agent) -> None:
    """A real process gets a real SIGINT; whatever is there then, the same command completes it."""
    draw, each_way = random.Random(7), INTERRUPTIONS // 2
    fake.fault_rate = 0.05
    interrupted = 0
    for verb, argv in (("create", ("create", "--count", str(INTERRUPTED))), ("delete", ("delete",))):
        for number in range(each_way):
            done = len(fake.objects)
            left = 2 * INTERRUPTED - done if verb == "create" else done
            expected = done + draw.randrange(1, max(left // (each_way - number + 3), 2)) * (
                1 if verb == "create" else -1
            )

            def interrupt(call: Call, verb: str = verb, expected: int = expected) -> None:
                reached = len(fake.objects) >= expected if verb == "create" else len(fake.objects) <= expected
                if call.verb == verb and reached:
                    # The answers that follow take longer, so that the signal arrives before the command's end.
                    fake.after = lambda _: threading.Event().wait(0.05)
                    agent.send(signal=int(signal.SIGINT))

            fake.after = interrupt
            status, _, err = agent.run("services", *argv)
            fake.after = None
            assert status in (0, 130), err
            assert "Traceback" not in err
            interrupted += status == 130
            if draw.random() < 0.5:
                fake.collect_garbage()
        status, _, err = agent.run("services", *argv)
        assert status == 0, err
        wanted_names = names(INTERRUPTED) if verb == "create" else []
        fake.collect_garbage()
        assert fake.named("services") == fake.named("endpointslices") == wanted_names
    assert interrupted >= INTERRUPTIONS
