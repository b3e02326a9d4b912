"""Log files as pieces of whole lines, compressed or not."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, cast

from kproxylat.errors import LogError

LONG = 1 << 20
"""Longer lines are truncated to this many bytes."""
_PIECE = 1 << 16


def read_pieces(stream: IO[bytes], damage: list[str]) -> Iterator[bytes]:
    """Read a stream in pieces of whole lines.

    :param stream: a log, as :func:`open_log` opens it.
    :param damage: gets an entry if the stream cannot be read to its end.
    :return: pieces not much longer than :data:`LONG`. The last line of the last piece may lack its end; a longer line
        lacks its rest.
    """
    # read1() returns what is there: data before a damaged place is not lost, as it is with read().
    read = getattr(stream, "read1", stream.read)
    held, skipping, more = bytearray(), False, True
    while more:
        try:
            data = read(_PIECE)
        except (EOFError, OSError, zlib.error) as error:
            damage.append(f"cannot be read to its end: {error}")
            data = b""
        more = bool(data)
        if skipping:
            _, line_end, data = data.partition(b"\n")
            skipping = not line_end
        ended = data.rfind(b"\n") + 1
        held += data
        if not more and held:
            yield bytes(held)
        elif ended:
            yield bytes(held[: len(held) - len(data) + ended])
            held = bytearray(data[ended:])
        elif len(held) > LONG:
            yield bytes(held) + b"\n"
            held, skipping = bytearray(), True


@contextmanager
def open_log(name: str) -> Iterator[IO[bytes]]:
    """Open a log, compressed by gzip or not.

    :param name: a file, or ``-`` for stdin.
    :return: a context with the decompressed stream.
    :raises LogError: the file does not exist, is a directory or cannot be read; or stdin is closed.
    """
    with ExitStack() as stack:
        try:
            if not name:
                raise LogError("a file's name is empty", "Name a log, or - for stdin")
            if Path(name).is_dir():
                raise LogError(f"{name}: is a directory", "Name the logs in it, e.g. with a pattern: DIR/*.log")
            if name == "-" and not sys.stdin:
                raise LogError("-: stdin is closed", "Pass a file or a pipe: kproxylat parse - < FILE")
            file = sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
            stream = cast(BufferedReader, file)
            packed = stream.peek(2)[:2] == b"\x1f\x8b"
        except (OSError, ValueError) as error:
            raise LogError(f"{name}: {(getattr(error, 'strerror', None) or str(error)).lower()}") from error
        yield cast(IO[bytes], stack.enter_context(gzip.open(stream))) if packed else stream
