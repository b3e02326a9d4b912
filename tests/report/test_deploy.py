"""deploy/: a prometheus scrapes what bill serves, and a node_exporter that reads the export of runs from a file; every
query of the dashboard and of the rules returns data.

``make setup`` installs prometheus and prometheus-node-exporter.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from kproxylat.report.export import export_openmetrics
from kproxylat.report.openmetrics import BillTotals
from tests.results import TIMED, change_run, load
from tests.support import ROOT
from tests.support.bills import make_bill

RULES = ROOT / "deploy/prometheus-rules.yaml"
DASHBOARD = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
LIMIT_S = 60
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
- {{job_name: kproxylat, static_configs: [{{targets: ["127.0.0.1:{served}"]}}]}}
- {{job_name: node, static_configs: [{{targets: ["127.0.0.1:{node}"]}}]}}
"""
Query = Callable[[str], list[Any]]


def find_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def start(directory: Path, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in the block."""
    with (directory / f"{argv[0]}.log").open("w") as log:
        server = subprocess.Popen(argv, stdout=log, stderr=log, cwd=directory)
        try:
            yield server
        finally:
            server.terminate()
            server.wait(20)


class World:
    """A node with both ways of scraping, and a prometheus.

    :ivar totals: what bill serves.
    """

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.totals = BillTotals()
        self.totals.add(make_bill())
        self._port, self.served, self.node = find_port(), find_port(), find_port()
        self.totals.serve("127.0.0.1", self.served)
        files = directory / "files"
        files.mkdir()
        runs = [change_run(result, emulated=False) for result in load(TIMED)]
        (files / "kproxylat.prom").write_text("".join(export_openmetrics(runs)))
        config = directory / "prometheus.yml"
        config.write_text(CONFIG.format(rules=RULES, served=self.served, node=self.node))
        words = ("--collector.disable-defaults", "--collector.textfile", f"--collector.textfile.directory={files}")
        exporter = ("prometheus-node-exporter", *words, f"--web.listen-address=127.0.0.1:{self.node}")
        database = (f"--storage.tsdb.path={directory}/data", f"--web.listen-address=127.0.0.1:{self._port}")
        prometheus = ("prometheus", f"--config.file={config}", *database)
        self._servers = [stack.enter_context(start(directory, *argv)) for argv in (exporter, prometheus)]

    def _get(self, port: int, path: str) -> str:
        """Return what a server answers; "" if it does not listen yet.

        :raises OSError: one of the servers has ended.
        """
        try:
            with urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            if any(server.poll() is not None for server in self._servers):
                raise
            return ""

    def scrape(self, port: int) -> str:
        """Return what is scraped at a port."""
        for _ in range(LIMIT_S):
            if text := self._get(port, "metrics"):
                return text
            threading.Event().wait(1)
        return ""

    def query(self, expression: str) -> list[Any]:
        """Ask prometheus, while the counters of bill grow, until it has an answer."""
        for _ in range(LIMIT_S):
            text = self._get(self._port, f"api/v1/query?{urlencode({'query': expression})}")
            results: list[Any] = json.loads(text)["data"]["result"] if text else []
            if results:
                return results
            self.totals.add(make_bill())
            threading.Event().wait(1)
        return []


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path_factory.mktemp("prom"), stack)


def test_promtool_accepts_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(RULES)], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.xdist_group("prometheus")
def test_promtool_accepts_what_is_scraped(world: World) -> None:
    """node_exporter keeps the types of runs, and reports no error of a file."""
    for port, name in ((world.served, "kproxylat_lookups_total counter"), (world.node, "latency_seconds histogram")):
        text = world.scrape(port)
        assert name in text
        done = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "\nnode_textfile_scrape_error 0\n" in text


@pytest.mark.xdist_group("prometheus")
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_panel_has_data(world: World, expression: str) -> None:
    results = world.query(expression.replace("$__rate_interval", "1m").replace("$instance", ".+"))
    assert results
    assert all(float(row["value"][1]) > 0 for row in results)


@pytest.mark.xdist_group("prometheus")
def test_the_dashboard_finds_both_instances(world: World) -> None:
    [variable] = [one["query"] for one in DASHBOARD["templating"]["list"] if one["name"] == "instance"]
    match = re.fullmatch(r"label_values\((.+), instance\)", variable)
    assert match
    assert world.query("kproxylat_latency_seconds_count")
    instances = {row["metric"]["instance"] for row in world.query(match[1])}
    assert instances == {f"127.0.0.1:{world.served}", f"127.0.0.1:{world.node}"}


@pytest.mark.xdist_group("prometheus")
def test_every_rule_has_data(world: World) -> None:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        # An alert has data when its threshold is passed: here, whatever the value.
        expression = rule.get("record") or re.sub(r" > [\d.]+$", " > 0", rule["expr"]).replace(" > k", " < k")
        assert world.query(expression), expression


@pytest.mark.xdist_group("prometheus")
def test_a_recorded_mean_is_that_of_the_runs(world: World) -> None:
    results = world.query("instance_mode:kproxylat_latency_seconds:mean")
    means = {(row["metric"]["backend"], row["metric"]["services"]): float(row["value"][1]) for row in results}
    assert len(means) == len({(run.run.backend, run.run.services) for run in load(TIMED)})
    calls = [run.lookup for run in load(TIMED) if (run.run.backend, run.run.services) == ("nft", 20) and run.lookup]
    total, count = sum(call.sum or 0 for call in calls), sum(call.count for call in calls)
    assert means["nft", "20"] == pytest.approx(total / count * 1e-9)


@pytest.mark.xdist_group("prometheus")
def test_a_query_of_a_metric_that_is_missing_has_no_data(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above would notice."""
    monkeypatch.setattr(f"{__name__}.LIMIT_S", 2)
    assert world.query("kproxylat_gone_total") == []
