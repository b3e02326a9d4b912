"""Plans of probe scripts."""

from __future__ import annotations

import pytest

from kproxylat.modes import MODES, Mode
from kproxylat.trace import plan
from kproxylat.trace.plan import Flow, Live, Plan

OFFSETS = {
    "nf_conn.tuplehash": 16,
    "nf_conn.status": 128,
    "xt_table.name": 56,
    "nft_chain.table": 64,
    "nft_chain.name": 88,
    "nft_table.name": 384,
    "nft_pktinfo.state": 8,
    "sk_buff._nfct": 104,
    "sk_buff.data": 208,
    "nf_hook_state.pf": 1,
    "nf_hook_state.net": 32,
    "net.ns": 128,
    "ns_common.inum": 16,
}
FLOW = Flow((0x3264600A,), 0x001183C3, (0x0080F40A,), (0x0080FFFF,))
"""10.96.100.50, port 50051, UDP, from 10.244.128.0/17, as a little-endian machine reads them."""
KINDS = {"0.17": ((0, 17), "fentry"), "0.23": ((0, 23), "fentry"), "kprobe": ((0, 17), "kprobe")}


def plan_of(
    mode: Mode,
    kind: str,
    flow: Flow | None,
    interval_s: int,
    envelope: bool = False,
    netns_inode: int = 0,
    live: bool = False,
) -> Plan:
    version, probe = KINDS[kind]
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setattr(plan, "find_engine", lambda mode, _: (mode.engines[0], probe))
        patch.setattr(plan, "find_version", lambda: ("", version))
        patch.setattr(plan.btf, "btf_module", lambda module: module)
        patch.setattr(plan.btf, "struct_offset", lambda _, name, member: OFFSETS[f"{name}.{member}"])
        bill = Live.of(mode, 1000, 0.1, 3) if live else None
        stepping = bool(flow) and not interval_s and not live
        return plan.make_plan(mode, flow, probe, interval_s, envelope, netns_inode, stepping, live=bill)


PLAN = plan_of(MODES[0], "0.23", FLOW, 0)
