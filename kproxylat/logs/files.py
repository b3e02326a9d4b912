"""Log files as pieces of whole lines, compressed or not."""

from __future__ import annotations

import codecs
import gzip
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, cast

from kproxylat.errors import LogError
from kproxylat.logs.containers import unwrap
from kproxylat.logs.record import MARK, TIMES_MARK

LONG, LONGEST = 1 << 20, 8 << 20
"""Longer lines are truncated to this many bytes; our own, which hold every time of a run, to the second number."""
_OWN = MARK.encode(), TIMES_MARK.encode()
WHOLE = 256 << 20
"""Bytes of a document that is read at once."""
_PIECE = 1 << 16
_PACKERS = {b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\x04\x22\x4d\x18": "lz4"}
"""The first bytes of a compressed file -> the program that decompresses it."""


def read_pieces(stream: IO[bytes], damage: list[str]) -> Iterator[bytes]:
    """Read a stream in pieces of whole lines.

    :param stream: a log, as :func:`open_log` opens it.
    :param damage: gets an entry if the stream cannot be read to its end.
    :return: pieces not much longer than :data:`LONG`. The last line of the last piece may lack its end; a longer line
        lacks its rest. Lines that a container's runtime cut or wrapped are whole.
    """
    return unwrap(_read_pieces(stream, damage))


def _read_pieces(stream: IO[bytes], damage: list[str]) -> Iterator[bytes]:
    # read1() returns what is there: data before a damaged place is not lost, as it is with read().
    read = getattr(stream, "read1", stream.read)
    held, skipping, more, decoder, is_first = bytearray(), False, True, None, True
    while more:
        try:
            data = read(_PIECE)
        except (EOFError, OSError, zlib.error) as error:
            damage.append(f"cannot be read to its end: {error}")
            data = b""
        more = bool(data)
        decoder, is_first = _find_decoder(data) if is_first else decoder, False
        if decoder:
            data = decoder.decode(data, final=not more).encode()
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
        elif len(held) > find_longest(held):
            yield bytes(held) + b"\n"
            held, skipping = bytearray(), True


def find_longest(line: bytes | bytearray) -> int:
    """Return how many bytes of a line are read: of those with every time of a run, more."""
    return LONGEST if line.startswith(_OWN) else LONG


def _find_decoder(start: bytes) -> codecs.IncrementalDecoder | None:
    """Return a decoder if a log begins like UTF-16, with or without a byte order mark."""
    name = "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else ""
    if len(start) > 3 and not any(start[1:100:2]) and all(start[:100:2]):
        name = "utf-16-le"
    elif len(start) > 3 and not any(start[:100:2]) and all(start[1:100:2]):
        name = "utf-16-be"
    return codecs.getincrementaldecoder(name)(errors="replace") if name else None


def read_whole(name: str, stream: IO[bytes]) -> bytes:
    """Return the whole of a document.

    :raises LogError: it is larger than :data:`WHOLE`.
    """
    content = stream.read(WHOLE + 1)
    if len(content) > WHOLE:
        raise LogError(f"{name}: is larger than {WHOLE >> 20} MiB", "parse reads larger logs")
    return content


@contextmanager
def open_log(name: str) -> Iterator[IO[bytes]]:
    """Open a log, compressed by gzip or not.

    :param name: a file, or ``-`` for stdin.
    :return: a context with the decompressed stream.
    :raises LogError: the file does not exist, is a directory or a device, or cannot be read; or stdin is closed.
    """
    with ExitStack() as stack:
        try:
            if not name:
                raise LogError("a file's name is empty", "Name a log, or - for stdin")
            if Path(name).is_dir():
                raise LogError(f"{name}: is a directory", "Name the logs in it, e.g. with a pattern: DIR/*.log")
            if Path(name).is_char_device() and not Path(name).samefile("/dev/stdin"):
                raise LogError(f"{name}: is a device, which may have no end", "Pass a file, or a pipe as -")
            if name == "-" and not sys.stdin:
                raise LogError("-: stdin is closed", "Pass a file or a pipe: kproxylat parse - < FILE")
            file = sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
            stream = cast(BufferedReader, file)
            start = stream.peek(8)
        except (OSError, ValueError) as error:
            raise LogError(f"{name}: {(getattr(error, 'strerror', None) or str(error)).lower()}") from error
        packer = next((packer for mark, packer in _PACKERS.items() if start.startswith(mark)), None)
        if packer:
            raise LogError(
                f"{name}: is compressed by {packer}", f"Decompress it: {packer} -dc FILE | kproxylat parse -"
            )
        yield cast(IO[bytes], stack.enter_context(gzip.open(stream))) if start.startswith(b"\x1f\x8b") else stream
