"""Rules that grew from one number of Services to the next, in a real kernel, against those that were loaded at once."""

from __future__ import annotations

import json
import re
import sys
from itertools import chain

import pytest

from tests.support.rules import iptables_chains, nft_blocks
from tests.vm.conftest import Guest

GROW = """
import json

from kproxylat.lab.rules import load_ruleset, render_ruleset
from kproxylat.lab.services import place_services
from kproxylat.modes import MODES
from kproxylat.measure.plan import load_modules
from kproxylat.system.processes import run

LISTINGS = {
    "iptables": (("iptables-{backend}-save",),),
    "nftables": (("nft", "list", "table", "ip", "kube-proxy"),),
    "ipvs": (("ipvsadm", "-S", "-n"), ("ipset", "save"), ("ip", "-o", "-4", "address", "show", "dev", "kube-ipvs0")),
}
listed = {}
for mode in (mode for mode in MODES if mode.growing):
    load_modules(mode)
    for sizes in ((0, 10, 30), (30,)):
        standing = []
        run("ip", "netns", "add", "grown")
        for size in sizes:
            services = place_services(size, "middle", "both")
            load_ruleset(render_ruleset(mode, services, standing=standing), "grown")
            standing = services
        argvs = [[word.format(backend=mode.backend) for word in argv] for argv in LISTINGS[mode.name]]
        listed.setdefault(f"{mode.name}/{mode.backend}", []).append([run(*argv, netns="grown") for argv in argvs])
        run("ip", "netns", "delete", "grown")
print(json.dumps(listed))
"""


@pytest.mark.long  # two minutes; tests/lab/test_services.py compares the texts
def test_grown_rules_are_those_loaded_at_once(timing: Guest) -> None:
    done = timing.program(sys.executable, "-c", GROW)
    assert done.status == 0, done.err
    listed = json.loads(done.out)
    [grown], [at_once] = listed["iptables/legacy"]
    assert iptables_chains(grown) == iptables_chains(at_once)
    in_order = [re.findall(r"-A KUBE-SERVICES .*", text) for text in (grown, at_once)]
    assert in_order[0] == in_order[1]
    assert len(in_order[0]) == 33
    [grown], [at_once] = listed["nftables/nft"]
    assert nft_blocks(grown) == nft_blocks(at_once)
    assert len(re.findall(r"chain service-[A-Z2-7]{8}-", grown)) == 32
    lines = [sorted(re.sub(r" initval \S+", "", line) for line in chain(*(text.splitlines() for text in texts)))
             for texts in listed["ipvs/ipvs"]]  # fmt: skip
    addresses = [[re.sub(r"^\d+: ", "", line) for line in each] for each in lines]
    assert addresses[0] == addresses[1]
    assert sum("10.97.0.30" in line for line in lines[0]) == 5, "a server, its real server, two sets, an address"
