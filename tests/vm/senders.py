"""Sends SYNs to many addresses at known unequal rates, each a new flow; prints how many of each, as JSON.

Usage: senders.py SECONDS SYNS_PER_SECOND WEIGHT=IP:PORT ...
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections import Counter
from random import Random


def main() -> None:
    """Send until the time is over."""
    seconds, rate = float(sys.argv[1]), float(sys.argv[2])
    weights = {target: float(weight) for weight, _, target in (word.partition("=") for word in sys.argv[3:])}
    rng, sent = Random(1), Counter[str]()
    began = time.monotonic()
    targets = list(weights)
    while (passed := time.monotonic() - began) < seconds:
        for target in rng.choices(targets, list(weights.values()), k=max(round(passed * rate) - sent.total(), 0)):
            ip, _, port = target.rpartition(":")
            with socket.socket() as sender:
                sender.setblocking(False)
                sender.connect_ex((ip, int(port)))
            sent[target] += 1
        time.sleep(0.01)
    print(json.dumps(sent))


if __name__ == "__main__":
    main()
