"""Answers of HTTP servers, read by http.client with a deadline and a largest size for the whole answer.

http.client's own timeout holds for a single read: a server that sends a byte a second, or ``100 Continue`` again and
again, never exceeds it.
"""

from __future__ import annotations

import io
import time
from contextlib import suppress
from http.client import HTTPResponse, IncompleteRead
from typing import Any, NamedTuple

from kproxylat.system import interrupts

_LOOK_S = 0.2
"""How often a wait for an answer looks for signals."""
_PIECE = 2**16
"""Bytes of one read."""


class Answer(NamedTuple):
    """A server's answer; names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    data: bytes


class TooLargeError(Exception):
    """An answer that is larger than its limit."""


class _Stream(io.RawIOBase):
    """The bytes of one answer, read from a socket.

    :raises TimeoutError: the deadline has passed.
    """

    def __init__(self, sock: Any, ends_s: float, may_end: bool) -> None:
        self._sock, self._ends_s, self._may_end = sock, ends_s, may_end

    def makefile(self, _: str) -> io.BufferedReader:
        """As http.client asks for it."""
        return io.BufferedReader(self, _PIECE)

    def readable(self) -> bool:
        """As io asks for it."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what there is, and look for signals while there is nothing."""
        while True:
            if self._may_end:
                interrupts.check()
            left_s = self._ends_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._sock.settimeout(min(left_s, _LOOK_S))
            with suppress(TimeoutError):
                return int(self._sock.recv_into(buffer))


def read_answer(sock: Any, ends_s: float, largest: int, may_end: bool = False) -> tuple[Answer, bool]:
    """Return the answer that comes from a socket, and whether the connection can carry another request.

    :param ends_s: deadline for all of it, on the monotonic clock.
    :param largest: the most bytes of its body.
    :param may_end: raise a signal that was deferred: the request changes nothing, so that its answer may be missed.
    :raises HTTPException: it is not HTTP, or a part of it is missing.
    :raises OSError: of the socket; TimeoutError: the deadline has passed.
    :raises TooLargeError: it is too large.
    """
    answer, data = HTTPResponse(_Stream(sock, ends_s, may_end)), bytearray()  # type: ignore[arg-type]
    answer.begin()
    while len(data) + (answer.length or 0) <= largest and (piece := answer.read(_PIECE)):
        data += piece
    if len(data) + (answer.length or 0) > largest:
        raise TooLargeError
    if answer.length:
        raise IncompleteRead(bytes(data), answer.length)
    headers = {name.lower(): value for name, value in answer.getheaders()}
    return Answer(answer.status, headers, bytes(data)), not answer.will_close
