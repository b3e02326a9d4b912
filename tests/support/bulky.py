"""Texts that would take gigabytes if all of them were kept, and the memory that ``parse`` takes for them."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support import ROOT

LIMIT_MB = 200
_MEASURE = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, status)
"""
"""A small parent: Linux counts the memory that a program's parent had at fork() as the program's own peak."""
ATTACHED = b"Attaching 1 probe...\n\n\n"
JSON = b'{"type": "attached_probes", "data": {"probes": 1}}\n'


def repeat(text: str, times: int) -> Iterator[bytes]:
    """Yield a text with its number, again and again."""
    return (text.format(number).encode() for number in range(times))


def nest(times: int, depth: int) -> Iterator[bytes]:
    """Yield maps of JSON with nested values."""
    value = "[" * depth + "]" * depth
    values = ", ".join(f'"{key}": {value}' for key in range(400_000 // max(depth, 1)))
    return (f'{{"type": "map", "data": {{"@m{number}": {{{values}}}}}}}\n'.encode() for number in range(times))


def begin_runs(times: int, text: bytes, mode: bytes = b"") -> Iterator[bytes]:
    """Yield runs with the same text, each of another mode."""
    header = b"  eBPF Kube-Proxy Latency Experiment\nKube-proxy mode: m%d%s\n"
    return (header % (number, mode) + ATTACHED + text + b"\n" for number in range(times))


LONG = "x" * 1_000_000
BLOCK = b"  [a%d%s] Count: 5, Min: 1 us, Avg: 2 us, Max: 3 us\n"
SLOW = b"12:00:00 SLOW a%d%s: 12 us (tid=1)\n"
KINDS: dict[str, tuple[bytes, Callable[[], Iterator[bytes]]]] = {
    "long strings": (ATTACHED, lambda: repeat(f"@s[{{}}]: {LONG}\n", 40)),
    "long strings that JSON escapes": (ATTACHED, lambda: repeat("@s[{}]: " + "\x01\U0001f600" * 200_000 + "\n", 40)),
    "lines of one string": (ATTACHED, lambda: iter([b"@s: a\n", *repeat(f"{{}}{LONG}\n", 40)])),
    "one key": (ATTACHED, lambda: iter([b"@k[", b"a, " * 340_000, b"1]: 1\n"])),
    "keys of many parts": (ATTACHED, lambda: repeat(f"@k[{{}}, {'a, ' * 90_000}1]: 1\n", 40)),
    "one key of ends": (ATTACHED, lambda: iter([b"@k[", b"]: " * 340_000, b"]: 1\n"])),
    "one key of brackets": (ATTACHED, lambda: iter([b"@k[", b"(1, " * 250_000, b"]: 1\n"])),
    "300,000 keys": (ATTACHED, lambda: repeat("@n[{}]: 1\n", 300_000)),
    "20 maps of 20,000 keys": (ATTACHED, lambda: (
        b"@m%03d[%d]: 1\n" % (name, key) for name in range(20) for key in range(20_000))),
    "lines of keys": (ATTACHED, lambda: repeat(f"@k[{{}}{LONG}\n", 40)),
    "frames": (ATTACHED, lambda: iter([b"@f:\n", *repeat(f"    {{}}{LONG}\n", 40)])),
    "rows": (ATTACHED, lambda: iter([b"@h:\n", *repeat("[{0}, {0}1)   5 |@@|\n", 200_000)])),
    "a line without end": (ATTACHED, lambda: iter([b"@s: ", *repeat(LONG, 40)])),
    "tuples": (ATTACHED, lambda: repeat(f"@t[{{}}]: ({'1, ' * 300_000}1)\n", 40)),
    "signs of a dialect": (b"", lambda: repeat(f"kproxylat: {{}}{LONG}\n", 40)),
    "JSON strings": (JSON, lambda: repeat(f'{{{{"type": "map", "data": {{{{"@s{{}}": "{LONG}"}}}}}}}}\n', 40)),
    "JSON maps": (JSON, lambda: nest(40, 1)),
    "JSON nested": (JSON, lambda: nest(40, 30)),
    "JSON too deep": (JSON, lambda: nest(40, 400)),
    "JSON text without line ends": (JSON, lambda: repeat(f'{{{{"type": "printf", "data": "{LONG}"}}}}\n', 40)),
    "sections": (ATTACHED, lambda: repeat("--- a{}x MODE ---\n", 400_000)),
    "long engines": (b"12:00:00 Statistics:\n", lambda: (
        form % (number, LONG.encode()) for number in range(30) for form in (BLOCK, SLOW))),
    "runs of histograms": (b"", lambda: begin_runs(100, b"@h:\n%s\n" % b"".join(
        b"[%d, %d)   5 |@@|\n" % (low, low + 1) for low in range(2000)))),
    "runs of keys": (b"", lambda: begin_runs(250, b"".join(b"@n[%d]: 1\n" % key for key in range(1000)))),
    "runs of long modes": (b"", lambda: begin_runs(50, b"@n[1]: 1\n", LONG.encode())),
}  # fmt: skip

FULL: dict[str, tuple[bytes, Callable[[], Iterator[bytes]]]] = {
    "strings of 3 GB": (ATTACHED, lambda: repeat(f"@s[{{}}]: {LONG}\n", 3000)),
    "3,000,000 keys": (ATTACHED, lambda: repeat("@n[{}]: 1\n", 3_000_000)),
}
"""Texts that take minutes."""


def write_bulky(path: Path, kind: str) -> None:
    """Write a text of a kind, compressed: 40 MB are a few hundred kB."""
    start, pieces = (KINDS | FULL)[kind]
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(start)
        file.writelines(pieces())


def measure_parse(path: Path, form: str) -> tuple[float, int, str]:
    """Run ``parse``; return its peak memory in MB, its exit status and its stderr."""
    words = [sys.executable, "-m", "kproxylat", "parse", "--format", form, str(path)]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *words], cwd=ROOT, check=True, capture_output=True, text=True
    )  # fmt: skip
    peak_kb, status = map(int, done.stdout.split())
    return peak_kb / 1024, status, done.stderr
