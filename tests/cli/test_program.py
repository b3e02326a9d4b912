"""Help pages, options of all commands, completion, and what a command says before it boots a machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from kproxylat import console
from kproxylat.cli import app, program
from kproxylat.errors import MachineError
from kproxylat.system import virtual_machine
from kproxylat.trace.engine import KINDS
from tests.results import COUNTED
from tests.support import ROOT
from tests.support.command import PARAMETERS, Captured, call, name_of

pytestmark = pytest.mark.usefixtures("nothing_starts")

LOG = str(COUNTED.with_name("ebpf_iptables_20261122_225438.log"))


@pytest.mark.parametrize("command", ["", "run", "mode show", "services"])
def test_h_is_help(capsys: Captured, command: str) -> None:
    short, long = (call(capsys, *command.split(), option) for option in ("-h", "--help"))
    assert short == long
    assert (short[0], "Usage: kproxylat" in short[1]) == (0, True)


@pytest.mark.parametrize("command", PARAMETERS)
def test_examples_come_first(capsys: Captured, command: str) -> None:
    text = call(capsys, *command.split(), "--help")[1]
    paragraphs = text.split("\n\n")
    assert paragraphs[2].startswith("  Example"), text


def test_the_options_of_run_have_groups(capsys: Captured) -> None:
    """Each option that has many beside it stands below a heading, once."""
    for command in ("run", "sweep"):
        text = call(capsys, command, "--help")[1]
        headings = [line.removesuffix(":") for line in text.splitlines() if line.endswith(":") and line[0] != " "]
        assert headings[0] == "Arguments"
        assert set(headings[1:]) <= set(program.GROUPS)
        assert len(headings) > 6
        for parameter in PARAMETERS[command]:
            if parameter.param_type_name == "option":
                assert len(re.findall(rf"^  (?:-\w, )?{name_of(parameter)}\b[ \n]", text, re.M)) == 1, name_of(
                    parameter
                )
    options = [option for group in program.GROUPS.values() for option in group]
    assert len(set(options)) == len(options)


def test_no_help_line_is_cut(capsys: Captured) -> None:
    for words in ((), ("mode",), ("services",)):
        assert "..." not in call(capsys, *words, "--help")[1].split("Commands:")[1].replace("-1, ...,", "")


def test_a_wrong_value_is_refused_in_our_words(capsys: Captured) -> None:
    for words in (("--services", "many"), ("soon",), ("--clock", "sundial"), ("--format", "xml")):
        err = call(capsys, "run", "--lab", *words)[2]
        assert not [word for word in ("Input should", "unable to parse", "Value error", "Invalid value") if word in err]


def test_a_result_goes_to_a_file(capsys: Captured, tmp_path: Path) -> None:
    printed = call(capsys, "parse", LOG, "-o", "json")[1]
    path = tmp_path / "out.json"
    status, out, err = call(capsys, "parse", LOG, "-o", "json", "--output", str(path))
    assert (status, out, err) == (0, "", f"saved: {path}\n")
    assert path.read_text() == printed
    assert json.loads(printed)["schema"] == "kproxylat/1"
    status, out, err = call(capsys, "parse", LOG, "--output", str(path))
    assert (status, out, path.read_text() == printed) == (1, "", True)
    assert "it exists\n  pass another --output" in err
    assert "no permission to write in /nowhere" in call(capsys, "parse", LOG, "--output", "/nowhere/out")[2]


def test_a_file_gets_what_was_written_before_an_error(capsys: Captured, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    status, _, err = call(capsys, "parse", LOG, "/nowhere", "-o", "csv", "--output", str(path))
    assert (status, len(path.read_text().splitlines())) == (1, 2)
    assert "/nowhere" in err


def test_every_command_with_a_format_writes_to_a_file() -> None:
    for command, parameters in PARAMETERS.items():
        names = {option for parameter in parameters for option in parameter.opts}
        if "--format" in names:
            assert "-o" in names, command
    commands = typer.main.get_command(app.build()).commands  # type: ignore[attr-defined]
    names = {name: {parameter.name for parameter in command.params} for name, command in commands.items()}
    writes = {"run", "sweep", "reproduce", "whatif", "doctor", "parse", "compare", "bill"}
    assert {name for name, own in names.items() if "file" in own} == writes
    assert all({"quiet", "verbose"} <= own for name, own in names.items() if name not in ("mode", "services"))


def test_quiet_and_verbose(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def examine() -> list[object]:
        console.say("error", console.ESSENTIAL)
        console.say("progress")
        console.say("detail", console.DETAIL)
        raise MachineError("failed")

    monkeypatch.setattr("kproxylat.node.doctor.examine", examine)
    said = [call(capsys, "doctor", *words)[2].splitlines() for words in (("-q",), (), ("-v",))]
    end = "kproxylat: failed"
    assert said == [["error", end], ["error", "progress", end], ["error", "progress", "detail", end]]


def test_output_is_not_passed_on_to_a_machine(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inside: list[list[str]] = []

    class Machine(virtual_machine.Machine):
        def __init__(self, *_: object) -> None:
            """Boot nothing."""

        def run(self, argv: list[str], out: object, *_: object, **__: object) -> int:  # type: ignore[override]
            inside.append(argv)
            print("result", file=out)  # type: ignore[call-overload]
            return 4

    monkeypatch.setattr(virtual_machine, "Machine", Machine)
    monkeypatch.setattr(virtual_machine, "boot", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "run", "--lab", "--vm", "--output", "x.txt", "-o", "json")[:2] == (4, "")
    assert inside == [["run", "--lab", "-o", "json"]]
    assert (tmp_path / "x.txt").read_text() == "result\n"


def test_what_is_missing_is_named_before_booting(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(*programs: str) -> str:
        raise MachineError(f"{programs[0]} not found")

    monkeypatch.setattr(virtual_machine, "find", find)
    monkeypatch.setattr(virtual_machine, "find_kernel", lambda *_: Path("vmlinuz-6.1"))
    status, _, err = call(capsys, "render", "--lab", "--vm")
    assert (status, err) == (1, "kproxylat: qemu-system-x86_64 not found\n")


def test_render_names_a_kernel_without_kprobes(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> str:
        raise MachineError("no kprobes (CONFIG_KPROBE_EVENTS)")

    class Script:
        kind = "kprobe"

    monkeypatch.setitem(KINDS, "kprobe", check)
    monkeypatch.setattr("kproxylat.system.kernel.check_root", lambda: None)
    monkeypatch.setattr("kproxylat.measure.plan.load_modules", lambda _: None)
    monkeypatch.setattr("kproxylat.measure.plan.plan_script", lambda _: Script())
    monkeypatch.setattr("kproxylat.trace.script.render_script", lambda *_: "script\n")
    status, out, err = call(capsys, "render", "--lab")
    assert (status, out) == (0, "script\n")
    assert err == "warning: this kernel cannot run the script: no kprobes (CONFIG_KPROBE_EVENTS)\n"


def test_completion() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_KPROXYLAT_COMPLETE": "complete_bash", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "kproxylat"],
        env={**environment, "COMP_WORDS": "kproxylat run --ser"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert sorted(done.stdout.split()) == ["--service", "--services"], done.stderr


KUBECTL = """
import sys
from kproxylat.cli import complete, main
sys.argv[0] = sys.argv.pop(1)
complete() if "_complete-" in sys.argv[0] else main()
"""


def call_plugin(name: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run kproxylat as kubectl runs its plugins, under this name."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    argv = [sys.executable, "-c", KUBECTL, f"/opt/{name}", *words]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("words", "starts"),
    [
        (("mode", ""), ["set\tSet", "show\tShow"]),
        (("mode", "show", "--all"), ["--all-nodes\tIn pods"]),
        (("mode", "show", "it's", "--all"), ["--all-nodes\tIn pods"]),
        (("compare", "x.js"), []),
    ],
)
def test_completion_for_kubectl(words: tuple[str, ...], starts: list[str]) -> None:
    """One completion a line, however long its description is; the last line is a directive of cobra.

    kubectl skips empty lines (kubernetes/kubectl, pkg/cmd/plugin_completion.go).
    """
    done = call_plugin("kubectl_complete-kproxylat", *words)
    *lines, directive = filter(None, done.stdout.splitlines())
    assert (directive, done.stderr) == (":0", "")
    assert len(lines) == len(starts)
    assert all(line.startswith(start) for line, start in zip(sorted(lines), starts, strict=True)), lines


@pytest.mark.parametrize(("path", "client"), [({}, "kubectl"), ({"KUBECTL_PATH": "/usr/local/bin/oc"}, "oc")])
def test_a_plugin_has_the_name_that_people_type(path: dict[str, str], client: str) -> None:
    done = call_plugin("kubectl-kproxylat", "run", "--help", **path)
    assert done.stdout.startswith(f"Usage: {client} kproxylat run [OPTIONS]"), done.stderr
    done = call_plugin("kubectl-kproxylat", "run", "--none", **path)
    assert done.stderr.endswith(f"see {client} kproxylat run --help\n")
    assert call_plugin("kproxylat", "run", "--help", **path).stdout.startswith("Usage: kproxylat run")


def test_yaml_is_the_document_of_json(capsys: Captured, tmp_path: Path) -> None:
    """On stdout and in a file; kubectl's spelling of --dry-run is accepted."""
    words = ("run", "--lab", "--mode", "nftables", "5", "100", "--format")
    document = json.loads(call(capsys, *words, "json", "--dry-run")[1])
    assert yaml.safe_load(call(capsys, *words, "yaml", "--dry-run=client")[1]) == document
    path = tmp_path / "preview.yaml"
    status, out, _ = call(capsys, *words, "yaml", "--dry-run", "--output", str(path))
    assert (status, out, yaml.safe_load(path.read_text())) == (0, "", document)


@pytest.mark.parametrize("word", ["--dry-run=server", "--lab=yes"])
def test_a_flag_takes_no_value(capsys: Captured, word: str) -> None:
    """Also where its output would be YAML."""
    status, out, err = call(capsys, "run", "--lab", "-o", "yaml", word, "5", "100")
    assert (status, out) == (2, "")
    assert err.splitlines()[0] == f"kproxylat: option '{word.partition('=')[0]}' does not take a value"
    assert err.splitlines()[1].endswith(" --help")


@pytest.mark.parametrize("command", [name for name, own in PARAMETERS.items() if "--format" in map(name_of, own)])
def test_yaml_is_wherever_json_is(capsys: Captured, command: str) -> None:
    text = call(capsys, *command.split(), "--help")[1]
    forms = re.search(r"--format <(.*?)>", text)
    assert forms, text
    assert {"json", "yaml"} <= {*forms[1].split("|")} or "json" not in forms[1]
