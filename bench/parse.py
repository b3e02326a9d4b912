"""Speed and memory of ``kproxylat parse``, as ratios: ``python bench/parse.py [MEGABYTES] [KIND ...]``.

1. A log of the old dialects against merely iterating over its lines (limit 3), and the peak memory (limit 100 MB).
2. One small log, from process start to output, against a Typer hello-world (limit 1.5).
"""

from __future__ import annotations

import compileall
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = ROOT / "tests" / "dumps" / "0.17.0--report_a_both.log"
ITERATE = "import sys\ndef main():\n    for _ in open(sys.argv[1]): pass\nmain()\n"
HELLO = "import typer\napp = typer.Typer()\n@app.command()\ndef main() -> None:\n    print('hello')\napp()\n"


KINDS = {
    "report": "interval blocks with up to five slow lines between",
    "summary": "table rows",
    "idle": "blocks without a packet",
    "lost": "a line of lost events among 1000",
    "lost50": "a line of lost events among 50",
    "foreign": "a line of another program among 1000",
    "colours": "the times coloured",
    "unspaced": "no blank line before a block",
}


def write_log(path: Path, megabytes: int, kind: str) -> None:
    """Write a log as the old scripts did: of one of the KINDS."""
    dice, second = random.Random(1), 0  # noqa: S311
    report = SMALL.read_text().split("Slow threshold: 100 us\n")
    with path.open("w") as log:
        log.write(report[0] if kind != "summary" else "TIME       | PACKETS/5s   | AVG LATENCY | MAX LATENCY\n")
        while log.tell() < megabytes * 1_000_000:
            for _ in range(1000):
                second += 5
                now = time.strftime("%H:%M:%S", time.gmtime(second))
                if kind == "summary":
                    log.write(f"{now}   | {second % 99991:<12} | {second % 97:<6} us  | {second % 4999:<6} us\n")
                    continue
                if kind == "idle":
                    log.write(f"\n{now} Statistics:\n  No packets traced yet. Is there any traffic?\n")
                    continue
                if second % {"lost": 900, "foreign": 900, "lost50": 45}.get(kind, second + 1) == 0:  # 5.5 lines are 5 s
                    log.write("stdin: no such chain\n" if kind == "foreign" else "Lost 5 events\n")
                now = f"\x1b[32m{now}\x1b[0m" if kind == "colours" else now
                for _ in range(dice.randrange(6)):
                    log.write(f"{now} SLOW iptables: {dice.randrange(100, 5000)} us (tid={dice.randrange(9999)})\n")
                log.write("" if kind == "unspaced" else "\n")
                log.write(f"{now} Statistics:\n  [iptables] Count: {second}, Min: 3 us, Avg: 40 us, Max: 123 us\n")
                log.write(f"  [nftables] Count: {second}, Min: 0 us, Avg: 43 us, Max: 250 us\n")
        log.write(report[1][report[1].index("\n====") :] if kind != "summary" else "")


def measure(command: list[str]) -> float:
    """Return a command's processor time, which other work beside it disturbs less; its output is thrown away."""
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    return end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime


def summarize(rounds: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the medians of both times and of each round's ratio: a machine that is not quiet is less so within one."""
    base, ours = (statistics.median(each) for each in zip(*rounds, strict=True))
    return base, ours, statistics.median(ours / base for base, ours in rounds)


def main() -> None:
    """Print the ratios, of several alternating rounds."""
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    kinds = sys.argv[2:] or ["report"]
    compileall.compile_dir(ROOT / "kproxylat", quiet=1)  # as pip does with what it installs, Typer among it
    parse = [sys.executable, "-m", "kproxylat", "parse", "--format", "json"]
    with tempfile.TemporaryDirectory() as folder:
        log, hello = Path(folder, "a.log"), Path(folder, "hello.py")
        hello.write_text(HELLO)
        for kind in kinds:
            write_log(log, megabytes, kind)
            iterate = [sys.executable, "-c", ITERATE, str(log)]
            measure(iterate)  # into the page cache
            rounds = [(measure(iterate), measure([*parse, str(log)])) for _ in range(9)]
            base, ours, ratio = summarize(rounds)
            figures = f"iterating {base:.2f} s, parsing {ours:.2f} s, ratio {ratio:.2f} (limit 3)"
            print(f"{megabytes} MB {kind} ({KINDS[kind]}): {figures}")
        print(f"peak memory {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000:.0f} MB (limit 100)")
        for output in ("json", "table", "csv") if kinds == ["report"] else ():
            small = [*parse[:-1], output, str(SMALL)]
            rounds = [(measure([sys.executable, str(hello)]), measure(small)) for _ in range(31)]
            base, ours, ratio = summarize(rounds)
            print(f"small log, {output}: Typer {base:.3f} s, ours {ours:.3f} s, ratio {ratio:.2f} (limit 1.5)")


if __name__ == "__main__":
    main()
