"""Logs as container runtimes store them on a node: lines cut into parts, or wrapped in JSON. Pure.

Formats: CRI (kubelet, containerd, cri-o): ``TIME STREAM F|P TEXT``, where ``P`` marks a part without its line's end
(kubernetes, ``pkg/kubelet/kuberuntime/logs/logs.go``); Docker's json-file: ``{"log":"TEXT\\n","stream":"stdout",...}``,
where a part lacks the ``\\n`` (moby, ``daemon/logger/jsonfilelog``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

_DOCKER = b'{"log":"'
_CRI = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S* (stdout|stderr) )([FP])( |$)")
_LONG = 1 << 20


def unwrap(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Join the parts of lines, and take Docker's JSON off.

    :param pieces: pieces of a log, of whole lines.
    :return: the same, with each line whole. A line of CRI keeps its prefix; a log of another kind stays as it is.
    """
    held: dict[bytes, bytes] = {}  # stream -> the parts of its line so far
    is_docker: bool | None = None
    for piece in pieces:
        is_docker = piece.startswith(_DOCKER) if is_docker is None else is_docker
        if is_docker:
            text = held.pop(b"", b"") + b"".join(map(_unwrap_docker, piece.splitlines(keepends=True)))
            end = text.rfind(b"\n") + 1 if len(text) < _LONG else len(text)
            if text[end:]:
                held[b""] = text[end:]
            piece = text[:end]
        elif held or b" P " in piece:
            piece = b"".join(_join_part(line, held) for line in piece.splitlines(keepends=True))
        if piece:
            yield piece
    if any(held.values()):
        yield b"\n".join(held.values())


def _unwrap_docker(line: bytes) -> bytes:
    try:
        text = json.loads(line)["log"]
        return text.encode(errors="backslashreplace") if isinstance(text, str) else line
    except (KeyError, RecursionError, TypeError, ValueError):
        return line


def _join_part(line: bytes, held: dict[bytes, bytes]) -> bytes:
    """Return a line of CRI with the parts before it; nothing for a part, which is held."""
    part = _CRI.match(line)
    if not part:
        return line
    start = held.pop(part[2], b"")
    text = line[part.end() :] if start else part[1] + b"F" + line[part.end(3) :]
    if part[3] == b"P" and len(start) < _LONG:
        held[part[2]] = start + text.rstrip(b"\r\n")
        return b""
    return start + text
