"""The cluster's API: the only importer of ``kubernetes``.

The kubernetes client reads the kubeconfig, gets credentials and keeps connections. Requests and answers are plain JSON
objects: the client takes longer to build and check its models than the API server takes to answer.
"""

from __future__ import annotations

import itertools
import json
import logging
import logging.handlers
import os
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from kproxylat import __version__
from kproxylat.errors import ApiError, MachineError, UsageError
from kproxylat.system import interrupts

Object = dict[str, Any]
"""An object of the API, as parsed from JSON."""

CONNECTIONS = 16
"""Requests under way at a time."""
PATIENCE_S = 120.0
"""How long a request is repeated."""
FIRST_S = 10.0
"""The same, as long as the server has not answered any request."""
LONGEST_WAIT_S = 10.0
"""Longest wait between two tries, if the server does not ask for another one."""
CONNECT_S, READ_S = 5.0, 60.0
PAGE = 500
"""Objects per page of a list, as in kubectl."""
OVERLOADED = (429, 500, 502, 503, 504)
RANGE_FULL = "range is full"
REMEDIES: tuple[tuple[int | str, str], ...] = (
    (RANGE_FULL, "delete Services, or give the cluster a larger service CIDR"),
    ("Apply failed", "measure it as it is, or delete it and let kproxylat create it again"),
    (
        "being terminated",
        "wait until the namespace is gone and create it again: kubectl create namespace; or use another one (-n)",
    ),
    ("exceeded quota", "ask for more, or use another namespace (-n): kubectl describe quota -n {namespace}"),
    (401, "log in again, or look at the user of context {context}: kubectl auth whoami"),
    (403, "docs/rbac.md lists the permissions that each command needs"),
    (404, "check the namespace, and that the cluster's version is recent: kubectl get namespaces"),
    (409, "another client changes the same object: try again"),
    *((status, "the API server is overloaded; run the same command again later to resume") for status in OVERLOADED),
)
"""Status of a refusal, or text of its message -> remedy. The first row that fits counts."""
APPLY_PATCH = "application/apply-patch+yaml"
"""Server-side apply; JSON is YAML, too."""
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Api:
    """A cluster's API server.

    :param client: the kubernetes client's ``ApiClient``.
    :param namespace: the context's namespace, or that of the command line.
    :param context: the context's name, for messages.
    :param load: makes a new client from the present configuration.
    """

    def __init__(self, client: Any, namespace: str, context: str, load: Callable[[], Any]) -> None:
        self.namespace = namespace
        self.context = context
        self._client = client
        self._host = client.configuration.host
        self._load = load
        self._auth = threading.Lock()
        self._answered = False
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let the requests under way end, and start no other one."""
        self._stopped.set()

    def resume(self) -> None:
        """Allow requests again."""
        self._stopped.clear()

    def get(self, path: str, **query: str | int) -> Object:
        """Read an object, or one page of a list.

        :param path: e.g. ``/api/v1/namespaces/default/services/worker``.
        :raises ApiError: the server refuses.
        :raises MachineError: it cannot be reached.
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

    def list(self, path: str, **query: str | int) -> Iterator[Object]:
        """Read a list page by page.

        If the continue token has expired (410), the list begins again, and may return an object twice.
        """
        token = ""
        while True:
            try:
                page = self.get(path, **query, limit=PAGE, **({"continue": token} if token else {}))
            except ApiError as error:
                if error.status != 410 or not token:
                    raise
                token = ""
                continue
            yield from page.get("items") or ()
            token = page.get("metadata", {}).get("continue", "")
            if not token:
                return

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        query: Mapping[str, str | int] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """Send a request, and again after an overload, a lost connection or a conflict (except that of a DELETE).

        The server may have carried out a request whose answer was lost: a second POST may return AlreadyExists, a
        second DELETE NotFound. If the server rejects the credentials, they are read again, once.

        :raises ApiError: the server refuses it.
        :raises MachineError: the server cannot be reached.
        :raises CancelledError: :meth:`stop` was called.
        """
        import urllib3

        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        started_s, renewed = time.monotonic(), False
        for attempt in itertools.count(1):
            if self._stopped.is_set():
                raise CancelledError
            client = self._client
            headers = self._headers(client, content_type)
            url = client.configuration.host + path + (f"?{urlencode(query)}" if query else "")
            timeout = urllib3.Timeout(connect=CONNECT_S, read=READ_S if self._answered else FIRST_S)
            pool = client.rest_client.pool_manager
            try:
                answer = pool.request(method, url, body=data, headers=headers, timeout=timeout, retries=False)
            except urllib3.exceptions.HTTPError as error:
                # A lost connection may come back. Without any so far, the address is probably wrong.
                lost = isinstance(error, (urllib3.exceptions.ProtocolError, urllib3.exceptions.ReadTimeoutError))
                if not (lost or self._answered) or not self.pause(attempt, started_s + self._patience_s):
                    raise self._unreachable(error) from None
                continue
            self._answered = True
            if answer.status < 300:
                return self._parse(answer.data)
            if answer.status == 401 and not renewed:
                self._renew(client)
                renewed = True
                continue
            refused = self._refuse(answer.status, answer.data)
            # The object changed in between. Conflicts of field managers have the same reason, but do not go away.
            raced = refused.reason == "Conflict" and "Apply failed" not in str(refused)
            again = answer.status in OVERLOADED or (method in ("POST", "PATCH") and raced)
            # No ClusterIP is left: the server calls that an internal error.
            again = again and RANGE_FULL not in str(refused)
            if not again or not self.pause(
                attempt, started_s + self._patience_s, answer.headers.get("Retry-After", "")
            ):
                raise refused
        raise AssertionError("not reached")

    @property
    def _patience_s(self) -> float:
        return PATIENCE_S if self._answered else FIRST_S

    def _headers(self, client: Any, content_type: str) -> dict[str, str]:
        # The server takes the first word for the field manager's name in managedFields.
        agent = f"kproxylat/{__version__}"
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": agent}
        # The client asks an exec plugin for a new token when the old one expires: the lock lets one thread do so.
        with self._auth, raise_logged_errors("the exec plugin"):
            settings = client.configuration.auth_settings().values()
        return headers | {each["key"]: each["value"] for each in settings if each["in"] == "header"}

    def _renew(self, refused: Any) -> None:
        """Read the credentials again, once for all threads: a token file or a plugin may have new ones."""
        with self._auth:
            if self._client is refused:
                self._client = self._load()

    def pause(self, attempt: int, ends_s: float, retry_after: str = "") -> bool:
        """Wait before the next try: at least as long as the server asks for, else twice as long each time.

        :param attempt: the number of the last try, from 1 on.
        :param ends_s: latest end of the wait, on the monotonic clock.
        :return: False, at once, if the wait would end later.
        :raises CancelledError: :meth:`stop` was called.
        """
        asked_s = float(retry_after) if retry_after.isdigit() else 0
        wait_s = (asked_s or min(0.05 * 2**attempt, LONGEST_WAIT_S)) * random.uniform(1, 1.25)  # noqa: S311
        if time.monotonic() + wait_s > ends_s:
            return False
        if interrupts.wait(self._stopped, wait_s):
            raise CancelledError
        return True

    def _parse(self, data: bytes) -> Object:
        try:
            parsed = json.loads(data)
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            raise MachineError(f"invalid answer from {self._host}: not a Kubernetes API", self._look_at())
        return parsed

    def _refuse(self, status: int, data: bytes) -> ApiError:
        """Turn a Status object (Kubernetes, ``metav1.Status``) into an error."""
        try:
            document = json.loads(data)
            message, reason = str(document.get("message", "")), str(document.get("reason", ""))
        except (ValueError, AttributeError):
            message, reason = data[:200].decode(errors="replace"), ""
        message = " ".join(message.split()) or "no message"
        remedy = next(
            (text for cause, text in REMEDIES if cause == status or (isinstance(cause, str) and cause in message)), ""
        )
        if status == 401:
            message = "the token has expired or is invalid"
        return ApiError(
            f"the API server refuses ({status} {reason or 'error'}): {message}",
            remedy.format(context=self.context, namespace=self.namespace),
            status,
            reason,
        )

    def _unreachable(self, error: Exception) -> MachineError:
        reason = str(error).rsplit(">: ", 1)[-1]
        return MachineError(f"no API server answers at {self._host}: {reason[:160]}", self._look_at())

    def _look_at(self) -> str:
        return f"look at the cluster of context {self.context}: kubectl config view --minify"


def connect(kubeconfig: Path | None = None, context: str | None = None, namespace: str | None = None) -> Api:
    """Read the configuration as kubectl does: ``--kubeconfig``, KUBECONFIG, ~/.kube/config, or a pod's account.

    :param context: name of the context (None: the current one).
    :param namespace: used instead of the context's.
    :raises UsageError: the file or the context does not exist.
    :raises MachineError: the configuration is missing or invalid.
    """
    client, name, default = load_client(kubeconfig, context)
    return Api(client, namespace or default or "default", name, lambda: load_client(kubeconfig, context)[0])


@contextmanager
def raise_logged_errors(plugin: str) -> Iterator[None]:
    """Raise the errors of an exec plugin, which the kubernetes client (its kube_config.py) only logs.

    :param plugin: its name, for the message.
    :raises MachineError: it failed.
    """
    handler = logging.handlers.BufferingHandler(100)
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)
    records = [record for record in handler.buffer if record.name == "root" and record.levelno >= logging.ERROR]
    if records:
        message = " ".join("; ".join(record.getMessage() for record in records).split())[:200]
        raise MachineError(f"{plugin} failed: {message}", "run it by hand; it is in the kubeconfig's user")


def load_client(kubeconfig: Path | None, context: str | None) -> tuple[Any, str, str | None]:
    """Make the kubernetes client from the configuration files, or in a pod from its account.

    :return: the client, the context's name, and its namespace.
    :raises UsageError: as :func:`find_files` and :func:`choose_context`.
    :raises MachineError: the configuration is missing or invalid.
    """
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException, load_incluster_config
    from yaml import YAMLError

    configuration = Configuration()
    configuration.connection_pool_maxsize = CONNECTIONS
    namespace: str | None
    try:
        if files := find_files(kubeconfig):
            name, namespace = _read_files(files, context, configuration)
        else:
            load_incluster_config(configuration)
            name, namespace = "(in-cluster)", (IN_CLUSTER / "namespace").read_text().strip()
    except (ConfigException, YAMLError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MachineError(f"the kubeconfig cannot be used: {reason}", "try: kubectl config view") from None
    return _make_client(configuration), name, namespace


def find_files(kubeconfig: Path | None) -> list[str]:
    """Return the kubeconfig files that exist, as kubectl finds them; none in a pod that has only its account.

    :param kubeconfig: a file to use instead (None: those of KUBECONFIG, else ~/.kube/config).
    :raises UsageError: ``kubeconfig`` does not exist.
    :raises MachineError: there is no file, and this is not a pod.
    """
    if kubeconfig and not kubeconfig.is_file():
        raise UsageError(f"kubeconfig {kubeconfig} does not exist", "--kubeconfig takes a file's path")
    text = str(kubeconfig or os.environ.get("KUBECONFIG") or Path("~/.kube/config").expanduser())
    files = [path for path in text.split(os.pathsep) if Path(path).is_file()]
    if not files and "KUBERNETES_SERVICE_HOST" not in os.environ:
        raise MachineError(
            f"there is no kubeconfig: {text} does not exist, and this is not a pod",
            "pass --kubeconfig FILE (under sudo, too: root has another home), or set KUBECONFIG",
        )
    # kubectl ignores an empty file among others.
    return [path for path in files if Path(path).stat().st_size] or files


def _read_files(files: Sequence[str], context: str | None, configuration: Any) -> tuple[str, str | None]:
    """Load a context of the kubeconfig files into the client's configuration; return its name and namespace."""
    from kubernetes.config import load_kube_config
    from kubernetes.config.kube_config import KubeConfigMerger

    merger = KubeConfigMerger(os.pathsep.join(files))
    # If several files name a context, the first one counts; the client would take the last one.
    current = next(filter(None, (file.get("current-context") for file in merger.config_files.values())), "")
    name = context or current
    chosen = choose_context(_read_section(merger, "context"), name)
    user = _read_section(merger, "user").get(chosen.get("user"), {})
    refuse_impersonation(name, user)
    with raise_logged_errors(f"exec plugin {(user.get('exec') or {}).get('command')}"):
        load_kube_config(os.pathsep.join(files), name, configuration, persist_config=False)
    return name, chosen.get("namespace")


def _read_section(merger: Any, kind: str) -> dict[Any, Object]:
    """Return the merged contexts or users by name.

    :param kind: "context" or "user".
    """
    entries = [getattr(entry, "value", entry) for entry in merger.config.value.get(f"{kind}s") or ()]
    return {entry["name"]: entry.get(kind) or {} for entry in entries}


def choose_context(contexts: Mapping[Any, Object], name: str) -> Object:
    """Return the context of a name.

    :param name: the name ("": neither the user nor a file names one).
    :raises UsageError: the kubeconfig has no such context.
    """
    if name not in contexts:
        raise UsageError(
            f"the kubeconfig has no context {name!r}" if name else "the kubeconfig names no current context",
            f"--context takes one of: {', '.join(map(str, contexts))}",
        )
    return contexts[name]


def refuse_impersonation(context: str, user: Object) -> None:
    """Refuse a user that acts as another one: the client would ignore that.

    :raises MachineError: the user does.
    """
    if user.get("as"):
        raise MachineError(
            f"the user of context {context} acts as {user['as']}, which kproxylat cannot do",
            "pass the --context of a user who has the rights",
        )


def _make_client(configuration: Any) -> Any:
    """Return the kubernetes client, without urllib3's warnings of what the kubeconfig asks for."""
    import urllib3
    from kubernetes.client import ApiClient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", urllib3.exceptions.DependencyWarning)
        try:
            client = ApiClient(configuration)
        except ModuleNotFoundError:
            raise MachineError("a SOCKS proxy takes the Python package PySocks", "pip install PySocks") from None
    if not configuration.verify_ssl:
        # The kubeconfig asks for it, and kubectl does not warn at each request, either.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return client
