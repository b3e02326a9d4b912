"""The kernel's packet generator, pktgen: started, stopped, read through its files in /proc."""

from __future__ import annotations

import queue
import re
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

from kproxylat.errors import MachineError
from kproxylat.system.processes import Background, run
from kproxylat.traffic.burst import PORTS, Burst, Sender, Sent

PROC = "/proc/net/pktgen"
THREAD = "kpktgend_0"
WRITE_LIMIT_S = 30


class _File:
    """One of pktgen's files, in the namespace that sends: ``tee`` writes to it, line by line."""

    def __init__(self, name: str, netns: str | None) -> None:
        self._echo: queue.Queue[str] = queue.Queue()
        # tee echoes a line, then writes it to each file in turn: the echo to the second comes after the write.
        files = f"{PROC}/{name}", "/proc/self/fd/1"
        self.process = Background("tee", *files, on_out=self._echo.put, on_err=self._echo.put, netns=netns)
        # The process is in the namespace, and so are the files below its net directory.
        self.path = Path(f"/proc/{self.process.pid}/net/pktgen/{name}")
        self._name = name

    def write(self, line: str) -> None:
        """Write one command, and wait until it is written.

        :raises MachineError: pktgen refuses it; carries its own words.
        """
        self.process.write(line + "\n")
        try:
            echo = self._echo.get(timeout=WRITE_LIMIT_S) and self._echo.get(timeout=WRITE_LIMIT_S)
        except queue.Empty:
            raise MachineError(
                f"pktgen took {line!r} for {self._name} not within {WRITE_LIMIT_S} s", "pass --generator sockets"
            ) from None
        result = re.findall(r"Result: (.*)", self.path.read_text())
        if not echo.startswith(line) or not result or not result[-1].startswith("OK"):
            said = result[-1] if result else "nothing"
            raise MachineError(
                f"pktgen refuses {line!r} for {self._name}: {said} ({echo.strip()})", "pass --generator sockets"
            )

    def close(self) -> None:
        """End tee."""
        self.process.write(None)
        try:
            self.process.wait(WRITE_LIMIT_S)
        finally:
            self.process.end()


def start_pktgen(burst: Burst) -> Sender:
    """Set pktgen up and start it.

    :return: the writer of ``start``, which ends when all is sent.
    :raises MachineError: pktgen refuses a command, or this kernel has none.
    """
    with closing(_File(THREAD, burst.netns)) as thread:
        thread.write("rem_device_all")
        thread.write(f"add_device {burst.device}")
    with closing(_File(burst.device, burst.netns)) as device:
        for line in (
            f"count {burst.count}",
            "clone_skb 0",
            f"dst_mac {burst.mac}",
            *_addresses(burst),
            f"udp_src_min {PORTS.start}",
            f"udp_src_max {PORTS.stop}",
            f"udp_dst_min {burst.target.port}",
            f"udp_dst_max {burst.target.port}",
            f"ratep {burst.rate_pps}",
        ):
            device.write(line)
    # The file takes the last character for the end of the line, whatever it is.
    sender = Sender("tee", f"{PROC}/pgctrl", netns=burst.netns)
    sender.write("start\n")
    sender.write(None)
    return sender


def _addresses(burst: Burst) -> tuple[str, ...]:
    """Return the commands that depend on the IP family. An IPv6 packet has a checksum, and 16 bytes of pktgen's own."""
    if burst.source.version == 6:
        return "pkt_size 78", f"dst6 {burst.target.ip}", f"src6 {burst.first}", "flag UDPCSUM"
    last = ip_address(burst.first) + burst.addresses - 1
    target = f"dst_min {burst.target.ip}", f"dst_max {burst.target.ip}"
    return "pkt_size 64", *target, f"src_min {burst.first}", f"src_max {last}"


def stop_pktgen(burst: Burst, _: Sender | None = None) -> None:
    """Stop sending, if it still does."""
    run("tee", f"{PROC}/pgctrl", netns=burst.netns, stdin="stop\n")


def read_pktgen(burst: Burst, _: Sender | None = None) -> Sent:
    """Return what pktgen says it has sent so far, or in all.

    Sample, after a run::

        Params: count 2000  min_pkt_size: 64  max_pkt_size: 64
        Current:
             pkts-sofar: 2000  errors: 0
        Result: OK: 1999032(c37+d1998994) usec, 2000 (60byte,0frags)
          1000pps 0Mb/sec (480000bps) errors: 0
    """
    text = run("cat", f"{PROC}/{burst.device}", netns=burst.netns)
    sofar = re.search(r"pkts-sofar: (\d+)\s+errors: (\d+)", text)
    if sofar is None:
        raise MachineError(
            f"pktgen's state cannot be read: {' '.join(text.split())[-200:]}", "pass --generator sockets"
        )
    elapsed = re.search(r"Result: OK: (\d+)\(", text)
    count = int(sofar[1])
    return Sent(count, int(sofar[2]), count / int(elapsed[1]) * 1e6 if elapsed and int(elapsed[1]) else 0.0)
