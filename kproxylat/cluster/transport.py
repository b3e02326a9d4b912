"""HTTP/1.1 requests over urllib3's connections, with a deadline and a largest size for each answer.

urllib3 opens the connections, through TLS and proxies; :mod:`kproxylat.system.http` reads the answers. urllib3's own
requests are not used: their timeout holds for a single read, and they take twice the CPU time.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kproxylat.errors import MachineError, UsageError
from kproxylat.system.http import Answer, TooLargeError, read_answer

if TYPE_CHECKING:
    import urllib3

CONNECT_S = 5.0
LARGEST = 64 * 2**20
"""Bytes of an answer. A page of 500 EndpointSlices with 100 endpoints each has about 20 MB."""


_DAY_S = 86_400.0
_UNITS_S = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def parse_timeout(text: str) -> float:
    """Read a time as kubectl does: seconds, or numbers with units; 0 is a day: longer than any request.

    :raises UsageError: the text is something else.
    """
    parts = re.findall(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ms|us|µs|ns|h|m|s)", text)
    if text.isascii() and text.isdigit() and len(text) < 10:
        seconds = float(text)
    elif parts and "".join(map("".join, parts)) == text and len(text) < 100:
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    else:
        raise UsageError(f"--request-timeout {text!r} is not a time", "it takes e.g. 10, 10s, 1m30s or 0")
    return min(seconds, _DAY_S) or _DAY_S


class TransportError(Exception):
    """A request has no answer.

    :param lost: the connection was open before: the server may have carried out the request.
    """

    def __init__(self, reason: str, *, lost: bool) -> None:
        super().__init__(reason)
        self.lost = lost


class Transport:
    """Connections to one server. Threads may share it.

    :param manager: urllib3's pool manager of the kubernetes client.
    :param address: URL of the server, perhaps with a path.
    """

    def __init__(self, manager: urllib3.PoolManager, address: str) -> None:
        url = urlsplit(address)
        host = url.netloc.rpartition("@")[2]
        self.host = f"{url.scheme}://{host}"
        """The address without its path and its password, for messages."""
        self._pool: Any = manager.connection_from_url(address)
        self._base = url.path.rstrip("/")
        proxy_headers: dict[str, str] = {}
        if url.scheme == "http" and getattr(manager, "proxy", None):
            # A proxy of HTTP takes the whole address; one of HTTPS opens a tunnel.
            self._base = self.host + self._base
            proxy_headers = getattr(manager, "proxy_headers", None) or {}
        self._head = _format_headers([("Host", host), *proxy_headers.items()])

    def exchange(
        self, method: str, path: str, headers: Iterable[tuple[str, str]], body: bytes | None, ends_s: float
    ) -> Answer:
        """Send a request and read its answer.

        :param headers: further headers; one name may occur several times.
        :param ends_s: deadline for all of it, on the monotonic clock.
        :raises TransportError: the server cannot be reached, or the answer is incomplete or no HTTP.
        :raises MachineError: the answer is too large.
        """
        length = [] if body is None else [("Content-Length", str(len(body)))]
        head = f"{method} {self._base}{path} HTTP/1.1\r\n{self._head}{_format_headers([*headers, *length])}\r\n"
        connection = self._pool._get_conn()
        reusable = False
        try:
            self._connect(connection, ends_s)
            connection.sock.settimeout(max(ends_s - time.monotonic(), 0.001))
            connection.sock.sendall(head.encode("ascii") + (body or b""))
            answer, reusable = read_answer(connection.sock, ends_s, LARGEST, may_end=method == "GET")
            return answer
        except TooLargeError:
            raise _too_large() from None
        except TimeoutError:
            raise TransportError("Read timed out: the answer is incomplete", lost=True) from None
        except (OSError, ValueError, HTTPException) as error:
            raise TransportError(str(error) or type(error).__name__, lost=True) from None
        finally:
            if not reusable:
                connection.close()
            self._pool._put_conn(connection)

    def _connect(self, connection: Any, ends_s: float) -> None:
        if connection.sock is not None:
            return
        from urllib3.exceptions import HTTPError

        connection.timeout = max(min(CONNECT_S, ends_s - time.monotonic()), 0.001)
        try:
            if self._pool.proxy and self._pool.scheme == "https":
                self._pool._prepare_proxy(connection)
            else:
                connection.connect()
        except (OSError, HTTPError, HTTPException) as error:
            # A proxy that is none answers CONNECT in other words.
            raise TransportError(str(error) or type(error).__name__, lost=False) from None


def _format_headers(headers: Iterable[tuple[str, str]]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers)


def _too_large() -> MachineError:
    return MachineError(
        f"an answer of the API server has more than {LARGEST >> 20} MiB",
        "check that the kubeconfig's server is a Kubernetes API: kubectl config view --minify",
    )


class _Answer(dict[str, object]):
    """An object of an answer: code asks for what Kubernetes requires, and a server may lack it all the same.

    A member that is null is as if it were not there, as in Kubernetes.
    """

    def __init__(self, members: list[tuple[str, object]]) -> None:
        super().__init__(pair for pair in members if pair[1] is not None)

    def __missing__(self, name: str) -> object:
        raise MachineError(f"invalid answer of the API server: an object lacks {name!r}")


def parse_object(data: bytes) -> dict[str, Any] | None:
    """Return the object that is the body of an answer; None if it is something else."""
    try:
        document = json.loads(data, object_pairs_hook=_Answer)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
