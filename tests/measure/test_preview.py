"""--dry-run: what would be measured and changed, as table and JSON; nothing starts, and no file is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kproxylat.lab.ruleset import read_ruleset
from tests.support import ROOT
from tests.support.command import RULES, Captured, call
from tests.support.rules import OTHERS

pytestmark = pytest.mark.usefixtures("nothing_starts")

NFT = str(OTHERS / "kube-proxy-1.31-nft.txt")
COMMANDS = (
    ("run", "--lab"),
    ("run", "--lab", "--vm", "--keep"),
    ("run", "--lab", "--ruleset", NFT, "--every-service"),
    ("run", "--lab", "--ruleset", RULES, "--target", "10.96.100.50:50051"),
    ("sweep", "--lab", "--services", "10,100"),
    ("sweep", "--lab", "--ruleset", RULES, "--every-service", "--vm-if-needed"),
    ("whatif", NFT),
    ("trace", "--mode", "nftables", "--target", "10.96.0.10:53"),
)


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run without root, and where no file may appear."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def dry(capsys: Captured, *words: str) -> dict[str, Any]:
    """Return the document of a dry run."""
    status, out, err = call(capsys, *words, "--dry-run", "--format", "json")
    assert status == 0, err
    document: dict[str, Any] = json.loads(out)
    return document


@pytest.mark.parametrize("words", [each for each in COMMANDS if "--keep" not in each], ids=" ".join)
def test_a_dry_run_changes_nothing(capsys: Captured, tmp_path: Path, words: tuple[str, ...]) -> None:
    document = dry(capsys, *words)
    assert (document["schema"], document["command"]) == ("kproxylat-preview/1", words[0])
    assert not list(tmp_path.iterdir())
    status, table, err = call(capsys, *words, "--dry-run")
    assert status == 0, err
    for run in document["runs"]:
        for target in run["targets"][:3]:
            assert target in table
    assert max(map(len, table.splitlines())) <= 100


def test_untraced_packets_and_connections(capsys: Captured) -> None:
    lab = ("run", "--lab", "--mode", "nftables", "--probe", "none", "2", "1000", "50")
    [run] = dry(capsys, *lab)["runs"]
    assert (run["packets"], run["flows"]) == (2000, 3 * 2050)
    assert "net.netfilter.nf_conntrack_udp_timeout" in run["settings"]
    [run] = dry(capsys, *lab, "--first-packet")["runs"]
    assert (run["packets"], run["flows"]) == (2000, 2050)
    assert "net.netfilter.nf_conntrack_tcp_timeout_close" in run["settings"]


def test_a_lab_names_what_it_makes(capsys: Captured) -> None:
    [run] = dry(capsys, "run", "--lab", "--mode", "nftables", "--services", "7", "2", "1000", "50")["runs"]
    assert (run["mode"], run["backend"], run["services"], run["targets"]) == (
        "nftables", "nft", 7, ["10.96.100.50:50051/udp"],
    )  # fmt: skip
    assert (run["packets"], run["warmup"], run["flows"], run["source_addresses"]) == (2000, 50, 2050, 2)
    assert (run["sources"], run["link"], run["masqueraded"]) == ("10.244.128.0/17", "kpl-pod", False)
    assert run["settings"]["net.ipv4.ip_forward"] == "1"
    assert "network namespaces kproxylat-client, kproxylat-node and kproxylat-backend" in run["changes"]
    assert run["changes"][0] == "kernel modules, if they are not loaded: nf_tables, nf_conntrack, pktgen"


def test_masquerade_is_predicted(capsys: Captured) -> None:
    [run] = dry(capsys, "run", "--lab", "--source", "198.18.0.0/24")["runs"]
    assert run["masqueraded"] is True
    assert run["masqueraded_because"] == "the rules masquerade packets from outside 10.244.0.0/16"


def test_services_left_out_have_a_reason(capsys: Captured) -> None:
    [run] = dry(capsys, "run", "--lab", "--ruleset", NFT, "--every-service")["runs"]
    assert run["targets"] == ["10.96.0.10:53/udp", "10.96.0.1:443/tcp"]
    assert run["left_out"] == [{"target": "10.96.0.99:80/tcp", "name": "a/b:c", "reason": "it has no endpoint"}]
    [run] = dry(capsys, "run", "--lab", "--ruleset", NFT, "--every-service", "--protocol", "udp")["runs"]
    assert [row["target"] for row in run["left_out"]] == ["10.96.0.1:443/tcp", "10.96.0.99:80/tcp"]


def test_every_service_of_a_ruleset_is_measured_or_left_out(capsys: Captured) -> None:
    for file in (NFT, RULES):
        [run] = dry(capsys, "run", "--lab", "--ruleset", file, "--every-service")["runs"]
        named = [*run["targets"], *(row["target"] for row in run["left_out"])]
        services = [f"{service.address}/{service.protocol}" for service in read_ruleset(Path(file)).services]
        assert sorted(named) == sorted(services)


def test_a_sweep_and_a_whatif_have_a_run_for_each_point(capsys: Captured) -> None:
    runs = dry(capsys, "sweep", "--lab", "--mode", "iptables", "--services", "10,100")["runs"]
    assert [(run["backend"], run["services"]) for run in runs] == [
        ("legacy", 10), ("legacy", 100), ("nft", 10), ("nft", 100),
    ]  # fmt: skip
    runs = dry(capsys, "whatif", NFT, "--packets", "30")["runs"]
    assert [run["mode"] for run in runs] == ["nftables", "iptables", "iptables", "ipvs"]
    assert {run["packets"] for run in runs} == {60}
    counting = dry(capsys, "sweep", "--lab", "--services", "10", "--vm", "--clock", "instructions")
    assert counting["virtual_machine"]["clock"] == "instructions"
    assert {run["duration_s"] for run in counting["runs"]} == {0.3}


def test_a_dry_sweep_has_no_csv(capsys: Captured) -> None:
    status, _, err = call(capsys, "sweep", "--lab", "--services", "10", "--dry-run", "--format", "csv")
    assert (status, "--dry-run has no CSV" in err) == (2, True)


def test_the_help_and_the_readme_name_it(capsys: Captured) -> None:
    for command in ("run", "sweep", "trace", "whatif"):
        assert "--dry-run" in call(capsys, command, "--help")[1]
    assert "--dry-run" in (ROOT / "README.md").read_text()
