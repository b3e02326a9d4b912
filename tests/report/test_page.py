"""Reports: one page that needs nothing else, in a real browser; tables for pull requests; bad files cost themselves."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from kproxylat.analysis.alternatives import Alternative, WhatIf
from kproxylat.analysis.compare import compare
from kproxylat.analysis.comparison import to_json as comparisons_to_json
from kproxylat.analysis.published import Reproduction, compare_published, read_published
from kproxylat.analysis.series import build_series
from kproxylat.report.page import escape_markdown
from kproxylat.report.sections import KINDS
from kproxylat.results import FirstPacket, Percentile, Result, ServiceCost, Target
from kproxylat.results_json import list_to_json, to_json
from tests.results import COUNTED, LOGS, TIMED, change_run, load
from tests.support import ROOT
from tests.support.bills import make_bill
from tests.support.browser import Browser, browsing
from tests.support.command import Captured, call
from tests.support.documents import files

pytestmark = pytest.mark.slow

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>|`*_[a](http://x.y/) \"'&amp;\u2028@all"
SLOW = load(TIMED)


def first_packets() -> list[Result]:
    """Return runs that timed first packets, of the modes and numbers of Services that were published."""
    base = next(probe for probe in SLOW[0].probes if probe.lookup)
    percentiles = {name: Percentile(70_000.0, 60_000.0, 80_000.0) for name in ("1", "50", "90", "99", "100")}
    probe = replace(base, engine="connect", lookup=False, percentiles=percentiles)
    times = FirstPacket(probe, 20, 2000, 0, 0, 0)
    published = read_published("k8s-blog-2025")
    return [
        replace(change_run(SLOW[0], mode=mode, backend="nft", services=size), first_packet=times)
        for mode in dict.fromkeys(row.mode for row in published.rows)
        for size in published.list_sizes(quick=True)
    ]


def reproduction() -> Reproduction:
    """Return a reproduction of a published measurement."""
    return compare_published("k8s-blog-2025", read_published("k8s-blog-2025"), first_packets())


def documents(directory: Path) -> dict[str, Path]:
    """Write a document of each kind."""
    results = load(COUNTED)
    modes = (Alternative("iptables", "nft", True, 2000, 3339.0, 4678, 26.0, 2000.0, "O(n)", None),
             Alternative("nftables", "nft", False, 2678, 2678.0, 2678, 0.0, 2678.0, "O(1)", 26.1))  # fmt: skip
    cost = ServiceCost("default/a:http", "10.96.0.1:80/tcp", 9, 20, 4678, 4678, 4678)
    whatif = WhatIf("x", "instructions", 9, modes, build_series(results), (cost,), results, ("one note",))
    machine = {"schema": "kproxylat/1", "machine": "Linux"}
    texts = {
        "run": to_json(results[0]),
        "sweep": list_to_json(results, series=build_series(results), sweep={}),
        "comparison": comparisons_to_json(compare(str(COUNTED), None)),
        "pair": comparisons_to_json(compare(*files(directory, SLOW[0], SLOW[2]))),
        "whatif": whatif.to_json(),
        "bill": make_bill().to_json(),
        "reproduction": json.dumps(machine | json.loads(json.dumps(reproduction(), default=lambda x: x.__dict__))),
    }
    paths = {name: directory / f"{name}.json" for name in texts}
    for name, path in paths.items():
        path.write_text(texts[name])
    return paths | {"log": LOGS[0]}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium, which `make check` installs."""
    with browsing(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of every kind of document, and of one whose names are hostile."""
    directory = tmp_path_factory.mktemp("page")
    paths = documents(directory)
    hostile = change_run(load(COUNTED)[0], mode=HOSTILE, kernel=HOSTILE, arguments=(HOSTILE, "\ud800"))
    hostile = replace(hostile, target=Target("10.96.0.1", 80, "tcp", HOSTILE)).warn(HOSTILE)
    paths["hostile"] = directory / "hostile.json"
    paths["hostile"].write_bytes(to_json(hostile).encode(errors="backslashreplace"))
    words = ["report", *map(str, paths.values()), "-o", str(directory / "report.html"), "--title", HOSTILE]
    done = subprocess.run([sys.executable, "-m", "kproxylat", *words], cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    assert done.stderr.count(b"\n") == 1, done.stderr
    return directory / "report.html"


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    """The browser with the page."""
    browser.show_as("light")
    browser.open(page)
    return browser


def test_it_opens_without_errors_or_requests(opened: Browser, page: Path) -> None:
    problems = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening")
    assert [params for name, params in opened.events if name in problems] == []
    requests = [params["request"]["url"] for name, params in opened.events if name == "Network.requestWillBeSent"]
    assert requests == [page.as_uri()]
    assert opened.evaluate("document.scripts.length - document.querySelectorAll('script[id]').length") == 1
    assert opened.evaluate("document.querySelectorAll('img, link, iframe, object').length") == 0
    assert opened.evaluate("document.title") == HOSTILE.replace("\u2028", "\\u2028")


def test_a_value_shows_under_the_pointer(opened: Browser) -> None:
    """Each chart has values. Without the script, the browser shows the title of the same element."""
    assert opened.evaluate("[...document.querySelectorAll('figure')].every(f => f.querySelector('.value > title'))")
    values = opened.evaluate("[...document.querySelectorAll('.value > title')].map(title => title.textContent)")
    assert "iptables/nft, 1,000 Services: 86,912 emulated instructions" in values
    place = opened.evaluate(
        "(() => { const all = [...document.querySelectorAll('.value')];"
        " const value = all.find(each => each.textContent.includes('iptables/nft, 1,000 Services'));"
        " value.scrollIntoView({block: 'center'}); const box = value.getBoundingClientRect();"
        " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    opened.hover(*place)
    shown = opened.evaluate("[...document.querySelectorAll('output')].map(each => each.textContent).join('')")
    assert "iptables/nft, 1,000 Services: 86,912 emulated instructions" in shown


def test_the_button_saves_the_document(opened: Browser, page: Path) -> None:
    """What is saved is the document as it was read, also with names that look like the end of a script."""
    for number, path in enumerate([*documents(page.parent).values(), page.parent / "hostile.json"], 1):
        saved = opened.evaluate(
            "new Promise(resolve => { URL.createObjectURL = blob => { blob.text().then(resolve); return '#'; };"
            f" document.querySelector('button[value=raw-{number}]').click(); }})"
        )
        if path.suffix == ".json":
            assert json.loads(saved) == json.loads(path.read_bytes())
        assert json.loads(saved)["schema"].startswith("kproxylat")
    assert opened.evaluate("[...document.querySelectorAll('button')].every(button => !button.hidden)")


CONTRAST = """(() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(x => x / 255)
    .map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4)
    .reduce((sum, x, at) => sum + x * [.2126, .7152, .0722][at], 0);
  const ground = element => { for (let at = element; at; at = at.parentElement) {
    const color = parse(getComputedStyle(at).backgroundColor); if (color.length == 3 || color[3] > 0) return color; } };
  const least = {};
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, style = getComputedStyle(element);
    if (!walker.currentNode.textContent.trim() || ['script', 'title', 'style'].includes(element.localName)) continue;
    const ink = parse(element instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(ink), light(ground(element))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05), key = element.tagName + ' ' + ink;
    least[key] = Math.min(least[key] || 99, ratio);
  }
  return least;
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_suffices_in_both_schemes(opened: Browser, scheme: str) -> None:
    opened.show_as(scheme)
    ratios = opened.evaluate(CONTRAST)
    assert len(ratios) > 12
    assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}
    ground = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]
    opened.show_as(scheme, media="print")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)", "paper is white"


def test_it_fits_a_telephone(opened: Browser) -> None:
    for width in (400, 1100):
        opened.show_as("light", width)
        assert opened.evaluate("document.documentElement.scrollWidth") <= width


def test_headings_names_and_tables_are_accessible(opened: Browser) -> None:
    levels = opened.evaluate("[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(heading => +heading.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for selector in ("[role=img]", "[role=region]", "nav", "button"):
        names = opened.evaluate(f"[...document.querySelectorAll('{selector}')].map(each => each.ariaLabel)")
        assert names
        assert all(names), selector
    assert opened.evaluate(
        "[...document.querySelectorAll('table')].every(t => t.caption && t.querySelector('th[scope=col]'))"
    )
    assert opened.evaluate(
        "[...document.querySelectorAll('tbody tr')].every(row => row.querySelector('th[scope=row]'))"
    )
    ids = opened.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len({*ids})
    assert opened.evaluate("document.documentElement.lang") == "en"


def test_charts_are_whole(opened: Browser) -> None:
    """Whatever a chart refers to is in the page."""
    missing = opened.evaluate(
        "[...document.querySelectorAll('use')].map(use => use.getAttribute('xlink:href').slice(1))"
        ".filter(id => !document.getElementById(id))"
    )
    assert missing == []
    assert opened.evaluate("document.querySelectorAll('figure').length") == len(documents(Path("/tmp"))) + 1


class Text(HTMLParser):
    """The text of a page, without scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words, self._inside = list[str](), ""
        self.feed(page)

    def handle_starttag(self, tag: str, _: Any) -> None:
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.words.append(data)


def report(capsys: Captured, directory: Path, *names: str, form: str = "html") -> tuple[int, str, str]:
    """Write a report: status, its text, stderr."""
    output = directory / f"out.{form}"
    status, out, err = call(capsys, "report", *names, "-o", str(output))
    assert out == ""
    if not output.exists():
        return status, "", err
    text = output.read_text()
    return status, " ".join(" ".join(Text(text).words).split()) if form == "html" else text, err


def test_each_kind_says_its_sentence_first(capsys: Captured, tmp_path: Path) -> None:
    sentences = {
        "run": "A new UDP flow to 10.96.100.50:50051/udp is looked up in 2,106 instructions (the commonest count)",
        "sweep": "iptables/legacy: each Service adds 26 instructions to a lookup, O(n).",
        "comparison": "nftables/nft's lookup is 10.4 times cheaper than iptables/legacy's at 1,000 Services",
        "whatif": "nftables/nft: a lookup would cost 19.8% less than now, 2,678 instructions on average",
        "reproduction": "shapes",
        "log": "A new UDP flow to 10.96.100.50:50051/udp is looked up in 2,106 instructions",
    }
    paths = documents(tmp_path)
    for kind, sentence in sentences.items():
        status, text, err = report(capsys, tmp_path, str(paths[kind]), form="md")
        assert (status, err) == (0, f"saved: {tmp_path / 'out.md'}\n")
        before_tables = text.partition("| ")[0].replace("\\", "")
        assert sentence in before_tables, kind
        assert "warning: may differ" in text or kind != "reproduction"


def test_a_further_kind_is_one_row(capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(document: Any, complain: Any) -> Any:
        return replace(KINDS["run"](document | {"run": {}}, complain), kind="Bill", sentences=[document["bill"]])

    monkeypatch.setattr("kproxylat.report.page.KINDS", {"bill": build, **KINDS})
    (tmp_path / "bill.json").write_text(json.dumps({"schema": "kproxylat/1", "bill": "It costs 7 µs."}))
    assert "## Bill: " in report(capsys, tmp_path, str(tmp_path / "bill.json"), form="md")[1]


def test_problems_are_warnings(capsys: Captured, tmp_path: Path) -> None:
    result = load(COUNTED)[0]
    assert result.accounting
    open_books = replace(result.accounting, closed=False, difference="3 lookups are missing")
    broken = replace(change_run(result, cut_short=True), accounting=open_books).warn("2 events were lost")
    for form in ("html", "md"):
        _, text, _ = report(capsys, tmp_path, *files(tmp_path, [broken, replace(result, accounting=None)]), form=form)
        for words in ("run 1: 2 events were lost", "run 1: cut short", "NO: 3 lookups are missing"):
            assert words in text
        assert "the packet accounting does not balance in 1 runs" in text
        assert "1 of 2 runs have no packet accounting" in text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"{", "damaged"),
        (b"{}", "not a result, sweep, comparison, whatif, reproduction or bill"),
        (b"[1]", "holds no run"),
        (b'{"schema": "kproxylat/2", "results": []}', "of this version"),
        (b'{"schema": "kproxylat/1", "results": 5}', "damaged"),
        (b'{"schema": "kproxylat/1", "results": []}', "holds no result"),
        (b'{"schema": "kproxylat/1", "results": [{"run": {"services": "x"}}]}', "'x' is not a int"),
        (b'{"schema": "kproxylat/1", "whatif": {}, "results": []}', "damaged"),
        (b'{"schema": "kproxylat/1", "published": 7}', "damaged"),
        (b'{"schema": "kproxylat-comparison/1", "comparisons": []}', "holds no comparison"),
        (b'{"schema": "kproxylat-comparison/1", "comparisons": "a text"}', "damaged: its comparisons are not a list"),
        (b'{"schema": ' + b"[" * 100_000, "damaged"),
        (b"\x1f\x8b\x08broken", ""),
        (b"\xff\xfe\x00\x00" * 50, ""),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("form", ["html", "md"])
def test_a_bad_file_is_named_and_costs_itself(
    capsys: Captured, tmp_path: Path, content: bytes, reason: str, form: str
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_bytes(content)
    status, text, err = report(capsys, tmp_path, str(bad), str(LOGS[0]), form=form)
    assert status == 1
    assert err.startswith(f"kproxylat: {bad}")
    assert reason in err
    assert "Traceback" not in err
    assert "bad.json" in text
    assert "2,106" in text
    (tmp_path / f"out.{form}").unlink()
    assert report(capsys, tmp_path, str(bad), form=form)[:2] == (1, "")


def test_a_bad_result_costs_itself(capsys: Captured, tmp_path: Path) -> None:
    good = json.loads(to_json(load(COUNTED)[0]))
    bad = [{**good, "run": {**good["run"], "services": services}} for services in ("x", -1, 9**400, None)]
    (tmp_path / "list.json").write_text(json.dumps({"schema": good["schema"], "results": [bad[0], good, *bad[1:]]}))
    comparisons = json.loads(documents(tmp_path)["comparison"].read_text())
    comparisons["comparisons"][:0] = [{}, 5]
    (tmp_path / "pairs.json").write_text(json.dumps(comparisons))
    for form in ("html", "md"):
        status, text, err = report(capsys, tmp_path, *(str(tmp_path / f"{name}.json") for name in ("list", "pairs")),
                                   form=form)  # fmt: skip
        assert status == 1
        assert "2,106" in text
        assert "nftables/nft's lookup is 10.4 times cheaper" in text
        first = "list.json: not a result of schema kproxylat/1: results[0].run.services: 'x' is not a int; this result"
        for reason in (f"{first} is left out", "results[2]", "results[3]", "comparisons[0]", "comparisons[1]"):
            assert reason in err
            assert reason in text.replace("\\", "")
        assert "results[4]" not in err
        assert "comparisons[2]" not in err


@pytest.mark.parametrize("words", [("report", "-o", "out.html"), ("compare",)], ids=lambda words: words[0])
def test_an_endless_document_has_an_end(capsys: Captured, tmp_path: Path, words: tuple[str, ...]) -> None:
    """As /dev/zero, or a small gzip that holds gigabytes."""
    bomb = tmp_path / "bomb.json"
    with gzip.open(bomb, "wb") as file:
        file.write(b"{")
        for _ in range(257):
            file.write(bytes(1 << 20))
    status, _, err = call(capsys, *words, str(bomb), *([str(LOGS[0])] if words[0] == "compare" else []))
    assert status == 1
    assert f"{bomb}: is larger than 256 MiB\n  parse reads larger logs" in err


def test_what_it_refuses(capsys: Captured, tmp_path: Path) -> None:
    for name in ("x.pdf", "x", "x.html.gz"):
        status, _, err = call(capsys, "report", str(LOGS[0]), "--output", str(tmp_path / name))
        assert status == 2
        assert "neither HTML nor Markdown" in err
    log = tmp_path / "log.md"
    log.write_bytes(LOGS[0].read_bytes())
    assert call(capsys, "report", str(log), "-o", str(log))[0] == 2
    assert log.read_bytes() == LOGS[0].read_bytes()
    assert call(capsys, "report", str(log), "-o", str(tmp_path / "no/x.md"))[0] == 1
    assert call(capsys, "report", "-o", str(tmp_path / "x.md"))[0] == 2


def test_without_matplotlib_the_page_has_no_chart(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, text, err = report(capsys, tmp_path, str(LOGS[0]))
    assert status == 0
    assert "no chart: plot needs matplotlib" in err
    assert "pipx inject kproxylat matplotlib" in text
    assert "2,106" in text


def test_the_same_files_give_the_same_page(capsys: Captured, tmp_path: Path) -> None:
    pages = []
    for _ in range(2):
        report(capsys, tmp_path, str(COUNTED), str(LOGS[0]))
        pages.append((tmp_path / "out.html").read_bytes())
    assert pages[0] == pages[1]


@given(st.text())
def test_markdown_shows_any_name_as_it_is(name: str) -> None:
    text = f"| a | b |\n| --- | --- |\n| {escape_markdown(name)} | x |\n"
    html = MarkdownIt("commonmark", {"linkify": False}).enable("table").render(text)
    shown = "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in name)
    cells = re.findall(r"<td>(.*?)</td>", html)
    assert len(cells) == 2
    plain = Text(f"<p>{cells[0]}</p>").words
    assert "".join(plain).replace("\u200b", "") == " ".join(shown.split()).replace("\u200b", "")
