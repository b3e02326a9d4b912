"""The result of a command in a pod's log: compressed, between marks, with its sha256.

The pod's program writes one stream, so that the kubelet keeps the order: a first line with the version, the lines of
progress, the envelope. The kubelet rotates long logs (``containerLogMaxSize``, 10 MiB): a log without its first line or
without the last mark is not whole.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from kproxylat.errors import MachineError
from kproxylat.results_json import build

BEGIN, RESULT, END = "kproxylat-pod begin", "kproxylat-pod result", "kproxylat-pod end"
LARGEST = 256 * 2**20
"""Bytes of a result after it is decompressed."""
_LINE = 1000
"""Characters of a line: container runtimes split a line of 16 KiB."""


@dataclass(frozen=True)
class Envelope:
    """A command's outcome.

    :param version: of the kproxylat that ran it.
    :param status: its exit status.
    :param stdout: its standard output.
    :param time_s: the pod's clock at the end, in seconds since 1970.
    :param files: what it saved: name -> text.
    """

    version: str
    status: int
    stdout: str
    time_s: float
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PodLog:
    """What a pod's log holds so far.

    :param version: the version of the first line; None if the line is not there.
    :param progress: the lines before the result.
    :param envelope: None if it is not there, or not whole; ``problem`` has the reason.
    """

    version: str | None
    progress: tuple[str, ...]
    envelope: Envelope | None
    problem: str = ""


def write_begin(version: str) -> str:
    """Return the first line of a pod's log."""
    return f"{BEGIN} {version}\n"


def write_envelope(envelope: Envelope) -> str:
    """Return the last lines of a pod's log."""
    data = zlib.compress(json.dumps(asdict(envelope)).encode(), 9)
    text = base64.b64encode(data).decode()
    lines = [text[start : start + _LINE] for start in range(0, len(text), _LINE)]
    return "\n".join([f"{RESULT} {len(data)} {hashlib.sha256(data).hexdigest()}", *lines, END, ""])


def read_log(text: str) -> PodLog:
    """Read a pod's log, whole or in the middle of the command; its text is not trusted."""
    lines = text.split("\n")
    first = re.fullmatch(rf"{BEGIN} (\S{{1,40}})", lines[0])
    version = first[1] if first else None
    body = lines[1:] if first else lines
    heads = [number for number, line in enumerate(body) if line.startswith(f"{RESULT} ")]
    # The text after the last line end may still grow.
    progress = tuple(body[: heads[-1]] if heads else body[:-1])
    if not heads:
        problem = "the log holds no result" if first else "the log lacks kproxylat's first line"
        return PodLog(version, progress, None, problem)
    try:
        return PodLog(version, progress, _read_envelope(body[heads[-1] :]))
    except ValueError as error:
        return PodLog(version, progress, None, str(error))


def _read_envelope(lines: list[str]) -> Envelope:
    """Read an envelope from its first mark on.

    :raises ValueError: it is not whole.
    """
    head = re.fullmatch(rf"{RESULT} ([0-9]{{1,12}}) ([0-9a-f]{{64}})", lines[0])
    if not head:
        raise ValueError("the first mark of the result is damaged")
    if END not in lines:
        raise ValueError("the log ends in the middle of the result")
    try:
        data = base64.b64decode("".join(lines[1 : lines.index(END)]), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if (len(data), hashlib.sha256(data).hexdigest()) != (int(head[1]), head[2]):
        raise ValueError("the result in the log is damaged: its sha256 differs")
    decompressor = zlib.decompressobj()
    try:
        text = decompressor.decompress(data, LARGEST)
        envelope: Envelope = build(Envelope, json.loads(text) if decompressor.eof else None)
    except (zlib.error, ValueError, TypeError, RecursionError):
        raise ValueError(f"the result is not one of kproxylat, or has more than {LARGEST >> 20} MiB") from None
    if not all(re.fullmatch(r"[^/\0]{1,200}", name) and name.strip(".") for name in envelope.files):
        raise ValueError("the result in the log is not one of kproxylat")
    return envelope


def check_version(version: str | None, own: str, image: str) -> None:
    """Refuse an image of another version.

    :param version: the image's (None: unknown, as long as the log is not whole).
    :raises MachineError: it differs from the client's ``own``.
    """
    if version not in (None, own):
        raise MachineError(
            f"image {image} has kproxylat {version}, and this client is {own}", "pass --image with the client's version"
        )
