"""docs/rights.md: each guarantee names its tests, and they exist; the rights of pods suffice to read rules."""

from __future__ import annotations

import ast
import os
import re
import subprocess

import pytest
import yaml

from kproxylat.cluster.job import PROFILES
from tests.support import ROOT

ROWS = [line.strip("|").rsplit("|", 1) for line in (ROOT / "docs/rights.md").read_text().splitlines()
        if line.startswith("|") and ".py::" in line]  # fmt: skip


def test_there_are_guarantees() -> None:
    text = (ROOT / "docs/rights.md").read_text()
    guaranteed = text.partition("## What is guaranteed")[2]
    rows = [line for line in guaranteed.splitlines() if re.match(r"\| (?!guarantee)", line)]
    assert len(rows) == len(ROWS) > 30, "a row of the tables names no test"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip()[:60])
def test_the_tests_of_a_guarantee_exist(row: list[str]) -> None:
    for name in row[1].split(","):
        file, _, function = name.strip().partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


def test_a_bill_that_counts_on_has_the_rights_of_its_profile() -> None:
    daemonset = yaml.safe_load((ROOT / "deploy/bill/daemonset.yaml").read_text())
    [container] = daemonset["spec"]["template"]["spec"]["containers"]
    assert container["securityContext"]["capabilities"]["add"] == sorted(PROFILES["observe"].capabilities)


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces take root")
@pytest.mark.parametrize("profile", PROFILES)
def test_a_pod_reads_the_rules_of_iptables_legacy(profile: str) -> None:
    """A node may hold them beside those of another mode: then each command reads both."""
    rights = ",".join(["-all", *(f"+{name.lower()}" for name in PROFILES[profile].capabilities)])
    read = f"exec setpriv --bounding-set={rights} --inh-caps=-all iptables-legacy-save -t nat"
    script = f"mount -t tmpfs tmpfs /run && iptables-legacy -t nat -N KUBE-SERVICES && {read}"
    words = ["unshare", "--mount", "--net", "sh", "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert ":KUBE-SERVICES" in done.stdout, done.stderr
