"""The command report: one page of results. A file that cannot be read does not stop the others.

Imported in the function: :mod:`kproxylat.report.page`, for the sake of ``--help``, because it imports jinja2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kproxylat.cli.options import Overwrite
from kproxylat.console import ESSENTIAL, say
from kproxylat.errors import LogError, UsageError
from kproxylat.system.files import save_file


def report(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Results, sweeps, comparisons, whatif, reproduce, or logs.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The page: .html, or .md for a pull request.")
    ] = Path("report.html"),
    force: Overwrite = False,
    title: Annotated[str, typer.Option("--title", help="Title of the page.")] = "kube-proxy latency",
) -> None:
    """Write results of any kind into one page that can be sent: sentences, charts, tables and the raw data.

    The page loads nothing from the network. Charts need matplotlib.

    \b
    Examples:
      kproxylat report logs/ebpf/sweep_20260101_120000.json -o report.html
      kproxylat compare old.json new.json --format json > comparison.json
      kproxylat report comparison.json -o report.md
    """
    from kproxylat.report import page

    if output.suffix.lower() not in page.FORMATS:
        raise UsageError(f"{output} is neither HTML nor Markdown", "--output takes a name that ends with .html or .md")
    if output.resolve() in {Path(name).resolve() for name in files}:
        raise UsageError(f"{output} is a file to read, too", "pass another --output")
    parts, problems = [], list[str]()

    def complain(problem: str, remedy: str = "") -> None:
        problems.append(problem)
        say(f"kproxylat: {problem}".replace("\n", "?") + (f"\n  {remedy}" if remedy else ""), ESSENTIAL)

    for name in files:
        try:
            parts.append(page.read_part(name, complain))
        except LogError as error:
            complain(str(error), error.remedy)
    if not parts:
        raise typer.Exit(1)
    if output.suffix.lower() == ".md":
        text = page.write_markdown(title, parts, problems)
    else:
        charts, missing = page.draw_charts(parts)
        for problem in missing:
            say(f"kproxylat: {problem}")
        text = page.write_html(title, parts, charts, [*problems, *missing])
    mark = b"Made by kproxylat " if output.suffix.lower() == ".md" else b'<meta name="generator" content="kproxylat '
    save_file(output, text, "--output, or --force", mark, force)
    say(f"saved: {output}")
    raise typer.Exit(bool(problems))
