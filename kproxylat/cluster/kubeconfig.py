"""The kubeconfig: its files, its contexts, and the kubernetes client that they configure."""

from __future__ import annotations

import logging
import logging.handlers
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from kproxylat.cluster.kubeconfig_check import check_credentials, check_file, keep_keys_in_memory
from kproxylat.cluster.transport import Transport
from kproxylat.errors import MachineError, UsageError

Object = dict[str, Any]
"""An object of the API, as parsed from JSON."""
CONNECTIONS = 16
"""Number of requests under way at the same time."""
IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_NAME_SIGNS = "!#$&'*+-.^_`|~"
"""Signs that the name of a header may hold (RFC 9110, ``token``), without ``%``."""


class Client(NamedTuple):
    """Access to a cluster, as a user of the kubeconfig.

    :param transport: connections to the API server.
    :param configuration: the kubernetes client's ``Configuration``, which renews a token.
    :param impersonation: headers that let the user act as another one.
    :param plugin: the exec plugin's command ("" if there is none), and how to install it.
    """

    transport: Transport
    configuration: Any
    impersonation: tuple[tuple[str, str], ...] = ()
    plugin: tuple[str, str] = ("", "")

    def read_credentials(self) -> list[tuple[str, str]]:
        """Return the headers that name the user; run an exec plugin if its token has expired.

        :raises MachineError: the plugin fails, or a header has an impossible value, which the message does not show.
        """
        with raise_logged_errors(*self.plugin):
            settings = self.configuration.auth_settings().values()
        headers = [(setting["key"], setting["value"].strip()) for setting in settings if setting["in"] == "header"]
        headers += self.impersonation
        for name, value in headers:
            if not (value.isascii() and value.isprintable()):
                title = "the token or password" if name.lower() == "authorization" else name
                raise MachineError(
                    f"the kubeconfig cannot be used: {title} has a line end or another character that HTTP excludes",
                    "write it anew, without this character",
                )
        return headers

    def describe_refusal(self) -> str:
        """Return why the server may reject the user."""
        proofs = {"client certificate": self.configuration.cert_file, "token": self.configuration.api_key}
        names = " or ".join(name for name, proof in proofs.items() if proof)
        return f"the {names} has expired or is invalid" if names else "the kubeconfig's user has no credentials"


@contextmanager
def raise_logged_errors(plugin: str, install_hint: str = "") -> Iterator[None]:
    """Raise the errors of an exec plugin, which the kubernetes client (its kube_config.py) only logs.

    :param plugin: the plugin's command, for the message.
    :param install_hint: the remedy of the kubeconfig if the plugin is not installed.
    :raises MachineError: the plugin failed.
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
        is_missing = install_hint and "No such file" in message
        remedy = " ".join(install_hint.split()) if is_missing else "run it by hand; it is in the kubeconfig's user"
        raise MachineError(f"exec plugin {plugin} failed: {message}", remedy)


def load_client(
    kubeconfig: Path | None,
    context: str | None,
    cluster: str | None = None,
    identity: Mapping[str, object] | None = None,
) -> tuple[Client, str, str | None]:
    """Make the client from the kubeconfig files, or in a pod from its service account.

    :param kubeconfig: the file to use (None: those of KUBECONFIG, else ~/.kube/config).
    :param context: the context's name (None: the current one).
    :param cluster: the cluster's name (None: the context's).
    :param identity: entries that replace the user's own, as in the kubeconfig: ``as``, ``as-groups``.
    :return: the client, the context's name, and its namespace.
    :raises UsageError: the file or the context does not exist.
    :raises MachineError: the configuration is missing, invalid or not supported.
    """
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException, load_incluster_config

    configuration = Configuration()
    configuration.connection_pool_maxsize = CONNECTIONS
    namespace: str | None
    user: Object = {}
    secrets: set[str] = set()
    try:
        if files := _find_files(kubeconfig):
            for file in files:
                secrets |= check_file(file)
            name, namespace, user = _read_files(files, context, cluster, configuration)
        elif cluster:
            raise UsageError("--cluster takes a kubeconfig, and there is none", "leave it out, or pass --kubeconfig")
        else:
            load_incluster_config(configuration)
            name, namespace = "(in-cluster)", (IN_CLUSTER / "namespace").read_text().strip()
        plugin = user.get("exec") or {}
        hint = str(plugin.get("installHint") or "")
        client = Client(
            _open_transport(configuration),
            configuration,
            tuple(_impersonate({**user, **(identity or {})})),
            (str(plugin.get("command") or ""), hint),
        )
    except (ConfigException, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        for secret in secrets:
            reason = reason.replace(secret, "(secret)")
        raise MachineError(f"the kubeconfig cannot be used: {reason[:200]}", "try: kubectl config view") from None
    return client, name, namespace


def _find_files(kubeconfig: Path | None) -> list[str]:
    """Return the kubeconfig files that exist, as kubectl finds them; none in a pod that has only its account."""
    if kubeconfig and not kubeconfig.is_file():
        problem = "is not a regular file" if kubeconfig.exists() else "does not exist"
        raise UsageError(f"kubeconfig {kubeconfig} {problem}", "--kubeconfig takes a file's path")
    text = str(kubeconfig or os.environ.get("KUBECONFIG") or Path("~/.kube/config").expanduser())
    files = [path for path in text.split(os.pathsep) if Path(path).is_file()]
    if not files and "KUBERNETES_SERVICE_HOST" not in os.environ:
        raise MachineError(
            f"there is no kubeconfig: {text} {'is not a file' if Path(text).exists() else 'does not exist'}, "
            "and this is not a pod",
            "pass --kubeconfig FILE (under sudo, too: root has another home), or set KUBECONFIG",
        )
    # Like kubectl, ignore an empty file beside others.
    return [path for path in files if Path(path).stat().st_size] or files


def _read_files(
    files: Sequence[str], context: str | None, cluster: str | None, configuration: Any
) -> tuple[str, str | None, Object]:
    """Load a context of the kubeconfig files into the client's configuration; return its name, namespace and user."""
    from kubernetes.config import load_kube_config_from_dict
    from kubernetes.config.kube_config import KubeConfigMerger

    merger = KubeConfigMerger(os.pathsep.join(files))
    # If several files name a current context, kubectl uses the first one; the client would use the last one.
    current = next(filter(None, (file.get("current-context") for file in merger.config_files.values())), "")
    name = context or current
    contexts = _read_section(merger, "context")
    if name not in contexts:
        raise UsageError(
            f"the kubeconfig has no context {name!r}" if name else "the kubeconfig names no current context",
            f"--context takes one of: {', '.join(map(str, contexts))}",
        )
    if cluster:
        clusters = _read_section(merger, "cluster")
        if cluster not in clusters:
            names = ", ".join(map(str, clusters))
            raise UsageError(f"the kubeconfig has no cluster {cluster!r}", f"--cluster takes one of: {names}")
        contexts[name]["cluster"] = cluster
    user = _read_section(merger, "user").get(contexts[name].get("user"), {})
    plugin = user.get("exec") or {}
    check_credentials(user, files)
    with keep_keys_in_memory(), raise_logged_errors(str(plugin.get("command")), str(plugin.get("installHint") or "")):
        load_kube_config_from_dict(merger.config, name, configuration, persist_config=False)
    return name, contexts[name].get("namespace"), user


def _impersonate(user: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Return the headers for ``as``, ``as-uid``, ``as-groups`` and ``as-user-extra``, which the client ignores."""
    extra = user.get("as-user-extra") or {}
    if not user.get("as"):
        if user.get("as-uid") or user.get("as-groups") or extra:
            raise ValueError("the user has as-uid, as-groups or as-user-extra, but not as")
        return
    yield "Impersonate-User", str(user["as"])
    if user.get("as-uid"):
        yield "Impersonate-Uid", str(user["as-uid"])
    for group in user.get("as-groups") or ():
        yield "Impersonate-Group", str(group)
    for key, values in extra.items():
        for value in values:
            yield f"Impersonate-Extra-{quote(str(key), safe=_NAME_SIGNS)}", str(value)


def _read_section(merger: Any, kind: str) -> dict[Any, Object]:
    """Return the merged contexts, clusters or users (``kind``: "context", ...) by name."""
    entries = [getattr(entry, "value", entry) for entry in merger.config.value.get(f"{kind}s") or ()]
    return {entry["name"]: entry.get(kind) or {} for entry in entries}


def _open_transport(configuration: Any) -> Transport:
    """Return the connections of the kubernetes client, without urllib3's warnings about the kubeconfig."""
    import urllib3
    from kubernetes.client import ApiClient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", urllib3.exceptions.DependencyWarning)
        try:
            client = ApiClient(configuration)
        except ModuleNotFoundError:
            raise MachineError("a SOCKS proxy takes the Python package PySocks", "pip install PySocks") from None
    return Transport(client.rest_client.pool_manager, configuration.host)
