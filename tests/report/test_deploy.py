"""deploy/: a prometheus scrapes what bill serves, and every query of the dashboard and of the rules returns data.

``make setup`` installs prometheus.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from kproxylat.report.openmetrics import BillTotals
from tests.support import ROOT
from tests.support.bills import make_bill

RULES = ROOT / "deploy/prometheus-rules.yaml"
DASHBOARD = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
LIMIT_S = 60
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs: [{{job_name: kproxylat, static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}]
"""
Query = Callable[[str], list[Any]]


def find_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def query(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Query]:
    """Yield a function that asks a prometheus, which scrapes growing counters, until it has an answer."""
    directory, totals, port, served, ended = (
        tmp_path_factory.mktemp("prom"),
        BillTotals(),
        find_port(),
        find_port(),
        threading.Event(),
    )
    totals.add(make_bill())
    totals.serve("127.0.0.1", served)
    config = directory / "prometheus.yml"
    config.write_text(CONFIG.format(rules=RULES, port=served))
    argv = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory}/data",
            f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    log = (directory / "log").open("w")
    server = subprocess.Popen(argv, stdout=log, stderr=log, cwd=directory)

    def ask(expression: str) -> list[Any]:
        for _ in range(LIMIT_S):
            try:
                with urlopen(
                    f"http://127.0.0.1:{port}/api/v1/query?{urlencode({'query': expression})}", timeout=10
                ) as answer:
                    results: list[Any] = json.load(answer)["data"]["result"]
                if results:
                    return results
            except OSError:  # It does not listen yet, or it has ended.
                if server.poll() is not None:
                    raise
            totals.add(make_bill())
            ended.wait(1)
        return []

    yield ask
    server.terminate()
    server.wait(20)
    log.close()


def test_promtool_accepts_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(RULES)], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.xdist_group("prometheus")
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_panel_has_data(query: Query, expression: str) -> None:
    results = query(expression.replace("$__rate_interval", "1m").replace("$instance", ".+"))
    assert results
    assert all(float(row["value"][1]) > 0 for row in results)


@pytest.mark.xdist_group("prometheus")
def test_every_rule_has_data(query: Query) -> None:
    for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]:
        # An alert has data when its threshold is passed: here, whatever the value.
        expression = rule.get("record") or re.sub(r" > [\d.]+$", " > 0", rule["expr"]).replace(" > k", " < k")
        assert query(expression), expression


def test_a_query_of_a_metric_that_is_missing_has_no_data(query: Query, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above would notice."""
    monkeypatch.setattr(f"{__name__}.LIMIT_S", 2)
    assert query("kproxylat_gone_total") == []
