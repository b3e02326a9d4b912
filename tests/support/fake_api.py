"""A small Kubernetes API server over HTTP on loopback: what kproxylat relies on of its semantics, and faults.

Kept from the real one: uid, resourceVersion and generation; AlreadyExists, preconditions of DELETE and resourceVersion
of PATCH (409); lists in the order of their keys with limit, continue, labelSelector and fieldSelector; merge patch,
JSON patch and server-side apply; Status objects with the real wording.
"""

from __future__ import annotations

import asyncio
import copy
import json
import random
import ssl
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

Object = dict[str, Any]
REASONS = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 410: "Expired", 429: "TooManyRequests"}
REASONS |= {415: "UnsupportedMediaType", 422: "Invalid", 500: "InternalError", 503: "ServiceUnavailable"}
VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
TOKEN = "right"  # noqa: S105


def _resources(version: str, *kinds: str) -> Object:
    resources = [
        {"name": f"{kind.lower()}s", "singularName": "", "namespaced": True, "kind": kind, "verbs": [*VERBS.values()]}
        for kind in kinds
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}


_VERSION = {"groupVersion": "discovery.k8s.io/v1", "version": "v1"}
_GROUP = {"name": "discovery.k8s.io", "versions": [_VERSION], "preferredVersion": _VERSION}
DISCOVERY: dict[str, Object] = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_GROUP]},
    "/api/v1": _resources("v1", "Service"),
    "/apis/discovery.k8s.io/v1": _resources("discovery.k8s.io/v1", "EndpointSlice"),
}
"""What kubectl asks for before it creates anything."""


class Call(NamedTuple):
    """A request as RBAC sees it; ``namespace`` and ``name`` are "" where there is none."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str


class Refused(Exception):  # noqa: N818
    def __init__(self, status: int, message: str, reason: str = "", headers: str = "") -> None:
        super().__init__(message)
        self.status, self.reason, self.headers = status, reason or REASONS[status], headers


@dataclass
class FakeApi:
    """The server's state, and what it is to do wrong.

    :param fault_rate: how many of the requests go wrong, in a way of :data:`FAULTS`.
    :param denied: verb and resource -> answered by 403. ``permitted``: verb, group, resource, namespace and name, ""
        being any, outside of which all is denied (None: all is permitted).
    :param after: called with each request that was carried out.
    :param logs: a pod's name -> returns its log so far.
    """

    delay_s: float = 0
    fault_rate: float = 0
    retry_after: str = "0"
    anonymous: bool = False
    seed: int = 1
    denied: set[tuple[str, str]] = field(default_factory=set)
    permitted: set[tuple[str, ...]] | None = None
    after: Callable[[Call], None] | None = None
    objects: dict[tuple[str, str, str, str], Object] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    queries: list[dict[str, str]] = field(default_factory=list)
    expire_continue: int = 0
    missing_namespaces: set[str] = field(default_factory=set)
    logs: dict[str, Callable[[], str]] = field(default_factory=dict)
    port: int = 0
    version: int = 100

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.clock = 0

    def add(self, document: Object | str | Path) -> Object:
        """Put an object, or a recorded one from a file, there."""
        found = document if isinstance(document, dict) else json.loads(Path(document).read_text())
        for each in found.get("items", [found]):
            group = each["apiVersion"].rpartition("/")[0]
            resource = each["kind"].lower() + "s"
            self.objects[group, resource, each["metadata"].get("namespace", ""), each["metadata"]["name"]] = each
            self._stamp(each)
        return found

    def collect_garbage(self) -> None:
        """Delete what has owners, all of which are gone, as the garbage collector does some time after a DELETE."""
        uids = {each["metadata"]["uid"] for each in self.objects.values()}
        for key, each in [*self.objects.items()]:
            owners = {owner["uid"] for owner in each["metadata"].get("ownerReferences", ())}
            if owners and not owners & uids:
                del self.objects[key]

    def named(self, resource: str, namespace: str = "default") -> list[str]:
        return sorted(key[3] for key in self.objects if key[1] == resource and key[2] == namespace)

    def kubeconfig(self, directory: Path, token: str = TOKEN, namespace: str | None = None, port: int = 0) -> Path:
        """Write a kubeconfig with a context ``fake``."""
        context = {"cluster": "fake", "user": "fake"} | ({"namespace": namespace} if namespace else {})
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{port or self.port}"}}],
            "contexts": [{"name": "fake", "context": context}],
            "users": [{"name": "fake", "user": {"token": token}}],
        }
        path = directory / "kubeconfig"
        path.write_text(json.dumps(document))
        return path

    def _stamp(self, document: Object) -> None:
        self.version += 1
        meta = document["metadata"]
        meta["resourceVersion"] = str(self.version)
        meta.setdefault("uid", str(uuid.UUID(int=self.random.getrandbits(128))))
        if document.get("kind") in ("ConfigMap", "DaemonSet"):
            # The real one has whole seconds, too; here, each change comes a second after the one before.
            seconds = f"{datetime.fromtimestamp(1.8e9 + self.version, UTC):%Y-%m-%dT%H:%M:%SZ}"
            meta["managedFields"] = [{"manager": "fake", "operation": "Update", "time": seconds}]

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, Object | str, str]:
        """Carry a request out: status, answer, further headers."""
        try:
            return *self._answer(method, target, headers, body), ""
        except Refused as error:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": str(error)}
            return error.status, {**status, "reason": error.reason, "code": error.status}, error.headers

    def _answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, Object | str]:
        url = urlsplit(target)
        if url.path in DISCOVERY:
            return 200, DISCOVERY[url.path]
        query = dict(parse_qsl(url.query))
        words = [unquote(each) for each in url.path.split("/")[1:]]
        if len(words) < 3:
            raise Refused(404, "the server could not find the requested resource")
        group, rest = ("", words[2:]) if words[0] == "api" else (words[1], words[3:])
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        resource, name = "/".join([rest[0], *rest[2:]]), rest[1] if len(rest) > 1 else ""
        verb = VERBS[method] if name or method != "GET" else "list"
        call = Call(verb, group, resource, namespace, name)
        self.calls.append(call)
        self.queries.append(query)
        # kubectl sends no token without TLS.
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if (scheme.lower(), token) != ("bearer", TOKEN) and not self.anonymous:
            raise Refused(401, "Unauthorized")
        if (verb, resource) in self.denied or not self._permits(call):
            about = f'{resource} "{name}" is forbidden' if name else f"{resource} is forbidden"
            where = f' in the namespace "{namespace}"' if namespace else " at the cluster scope"
            user = 'User "fake" cannot'
            raise Refused(403, f'{about}: {user} {verb} resource "{resource}" in API group "{group}"{where}')
        if resource == "pods/log":
            if name not in self.logs:
                raise Refused(404, f'pods "{name}" not found')
            text = self.logs[name]()
            if self.after:
                self.after(call)
            return 200, text
        if resource == "namespaces" and verb == "get" and name not in self.missing_namespaces and not self.holds(call):
            return 200, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        if verb == "create" and namespace in self.missing_namespaces:
            raise Refused(404, f'namespaces "{namespace}" not found')
        key = (group, resource, namespace, name)
        data = json.loads(body) if body else {}
        if verb == "list":
            return 200, self._list(group, resource, namespace, query)
        if verb == "create":
            result = self._create((*key[:3], data["metadata"]["name"]), data)
        elif verb == "patch" and "apply-patch" in headers.get("content-type", "") and key not in self.objects:
            # The real one asks for both permissions.
            self.calls.append(call._replace(verb="create"))
            result = self._create(key, data)
        elif key not in self.objects:
            raise Refused(404, f'{resource} "{name}" not found')
        elif verb == "get":
            result = self.objects[key]
        elif verb == "patch":
            result = self._patch(key, data, headers["content-type"], query.get("dryRun") == "All")
        elif verb == "delete":
            wanted, meta = data.get("preconditions", {}), self.objects[key]["metadata"]
            if any(meta[each] != value for each, value in wanted.items()):
                raise Refused(409, f'Operation cannot be fulfilled on {resource} "{name}"', "Conflict")
            del self.objects[key]
            result = {"kind": "Status", "apiVersion": "v1", "status": "Success"}
        else:
            raise Refused(415, f"{method} is not here")
        if self.after:
            self.after(call)
        return 201 if verb == "create" else 200, result

    def holds(self, call: Call) -> bool:
        """Return whether an object of this name was put there."""
        return call[1:] in self.objects

    def _permits(self, call: Call) -> bool:
        wanted = {
            call._replace(namespace=space, name=name) for space in ("", call.namespace) for name in ("", call.name)
        }
        return self.permitted is None or not wanted.isdisjoint(self.permitted)

    def _list(self, group: str, resource: str, namespace: str, query: dict[str, str]) -> Object:
        labels = [each.split("=") for each in query.get("labelSelector", "").split(",") if each]
        fields = [each.split("=") for each in query.get("fieldSelector", "").split(",") if each]
        keys = [
            key
            for key, each in sorted(self.objects.items())
            if key[:2] == (group, resource)
            and namespace in ("", key[2])
            and all(each["metadata"].get("labels", {}).get(label) == value for label, value in labels)
            and all(self._field(each, path) == value for path, value in fields)
        ]
        token = query.get("continue", "")
        if token:
            if self.expire_continue:
                self.expire_continue -= 1
                raise Refused(410, "The provided continue parameter is too old")
            keys = [key for key in keys if "/".join(key) > token]
        limit = int(query.get("limit", 0)) or len(keys)
        meta = {"resourceVersion": str(self.version)}
        if len(keys) > limit:
            meta["continue"] = "/".join(keys[limit - 1])
        # A list's items come without apiVersion and kind.
        items = [
            {k: v for k, v in self.objects[key].items() if k not in ("apiVersion", "kind")} for key in keys[:limit]
        ]
        return {"kind": "List", "apiVersion": "v1", "metadata": meta, "items": items}

    @staticmethod
    def _field(document: Object, path: str) -> object:
        found: Any = document
        for each in path.split("."):
            found = found.get(each, {})
        return found

    def _create(self, key: tuple[str, str, str, str], document: Object) -> Object:
        if key in self.objects:
            raise Refused(409, f'{key[1]} "{key[3]}" already exists', "AlreadyExists")
        document = copy.deepcopy(document)
        document["metadata"]["namespace"] = key[2]
        if key[1] == "services" and "clusterIP" not in document["spec"]:
            self.clock += 1
            document["spec"]["clusterIP"] = str(IPv4Address("10.97.0.0") + self.clock)
            document["spec"]["clusterIPs"] = [document["spec"]["clusterIP"]]
            document["spec"] |= {"ipFamilies": ["IPv4"], "type": "ClusterIP"}
        self._stamp(document)
        self.objects[key] = document
        return document

    def _patch(self, key: tuple[str, str, str, str], patch: Any, kind: str, dry: bool) -> Object:
        document = copy.deepcopy(self.objects[key])
        if "json-patch+json" in kind:
            for each in patch:
                path = [word.replace("~1", "/").replace("~0", "~") for word in each["path"].split("/")[1:]]
                holder: Any = document
                for word in path[:-1]:
                    holder = holder[word]
                if each["op"] == "test" and holder.get(path[-1]) != each["value"]:
                    raise Refused(422, "the server rejected our request due to an error in our request")
                if each["op"] in ("add", "replace"):
                    holder[path[-1]] = each["value"]
        else:
            wanted = patch.get("metadata", {}).get("resourceVersion")
            if wanted not in (None, document["metadata"]["resourceVersion"]):
                raise Refused(409, f'Operation cannot be fulfilled on {key[1]} "{key[3]}"', "Conflict")
            _merge(document, patch)
        if dry:
            return document
        if document.get("spec") != self.objects[key].get("spec") and "generation" in document["metadata"]:
            document["metadata"]["generation"] += 1
        self._stamp(document)
        self.objects[key] = document
        return document

    FAULTS = ("conflict", "overload", "error", "unavailable", "lost before", "lost after", "slow")

    def fault(self, method: str) -> str:
        """Draw a fault for a request, "" for none."""
        if self.random.random() >= self.fault_rate:
            return ""
        drawn = self.random.choice(self.FAULTS)
        drawn = "error" if drawn == "conflict" and method != "POST" else drawn
        self.faults[drawn] += 1
        return drawn

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                method, target, _ = head[0].split(" ")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                fault = self.fault(method)
                if self.delay_s or fault == "slow":
                    await asyncio.sleep(0.05 if fault == "slow" else self.delay_s)
                if fault == "lost before":
                    break
                refusals = {
                    "conflict": Refused(409, "the object has been modified; please apply your changes", "Conflict"),
                    "overload": Refused(429, "too many requests", "", f"Retry-After: {self.retry_after}\r\n"),
                    "error": Refused(500, "etcdserver: leader changed"),
                    "unavailable": Refused(503, "apiserver is shutting down"),
                }
                if fault in refusals:
                    error = refusals[fault]
                    status, more = error.status, error.headers
                    answer = {"kind": "Status", "message": str(error), "reason": error.reason, "code": status}
                else:
                    status, answer, more = self.answer(method, target, headers, body)
                if fault == "lost after":
                    break
                data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
                kind = f"Content-Type: {'text/plain' if isinstance(answer, str) else 'application/json'}\r\n"
                writer.write(f"HTTP/1.1 {status} x\r\n{kind}{more}Content-Length: {len(data)}\r\n\r\n".encode() + data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            # Over TLS, a close would wait for the client's.
            writer.transport.abort() if writer.get_extra_info("ssl_object") else writer.close()


def _merge(document: Object, patch: Object) -> None:
    """RFC 7386."""
    for name, value in patch.items():
        if value is None:
            document.pop(name, None)
        elif isinstance(value, dict):
            document.setdefault(name, {})
            _merge(document[name], value)
        else:
            document[name] = value


@contextmanager
def serving(fake: FakeApi, tls: ssl.SSLContext | None = None) -> Iterator[FakeApi]:
    """Serve on a free port of loopback, in a thread; over TLS, if told so."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(fake.serve, "127.0.0.1", 0, limit=2**20, ssl=tls))
    fake.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield fake
    finally:

        async def end() -> None:
            server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)
            loop.stop()

        asyncio.run_coroutine_threadsafe(end(), loop)
        thread.join(5)
        loop.close()
