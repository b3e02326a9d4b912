"""Builds the client as one file that Python 3.11 runs anywhere, dist/kproxylat.pyz, and an archive of it for krew.

The file holds the packages that kproxylat needs, without compiled parts: no root, no bpftrace, no installation. The
packages lie in .cache/plugin, and are installed anew when pyproject.toml changes.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipapp
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
CACHE, DIST = ROOT / ".cache/plugin", ROOT / "dist"
PURE = ("google-auth<2.30", "kubernetes<34", "typer<0.20")
"""Later versions need compiled packages: cryptography, pydantic-core."""
COMPILED = ("*.so", "bin", "*.dist-info", "__pycache__", "cryptography", "cffi", "pycparser", "pydantic*")
"""What only works on this machine, and no module of ours imports."""


def install_packages(project: dict[str, object]) -> Path:
    """Return a directory with the packages that kproxylat needs."""
    stamp = CACHE / "pyproject.toml"
    packages = CACHE / "packages"
    text = (ROOT / "pyproject.toml").read_text()
    if not (stamp.exists() and stamp.read_text() == text):
        shutil.rmtree(CACHE, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        subprocess.run([*pip, "--target", packages, *project["dependencies"], *PURE], check=True)  # type: ignore[misc]
        for path in [path for pattern in COMPILED for path in packages.rglob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        stamp.write_text(text)
    return packages


def build() -> Path:
    """Build the file and the archive with its manifest; return the file's path."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = install_packages(document["project"])
    package = packages / "kproxylat"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "kproxylat", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "templates", package / "templates")
    DIST.mkdir(exist_ok=True)
    target = DIST / "kproxylat.pyz"
    zipapp.create_archive(packages, target, "/usr/bin/env python3", "kproxylat.cli:main", compressed=True)
    namespace: dict[str, str] = {}
    exec((ROOT / "kproxylat/__init__.py").read_text(), namespace)  # noqa: S102 - our own version
    version = namespace["__version__"]
    archive = DIST / f"kubectl-kproxylat-{version}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(target, "kubectl-kproxylat")
        tar.add(ROOT / "LICENSE", "LICENSE")
    repository = document["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]
    manifest = yaml.safe_load((ROOT / "deploy/krew.yaml").read_text())
    manifest["spec"] |= {"version": f"v{version}", "homepage": repository}
    [platform] = manifest["spec"]["platforms"]
    platform["uri"] = f"{repository}/releases/download/v{version}/{archive.name}"
    platform["sha256"] = hashlib.sha256(archive.read_bytes()).hexdigest()
    (DIST / "krew.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    return target


if __name__ == "__main__":
    print(build())
