"""Exact costs of a Service lookup on five kernels by three versions of bpftrace, held against bench/golden.json.

    python bench/matrix.py [--update] [--resume] [KERNEL/ROOT ...]

Boots each kernel over each root on the instruction clock, sweeps every backend with every kind of probe, and prints
one table. Fails if the counts of a run disagree, or if a value is not the one of golden.json; ``--update`` writes what
it measured there, and both tables of bench/README.md: say why in the commit. It fetches what it boots (root file
systems by debootstrap, and kernels; 4 GB) into .cache/matrix from where this machine's apt has its own packages. Root
only.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from kproxylat.analysis.series import HASH_EFFECT
from kproxylat.console import say
from kproxylat.errors import KproxylatError, MachineError
from kproxylat.system import virtual_machine
from kproxylat.system.virtual_machine import PACKAGE, Machine

HERE = Path(__file__).parent
CACHE = HERE.parent / ".cache/matrix"
GOLDEN = HERE / "golden.json"
README = HERE / "README.md"
KERNELS = {
    "5.10": "bullseye",
    "6.1": "bookworm",
    "6.12": "trixie",
    "backports": "trixie-backports",
    "sid": "sid",
}
"""Name of a kernel -> the Debian release or suite whose kernel it is."""
MOVING = {"backports", "sid"}
"""Kernels whose version Debian raises now and then."""


class Root(NamedTuple):
    """A root file system: its Python, and the kernels that boot over it."""

    python: str
    kernels: tuple[str, ...]


ROOTS = {
    "bookworm": Root("3.11", ("5.10", "6.1", "6.12")),
    "trixie": Root("3.13", ("5.10", "6.1", "6.12", "backports")),
    "sid": Root("3.14", ("sid",)),
}
"""Debian release, of bpftrace 0.17, 0.23 and the newest -> its root file system."""
PLACES = [f"{kernel}/{name}" for name, root in ROOTS.items() for kernel in root.kernels]
PACKAGES = "python3,bpftrace,iptables,nftables,ipvsadm,ipset,conntrack,iproute2,kmod,linux-libc-dev,nfacct,procps,udev"
TOOLS = {"iptables": "iptables", "nft": "nft", "python": "python3"}
"""Key of a place's result -> the program of the root file system whose version it holds."""
SERVICES = "10,1000"
UNTYPED = {"5.10"}
"""Kernels whose modules have no types, so that kprobes are all there is."""
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

BOOT_LIMIT_S = 1200
"""A person waits 300 s for a machine; a matrix runs beside other work."""

Costs = dict[str, int]
"""``MODE/BACKEND PROBE SERVICES`` -> instructions of the commonest lookup."""


def run(*argv: str | Path, cwd: Path | None = None) -> str:
    """Run a program and return its stdout. Its stderr appears only in the error.

    :raises MachineError: the program is missing or fails.
    """
    try:
        return subprocess.run(argv, cwd=cwd, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise MachineError(f"{argv[0]} not found", f"apt-get install {argv[0]}") from None
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout).strip().splitlines()
        raise MachineError(f"{argv[0]} failed (status {error.returncode}): {' '.join(lines[-1:])}") from None


def make(path: Path, build: Callable[[Path], None]) -> Path:
    """Build a directory of the cache unless it exists: whole or not at all."""
    if not path.exists():
        say(f"making {path}")
        part = path.with_name(f"{path.name}.part")
        # An interrupted debootstrap leaves the kernel's file systems mounted.
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((mount for mount in mounts if mount.startswith(f"{part}/")), reverse=True):
            run("umount", mount)
        run("rm", "-rf", "--one-file-system", part)
        part.mkdir(parents=True)
        build(part)
        part.rename(path)
    return path


def find_mirror() -> str:
    """Return the address of the Debian packages that this machine's apt uses.

    :raises MachineError: it has none.
    """
    filters = "Created-By: Packages", "Origin: Debian", "Component: main"
    targets = run("apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", *filters)
    # bookworm-security and the like have an archive of their own.
    mirrors = [line.split()[1] for line in targets.splitlines() if "-" not in line.split()[0]]
    if not mirrors:
        raise MachineError("apt knows no Debian packages here", "apt-get update, on Debian")
    return mirrors[0]


def make_kernel(kernel: str) -> Path:
    """Fetch a Debian release's kernel and return its directory.

    lib/modules/ is below it or below its usr/. The image is in boot/, or beside the modules since Linux 7.
    """

    def build(part: Path) -> None:
        for name in ("lists/partial", "archives/partial"):
            (part / "apt" / name).mkdir(parents=True)
        sources = part / "apt/sources.list"
        sources.write_text(f"deb [signed-by={KEYRING}] {find_mirror()} {KERNELS[kernel]} main\n")
        settings = {
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": "-",
            "Dir::State": part / "apt",
            "Dir::Cache": part / "apt",
            "Dir::State::status": "/dev/null",
            "APT::Sandbox::User": "root",
        }
        options = [f"-o{name}={value}" for name, value in settings.items()]
        run("apt-get", *options, "update")
        depends = run("apt-cache", *options, "depends", "--recurse", "--important", "linux-image-amd64")
        packages = sorted(set(re.findall(r"^linux-(?:image|binary|modules)-\d\S+$", depends, re.M)))
        run("apt-get", *options, "download", *packages, cwd=part)
        for package in part.glob("*.deb"):
            run("dpkg-deb", "--extract", package, part)
            package.unlink()
        shutil.rmtree(part / "apt")

    return make(CACHE / f"linux-{kernel}", build)


def install_kernel(kernel: str, top: Path) -> Path:
    """Copy a kernel and its modules into a root file system and return its image there."""
    source = make_kernel(kernel)
    [modules] = source.glob("**/lib/modules/*")

    def build(part: Path) -> None:
        shutil.copytree(modules, part, symlinks=True, dirs_exist_ok=True)

    target = make(top / "usr/lib/modules" / modules.name, build)
    run("depmod", "-b", top, modules.name)
    for image in source.glob("boot/vmlinuz-*"):
        return Path(shutil.copy(image, top / "boot"))
    return target / "vmlinuz"


def make_root(root: str) -> Path:
    """Make a root file system with bpftrace, and with this kproxylat as it is now."""

    def build(part: Path) -> None:
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", root, part, find_mirror())

    top = make(CACHE / root, build)
    package = top / PACKAGE.lstrip("/")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target")
    if not package.exists():
        binary = ("--only-binary=:all:", "--python-version", ROOTS[root].python)
        run(*pip, package, *binary, HERE.parent)
    for source in ("kproxylat", "templates"):
        target = package / "kproxylat" / ("" if source == "kproxylat" else source)
        shutil.rmtree(target, ignore_errors=source == "templates")
        shutil.copytree(HERE.parent / source, target, ignore=shutil.ignore_patterns("__pycache__"))
    # The guest cannot write to it, and would compile everything anew at each boot.
    run("chroot", top, "python3", "-m", "compileall", "-q", PACKAGE)
    return top


def read_versions(top: Path) -> dict[str, str]:
    """Return the versions of a root file system's :data:`TOOLS`, and its architecture."""
    versions = {}
    for key, program in TOOLS.items():
        text = run("chroot", top, program, "--version")
        [versions[key]] = re.findall(r"\bv?(\d+(?:\.\d+)+)", text.splitlines()[0])
    return versions | {"architecture": run("chroot", top, "dpkg", "--print-architecture").strip()}


def measure(kernel: str, root: str, resume: bool) -> dict[str, Any]:
    """Boot one kernel over one root and sweep.

    :param resume: take the runs that an interrupted call has measured.
    :return: "kernel" and "bpftrace", as they call themselves; what :func:`read_versions` returns; "lookups":
        :data:`Costs`.
    :raises MachineError: the machine did not boot, or a sweep failed, which it also does if its counts disagree.
    """
    top = make_root(root)
    image = install_kernel(kernel, top)
    virtual_machine.BOOT_LIMIT_S = BOOT_LIMIT_S
    with Machine("instructions", top / "srv", kernel=image, root=top) as machine:
        results: list[dict[str, Any]] = []
        for probe in ("kprobe",) if kernel in UNTYPED else ("fentry", "kprobe"):
            saved = top / "srv" / f"{kernel}-{probe}.json"
            if not (resume and saved.exists()):
                out, err = io.StringIO(), io.StringIO()
                words = f"sweep --lab --format json --services {SERVICES} --probe {probe} --protocol udp --output-dir"
                fresh = [] if resume else ["--fresh"]
                status = machine.run([*words.split(), machine.inside, *fresh], out, err)
                if status:
                    message = " ".join(err.getvalue().splitlines()[-2:])
                    raise MachineError(f"{kernel}/{root} by {probe}: status {status}: {message}")
                saved.write_text(out.getvalue())
            results += json.loads(saved.read_text())["results"]
    for warning in (warning for result in results for warning in result["quality"]["warnings"]):
        if "WARNING" in warning:
            raise MachineError(f"{kernel}/{root}: bpftrace warns of its script: {warning}")
    about = results[0]["run"]
    versions = {"kernel": about["kernel"], "bpftrace": about["bpftrace"]} | read_versions(top)
    return versions | {"lookups": dict(map(_read, results))}


def _read(result: dict[str, Any]) -> tuple[str, int]:
    run, [lookup] = result["run"], [probe for probe in result["probes"] if probe["lookup"]]
    return f"{run['mode']}/{run['backend']} {run['probe_kind']} {run['services']}", lookup["mode"]


def compare(place: str, golden: Mapping[str, Any] | None, result: Mapping[str, Any]) -> list[str]:
    """Return the differences from golden.json, a line each.

    Outside of mode iptables, hash seeds may change a value (docs/numbers.md).
    """
    if golden is None:
        return [f"{place}: not in golden.json"]
    lines = [
        f"{place}: {name} {golden.get(name)} -> {value}"
        for name, value in result.items()
        if name != "lookups" and value != golden.get(name)
    ]
    before, now = golden["lookups"], result["lookups"]
    for name in sorted(before.keys() | now.keys()):
        allowed = 0 if name.startswith("iptables/") else HASH_EFFECT
        if name not in before or name not in now or abs(before[name] - now[name]) > allowed:
            lines.append(f"{place}: {name} {before.get(name)} -> {now.get(name)}")
    return lines


def draw(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw the table of costs: backend, probe and Services down, kernel and bpftrace across."""
    names = dict.fromkeys(name for result in results.values() for name in result["lookups"])
    lines = []
    for head, key in (("Linux", "kernel"), ("bpftrace", "bpftrace")):
        versions = [".".join(result[key].lstrip("v").split(".")[:2]) for result in results.values()]
        lines.append(f"{head:<27}" + "".join(f"{version:>7}" for version in versions))
    for name in sorted(names, key=lambda name: (name.split()[:2], int(name.split()[2]))):
        costs = [result["lookups"].get(name) for result in results.values()]
        lines.append(f"{name:<27}" + "".join(f"{'-' if cost is None else f'{cost:,}':>7}" for cost in costs))
    return "\n".join(lines)


def list_versions(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the table of versions that were tried, in Markdown."""
    columns = ("kernel", "bpftrace", *TOOLS, "architecture")
    rows = [("place", *columns, "probes"), ("---",) * (len(columns) + 2)]
    for place, result in results.items():
        probes = sorted({name.split()[1] for name in result["lookups"]})
        rows.append((place, *(result[column].lstrip("v") for column in columns), ", ".join(probes)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def document(text: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return README's text with both tables, each between its marks, as these results give them."""
    tables = {"costs": f"```\n{draw(results)}\n```", "versions": list_versions(results)}
    for name, table in tables.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->")
        text = f"{before}{begin}{table}\n{end}{after}"
    return text


def main(words: Iterable[str]) -> None:
    """Measure, print, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write golden.json and README's tables")
    parser.add_argument("--resume", action="store_true", help="take the runs that an interrupted call has measured")
    parser.add_argument("places", nargs="*", metavar="KERNEL/ROOT", help=f"of {', '.join(PLACES)} (all)")
    options = parser.parse_args(list(words))
    if unknown := set(options.places) - set(PLACES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if os.geteuid():
        raise MachineError("making root file systems takes root", "run it with sudo")
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    results: dict[str, dict[str, Any]] = {}
    for place in options.places or PLACES:
        say(f"== {place}")
        kernel, root = place.split("/")
        results[place] = measure(kernel, root, options.resume)
    print(draw(results))
    differences = [line for place, result in results.items() for line in compare(place, golden.get(place), result)]
    print(*(differences or ["as in golden.json"]), sep="\n")
    if options.update:
        merged = {place: (golden | results)[place] for place in PLACES if place in golden | results}
        GOLDEN.write_text(json.dumps(merged, indent=1) + "\n")
        README.write_text(document(README.read_text(), merged))
    elif differences:
        raise MachineError(
            f"{len(differences)} values are not those of golden.json", "explain them, then pass --update"
        )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KproxylatError as error:
        say(f"{error}\n  {error.remedy}" if error.remedy else str(error))
        sys.exit(error.exit_code)
