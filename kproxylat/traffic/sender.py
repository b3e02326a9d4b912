"""A program that sends packets from plain sockets; traffic/sockets starts it in a network namespace.

    python sender.py flows < PARAMETERS_OF_send_flows_AS_JSON
    python sender.py timed < PARAMETERS_OF_send_timed_AS_JSON
    python sender.py connect < PARAMETERS_OF_connect_timed_AS_JSON

Every packet is a new flow: it has a socket of its own, bound to the next source address and port, which step together
as pktgen's do. Of TCP it sends the SYN alone: the socket is closed at once, so that nothing is sent again. Packet k is
due k/RATE seconds after the start. SIGTERM and SIGINT end it. Last it prints what the function returns as one line of
JSON. In the second form it takes the time of each packet's system call, in the third the time from each connection's
SYN to its SYN-ACK.

Longer than 350 lines: it runs alone, in another network namespace, and imports nothing of ours.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from itertools import cycle, islice
from statistics import median
from typing import Any

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


def send_flows(
    targets: list[list[Any]], first: str, addresses: int, ports: list[int], count: int, rate_pps: float
) -> dict[str, Any]:
    """Send a packet of each of ``count`` flows, to the targets in turn.

    :param targets: address, port and protocol. ``ports``: the first source port, and their number.
    :return: packets ``sent``, ``errors``, ``seconds``.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    sent = errors = 0
    started_s = time.monotonic()
    flows = zip(list_flows(first, addresses, ports), cycle(targets), strict=False)
    for number, (source, (ip, port, protocol)) in enumerate(islice(flows, count)):
        ahead_s = started_s + (number + 1) / rate_pps - time.monotonic()
        # Waiting for a signal is how to wait until a packet is due; late, we only look for one now and then.
        if (ahead_s > 0 or number % 64 == 0) and signal.sigtimedwait(STOP, max(ahead_s, 0)):
            break
        try:
            with open_flow(protocol, source) as flow:
                time_call(flow, protocol == "udp", (ip, port))
            sent += 1
        except OSError:
            errors += 1
    return {"sent": sent, "errors": errors, "seconds": time.monotonic() - started_s}


CLONE_NEWNET = 0x40000000
"""Kernel, include/uapi/linux/sched.h."""
SOCKETS = 48
"""Rounds whose sockets are open at a time; a process may have 1,024 open files."""
OPEN_S = 0.5
"""How long they are open at most: after 1 s the kernel sends a SYN again (include/net/tcp.h, TCP_TIMEOUT_INIT)."""
BLOCKS = 20
"""Parts of a run, each of which has its own median: a slow change of the machine shows in them."""
CHECKED_EVERY = 50
"""Of so many rounds one checks that its packet arrives within the system call. Its times are not kept."""


def open_arrivals(netns: str, counter: str, is_ipv6: bool) -> Callable[[], int]:
    """Return a function that reads a counter of another network namespace's IP packets.

    An open file of /proc/net shows the namespace in which it was opened.

    :param counter: "InReceives", or "ForwDatagrams": those that were forwarded (kernel, net/ipv4/proc.c, snmp_seq_show;
        net/ipv6/proc.c).
    """
    name = {"InReceives": b"Ip6InReceives", "ForwDatagrams": b"Ip6OutForwDatagrams"}[counter]
    name = name if is_ipv6 else counter.encode()
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as own, open(netns) as other:  # noqa: PTH123 - as light as can be
        if libc.setns(other.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), netns)
        file = os.open(f"/proc/thread-self/net/snmp{'6' if is_ipv6 else ''}", os.O_RDONLY)
        libc.setns(own.fileno(), CLONE_NEWNET)

    def read() -> int:
        words = os.pread(file, 4096, 0).split()
        # Of IPv4 the names come first, "Ip:" and one each; then "Ip:" and the numbers.
        return int(words[words.index(name) + (1 if is_ipv6 else words.index(b"Ip:", 1))])

    return read


def hold_still() -> None:
    """Keep to one CPU, collect no garbage, and let the signals that end the sending wait."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    gc.collect()
    gc.disable()


def time_clock() -> int:
    """Return the median of what reading the clock adds to a time."""
    clock = time.perf_counter_ns
    return int(median(-clock() + clock() for _ in range(1000)))


def count_switches() -> int:
    """Return how often this thread has lost the CPU (getrusage(2))."""
    used = resource.getrusage(resource.RUSAGE_THREAD)
    return used.ru_nvcsw + used.ru_nivcsw


def open_flow(protocol: str, source: tuple[str, int]) -> socket.socket:
    """Open the socket of a flow."""
    return open_socket(socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM | socket.SOCK_NONBLOCK, source)


def time_call(flow: socket.socket, is_udp: bool, target: tuple[str, int]) -> int:
    """Send a datagram, or the SYN of a connection, and return the nanoseconds of the system call.

    :raises OSError: it was not sent.
    """
    clock = time.perf_counter_ns
    if is_udp:
        begun = clock()
        flow.sendto(PAYLOAD, target)
        return clock() - begun
    begun = clock()
    status = flow.connect_ex(target)
    time_ns = clock() - begun
    if status and status not in OUTCOMES:
        raise OSError(status, os.strerror(status))
    return time_ns


def time_packet(
    packet: tuple[socket.socket, bool, tuple[str, int]], arrived: Callable[[], int] | None
) -> tuple[str, int]:
    """Send a packet.

    :param packet: as :func:`time_call` takes it.
    :param arrived: counts the packets that have arrived, to check that this one does within the call (None: no check).
    :return: what came of it, "error", "late", "arrived", "preempted" or "taken", and the nanoseconds of the call.
    """
    before = arrived() if arrived else 0
    switches = count_switches()
    try:
        time_ns = time_call(*packet)
    except OSError:
        return "error", 0
    if arrived:
        return "late" if arrived() == before else "arrived", time_ns
    return "taken" if count_switches() == switches else "preempted", time_ns


def list_flows(first: str, addresses: int, ports: list[int]) -> Iterator[tuple[str, int]]:
    """Yield source addresses and ports, which step together."""
    start = ip_address(first)
    sources = cycle(str(start + number) for number in range(addresses))
    return zip(sources, cycle(range(ports[0], ports[0] + ports[1])), strict=False)


def send_timed(
    targets: list[list[Any]],
    controls: list[list[Any]],
    first: str,
    addresses: int,
    ports: list[int],
    count: int,
    rate_pps: float,
    arrivals: tuple[str, str],
) -> dict[str, Any]:
    """Send rounds of packets: one to a target, and one to each control; take the time of each system call.

    The order within a round rotates, and the source's address and port step from packet to packet. One CPU, no garbage
    collection, and the sockets are open before the clock starts.

    :param targets: address, port and protocol; sent to in turn. ``controls``: likewise, each in every round.
    :param ports: the first source port, and their number.
    :param count: rounds, ``rate_pps`` of them a second.
    :param arrivals: as :func:`open_arrivals` takes them: the network namespace, and the counter ("": no check).
    :return: ``sent`` and ``errors``; ``seconds``; ``clock``: what reading the clock adds; ``checked`` rounds, of which
        ``late`` packets had not arrived at the return; by kind (target first, then controls): ``totals`` sent,
        ``times``: value -> packets; ``preempted`` packets, whose times are not in these; ``blocks``: medians;
        ``apart``: for each control the difference of the target's time and its own, value -> rounds.
    """
    hold_still()
    arrived = open_arrivals(*arrivals, ":" in first) if arrivals[1] else None
    kinds = 1 + len(controls)
    flows = list_flows(first, addresses, ports)
    destinations = cycle(targets)
    tallies = [Counter[str]() for _ in range(kinds)]
    times: list[Counter[int]] = [Counter() for _ in range(kinds)]
    apart: list[Counter[int]] = [Counter() for _ in controls]
    blocks: list[list[float]] = [[] for _ in range(2 * kinds - 1)]
    block: list[list[int]] = [[] for _ in range(2 * kinds - 1)]
    cost, started_s = time_clock(), time.monotonic()
    done = 0
    while done < count and not signal.sigpending() & set(STOP):
        rounds = []
        for _ in range(min(SOCKETS, max(int(rate_pps * OPEN_S), 1), count - done)):
            aims = [next(destinations), *controls]
            rounds.append([(open_flow(aim[2], next(flows)), aim[2] == "udp", (aim[0], aim[1])) for aim in aims])
        for packets in rounds:
            checks = arrived and done % CHECKED_EVERY == 0
            taken: list[int | None] = [None] * kinds
            while time.monotonic() - started_s < done / rate_pps:
                pass
            for kind in ((done + turn) % kinds for turn in range(kinds)):
                outcome, time_ns = time_packet(packets[kind], arrived if checks else None)
                tallies[kind][outcome] += 1
                if outcome == "taken":
                    taken[kind] = time_ns
            for kind, own_ns in enumerate(taken):
                if own_ns is not None:
                    times[kind][own_ns] += 1
                    block[kind].append(own_ns)
                    if kind and taken[0] is not None:
                        apart[kind - 1][taken[0] - own_ns] += 1
                        block[kinds + kind - 1].append(taken[0] - own_ns)
            done += 1
            if done * BLOCKS // count != (done - 1) * BLOCKS // count:
                for medians, values in zip(blocks, block, strict=True):
                    medians += [median(values)] if values else []
                    values.clear()
        for packets in rounds:
            for flow, *_ in packets:
                flow.close()
    every = sum(tallies, Counter[str]())
    totals = [tally.total() - tally["error"] for tally in tallies]
    return {
        "sent": totals[0], "errors": every["error"], "seconds": time.monotonic() - started_s, "clock": cost,
        "checked": every["late"] + every["arrived"], "late": every["late"], "totals": totals,
        "preempted": [tally["preempted"] for tally in tallies], "times": times, "apart": apart, "blocks": blocks,
    }  # fmt: skip


ANSWER_S = 0.9
"""How long to wait for a SYN-ACK. After 1 s the kernel would send the SYN again (kernel, include/net/tcp.h,
TCP_TIMEOUT_INIT)."""
HOPELESS = 10
"""After so many connections without any answer, no further one is tried."""
SPIN_S = 0.001
"""The last part of a wait is spent looking at the clock: a CPU that has slept is slow at first."""
UNANSWERED = "unanswered"
OUTCOMES = {
    errno.ECONNREFUSED: "refused",
    errno.EHOSTUNREACH: "refused",
    errno.EINPROGRESS: UNANSWERED,
    errno.ETIMEDOUT: UNANSWERED,
}
"""The error of a connect() -> what came of its SYN; another error means that none was sent."""


def open_connection(source: tuple[str, int]) -> socket.socket:
    """Open a socket that connects without acknowledging the SYN-ACK, and whose connection ends by a RST when it closes.

    Without TCP_QUICKACK the kernel waits for data to send with the acknowledgement (net/ipv4/tcp_input.c,
    tcp_rcv_synsent_state_process): so the time ends with the SYN-ACK, and the Service's program sees no connection.
    """
    flow = open_socket(socket.SOCK_STREAM, source)
    flow.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
    flow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    flow.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, int(ANSWER_S * 1e6)))
    return flow


def wait_until(due_s: float) -> bool:
    """Wait until a time of the monotonic clock; return False if a signal asks to stop."""
    if signal.sigtimedwait(STOP, max(due_s - time.monotonic() - SPIN_S, 0)):
        return False
    while time.monotonic() < due_s:
        pass
    return True


def connect_timed(
    targets: list[list[Any]], first: str, addresses: int, ports: list[int], count: int, rate_pps: float
) -> dict[str, Any]:
    """Open connections one after another, each from a source of its own, and close each at once.

    One CPU, and no garbage collection; the socket is open before the clock starts.

    :param targets: address, port and protocol; connected to in turn.
    :param ports: the first source port, and their number.
    :param count: connections, ``rate_pps`` of them a second.
    :return: ``sent`` SYNs, of which ``refused`` and ``unanswered``; ``errors``; ``seconds``; ``clock``: what reading
        the clock adds; ``preempted`` connections, whose times are left out; ``times``: for each target, for each of
        :data:`BLOCKS` parts of the run, the nanoseconds from the SYN to the SYN-ACK, in order.
    """
    hold_still()
    flows, clock, tally = list_flows(first, addresses, ports), time.perf_counter_ns, Counter[str]()
    times: list[list[list[int]]] = [[[] for _ in range(BLOCKS)] for _ in targets]
    cost, started_s = time_clock(), time.monotonic()
    for number in range(count):
        place = number % len(targets)
        aim = targets[place][0], targets[place][1]
        with open_connection(next(flows)) as flow:
            if not wait_until(started_s + number / rate_pps) or (number >= HOPELESS and not tally["answered"]):
                break
            lost = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
            begun = clock()
            try:
                flow.connect(aim)
            except OSError as error:
                tally[OUTCOMES.get(error.errno or 0, "errors")] += 1
                continue
            value = clock() - begun
            tally["answered"] += 1
            if resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw == lost:
                times[place][number * BLOCKS // count].append(value)
            else:
                tally["preempted"] += 1
    return {
        "sent": tally["answered"] + tally["refused"] + tally[UNANSWERED],
        **{name: tally[name] for name in ("errors", "refused", UNANSWERED, "preempted")},
        "seconds": time.monotonic() - started_s, "clock": cost, "times": times,
    }  # fmt: skip


FORMS: dict[str, Callable[..., dict[str, Any]]] = {"flows": send_flows, "timed": send_timed, "connect": connect_timed}


if __name__ == "__main__":
    print(json.dumps(FORMS[sys.argv[1]](**json.load(sys.stdin))), flush=True)
