"""The kubeconfig: its files, its contexts, and the kubernetes client that they configure."""

from __future__ import annotations

import logging
import logging.handlers
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kproxylat.console import say
from kproxylat.errors import MachineError, UsageError
from kproxylat.system.trust import check_trusted

Object = dict[str, Any]
"""An object of the API, as parsed from JSON."""
CONNECTIONS = 16
"""Number of requests under way at the same time."""
IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
MAX_BYTES = 4 << 20
"""Larger kubeconfig files are refused."""
MAX_VALUES = 1_000_000
"""Kubeconfig files whose aliases expand to more values are refused."""
_CREDENTIALS = ("exec", "auth-provider", "client-key", "client-key-data")
_SECRETS = ("token", "password", "client-key-data")


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

    configuration = Configuration()
    configuration.connection_pool_maxsize = CONNECTIONS
    namespace: str | None
    secrets: set[str] = set()
    try:
        if files := _find_files(kubeconfig):
            for file in files:
                secrets |= _check_file(file)
            name, namespace = _read_files(files, context, configuration)
        else:
            load_incluster_config(configuration)
            name, namespace = "(in-cluster)", (IN_CLUSTER / "namespace").read_text().strip()
    except (ConfigException, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        for secret in secrets:
            reason = reason.replace(secret, "(secret)")
        raise MachineError(f"the kubeconfig cannot be used: {reason[:200]}", "try: kubectl config view") from None
    _clean_tokens(configuration, name)
    return _make_client(configuration), name, namespace


def _check_file(file: str) -> set[str]:
    """Check that a kubeconfig file is a YAML mapping of limited size; return its secrets, which no error may show.

    :raises ValueError: it is not.
    """
    import yaml

    with Path(file).open("rb") as stream:
        text = stream.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise ValueError(f"{file} is larger than {MAX_BYTES >> 20} MiB")
    try:
        content = yaml.safe_load(text)
        size = _count_values(content, {})
    except RecursionError:
        raise ValueError(f"{file} is nested too deeply") from None
    except yaml.YAMLError as error:
        # The mark's snippet and quoted words may be parts of a secret.
        mark = getattr(error, "problem_mark", None)
        problem = re.sub(r"['\"].*", "...", getattr(error, "problem", None) or "unreadable text", flags=re.S)
        raise ValueError(f"{file}{f', line {mark.line + 1}' if mark else ''} is not YAML: {problem}") from None
    if size > MAX_VALUES:
        raise ValueError(f"{file}: its aliases expand to more than {MAX_VALUES:,} values")
    users = content.get("users") if isinstance(content, dict) else None
    details = [
        entry["user"] for entry in users or () if isinstance(entry, dict) and isinstance(entry.get("user"), dict)
    ]
    return {str(user[name]).strip() for user in details for name in _SECRETS if user.get(name)}


def _count_values(value: Any, sizes: dict[int, float]) -> float:
    """Count the values of parsed YAML; those of an alias count each time that it is used.

    :param sizes: the sizes so far by ``id``; infinite while a value is being counted, because it may hold itself.
    """
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = float("inf")
        parts = value.values() if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(_count_values(part, sizes) for part in parts)
    return sizes[id(value)]


def _clean_tokens(configuration: Any, context: str) -> None:
    """Strip the token, now and whenever the client reads it again, as kubectl does with a token file.

    :raises MachineError: the token cannot be a header's value. The message does not show it.
    """
    refresh = configuration.refresh_api_key_hook

    def clean(config: Any) -> None:
        for name, value in config.api_key.items():
            config.api_key[name] = str(value).strip()
            if not re.fullmatch(r"[\x20-\x7e]*", config.api_key[name]):
                problem = (
                    f"the token of context {context} holds a line end or another character that HTTP does not allow"
                )
                raise MachineError(problem, "get a new token, on one line")

    def refresh_and_clean(config: Any) -> None:
        refresh(config)
        clean(config)

    if refresh:
        configuration.refresh_api_key_hook = refresh_and_clean
    clean(configuration)


def _check_credentials(user: Object, files: Sequence[str]) -> None:
    """As root, refuse files of a user's exec plugin or key that others can write; as another user, name them.

    :raises MachineError: as :func:`kproxylat.system.trust.check_trusted`.
    """
    if not any(user.get(name) for name in _CREDENTIALS):
        return
    base = Path(files[0]).parent
    program = shutil.which(str((user.get("exec") or {}).get("command") or ""))
    key = user.get("client-key")
    for path in (*map(Path, files), *([Path(program)] if program else ()), *([base / str(key)] if key else ())):
        if not path.exists():
            continue
        check_trusted(path)
        if path.stat().st_mode & 0o022:
            say(f"kproxylat: other users can change {path}, which holds a key or names a program (chmod go-w {path})")


@contextmanager
def _keep_keys_in_memory() -> Iterator[None]:
    """Let the kubernetes client keep keys in memory files (memfd_create(2)), which a SIGKILL removes, too.

    Its own temporary files in /tmp stay after a SIGKILL.
    """
    from kubernetes.config import kube_config

    def write(content: str | bytes, *_: Any, **__: Any) -> str:
        descriptor = os.memfd_create("kproxylat-key")
        os.write(descriptor, content.encode() if isinstance(content, str) else content)
        return f"/proc/self/fd/{descriptor}"

    original = kube_config._create_temp_file_with_content
    kube_config._create_temp_file_with_content = write
    try:
        yield
    finally:
        kube_config._create_temp_file_with_content = original


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
    _check_credentials(user, files)
    with _keep_keys_in_memory(), raise_logged_errors(f"exec plugin {(user.get('exec') or {}).get('command')}"):
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
