"""The package's layers: imports go strictly down; one importer for each big dependency; no shell, no sleeping."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "kproxylat"
LAYERS = (
    {"__init__", "anonymous", "errors", "model", "sender", "stats", "values"},
    {"interrupts", "iptables_save", "rights"},
    {
        "modes",
        "dump",
        "proc",
        "render",
        "rulecheck",
        "samples",
        "metrics",
        "legacy",
        "logfile",
        "percentiles",
        "screen",
        "comparable",
    },
    {"detect", "files"},
    {"crash"},
    {"kernel", "net", "traffic", "lab", "vm", "probes", "export", "cluster", "liverules", "series", "nodes"},
    {"bpftrace", "changes", "contrast", "drops", "dummies", "machine", "proxyconfig", "record", "sources", "target"},
    {"clusterips", "ranking"},
    {"ruleset"},
    {
        "books",
        "comparison",
        "doctor",
        "logs",
        "overhead",
        "plan",
        "runlog",
        "proxymode",
        "sending",
        "worker",
    },
    {"capture", "compare", "conntrack", "lookup", "parsing", "replay", "sync"},
    {"rollout", "stage"},
    {"measure"},
    {"plot", "sweep", "watch", "whatif"},
    {"clustersweep", "pool"},
    {"cli_options", "cli_vm"},
    {"cli_cluster", "cli_read", "cli_run", "cli_sweep"},
    {"cli"},
    {"__main__", "guest"},
)
"""Modules by layer, the lowest first."""
IMPORTERS = {
    "sh": {"proc"},
    "jinja2": {"render"},
    "typer": {"cli", "cli_cluster", "cli_options", "cli_read", "cli_run", "cli_sweep", "cli_vm"},
    "rich": {"screen"},
    "kubernetes": {"cluster"},
    "urllib3": {"cluster"},
    "prometheus_client": {"metrics", "sync"},
    "matplotlib": {"plot"},
}
"""A dependency -> the modules that import it: one, but for the command line, which is in several."""
MODULES = {path.stem: ast.parse(path.read_text()) for path in PACKAGE.glob("*.py")}
LEVELS = {module: level for level, layer in enumerate(LAYERS) for module in layer}


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Walk a module, but for what only type checkers see."""
    for each in ast.iter_child_nodes(node):
        if isinstance(each, ast.If) and ast.unparse(each.test) == "TYPE_CHECKING":
            continue
        yield each
        yield from walk(each)


def imported(module: str) -> Iterator[str]:
    """List the dotted names that a module imports, inside functions, too."""
    for node in walk(MODULES[module]):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            yield from (f"{node.module}.{each.name}" for each in node.names)


def ours(module: str) -> set[str]:
    """Return the modules of the package that a module imports."""
    names = [name.split(".") for name in imported(module) if name.split(".")[0] == "kproxylat"]
    return {name[1] if len(name) > 1 and name[1] in MODULES else "__init__" for name in names}


def test_every_module_has_a_layer() -> None:
    assert set(LEVELS) == set(MODULES)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module: str) -> None:
    assert {each for each in ours(module) if LEVELS[each] >= LEVELS[module]} == set()


def test_the_table_of_layers_sees_imports() -> None:
    assert {"proc", "modes", "model", "errors"} <= ours("detect")
    assert {"plan", "vm", "screen"} <= ours("cli_run") | ours("cli_vm")  # these import inside their functions


@pytest.mark.parametrize(("library", "importers"), IMPORTERS.items())
def test_importers(library: str, importers: set[str]) -> None:
    assert {module for module in MODULES if library in {name.split(".")[0] for name in imported(module)}} == importers


@pytest.mark.parametrize("library", ["subprocess", "pty", "numpy", "requests"])
def test_nobody_imports(library: str) -> None:
    assert [module for module in MODULES if library in {name.split(".")[0] for name in imported(module)}] == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_shell_and_no_sleeping(module: str) -> None:
    for node in walk(MODULES[module]):
        if isinstance(node, ast.Call):
            words = ast.unparse(node.func)
            assert words not in ("os.system", "os.popen", "time.sleep", "sleep", "eval", "exec"), ast.unparse(node)
            assert "shell" not in {each.arg for each in node.keywords}, ast.unparse(node)
    assert not {"time.sleep", "os.system", "os.popen"} & set(imported(module))
