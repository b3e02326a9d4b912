"""Debian's newest kernel, bpftrace, iptables, nft and Python: all backends, with fentry and with kprobe."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from bench import matrix

NEEDED = os.geteuid() == 0 and shutil.which("debootstrap")


@pytest.mark.long
@pytest.mark.skipif(not NEEDED, reason="needs root and debootstrap")
def test_the_newest_measures_with_agreeing_counts_and_no_warning() -> None:
    """The place fails if counts disagree or bpftrace warns; costs are those of golden.json while the versions are."""
    golden = json.loads(matrix.GOLDEN.read_text())["sid/sid"]
    result = matrix.measure("sid", "sid", resume=False)
    assert len(result["lookups"]) == 4 * 2 * len(matrix.SERVICES.split(","))
    if all(result[name] == golden[name] for name in golden if name != "lookups"):
        shared = {name: result["lookups"][name] for name in golden["lookups"]}
        assert matrix.compare("sid/sid", golden, {**result, "lookups": shared}) == []
