"""Opens a log, whatever it is stored in, and cuts it into pieces that fit in memory."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, cast

from kproxylat.errors import LogError

LONG = 1 << 20
"""Of a line that is longer only so many bytes are read."""
_PIECE, _BLOCK = 1 << 18, 1 << 12


def read_pieces(stream: IO[bytes], damage: list[str]) -> Iterator[bytes]:
    """Read a stream in pieces of whole lines, none of them much longer than :data:`LONG`; note what cannot be read.

    What was read before the damage is kept: read1() does not wait for a whole piece, as read() does.
    """
    # From the first large block that is freed glibc's malloc learns to keep such ones (mallopt(3), M_MMAP_THRESHOLD).
    # Else it gives each piece's memory back to the kernel, and gets it anew page by page.
    bytes(16 * _PIECE)
    read = getattr(stream, "read1", stream.read)
    parts, size, more, skipping = list[bytes](), 0, True, False
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
        parts.append(got)
        size += len(got)
        if more and size < _PIECE:
            continue
        held = b"".join(parts)
        # Whole blocks of the old scripts' lines, which begin with a blank one or a time, are read faster.
        last_time = held.rfind(b" Statistics:", size - _BLOCK)
        ends = (held.rfind(b"\n\n", size - _BLOCK), held.rfind(b"\n", 0, max(last_time, 0)), held.rfind(b"\n"))
        end_at = next((each + 1 for each in ends if each >= 0), 0) if more else size
        if not end_at and size > LONG:
            yield held + b"\n"
            parts, size, skipping = [], 0, True
        else:
            parts, size = [held[end_at:]], size - end_at
            if end_at:
                yield held[:end_at]


def divide(piece: bytes, odd: Iterable[int]) -> Iterator[tuple[bytes, bool]]:
    """Divide a piece at some of its lines.

    :param odd: their numbers, from 0, in order.
    :return: these lines (False), and what stands between them (True); all with their line ends.
    """
    begin = number = 0
    for each in odd:
        at = _skip_lines(piece, begin, each - number)
        end = piece.find(b"\n", at) + 1 or len(piece)
        if at > begin:
            yield piece[begin:at], True
        yield piece[at:end], False
        begin, number = end, each + 1
    if begin < len(piece):
        yield piece[begin:], True


def _skip_lines(piece: bytes, at: int, number: int) -> int:
    """Find where the line begins that comes so many lines after the one that begins ``at``."""
    while number > 9:
        # Nearly all lines are longer than this; counting their ends takes less time than finding each.
        end = at + 24 * number
        passed = piece.count(b"\n", at, end)
        if not 0 < passed <= number:
            break
        at, number = piece.rfind(b"\n", at, end) + 1, number - passed
    for _ in range(number):
        at = piece.find(b"\n", at) + 1
    return at


@contextmanager
def open_log(name: str) -> Iterator[IO[bytes]]:
    """Open a log, compressed by gzip or not; ``-`` is stdin.

    :raises LogError: it is not there, no file, or must not be read.
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
