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

_PIECE, _LONG = 1 << 18, 1 << 20


def read_pieces(stream: IO[bytes], damage: list[str]) -> Iterator[bytes]:
    """Read a stream in pieces of whole lines (a line of more than 1 MiB is cut); note what cannot be read.

    No piece ends with a blank line, which belongs to the block after it.
    """
    try:
        while piece := stream.read(_PIECE):
            for _ in range(2):
                if not piece.endswith(b"\n") or piece.endswith((b"\n\n", b"\n\r\n")):
                    piece += stream.readline(_LONG)
            yield piece if len(piece) < _LONG or piece.endswith(b"\n") else piece + b"\n"
    except (EOFError, OSError, zlib.error) as error:
        damage.append(f"cannot be read to its end: {error}")


@contextmanager
def open_log(name: str) -> Iterator[IO[bytes]]:
    """Open a log, compressed by gzip or not; ``-`` is stdin.

    :raises LogError: it is not there, no file, or must not be read.
    """
    if Path(name).is_dir():
        raise LogError(f"{name}: is a directory", "Name the logs in it, e.g. with a pattern: DIR/*.log")
    with ExitStack() as stack:
        try:
            file = sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
            stream = cast(BufferedReader, file)
            packed = stream.peek(2)[:2] == b"\x1f\x8b"
        except (OSError, ValueError) as error:
            raise LogError(f"{name}: {(getattr(error, 'strerror', None) or str(error)).lower()}") from error
        yield cast(IO[bytes], stack.enter_context(gzip.open(stream))) if packed else stream
