"""The packages' order: imports go down only, without a cycle; one importer for each large dependency; no shell."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.support import ROOT

PACKAGE = ROOT / "kproxylat"
ORDER = (
    *("errors", "modes", "results", "results_json", "console"),
    *("system", "templates", "trace", "node", "logs", "traffic", "lab", "cluster"),
    *("analysis", "measure", "sweep", "report", "cli", "guest", "__main__"),
)
"""Packages, and modules beside them, lowest first: each imports only what stands before it."""
IMPORTERS = {
    "sh": {"system.processes"},
    "jinja2": {"templates"},
    "typer": {"cli"},
    "rich": {"console"},
    "kubernetes": {"cluster"},
    "urllib3": {"cluster"},
    "prometheus_client": {"cluster", "report.openmetrics"},
    "matplotlib": {"report.figure", "report.plot"},
    "virtme": set(),
}
"""A dependency -> the modules that import it, or their package."""
PROTOCOLS = {"console", "guest", "traffic.sender", "traffic.responder"}
"""Modules that print: the one for all, and the programs whose stdout another program of ours reads."""
LONGEST = 350
"""Lines of a module, unless its docstring says why it has more ("Longer than 350 lines")."""


def name_module(path: str) -> str:
    """Turn ``system/kernel.py`` into ``system.kernel``; a package's ``__init__.py`` has the package's name."""
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


TEXTS = {name_module(str(path.relative_to(PACKAGE))): path.read_text() for path in PACKAGE.rglob("*.py")}
MODULES = {name: ast.parse(text) for name, text in TEXTS.items()}


def list_imports(module: str) -> Iterator[tuple[str, str]]:
    """List what a module imports, inside functions and for type checkers, too: dotted module, and name in it ("")."""
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def list_own_imports(module: str) -> set[str]:
    """Return the project's modules that a module imports."""
    imported = set()
    for source, name in list_imports(module):
        if source.split(".")[0] == "kproxylat":
            path = source.removeprefix("kproxylat").removeprefix(".")
            inner = f"{path}.{name}".removeprefix(".")
            imported.add(inner if inner in MODULES else path or "__init__")
    return imported - {module}


def test_every_module_is_in_the_order() -> None:
    assert {module.split(".")[0] for module in MODULES} == {*ORDER, "__init__"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module: str) -> None:
    levels = {name: level for level, name in enumerate(("__init__", *ORDER))}
    package = module.split(".")[0]
    above = {
        other
        for other in list_own_imports(module)
        if other.split(".")[0] != package and levels[other.split(".")[0]] > levels[package]
    }
    assert above == set()


def test_no_import_cycle() -> None:
    packages = {module for module in MODULES if any(other.startswith(f"{module}.") for other in MODULES)}
    graph = {module: list_own_imports(module) for module in MODULES if module not in packages}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle: {' -> '.join(error.args[1])}")


def test_the_reader_of_imports_sees_them() -> None:
    assert {"modes", "errors", "system.processes"} <= list_own_imports("node.service_rule")
    assert "system.virtual_machine" in list_own_imports("cli.virtual")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_private_name_is_imported(module: str) -> None:
    private = [
        f"{source}.{name}"
        for source, name in list_imports(module)
        if source.startswith("kproxylat") and name.startswith("_") and not name.startswith("__")
    ]
    assert private == []


@pytest.mark.parametrize(("library", "importers"), IMPORTERS.items())
def test_importers(library: str, importers: set[str]) -> None:
    modules = {module for module in MODULES if library in {source.split(".")[0] for source, _ in list_imports(module)}}
    assert {module if module in importers else module.split(".")[0] for module in modules} == importers


@pytest.mark.parametrize("library", ["subprocess", "pty", "numpy", "requests"])
def test_no_module_imports(library: str) -> None:
    assert [
        module for module in MODULES if library in {source.split(".")[0] for source, _ in list_imports(module)}
    ] == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_shell_and_no_sleeping(module: str) -> None:
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Call):
            words = ast.unparse(node.func)
            assert words not in ("os.system", "os.popen", "time.sleep", "sleep", "eval", "exec"), ast.unparse(node)
            assert "shell" not in {keyword.arg for keyword in node.keywords}, ast.unparse(node)
    assert not {("time", "sleep"), ("os", "system"), ("os", "popen")} & set(list_imports(module))


@pytest.mark.parametrize("module", sorted(MODULES.keys() - PROTOCOLS))
def test_only_the_console_prints(module: str) -> None:
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("print", "sys.stdout.write", "sys.stderr.write"), module
            assert not ast.unparse(node.func).endswith("stdout.writelines"), module


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_long_module_says_why(module: str) -> None:
    head = ast.get_docstring(MODULES[module]) or ""
    assert len(TEXTS[module].splitlines()) <= LONGEST or f"Longer than {LONGEST} lines" in head


def test_no_test_imports_from_a_test() -> None:
    """What tests share stands in tests/support or in a conftest.py."""
    pattern = re.compile(r"^from tests\.\S*test_|^import tests\.\S*test_", re.MULTILINE)
    assert [str(path) for path in (ROOT / "tests").rglob("*.py") if pattern.search(path.read_text())] == []


def test_contributing_shows_the_packages() -> None:
    """The picture of the packages in CONTRIBUTING.md has each one, in the order in which they import."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    places = [re.search(rf"^ *{re.escape(name)}(/|\b)", text, re.MULTILINE) for name in ORDER if name != "__main__"]
    assert None not in places
