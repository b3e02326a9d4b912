"""What is shipped: the wheel has the templates and both commands, the sdist all that git has."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hatchling import build

from tests.support import ROOT

DISTRIBUTIONS = {"prometheus_client": "prometheus-client", "yaml": "pyyaml"}
"""Package as it is imported -> its name in pyproject.toml, where they differ."""
EXTRAS = {"matplotlib": "plot"}
"""Package that an extra installs -> the extra."""


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Build as pip does, but in this process and without a network."""

    def built(kind: str) -> Path:
        directory = tmp_path_factory.mktemp(kind)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            name: str = getattr(build, f"build_{kind}")(str(directory))
        return directory / name

    return built


def test_the_wheel_has_the_templates_and_works(make: Callable[[str], Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(make("wheel")) as wheel:
        wheel.extractall(tmp_path)  # noqa: S202 - it is our own
        names = set(wheel.namelist())
    for directory, inside in (("templates", "kproxylat/templates"), ("kproxylat", "kproxylat")):
        ours = {each.name for each in (ROOT / directory).glob("*.*") if each.is_file()}
        assert ours
        assert {f"{inside}/{each}" for each in ours} <= names
    assert not [each for each in names if not each.startswith("kproxylat")], "nothing else gets into site-packages"
    [entry_points] = tmp_path.glob("*.dist-info/entry_points.txt")
    scripts = dict(line.split(" = ") for line in entry_points.read_text().splitlines() if " = " in line)
    assert set(scripts) == {"kproxylat", "kubectl-kproxylat"}
    for place in scripts.values():
        module, name = place.split(":")
        assert callable(getattr(importlib.import_module(module), name))
    code = (
        "from kproxylat import modes, templates; from kproxylat.lab import rules, services; print(templates.__file__)\n"
    )
    code += "for mode in modes.MODES: rules.render_ruleset(mode, services.place_services(1, 'last', 'both'))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/kproxylat/templates.py\n"), done.stderr


def test_the_sdist_has_all_that_git_has(make: Callable[[str], Path]) -> None:
    with tarfile.open(make("sdist")) as sdist:
        names = {each.name.partition("/")[2] for each in sdist.getmembers()}
    if (ROOT / ".git").exists() and shutil.which("git"):
        words = ["git", "-c", "safe.directory=*", "ls-files"]
        listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        there = {each for each in listed.splitlines() if (ROOT / each).is_file()}
        assert there - names == set()
    assert {"bench/README.md", "docs/templates.md", ".ci/run", "logs/.gitkeep", "tests/conftest.py"} <= names


def imported_packages() -> set[str]:
    """Return the third-party packages that kproxylat imports, inside functions, too."""
    packages = set()
    for path in (ROOT / "kproxylat").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                packages |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                packages.add((node.module or "").split(".")[0])
    return packages - sys.stdlib_module_names - {"kproxylat"}


def test_every_imported_package_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = imported_packages()
    assert {"matplotlib", "prometheus_client", "typer", "yaml"} <= packages
    for package in packages:
        extra = EXTRAS.get(package)
        requirements = project["optional-dependencies"][extra] if extra else project["dependencies"]
        declared = {re.split(r"[^\w.-]", requirement)[0] for requirement in requirements}
        assert DISTRIBUTIONS.get(package, package) in declared
