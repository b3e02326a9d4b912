"""The kubeconfig: its files, its contexts, and the kubernetes client that they configure."""

from __future__ import annotations

import logging
import logging.handlers
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kproxylat.errors import MachineError, UsageError

Object = dict[str, Any]
"""An object of the API, as parsed from JSON."""
CONNECTIONS = 16
"""Number of requests under way at the same time."""
IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@contextmanager
def raise_logged_errors(plugin: str) -> Iterator[None]:
    """Raise the errors of an exec plugin, which the kubernetes client (its kube_config.py) only logs.

    :param plugin: the plugin's name, for the message.
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
        raise MachineError(f"{plugin} failed: {message}", "run it by hand; it is in the kubeconfig's user")


def load_client(kubeconfig: Path | None, context: str | None) -> tuple[Any, str, str | None]:
    """Make the kubernetes client from the kubeconfig files, or in a pod from its service account.

    :param kubeconfig: the file to use (None: those of KUBECONFIG, else ~/.kube/config).
    :param context: the context's name (None: the current one).
    :return: the client, the context's name, and its namespace.
    :raises UsageError: the file or the context does not exist.
    :raises MachineError: the configuration is missing, invalid or not supported.
    """
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException, load_incluster_config
    from yaml import YAMLError

    configuration = Configuration()
    configuration.connection_pool_maxsize = CONNECTIONS
    namespace: str | None
    try:
        if files := _find_files(kubeconfig):
            name, namespace = _read_files(files, context, configuration)
        else:
            load_incluster_config(configuration)
            name, namespace = "(in-cluster)", (IN_CLUSTER / "namespace").read_text().strip()
    except (ConfigException, YAMLError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MachineError(f"the kubeconfig cannot be used: {reason}", "try: kubectl config view") from None
    return _make_client(configuration), name, namespace


def _find_files(kubeconfig: Path | None) -> list[str]:
    """Return the kubeconfig files that exist, as kubectl finds them; none in a pod that has only its account."""
    if kubeconfig and not kubeconfig.is_file():
        raise UsageError(f"kubeconfig {kubeconfig} does not exist", "--kubeconfig takes a file's path")
    text = str(kubeconfig or os.environ.get("KUBECONFIG") or Path("~/.kube/config").expanduser())
    files = [path for path in text.split(os.pathsep) if Path(path).is_file()]
    if not files and "KUBERNETES_SERVICE_HOST" not in os.environ:
        raise MachineError(
            f"there is no kubeconfig: {text} does not exist, and this is not a pod",
            "pass --kubeconfig FILE (under sudo, too: root has another home), or set KUBECONFIG",
        )
    # Like kubectl, ignore an empty file beside others.
    return [path for path in files if Path(path).stat().st_size] or files


def _read_files(files: Sequence[str], context: str | None, configuration: Any) -> tuple[str, str | None]:
    """Load a context of the kubeconfig files into the client's configuration; return its name and namespace."""
    from kubernetes.config import load_kube_config
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
    user = _read_section(merger, "user").get(contexts[name].get("user"), {})
    if user.get("as"):
        # The client would ignore the impersonation.
        raise MachineError(
            f"the user of context {name} acts as {user['as']}, which kproxylat cannot do",
            "pass the --context of a user who has the rights",
        )
    with raise_logged_errors(f"exec plugin {(user.get('exec') or {}).get('command')}"):
        load_kube_config(os.pathsep.join(files), name, configuration, persist_config=False)
    return name, contexts[name].get("namespace")


def _read_section(merger: Any, kind: str) -> dict[Any, Object]:
    """Return the merged contexts or users (``kind``: "context" or "user") by name."""
    entries = [getattr(entry, "value", entry) for entry in merger.config.value.get(f"{kind}s") or ()]
    return {entry["name"]: entry.get(kind) or {} for entry in entries}


def _make_client(configuration: Any) -> Any:
    """Return the kubernetes client, without urllib3's warnings about what the kubeconfig asks for."""
    import urllib3
    from kubernetes.client import ApiClient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", urllib3.exceptions.DependencyWarning)
        try:
            client = ApiClient(configuration)
        except ModuleNotFoundError:
            raise MachineError("a SOCKS proxy takes the Python package PySocks", "pip install PySocks") from None
    if not configuration.verify_ssl:
        # Like kubectl, do not warn at each request.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return client
