"""README's commands, and signals to a command in the guest."""

from __future__ import annotations

import io
import re
import shlex
import threading
from typing import Any

from tests.support import ROOT
from tests.vm.conftest import Guest


class Trigger(io.StringIO):
    """Standard error of a command line, which gets a signal once it has said something, ``delay_s`` later."""

    def __init__(self, guest: Guest, after: str, signum: int, delay_s: float = 0) -> None:
        super().__init__()
        self._guest, self._after, self._signum, self._delay_s = guest, after, signum, delay_s

    def write(self, text: str) -> int:
        written = super().write(text)
        if self._signum and self._after in self.getvalue():
            threading.Timer(self._delay_s, self._guest.machine.signal, (self._signum,)).start()
            self._signum = 0
        return written


README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"`kproxylat ([^`]+)`", README)
SHORT = {
    "30 10000": "0.5 400",
    "2 1000": "0.5 400",
    "--mode iptables --services 10,100,1000": "--mode nftables --services 10 0.5 400",
    "--mode iptables,nftables --services 10,100,1000": "--mode nftables --services N 0.1",
    "--services 1000": "--services 20",
}
"""Emulated, and many: the README's commands run with fewer packets and Services."""


def words(command: str) -> list[str]:
    for long, short in SHORT.items():
        command = command.replace(long, short)
    return shlex.split(command)


BACKENDS = [("iptables", "legacy"), ("iptables", "nft"), ("nftables", "nft"), ("ipvs", "ipvs")]


def run_sweep(guest: Guest, *argv: str) -> list[dict[str, Any]]:
    done = guest.kproxylat("sweep", *argv, "--lab", "--format", "json")
    assert done.status == 0, done.err
    results: list[dict[str, Any]] = done.json["results"]
    return results


def lookup_of(result: dict[str, Any]) -> dict[str, Any]:
    [probe] = [each for each in result["probes"] if each["lookup"]]
    return dict(probe)
