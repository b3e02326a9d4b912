"""A program that sends packets from plain sockets; traffic/sockets starts it in a network namespace.

    python sender.py PROTOCOL IP PORT FIRST_SOURCE ADDRESSES FIRST_PORT PORTS COUNT RATE_PPS

Where PROTOCOL is "-", standard input has a line ``PROTOCOL IP PORT`` of each target, to which it sends in turn.
Every packet is a new flow: it has a socket of its own, bound to the next source address and port, which step together
as pktgen's do. Of TCP it sends the SYN alone: the socket is closed at once, so that nothing is sent again. Packet k is
due k/RATE seconds after the start. SIGTERM and SIGINT end it. Last it prints ``sent N errors N seconds S``.
"""

from __future__ import annotations

import signal
import socket
import sys
import time
from ipaddress import ip_address
from itertools import cycle, islice

STOP = (signal.SIGTERM, signal.SIGINT)
IPV6_FREEBIND = 78
"""Kernel, include/uapi/linux/in6.h."""
PAYLOAD = b"kproxylat".ljust(18)
"""Makes a frame of 60 bytes, as pktgen's."""


def open_socket(kind: int, source: tuple[str, int]) -> socket.socket:
    """Open a socket that is bound to one of our sources."""
    if ":" not in source[0]:
        flow = socket.socket(socket.AF_INET, kind)
    else:
        flow = socket.socket(socket.AF_INET6, kind)
        # Unlike IPv4, IPv6 does not take an address for the machine's own because of a local route.
        flow.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    flow.bind(source)
    return flow


def send_udp(source: tuple[str, int], target: tuple[str, int]) -> None:
    """Send one datagram.

    :raises OSError: it was not sent.
    """
    with open_socket(socket.SOCK_DGRAM, source) as flow:
        flow.sendto(PAYLOAD, target)


def send_syn(source: tuple[str, int], target: tuple[str, int]) -> None:
    """Begin a connection and give it up at once.

    :raises OSError: the SYN was not sent.
    """
    with open_socket(socket.SOCK_STREAM | socket.SOCK_NONBLOCK, source) as flow:
        try:
            flow.connect(target)
        except BlockingIOError:
            return


SENDERS = {"udp": send_udp, "tcp": send_syn}


Target = tuple[str, tuple[str, int]]
"""Protocol, and address and port."""


def send_flows(
    targets: list[Target], sources: list[str], ports: range, count: int, rate_pps: float
) -> tuple[int, int, float]:
    """Send a packet of each of ``count`` flows, to the targets in turn.

    :return: packets sent, errors, seconds.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    sent = errors = 0
    started_s = time.monotonic()
    flows = zip(cycle(sources), cycle(ports), cycle(targets), strict=False)
    for number, (source, port, (protocol, target)) in enumerate(islice(flows, count)):
        ahead_s = started_s + (number + 1) / rate_pps - time.monotonic()
        # Waiting for a signal is how to wait until a packet is due; late, we only look for one now and then.
        if (ahead_s > 0 or number % 64 == 0) and signal.sigtimedwait(STOP, max(ahead_s, 0)):
            break
        try:
            SENDERS[protocol]((source, port), target)
            sent += 1
        except OSError:
            errors += 1
    return sent, errors, time.monotonic() - started_s


def main(words: list[str]) -> None:
    """Send as the command line says."""
    protocol, ip, *numbers = words
    first_source = numbers.pop(1)
    port, addresses, first_port, ports, count, rate_pps = map(int, numbers)
    first = ip_address(first_source)
    sources = [str(first + each) for each in range(addresses)]
    port_range = range(first_port, first_port + ports)
    targets = [(protocol, (ip, port))]
    if protocol == "-":
        lines = [line.split() for line in sys.stdin]
        targets = [(name, (address, int(number))) for name, address, number in lines]
    sent, errors, seconds = send_flows(targets, sources, port_range, count, rate_pps)
    print(f"sent {sent} errors {errors} seconds {seconds:.6f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
