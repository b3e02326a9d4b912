"""The cluster's API: the only importer of ``kubernetes``.

The kubernetes client reads the kubeconfig and gets credentials. Requests and answers are plain JSON
objects: the client takes longer to build and check its models than the API server takes to answer.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlencode

from kproxylat import __version__
from kproxylat.cluster.kubeconfig import Client, Object, load_client
from kproxylat.cluster.shapes import find_misfit
from kproxylat.cluster.transport import TransportError, parse_object
from kproxylat.errors import ApiError, MachineError, UsageError, find_page
from kproxylat.system import interrupts

PATIENCE_S = 120.0
"""How long a request is repeated."""
FIRST_S = 10.0
"""The same, until the server answers for the first time."""
LONGEST_WAIT_S = 10.0
"""Longest wait before a repetition, unless the server asks for another one."""
ANSWER_S = 60.0
"""How long a request waits for its whole answer."""
CREDENTIALS_S = 1.0
"""How long credentials are used before the kubernetes client is asked whether they have expired."""
PAGE = 500
"""Objects per page of a list, as in kubectl."""
MOST_PAGES = 1000
RESTARTS = 5
"""How often a list starts again after its continue token has expired."""
OVERLOADED = (429, 500, 502, 503, 504)
RANGE_FULL = "range is full"
MESSAGE_REMEDIES = {
    RANGE_FULL: "delete Services, or give the cluster a larger service CIDR",
    "Apply failed": "measure it as it is, or delete it and let kproxylat create it again",
    "being terminated": (
        "wait until the namespace is gone and create it again: kubectl create namespace; or use another one (-n)"
    ),
    "exceeded quota": "ask for more, or use another namespace (-n): kubectl describe quota -n {namespace}",
}
"""Text in the message of a refusal -> remedy."""
STATUS_REMEDIES = {
    401: "log in again, or look at the user of context {context}: kubectl auth whoami",
    403: f"{find_page('rbac.md')} lists the permissions that each command needs",
    404: "check the namespace, and that the cluster's version is recent: kubectl get namespaces",
    409: "another client changes the same object: try again",
    **dict.fromkeys(OVERLOADED, "the API server is overloaded; run the same command again later to resume"),
}
"""Status of a refusal whose message has none of these texts -> remedy."""
APPLY_PATCH = "application/apply-patch+yaml"
"""Server-side apply; JSON is YAML, too."""
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
_AGENT = ("User-Agent", f"kproxylat/{__version__}")
"""The server uses the first word of the User-Agent as the field manager's name in managedFields."""


def join_path(root: str, *names: str) -> str:
    """Return the path of an object or a list.

    :param root: e.g. ``/api/v1/namespaces``.
    :param names: the parts that follow; each is quoted.
    :raises UsageError: a name is impossible: the server would take it for another path.
    """
    for name in names:
        if name in ("", ".", "..") or "/" in name or "%" in name:
            raise UsageError(f"invalid name {name!r}", "a name of Kubernetes takes letters, digits, hyphens and dots")
    return "/".join([root, *(quote(name, safe="") for name in names)])


class Api:
    """A cluster's API server.

    :param client: access to the server.
    :param namespace: the context's namespace, or that of the command line.
    :param context: the context's name, for messages.
    :param load: makes a new client from the present configuration.
    :param timeout_s: how long a request waits for its answer (None: :data:`ANSWER_S`).
    """

    def __init__(
        self,
        client: Client,
        namespace: str,
        context: str,
        load: Callable[[], Client],
        timeout_s: float | None = None,
    ) -> None:
        self.namespace = namespace
        self.context = context
        self._client = client
        self._credentials: tuple[Client, float, Sequence[tuple[str, str]]] = (client, 0, [])
        self._host = client.transport.host
        self._remedy = f"look at the cluster of context {context}: kubectl config view --minify"
        self._load = load
        self._auth = threading.Lock()
        self._answered = False
        self._timeout_s = timeout_s
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let the requests under way end, and send no others."""
        self._stopped.set()

    def resume(self) -> None:
        """Allow requests again."""
        self._stopped.clear()

    def get(self, path: str, **query: str | int) -> Object:
        """Read an object, or one page of a list.

        :param path: e.g. ``/api/v1/namespaces/default/services/worker``.
        :raises ApiError: the server refuses the request.
        :raises MachineError: the server cannot be reached.
        """
        return self.request("GET", path, query=query)

    def find(self, path: str) -> Object | None:
        """Read an object.

        :return: None if it does not exist.
        :raises ApiError: the server refuses for another reason.
        """
        try:
            return self.get(path)
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    def delete(self, path: str, **preconditions: str) -> bool:
        """Delete an object, and in the background what it owns.

        :param preconditions: fields of ``metadata`` that the object must have, such as its ``uid``.
        :return: whether the object existed.
        :raises ApiError: the server refuses, with status 409 because of a precondition.
        """
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        try:
            self.request("DELETE", path, {**options, "preconditions": preconditions})
        except ApiError as error:
            if error.status != 404:
                raise
            return False
        return True

    def list(self, path: str, **query: str | int) -> Iterator[Object]:
        """Read a list page by page.

        If the continue token has expired (410), the list starts again, and may return an object twice.

        :raises MachineError: the pages have no end, or what they hold is not of Kubernetes.
        """
        token, restarts = "", 0
        for _ in range(MOST_PAGES):
            try:
                page = self.get(path, **query, limit=PAGE, **({"continue": token} if token else {}))
            except ApiError as error:
                restarts += 1
                if error.status != 410 or not token or restarts > RESTARTS:
                    raise
                token = ""
                continue
            yield from page.get("items", ())
            before, token = token, page.get("metadata", {}).get("continue", "")
            if not token:
                return
            if token == before:
                raise self._describe_invalid("the same continue token twice")
        raise self._describe_invalid(f"more than {MOST_PAGES} pages of a list")

    def read_text(self, path: str, **query: str | int) -> str:
        """Read a text that is not JSON, such as a pod's log.

        :raises ApiError: the server refuses the request.
        :raises MachineError: the server cannot be reached.
        """
        return self._send("GET", path, query=query, accept="*/*").decode(errors="replace")

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        query: Mapping[str, str | int] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """Send a request and return the object that answers it.

        :raises ApiError: the server refuses the request.
        :raises MachineError: the server cannot be reached, or the answer is not of Kubernetes.
        :raises CancelledError: :meth:`stop` was called.
        """
        document = parse_object(self._send(method, path, body, query, content_type))
        if document is None:
            raise self._describe_invalid("not a Kubernetes API")
        # A DELETE is answered by a Status object.
        if method != "DELETE" and (misfit := find_misfit(document)):
            raise self._describe_invalid(f"{path}: {misfit}")
        return document

    def _send(
        self,
        method: str,
        path: str,
        body: object = None,
        query: Mapping[str, str | int] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> bytes:
        """Send a request; repeat it after an overload, a lost connection or a conflict (a DELETE not after a conflict).

        The server may have carried out a request whose answer was lost: the next POST may return AlreadyExists, the
        next DELETE NotFound. If the server rejects the credentials, they are read again, once.
        """
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        target = f"{path}?{urlencode(query)}" if query else path
        started_s, renewed = time.monotonic(), False
        for attempt in itertools.count(1):
            if self._stopped.is_set():
                raise CancelledError
            client = self._client
            headers = [*self._read_credentials(client), _AGENT, ("Accept", accept), ("Content-Type", content_type)]
            left_s = started_s + self._patience_s - time.monotonic()
            ends_s = time.monotonic() + (self._timeout_s or min(left_s, ANSWER_S))
            try:
                answer = client.transport.exchange(method, target, headers, data, ends_s)
            except TransportError as error:
                # Repeat after a lost connection. If there never was a connection, the address is probably wrong.
                retries = error.lost or self._answered
                if not retries or not self.pause(attempt, started_s + self._patience_s):
                    reason = " ".join(str(error).rsplit(">: ", 1)[-1].split())[:160]
                    raise MachineError(f"no API server answers at {self._host}: {reason}", self._remedy) from None
                continue
            self._answered = True
            if answer.status < 300:
                return answer.data
            if answer.status == 401 and not renewed:
                self._renew(client)
                renewed = True
                continue
            refused = self._refuse(answer.status, answer.data)
            # Another client changed the object. Conflicts of field managers have the same reason, but do not go away.
            raced = refused.reason == "Conflict" and "Apply failed" not in str(refused) and method != "DELETE"
            # The server reports an internal error if no ClusterIP is left.
            temporary = raced or (answer.status in OVERLOADED and RANGE_FULL not in str(refused))
            retry_after = answer.headers.get("retry-after", "")
            if not temporary or not self.pause(attempt, started_s + self._patience_s, retry_after):
                raise refused
        raise AssertionError("not reached")

    @property
    def _patience_s(self) -> float:
        return min(PATIENCE_S if self._answered else FIRST_S, self._timeout_s or PATIENCE_S)

    def _read_credentials(self, client: Client) -> Sequence[tuple[str, str]]:
        owner, expires_s, headers = self._credentials
        if owner is not client or time.monotonic() >= expires_s:
            # The client runs an exec plugin when the token expires: the lock lets only one thread do so.
            with self._auth:
                headers = client.read_credentials()
            self._credentials = (client, time.monotonic() + CREDENTIALS_S, headers)
        return headers

    def _renew(self, refused: Client) -> None:
        """Read the credentials again, once for all threads: a token file or a plugin may have new ones."""
        with self._auth:
            if self._client is refused:
                self._client = self._load()

    def pause(self, attempt: int, ends_s: float, retry_after: str = "") -> bool:
        """Wait before the next attempt: as long as the server asks for, or twice as long after each attempt.

        :param attempt: the number of the last attempt, from 1 on.
        :param ends_s: latest end of the wait, on the monotonic clock.
        :return: False, at once, if the wait would end later.
        :raises CancelledError: :meth:`stop` was called.
        """
        asked_s = float(retry_after) if re.fullmatch("[0-9]{1,9}", retry_after) else 0
        wait_s = (asked_s or min(0.05 * 2**attempt, LONGEST_WAIT_S)) * random.uniform(1, 1.25)  # noqa: S311
        if time.monotonic() + wait_s > ends_s:
            return False
        if interrupts.wait(self._stopped, wait_s):
            raise CancelledError
        return True

    def _describe_invalid(self, problem: str) -> MachineError:
        return MachineError(f"invalid answer from {self._host}: {problem}", self._remedy)

    def _refuse(self, status: int, data: bytes) -> ApiError:
        """Turn a Status object (Kubernetes, ``metav1.Status``) into an error."""
        document = parse_object(data) or {"message": data[:200].decode(errors="replace")}
        message = " ".join(str(document.get("message", "")).split()) or "no message"
        reason = str(document.get("reason", ""))
        remedies = (remedy for text, remedy in MESSAGE_REMEDIES.items() if text in message)
        remedy = next(remedies, STATUS_REMEDIES.get(status, ""))
        if status == 401:
            message = self._client.describe_refusal()
        return ApiError(
            f"the API server refuses ({status} {reason or 'error'}): {message}",
            remedy.format(context=self.context, namespace=self.namespace),
            status,
            reason,
        )


def connect(
    kubeconfig: Path | None = None,
    context: str | None = None,
    namespace: str | None = None,
    cluster: str | None = None,
    identity: Mapping[str, object] | None = None,
    timeout_s: float | None = None,
) -> Api:
    """Read the configuration as kubectl does: ``--kubeconfig``, KUBECONFIG, ~/.kube/config, or a pod's account.

    :param context: the context's name (None: the current one).
    :param namespace: a namespace instead of the context's.
    :param cluster: as in :func:`kproxylat.cluster.kubeconfig.load_client`, like ``identity``.
    :param timeout_s: as in :class:`Api`.
    :raises UsageError: the file, the context or the cluster does not exist.
    :raises MachineError: the configuration is missing or invalid.
    """
    load = partial(load_client, kubeconfig, context, cluster, identity)
    client, name, default = load()
    return Api(client, namespace or default or "default", name, lambda: load()[0], timeout_s)
