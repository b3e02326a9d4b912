"""Reports: documents and logs of any kind -> one page of HTML, or Markdown for a pull request."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from io import BytesIO
from typing import Any, NamedTuple

from kproxylat import __version__
from kproxylat.analysis.bill import SCHEMA as BILL
from kproxylat.analysis.comparison import SCHEMA as COMPARISON
from kproxylat.console import plain
from kproxylat.errors import KproxylatError, LogError
from kproxylat.logs.files import open_log, read_whole
from kproxylat.logs.reader import LogReader
from kproxylat.report.figure import write_inline
from kproxylat.report.sections import KINDS, MANY, Complain, Section
from kproxylat.results import SCHEMA
from kproxylat.results_json import list_to_json, load_json
from kproxylat.templates import render_page

FORMATS = (".html", ".md")
_SPECIAL = re.compile(r"([\\`*_\[\]~#])")


_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a document raises whose members have other types, or values that no measurement has."""


class Part(NamedTuple):
    """One document of a report: the file it was read from, and its JSON."""

    name: str
    section: Section
    raw: str


def read_part(name: str, complain: Complain) -> Part:
    """Read a document that a command saved, or a log; ``-`` is stdin.

    :param complain: called with the reason for each result that is left out.
    :raises LogError: it cannot be read, or is of no kind that a report knows.
    """
    with open_log(name) as stream:
        try:
            content = read_whole(name, stream)
        except (OSError, EOFError) as error:
            raise LogError(f"{name}: {error}") from None
    try:
        document, raw = _load(name, content)
        build = next((build for member, build in KINDS.items() if member in document), None)
        if not build or document.get("schema") not in (SCHEMA, COMPARISON, BILL):
            raise LogError(f"{name}: not a result, sweep, comparison, whatif, reproduction or bill of this version")
        return Part(name, build(document, lambda reason: complain(f"{name}: {reason}")), raw)
    except _DAMAGE as error:
        raise LogError(f"{name}: damaged: {plain(str(error))[:200] or type(error).__name__}") from None


def _load(name: str, content: bytes) -> tuple[dict[str, Any], str]:
    """Return a document and its JSON; that of a log is made of its results."""
    if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        try:
            text = content.decode("utf-8-sig")
            return load_json(text), text
        except ValueError:
            # bpftrace, too, writes JSON, in lines.
            if name.endswith(".json"):
                raise
    text = list_to_json(LogReader(name).read(BytesIO(content)))
    return load_json(text), text


def draw_charts(parts: Sequence[Part]) -> tuple[list[str], list[str]]:
    """Draw the picture of each part as SVG to be put into a page.

    :return: the pictures, "" for one that is missing, and the reasons.
    """
    charts, problems = [], dict[str, None]()
    for number, part in enumerate(parts, 1):
        try:
            charts.append(write_inline(part.section.picture(), number))
        except (KproxylatError, *_DAMAGE) as error:
            charts.append("")
            remedy = f" ({error.remedy})" if isinstance(error, KproxylatError) and error.remedy else ""
            problems[f"{part.name}: no chart: {error}{remedy}"] = None
    return charts, [*problems]


def write_html(title: str, parts: Sequence[Part], charts: Sequence[str], problems: Sequence[str]) -> str:
    """Write one page, which needs nothing else.

    :param charts: of the parts, as :func:`draw_charts` returns them.
    :param problems: why other files, or charts, are missing.
    """
    script = render_page("report.js", {}, str)
    allowed = b64encode(sha256(script.encode()).digest()).decode()
    # In a script "<" could end it; JSON has it only in strings, where it may be escaped.
    raws = [part.raw.replace("<", "\\u003c") for part in parts]
    page = {"title": title, "parts": [*zip(parts, charts, raws, strict=True)], "problems": problems, "many": MANY}
    return render_page("report.html.j2", {**page, "script": script, "allowed": allowed, "version": __version__})


def write_markdown(title: str, parts: Sequence[Part], problems: Sequence[str]) -> str:
    """Write the sentences and tables in GitHub's Markdown; the parameters are those of :func:`write_html`."""
    page = {"title": title, "parts": parts, "problems": problems, "version": __version__, "many": MANY}
    return render_page("report.md.j2", page, escape_markdown)


def escape_markdown(value: object) -> str:
    """Escape a text for one line or one cell of a table, so that it makes neither markup nor links nor mentions."""
    text = " ".join(plain(str(value)).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _SPECIAL.sub(r"\\\1", text).replace("|", "&#124;")
    return text.replace("@", "@\u200b").replace("://", ":\u200b//")
