"""The cluster's API: the only importer of ``kubernetes``.

Of the client we use what reads kubeconfig, gets credentials and keeps connections. Requests and answers are plain JSON
objects: building and checking the client's models takes longer than the API server does.
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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from kproxylat import __version__, interrupts
from kproxylat.errors import ApiError, MachineError, UsageError

Object = dict[str, Any]
"""An object of the API as JSON has it."""

CONNECTIONS = 16
"""Requests under way at a time."""
PATIENCE_S = 120.0
"""How long a request is tried again; FIRST_S: while the server has not answered anything yet."""
FIRST_S = 10.0
LONGEST_WAIT_S = 10.0
"""Longest wait between two tries, where the server asks for none."""
CONNECT_S, READ_S = 5.0, 60.0
PAGE = 500
"""Objects per page of a list, as kubectl has it."""
OVERLOADED = (429, 500, 502, 503, 504)
APPLY_PATCH = "application/apply-patch+yaml"
"""Server-side apply; JSON is YAML, too."""
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Api:
    """A cluster's API server.

    :param client: the kubernetes client's ``ApiClient``.
    :param namespace: the context's, or the one that the command line names.
    :param context: the context's name, for messages.
    :param load: makes such a client from the configuration as it is by then.
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
        """Let the requests under way end, and start no other: Ctrl-C does this to the threads."""
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
        """Read an object that may not be there.

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

        A list whose continue token has expired (410) is begun again, and may then give an object twice.
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
        """Send a request until it is answered: overload, lost connections and conflicts, but DELETE's, are tried again.

        A request whose answer was lost may have been carried out: a second POST may say AlreadyExists, a second
        DELETE NotFound. Where the server does not take our credentials, they are read anew once.

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
                # A connection that is lost may come back; where none was ever made, none will be.
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
            # The server's own tries were too few. Field managers' conflicts are called the same, and don't go away.
            raced = refused.reason == "Conflict" and "Apply failed" not in str(refused)
            again = answer.status in OVERLOADED or (method in ("POST", "PATCH") and raced)
            # No ClusterIP is left: the server calls that an internal error.
            if "range is full" in str(refused):
                refused.remedy, again = "delete Services, or give the cluster a larger service CIDR", False
            if not again or not self.pause(
                attempt, started_s + self._patience_s, answer.headers.get("Retry-After", "")
            ):
                raise refused
        raise AssertionError("not reached")

    @property
    def _patience_s(self) -> float:
        return PATIENCE_S if self._answered else FIRST_S

    def _headers(self, client: Any, content_type: str) -> dict[str, str]:
        # By its first word the server names, in managedFields, who wrote what.
        agent = f"kproxylat/{__version__}"
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": agent}
        # The client asks an exec plugin for a new token when the old one expires: once, not from every thread.
        with self._auth, _hearing("the exec plugin"):
            settings = client.configuration.auth_settings().values()
        return headers | {each["key"]: each["value"] for each in settings if each["in"] == "header"}

    def _renew(self, refused: Any) -> None:
        """Read the credentials anew, in the first thread that comes: a token file or a plugin may have another."""
        with self._auth:
            if self._client is refused:
                self._client = self._load()

    def pause(self, attempt: int, ends_s: float, retry_after: str = "") -> bool:
        """Wait before the next try: at least as long as the server asks for, or twice as long each time.

        :param attempt: the number of the last try, from 1 on.
        :param ends_s: of the monotonic clock.
        :return: False, at once, if that would take longer than ``ends_s``.
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
            raise MachineError(f"what answers at {self._host} is no Kubernetes API", self._look_at())
        return parsed

    def _refuse(self, status: int, data: bytes) -> ApiError:
        """Turn a Status object (Kubernetes, ``metav1.Status``) into an error."""
        try:
            said = json.loads(data)
            message, reason = str(said.get("message", "")), str(said.get("reason", ""))
        except (ValueError, AttributeError):
            message, reason = data[:200].decode(errors="replace"), ""
        message = " ".join(message.split()) or "it says nothing more"
        remedy = {
            401: f"log in again, or look at the user of context {self.context}: kubectl auth whoami",
            404: "is the namespace right, and the cluster's version recent? kubectl get namespaces",
            403: "docs/rbac.md lists the permissions that each command needs",
            409: "somebody else changes the same object: try again",
        }.get(status, "")
        if status in OVERLOADED:
            remedy = "the server is overloaded or ill: later, the same command goes on where this one stopped"
        if "exceeded quota" in message:
            remedy = f"ask for more, or use another namespace (-n): kubectl describe quota -n {self.namespace}"
        if "being terminated" in message:
            remedy = "wait until the namespace is gone, and make it anew: kubectl create namespace; or use another (-n)"
        if "Apply failed" in message:
            remedy = "measure it as it is, or delete it and let it be made anew"
        if status == 401:
            message = "the token has expired, or is none"
        return ApiError(f"the API server refuses ({status} {reason or 'error'}): {message}", remedy, status, reason)

    def _unreachable(self, error: Exception) -> MachineError:
        said = str(error).rsplit(">: ", 1)[-1]
        return MachineError(f"no API server answers at {self._host}: {said[:160]}", self._look_at())

    def _look_at(self) -> str:
        return f"look at the cluster of context {self.context}: kubectl config view --minify"


def connect(kubeconfig: Path | None = None, context: str | None = None, namespace: str | None = None) -> Api:
    """Read the configuration as kubectl does: ``--kubeconfig``, KUBECONFIG, ~/.kube/config, or a pod's account.

    :param context: its name (None: the current one).
    :param namespace: instead of the context's.
    :raises UsageError: a file or a context that does not exist was asked for.
    :raises MachineError: there is no configuration, or none that can be read.
    """
    load = partial(_load, kubeconfig, context)
    client, name, found = load()
    return Api(client, namespace or found or "default", name, lambda: load()[0])


@contextmanager
def _hearing(plugin: str) -> Iterator[None]:
    """Hear what the kubernetes client logs instead of raising it (its kube_config.py): an exec plugin that failed.

    :raises MachineError: one did.
    """
    handler = logging.handlers.BufferingHandler(100)
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)
    said = [each.getMessage() for each in handler.buffer if each.name == "root" and each.levelno >= logging.ERROR]
    if said:
        message = " ".join("; ".join(said).split())[:200]
        raise MachineError(f"{plugin} failed: {message}", "run it by hand; it is in the kubeconfig's user")


def _load(kubeconfig: Path | None, context: str | None) -> tuple[Any, str, str | None]:
    """Return the kubernetes client, the context's name, and its namespace."""
    import urllib3
    from kubernetes.client import ApiClient, Configuration
    from kubernetes.config import ConfigException, load_incluster_config, load_kube_config
    from kubernetes.config.kube_config import KubeConfigMerger
    from yaml import YAMLError

    if kubeconfig and not kubeconfig.is_file():
        raise UsageError(f"kubeconfig {kubeconfig} does not exist", "--kubeconfig takes a file's path")
    files = str(kubeconfig or os.environ.get("KUBECONFIG") or Path("~/.kube/config").expanduser())
    configuration = Configuration()
    configuration.connection_pool_maxsize = CONNECTIONS
    try:
        if there := [each for each in files.split(os.pathsep) if Path(each).is_file()]:
            # An empty one among others is no harm, as in kubectl.
            files = os.pathsep.join([each for each in there if Path(each).stat().st_size] or there)
            merger = KubeConfigMerger(files)
            merged = merger.config.value
            contexts = [getattr(each, "value", each) for each in merged.get("contexts") or ()]
            known = {each["name"]: each.get("context") or {} for each in contexts}
            # Of several files, the first one that names a context is right; the client would take the last one's.
            current = (each.get("current-context") for each in merger.config_files.values())
            name = context or next(filter(None, current), "")
            if name not in known:
                raise UsageError(
                    f"the kubeconfig has no context {name!r}" if name else "the kubeconfig names no current context",
                    f"--context takes one of: {', '.join(map(str, known))}",
                )
            users = [getattr(each, "value", each) for each in merged.get("users") or ()]
            user = next((each.get("user") or {} for each in users if each["name"] == known[name].get("user")), {})
            if user.get("as"):
                raise MachineError(
                    f"the user of context {name} acts as {user['as']}, which kproxylat cannot do",
                    "pass the --context of a user who has the rights",
                )
            with _hearing(f"exec plugin {(user.get('exec') or {}).get('command')}"):
                load_kube_config(files, name, configuration, persist_config=False)
            found = known[name].get("namespace")
        elif "KUBERNETES_SERVICE_HOST" in os.environ:
            load_incluster_config(configuration)
            name, found = "(in-cluster)", (IN_CLUSTER / "namespace").read_text().strip()
        else:
            raise MachineError(
                f"there is no kubeconfig: {files} does not exist, and this is no pod",
                "pass --kubeconfig FILE (under sudo, too: root has another home), or set KUBECONFIG",
            )
    except (ConfigException, YAMLError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        said = " ".join(str(error).split())[:200]
        raise MachineError(f"the kubeconfig cannot be used: {said}", "try: kubectl config view") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", urllib3.exceptions.DependencyWarning)
        try:
            client = ApiClient(configuration)
        except ModuleNotFoundError:
            raise MachineError("a SOCKS proxy takes the Python package PySocks", "pip install PySocks") from None
    if not configuration.verify_ssl:
        # Somebody has asked for it, and kubectl does not say so at each request, either.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return client, name, found
