"""Names from the API, logs and results cannot command a terminal or a spreadsheet, whatever prints them."""

from __future__ import annotations

import copy
import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from kproxylat.console import plain, plain_line, show
from kproxylat.report.export import EXPORTERS, csv_row
from kproxylat.results import Entry, Map, Quality, Result, Run, Source
from kproxylat.results_json import from_json, to_json
from tests.support import ROOT, TESTS
from tests.support.command import Captured, call
from tests.support.fake_api import FakeApi
from tests.support.fixtures import cluster  # noqa: F401

HOSTILE = (
    *("\x1b]0;owned\x07", "\x1b[2J\x1b[31m", "\x9b31m", "a\rb", "a\x08b", "a\x7fb", "a\0b"),
    *("\u202egpj.exe", "a\u2066b", "\ud800", "\udcff", "a\u2028b", "\u200bx", "[red]x[/red]", '"\\n{}'),
)


def is_safe(text: str) -> bool:
    return all(char.isprintable() or char in "\n\t" for char in text)


@given(st.text())
def test_what_is_shown_is_printable(text: str) -> None:
    assert is_safe(plain(text))
    assert plain_line(text).isprintable()
    assert plain(plain(text)) == plain(text)


def test_lines_stay_and_names_have_none() -> None:
    assert plain("a\n\tb─µ") == "a\n\tb─µ"
    assert plain_line("a\n\tb") == "a\\n\\tb"


@pytest.mark.parametrize("text", HOSTILE)
def test_show(capsys: Captured, text: str) -> None:
    show(text)
    assert is_safe(capsys.readouterr().out)


@pytest.mark.parametrize("name", HOSTILE)
def test_services_list(capsys: Captured, cluster: FakeApi, name: str) -> None:  # noqa: F811
    spec = {"clusterIP": "10.0.0.1", "ports": [{"port": 80, "protocol": f"TCP\n{name}"}]}
    service = {"apiVersion": "v1", "kind": "Service", "spec": spec}
    labels = {"labels": {"type": "dummy"}, "namespace": "default"}
    cluster.add(service | {"metadata": {"name": "dummy-service-1", **labels}})
    cluster.add(copy.deepcopy(service) | {"metadata": {"name": name, **labels}})
    status, out, err = call(capsys, "services", "list", "-o", "wide")
    if re.search("[\ud800-\udfff]", name):
        assert (status, out, "not a text" in err, is_safe(err)) == (1, "", True, True)
        return
    assert (status, len(out.splitlines()), is_safe(out + err)) == (0, 1, True)
    status, out, _ = call(capsys, "services", "list", "--format", "json")
    assert (json.loads(out)["not_ours"], is_safe(out)) == ([name], True)


@pytest.mark.parametrize("name", HOSTILE)
def test_mode_show(capsys: Captured, cluster: FakeApi, name: str) -> None:  # noqa: F811
    config = cluster.objects["", "configmaps", "kube-system", "kube-proxy"]
    config["data"] = {"config.conf": f"mode: {json.dumps(name)}\n"}
    status, out, err = call(capsys, "mode", "show")
    assert (status in (0, 1), is_safe(out + err)) == (True, True), out


def hostile_result(name: str) -> Result:
    """A measured result, each of whose names is hostile."""
    result = from_json((TESTS / "documents/result-1.json").read_bytes())
    probes = tuple(replace(probe, table=name, chain=name, hook=name) for probe in result.probes)
    run = replace(result.run, kernel=name, log=name, started=name, arguments=(name,))
    entries = (Entry((name, 1), 5), Entry(("b", 2), 6))
    maps = {name: Map("int", entries), "texts": Map("str", (Entry((name,), name),))}
    quality = Quality(warnings=(name,))
    return replace(result, probes=probes, run=run, maps=maps, quality=quality, source=Source(name, "dump", 0))


@pytest.mark.parametrize("form", EXPORTERS)
@pytest.mark.parametrize("name", [*HOSTILE, "=1+1", "@a", "+a", "-a"])
def test_exports(form: str, name: str) -> None:
    text = "".join(EXPORTERS[form]([hostile_result(name)]))
    assert is_safe(text)
    if form == "json":
        result = json.loads(text)["results"][0]
        assert (result["run"]["kernel"], list(result["maps"])) == (name, [name, "texts"])
    elif form == "openmetrics":
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        assert {sample.labels["kernel"] for sample in samples} == {plain(name)}
        assert {sample.labels["value"] for sample in samples if "value" in sample.labels} == {plain(name)}


@pytest.mark.parametrize("name", HOSTILE)
def test_compare(capsys: Captured, tmp_path: Path, name: str) -> None:
    result, path = hostile_result(name), tmp_path / "a\x1b[31m\u202e.json"
    path.write_text(to_json(replace(result, run=replace(result.run, mode=name, backend=name))))
    for form in ("table", "json"):
        status, out, err = call(capsys, "compare", str(path), str(path), "--force", "--format", form)
        # Half a character is no text: the reader of results refuses it.
        assert (status, is_safe(out + err)) == (name in ("\ud800", "\udcff"), True), err


def test_names_of_files_in_errors_of_the_command_line(capsys: Captured) -> None:
    """A pattern makes any file's name an argument."""
    for argv in (
        ("--\x1b]0;x\x07",),
        ("parse", "--a\x1b[2J"),
        ("compare", "a", "b", "c\x9b31m"),
        ("parse", "x\n\x1b[1m"),
    ):
        status, out, err = call(capsys, *argv)
        assert (status in (1, 2), bool(err), is_safe(out + err)) == (True, True, True)


def parse_cells(row: list[object]) -> list[str]:
    return next(csv.reader(io.StringIO(csv_row(row))))


def test_formulas_are_text() -> None:
    for name in (
        "=cmd|' /C calc'!A0",
        "+1+1",
        "-1+1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        " =1",
        "＝1",
        "-",
        "--5",
        "-inf",
    ):
        cell = parse_cells([name])[0]
        assert not cell.lstrip().startswith(("=", "+", "-", "@", "\t", "\r", "＝")), name
    numbers = [-3, -3.5, 1e-300, None, True]
    assert parse_cells([*numbers, "-3", "-3.25", "+7", "1e5", "a=b"])[5:] == ["-3", "-3.25", "+7", "1e5", "a=b"]
    assert parse_cells(numbers) == ["-3", "-3.5", "1e-300", "", "True"]


@given(st.lists(st.text(), min_size=2))
def test_a_row_of_csv_reads_back(row: list[str]) -> None:
    cells = next(csv.reader(io.StringIO(csv_row(row), newline="")))
    assert [cell.removeprefix("'") for cell in cells] == [plain(text).removeprefix("'") for text in row]


def test_the_hostile_names_would_be_unsafe() -> None:
    assert [name for name in HOSTILE if is_safe(name)] == ["[red]x[/red]", '"\\n{}']
    assert (ROOT / "kproxylat/console.py").exists()


def test_run_shows_it(capsys: Captured) -> None:
    show("\n".join(EXPORTERS["table"]([Result(Run(mode="\x1b[1m", log="\x1b[2m"))])))
    assert is_safe(capsys.readouterr().out)
