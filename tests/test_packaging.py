"""What is shipped: the wheel has the templates and both commands, the sdist all that git has."""

from __future__ import annotations

import ast
import email
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

import hatch_build
from kproxylat import __version__
from tests.support import ROOT

pytestmark = pytest.mark.slow

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
    places = {"templates": "kproxylat/templates", "docs": "kproxylat/docs", "kproxylat": "kproxylat"}
    for directory, inside in places.items():
        ours = {each.name for each in (ROOT / directory).glob("*.*") if each.is_file()}
        assert ours
        assert {f"{inside}/{each}" for each in ours} <= names
    assert not [each for each in names if not each.startswith("kproxylat")], "nothing else gets into site-packages"
    [entry_points] = tmp_path.glob("*.dist-info/entry_points.txt")
    scripts = dict(line.split(" = ") for line in entry_points.read_text().splitlines() if " = " in line)
    assert set(scripts) == {"kproxylat", "kubectl-kproxylat", "kubectl_complete-kproxylat"}
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


@pytest.fixture(scope="module")
def installed(make: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel as pip does, and return the prefix."""
    prefix = tmp_path_factory.mktemp("prefix")
    words = ["install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", "--prefix", str(prefix)]
    subprocess.run([sys.executable, "-m", "pip", *words, str(make("wheel"))], check=True)
    return prefix


def run_installed(prefix: Path, program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the installed wheel, far from the checkout."""
    [packages] = prefix.glob("lib/python*/site-packages")
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    return subprocess.run(
        [prefix / "bin" / program, *words], cwd=prefix, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("program", ["kproxylat", "kubectl-kproxylat"])
def test_both_programs_are_installed(installed: Path, program: str) -> None:
    done = run_installed(installed, program, "--version")
    assert (done.returncode, done.stdout) == (0, f"kproxylat {__version__}\n"), done.stderr


def test_the_readmes_links_reach_both_programs(tmp_path: Path) -> None:
    [command] = re.findall(r"^ln -s .+$", (ROOT / "README.md").read_text(), re.M)
    programs = [tmp_path / ".venv/bin" / name for name in ("kproxylat", "kubectl-kproxylat")]
    programs[0].parent.mkdir(parents=True)
    for program in programs:
        program.touch()
    (tmp_path / "bin").mkdir()
    line = command.replace("/usr/local/bin", str(tmp_path / "bin"))
    subprocess.run(["sh", "-c", line], cwd=tmp_path, env={"PATH": os.environ["PATH"], "PWD": str(tmp_path)}, check=True)
    assert sorted(link.resolve() for link in (tmp_path / "bin").iterdir()) == programs


def test_the_pages_that_messages_cite_are_installed(installed: Path) -> None:
    sources = "".join(path.read_text() for path in (ROOT / "kproxylat").rglob("*.py"))
    cited = set(re.findall(r"find_page\(.(\S+\.md).\)", sources))
    assert {"rbac.md", "templates.md"} <= cited
    [packages] = installed.glob("lib/python*/site-packages")
    code = f"from kproxylat.errors import find_page; print(*map(find_page, {sorted(cited)}), sep='\\n')"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=installed, env={**os.environ, "PYTHONPATH": str(packages)}, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert shown == [str(packages / "kproxylat/docs" / name) for name in sorted(cited)]
    assert all(Path(page).is_file() for page in shown)


def read_messages() -> str:
    """Return the texts of kproxylat, without docstrings and comments."""
    texts = []
    for path in (ROOT / "kproxylat").rglob("*.py"):
        tree = ast.parse(path.read_text())
        statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in statements)
        texts += [str(node.value) for node in constants if isinstance(node.value, str)]
    return "\n".join(texts)


def test_messages_cite_no_file_that_the_wheel_lacks() -> None:
    assert re.findall(r"\b(?:docs/\S+|README\S*|CONTRIBUTING\S*|CHANGELOG\S*|SECURITY\S*)", read_messages()) == []


def test_the_metadata_are_complete(installed: Path) -> None:
    [file] = installed.glob("lib/python*/site-packages/*.dist-info/METADATA")
    metadata = email.message_from_string(file.read_text())
    assert metadata["Author"] == "kproxylat contributors"
    assert len(metadata.get_all("Classifier") or []) > 5
    assert metadata["Description-Content-Type"] == "text/markdown"
    description = str(metadata.get_payload())
    assert "# kproxylat" in description
    assert [target for target in re.findall(r"\]\(([^)]+)\)", description) if not target.startswith("https://")] == []


def test_links_become_absolute_where_the_owner_writes_an_address() -> None:
    text = "![A graph](docs/demo.png)\n[page](docs/x.md), [site](https://k.example), [part](#use)"
    absolute = hatch_build.make_absolute(text, "https://host.example/kproxylat")
    assert absolute.split() == [
        *("![A", "graph](https://host.example/kproxylat/raw/HEAD/docs/demo.png)"),
        "[page](https://host.example/kproxylat/blob/HEAD/docs/x.md),",
        *("[site](https://k.example),", "[part](#use)"),
    ]
    assert hatch_build.make_absolute(text, "") == "page, [site](https://k.example), [part](#use)"


@pytest.mark.parametrize(("architecture", "root"), [("", "root"), ("amd64", "root"), ("arm64", "root-arm64")])
def test_an_image_for_another_architecture(architecture: str, root: str, tmp_path: Path) -> None:
    """The programs that build it are stubs, which note their arguments."""
    for name in ("deploy", "kproxylat", "templates"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    stubs = tmp_path / "bin"
    stubs.mkdir()
    for name, line in {
        "dpkg": "echo amd64",
        "mmdebstrap": 'for last; do :; done; mkdir -p "$last/srv" "$last/usr/lib/python3/dist-packages"',
        "chroot": "",
        "buildah": '[ "$1" = mount ] && mkdir -p mounted && echo mounted',
    }.items():
        (stubs / name).write_text(f'#!/bin/sh\necho {name} "$@" >>calls\n{line}\nexit 0\n')
        (stubs / name).chmod(0o755)
    environment = {"PATH": f"{stubs}:{os.environ['PATH']}", "ARCHITECTURE": architecture}
    text = subprocess.run(
        [tmp_path / "deploy/image.sh"], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    built = architecture or "amd64"
    assert text.stdout == f"dist/kproxylat-{__version__}-{built}.tar\n"
    assert (tmp_path / ".cache/image" / root / "usr/lib/python3/dist-packages/kproxylat/cli").is_dir()
    calls = (tmp_path / "calls").read_text()
    assert f"--architectures={built} " in calls
    assert f"buildah config --arch {built} " in calls
