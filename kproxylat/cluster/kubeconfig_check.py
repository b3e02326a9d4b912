"""Checks of kubeconfig files as untrusted input: their size, their secrets, and who can write them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kproxylat.console import say
from kproxylat.system.trust import check_trusted

MAX_BYTES = 4 << 20
"""Larger kubeconfig files are refused."""
MAX_VALUES = 1_000_000
"""Kubeconfig files whose aliases expand to more values are refused."""
_CREDENTIALS = ("exec", "auth-provider", "client-key", "client-key-data")
_SECRETS = ("token", "password", "client-key-data")


def check_file(file: str) -> set[str]:
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


def check_credentials(user: Mapping[str, Any], files: Sequence[str]) -> None:
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
def keep_keys_in_memory() -> Iterator[None]:
    """Let the kubernetes client keep keys in memory files (memfd_create(2)), which a SIGKILL removes, too.

    Its own temporary files in /tmp stay after a SIGKILL; macOS has nothing else.
    """
    from kubernetes.config import kube_config

    if not hasattr(os, "memfd_create"):
        yield
        return

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
