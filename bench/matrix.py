"""Exact costs of a Service lookup on three kernels by two versions of bpftrace, held against bench/golden.json.

    python bench/matrix.py [--update] [KERNEL/ROOT ...]

Boots each kernel over each root on the instruction clock, sweeps every backend with every kind of probe that there is,
and prints one table. Fails if the books of a run do not close, or if a value is not the one of golden.json;
``--update`` writes what it measured there: say why in the commit. What it takes (two root file systems by debootstrap,
three kernels; 2 GB) it fetches into .cache/matrix from where this machine's apt has its own packages. Root only.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from kproxylat.analysis.series import HASH_EFFECT
from kproxylat.console import say
from kproxylat.errors import KproxylatError, MachineError
from kproxylat.system.virtual_machine import PACKAGE, Machine

HERE = Path(__file__).parent
CACHE = HERE.parent / ".cache/matrix"
GOLDEN = HERE / "golden.json"
KERNELS = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie"}
"""Kernel -> the Debian release whose kernel it is."""
ROOTS = {"bookworm": "3.11", "trixie": "3.13"}
"""Debian release, of bpftrace 0.17 and 0.23 -> its Python."""
PLACES = [f"{kernel}/{root}" for root in ROOTS for kernel in KERNELS]
PACKAGES = "python3,bpftrace,iptables,nftables,ipvsadm,ipset,conntrack,iproute2,kmod,linux-libc-dev,nfacct,procps,udev"
SERVICES = "10,1000"
UNTYPED = {"5.10"}
"""Kernels whose modules have no types, so that kprobes are all there is."""
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

Costs = dict[str, int]
"""``MODE/BACKEND PROBE SERVICES`` -> instructions of the commonest lookup."""


def run(*argv: str | Path, cwd: Path | None = None) -> str:
    """Run a program and return its stdout; its stderr is seen only where it fails.

    :raises MachineError: it is not there, or fails.
    """
    try:
        return subprocess.run(argv, cwd=cwd, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise MachineError(f"{argv[0]} not found", f"apt-get install {argv[0]}") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines()[-1:]
        raise MachineError(f"{argv[0]} failed (status {error.returncode}): {' '.join(said)}") from None


def make(path: Path, build: Callable[[Path], None]) -> Path:
    """Build a directory of the cache, unless it is there: whole or not at all."""
    if not path.exists():
        say(f"making {path}")
        part = path.with_name(f"{path.name}.part")
        # An interrupted debootstrap leaves the kernel's file systems mounted.
        mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for each in sorted((each for each in mounted if each.startswith(f"{part}/")), reverse=True):
            run("umount", each)
        run("rm", "-rf", "--one-file-system", part)
        part.mkdir(parents=True)
        build(part)
        part.rename(path)
    return path


def find_mirror() -> str:
    """Return the address of the Debian packages that this machine's apt uses.

    :raises MachineError: it has none.
    """
    wanted = "Created-By: Packages", "Origin: Debian", "Component: main"
    listed = run("apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", *wanted)
    # bookworm-security and the like have an archive of their own.
    mirrors = [line.split()[1] for line in listed.splitlines() if "-" not in line.split()[0]]
    if not mirrors:
        raise MachineError("apt knows no Debian packages here", "apt-get update, on Debian")
    return mirrors[0]


def make_kernel(kernel: str) -> Path:
    """Fetch a Debian release's kernel; boot/ and lib/modules/ are below what is returned, or below its usr/."""

    def build(part: Path) -> None:
        for each in ("lists/partial", "archives/partial"):
            (part / "apt" / each).mkdir(parents=True)
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
        package = run("apt-cache", *options, "depends", "linux-image-amd64").split("Depends: ")[1].split()[0]
        run("apt-get", *options, "download", package, cwd=part)
        [deb] = part.glob("*.deb")
        run("dpkg-deb", "--extract", deb, part)
        deb.unlink()
        shutil.rmtree(part / "apt")

    return make(CACHE / f"linux-{kernel}", build)


def make_root(root: str) -> Path:
    """Make a root file system with bpftrace, all kernels, and this kproxylat as it is now."""

    def build(part: Path) -> None:
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", root, part, find_mirror())
        for kernel in map(make_kernel, KERNELS):
            [image], [modules] = kernel.glob("boot/vmlinuz-*"), [*kernel.glob("**/lib/modules/*")]
            shutil.copy(image, part / "boot")
            shutil.copytree(modules, part / "usr/lib/modules" / modules.name, symlinks=True)
            run("depmod", "-b", part, modules.name)

    made = make(CACHE / root, build)
    package = made / PACKAGE.lstrip("/")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target")
    if not package.exists():
        binary = ("--only-binary=:all:", "--python-version", ROOTS[root])
        run(*pip, package, *binary, HERE.parent)
    for source in ("kproxylat", "templates"):
        target = package / "kproxylat" / ("" if source == "kproxylat" else source)
        shutil.rmtree(target, ignore_errors=source == "templates")
        shutil.copytree(HERE.parent / source, target, ignore=shutil.ignore_patterns("__pycache__"))
    # The guest cannot write to it, and would compile everything anew at each boot.
    run("chroot", made, "python3", "-m", "compileall", "-q", PACKAGE)
    return made


def measure(kernel: str, root: str) -> dict[str, Any]:
    """Boot one kernel over one root and sweep.

    :return: "kernel" and "bpftrace", as they call themselves, and "lookups": :data:`Costs`.
    :raises MachineError: it did not boot, or a sweep failed; books that do not close are a failure, too.
    """
    top = make_root(root)
    [image] = (top / "boot").glob(f"vmlinuz-{kernel}.*")
    with Machine("instructions", top / "srv", kernel=image, root=top) as machine:
        results: list[dict[str, Any]] = []
        for probe in ("kprobe",) if kernel in UNTYPED else ("fentry", "kprobe"):
            out, err = io.StringIO(), io.StringIO()
            words = (
                f"sweep --lab --fresh --format json --services {SERVICES} --probe {probe} --protocol udp --output-dir"
            )
            status = machine.run([*words.split(), machine.inside], out, err)
            if status:
                said = " ".join(err.getvalue().splitlines()[-2:])
                raise MachineError(f"{kernel}/{root} by {probe}: status {status}: {said}")
            results += json.loads(out.getvalue())["results"]
    about = results[0]["run"]
    return {"kernel": about["kernel"], "bpftrace": about["bpftrace"], "lookups": dict(map(_read, results))}


def _read(result: dict[str, Any]) -> tuple[str, int]:
    run, [lookup] = result["run"], [probe for probe in result["probes"] if probe["lookup"]]
    return f"{run['mode']}/{run['backend']} {run['probe_kind']} {run['services']}", lookup["mode"]


def compare(place: str, golden: Mapping[str, Any] | None, found: Mapping[str, Any]) -> list[str]:
    """Return what differs from golden.json, a line each.

    Hash seeds may make another value outside of mode iptables (docs/numbers.md).
    """
    if golden is None:
        return [f"{place}: not in golden.json"]
    said = [
        f"{place}: {name} {golden[name]} -> {found[name]}"
        for name in ("kernel", "bpftrace")
        if golden[name] != found[name]
    ]
    before, now = golden["lookups"], found["lookups"]
    for name in sorted(before.keys() | now.keys()):
        allowed = 0 if name.startswith("iptables/") else HASH_EFFECT
        if name not in before or name not in now or abs(before[name] - now[name]) > allowed:
            said.append(f"{place}: {name} {before.get(name)} -> {now.get(name)}")
    return said


def draw(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw the table: backend, probe and Services down, kernel and bpftrace across."""
    places = list(found)
    names = list(dict.fromkeys(name for place in places for name in found[place]["lookups"]))
    heads = [
        ".".join(found[place][what].lstrip("v").split(".")[:2]) for what in ("kernel", "bpftrace") for place in places
    ]
    kernels, bpftraces = heads[: len(places)], heads[len(places) :]
    lines = [
        f"{'Linux':<30}" + "".join(f"{each:>8}" for each in kernels),
        f"{'bpftrace':<30}" + "".join(f"{each:>8}" for each in bpftraces),
    ]
    for name in sorted(names, key=lambda each: (each.split()[:2], int(each.split()[2]))):
        costs = [found[place]["lookups"].get(name) for place in places]
        lines.append(f"{name:<30}" + "".join(f"{'-' if cost is None else f'{cost:,}':>8}" for cost in costs))
    return "\n".join(lines)


def main(words: Iterable[str]) -> None:
    """Measure, print, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write golden.json")
    parser.add_argument("places", nargs="*", metavar="KERNEL/ROOT", help=f"of {', '.join(PLACES)} (all)")
    options = parser.parse_args(list(words))
    if unknown := set(options.places) - set(PLACES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if os.geteuid():
        raise MachineError("making root file systems takes root", "run it with sudo")
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    found: dict[str, dict[str, Any]] = {}
    for place in options.places or PLACES:
        say(f"== {place}")
        found[place] = measure(*place.split("/"))
    print(draw(found))
    different = [line for place, each in found.items() for line in compare(place, golden.get(place), each)]
    print(*(different or ["as in golden.json"]), sep="\n")
    if options.update:
        merged = {place: (golden | found)[place] for place in PLACES if place in golden | found}
        GOLDEN.write_text(json.dumps(merged, indent=1) + "\n")
    elif different:
        raise MachineError(f"{len(different)} values are not those of golden.json", "explain them, then pass --update")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KproxylatError as error:
        say(f"{error}\n  {error.remedy}" if error.remedy else str(error))
        sys.exit(error.exit_code)
