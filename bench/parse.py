"""Speed and memory of ``kproxylat parse``: ``python bench/parse.py [KIND ...]``.

1. Processor time for 20 MB of a log of the old dialects (limit of a report: 1 s), peak memory for 200 MB (limit 100).
2. Processor time for one small log, from process start to output, divided by that of a Typer hello-world (limit 1.5).
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
    """Run a command without its output; return its processor time, which other work disturbs less than elapsed time."""
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    return end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime


def main() -> None:
    """Print the median time of several rounds, and the peak memory."""
    kinds = sys.argv[1:] or ["report"]
    compileall.compile_dir(ROOT / "kproxylat", quiet=1)  # pip does this for installed packages such as Typer
    parse = [sys.executable, "-m", "kproxylat", "parse", "--format", "json"]
    with tempfile.TemporaryDirectory() as folder:
        log, hello = Path(folder, "a.log"), Path(folder, "hello.py")
        hello.write_text(HELLO)
        for kind in kinds:
            write_log(log, 20, kind)
            seconds = statistics.median(measure([*parse, str(log)]) for _ in range(9))
            print(f"20 MB {kind} ({KINDS[kind]}): {seconds:.2f} s{' (limit 1)' if kind == 'report' else ''}")
        write_log(log, 200, kinds[0])
        seconds = measure([*parse, str(log)])
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
        print(f"200 MB {kinds[0]}: {seconds:.2f} s, peak memory {memory:.0f} MB (limit 100)")
        for output in ("json", "table", "csv") if kinds == ["report"] else ():
            small = [*parse[:-1], output, str(SMALL)]
            rounds = [(measure([sys.executable, str(hello)]), measure(small)) for _ in range(31)]
            hello_s, ours_s = (statistics.median(times) for times in zip(*rounds, strict=True))
            # The ratio of each round: the speed of a busy machine changes less within a round than between rounds.
            ratio = statistics.median(ours / base for base, ours in rounds)
            print(f"small log, {output}: Typer {hello_s:.3f} s, ours {ours_s:.3f} s, ratio {ratio:.2f} (limit 1.5)")


if __name__ == "__main__":
    main()
