"""Opens a log, whatever it is stored in, and cuts it into pieces that fit in memory."""

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
"""Of a line that is longer only so many bytes are read."""
_PIECE = 1 << 18


def read_pieces(stream: IO[bytes], damage: list[str]) -> Iterator[bytes]:
    """Read a stream in pieces of whole lines, none of them much longer than :data:`LONG`; note what cannot be read.

    What was read before the damage is kept: read1() does not wait for a whole piece, as read() does.
    """
    read = getattr(stream, "read1", stream.read)
    held, more, skipping = bytearray(), True, False
    while more:
        try:
            got = read(_PIECE)
        except (EOFError, OSError, zlib.error) as error:
            damage.append(f"cannot be read to its end: {error}")
            got = b""
        more = bool(got)
        if skipping:
            _, end, got = got.partition(b"\n")
            skipping = not end
        held += got
        if more and len(held) < _PIECE:
            continue
        end_at = held.rfind(b"\n") + 1 if more else len(held)
        if not end_at and len(held) > LONG:
            yield bytes(held) + b"\n"
            held.clear()
            skipping = True
        elif end_at:
            yield bytes(held[:end_at])
            del held[:end_at]


@contextmanager
def open_log(name: str) -> Iterator[IO[bytes]]:
    """Open a log, compressed by gzip or not; ``-`` is stdin.

    :raises LogError: it is not there, no file, or must not be read.
    """
    with ExitStack() as stack:
        try:
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
