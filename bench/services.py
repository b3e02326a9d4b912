"""Services created per second, and their client's CPU time, against a fake API server that answers after 5 ms.

    python bench/services.py [COUNT]

Each Service has its EndpointSlice. The goal is at most 1.2 s of the client's CPU time for 1,000 of them. The first line
is of the whole command ``kproxylat services create``, with its start of about 0.8 s, of which a third is the import of
the kubernetes client.
The fake runs in a process of its own on the same cores. Beside it: a loop over the kubernetes client's own models, and
``kubectl create -f`` (which makes one request after another, and more than one an object).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from kproxylat.cluster.api import connect
from kproxylat.cluster.dummies import create, delete, plan_creation, read_dummies, service_of, slice_of
from tests.support.fake_api import FakeApi, serving

DELAY_S = 0.005


def serve(directory: Path) -> None:
    """The fake, until its standard input ends."""
    with serving(FakeApi(delay_s=DELAY_S, anonymous=True)) as fake:
        fake.kubeconfig(directory)
        print("ready", flush=True)
        sys.stdin.read()


@contextmanager
def server() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, __file__, "--serve", directory]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        yield Path(directory) / "kubeconfig"
        process.stdin.close()
        process.wait()


def ours(kubeconfig: Path, count: int) -> None:
    api = connect(kubeconfig)
    found = read_dummies(api)
    create(api, found, plan_creation(found, count))


def command(kubeconfig: Path, count: int) -> None:
    """Run the whole command."""
    argv = [sys.executable, "-m", "kproxylat", "services", "create", "--count", str(count)]
    done = subprocess.run([*argv, "--kubeconfig", str(kubeconfig)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.splitlines()[0])


def bare_client(kubeconfig: Path, count: int) -> None:
    from kubernetes import client, config

    configuration = client.Configuration()
    config.load_kube_config(str(kubeconfig), client_configuration=configuration)
    api_client = client.ApiClient(configuration)
    core, discovery = client.CoreV1Api(api_client), client.DiscoveryV1Api(api_client)
    labels = {"type": "dummy"}
    for number in range(count):
        name = f"dummy-service-{number}"
        port = client.V1ServicePort(name="http", port=80, target_port=80, protocol="TCP")
        meta = client.V1ObjectMeta(name=name, labels=labels)
        spec = client.V1ServiceSpec(ports=[port])
        core.create_namespaced_service("default", client.V1Service(metadata=meta, spec=spec))
        meta = client.V1ObjectMeta(name=name, labels={**labels, "kubernetes.io/service-name": name})
        endpoint = client.V1Endpoint(addresses=[f"10.245.{number // 250}.{number % 250 + 1}"])
        ports = [client.DiscoveryV1EndpointPort(name="http", port=80, protocol="TCP")]
        made = client.V1EndpointSlice(metadata=meta, address_type="IPv4", endpoints=[endpoint], ports=ports)
        discovery.create_namespaced_endpoint_slice("default", made)


def kubectl(kubeconfig: Path, count: int) -> None:
    items = []
    for number in range(count):
        service = service_of(number)
        endpoint_slice = slice_of(number, {"metadata": {**service["metadata"], "uid": "x"}, "spec": {}})
        del endpoint_slice["metadata"]["ownerReferences"]
        items += [service, endpoint_slice]
    document = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    command = ["kubectl", "--kubeconfig", str(kubeconfig), "create", "--validate=false", "-f", "-"]
    done = subprocess.run(command, input=document, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.splitlines()[0])


def used_s() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(name: str, way: Callable[[Path, int], None], count: int) -> None:
    with server() as kubeconfig:
        started_s, cpu_s = time.perf_counter(), used_s()
        try:
            way(kubeconfig, count)
        except RuntimeError as error:
            print(f"{name}: not measured: {error}")
            return
        took_s, cpu_s = time.perf_counter() - started_s, used_s() - cpu_s
        api = connect(kubeconfig)
        found = read_dummies(api)
        assert (len(found.services), found.without_slice) == (count, [])
        cpu = f"CPU {cpu_s / count * 1000:.2f} s per 1,000"
        print(f"{name}: {count} in {took_s:.1f} s, {count / took_s:.0f} a second; {cpu}", flush=True)
        if way is ours:
            started_s = time.perf_counter()
            delete(api)
            print(f"  deleted in {time.perf_counter() - started_s:.1f} s", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]))
        return
    count = int(sys.argv[1]) if sys.argv[1:] else 3000
    print(f"{os.cpu_count()} cores, every answer after {DELAY_S * 1000:.0f} ms")
    measure("kproxylat services create", command, count)
    measure("its functions create and delete", ours, count)
    measure("the kubernetes client in a loop", bare_client, count // 10)
    if shutil.which("kubectl"):
        measure("kubectl create -f", kubectl, count // 10)


if __name__ == "__main__":
    main()
