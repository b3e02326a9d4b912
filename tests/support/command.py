"""One command line, run in this process."""

from __future__ import annotations

import pytest

from kproxylat.cli import app
from tests.support import ROOT

RULES = str(ROOT / "tests/kube-proxy-rules/iptables-nft/n0/iptables-nft-save.txt")
Captured = pytest.CaptureFixture[str]


def call(capsys: Captured, *argv: str) -> tuple[int, str, str]:
    """Run one command line in this process: status, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        app.main(list(argv))
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err
