"""Plain English: some phrases of the old texts are not used where a person reads."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

PHRASES = re.compile(
    r"\b(nobody|whoever|(?<!here )is no (?!longer)|is told|is said|are told|gone on with|goes on where|lets hope"
    r"|dearest|takes? the road)",
    re.IGNORECASE,
)
"""Negations by "no", passive verbs of speech. Better ones: "not found", "invalid", "reports", "resumes"."""
DOCUMENTS = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "bench/README.md")),
        *(ROOT / "docs").glob("*.md"),
        *(path for path in (ROOT / "templates").rglob("*") if path.is_file()),
        *(ROOT / name for name in ("Makefile", "pyproject.toml", ".pre-commit-config.yaml")),
        *(ROOT / ".github").rglob("*.yml"),
        *(ROOT / "deploy/ci").iterdir(),
    ]
)
MODULES = sorted((ROOT / "kproxylat").rglob("*.py"))
NOT_YET_CLEAN: set[str] = set()
"""Modules, such as "system/kernel", that still have such phrases. Remove a name when its module is rewritten."""


def name_module(path: Path) -> str:
    """Return a module's path below kproxylat/, without the suffix."""
    return str(path.relative_to(ROOT / "kproxylat").with_suffix(""))


def find_phrases(text: str) -> list[str]:
    """Return each forbidden phrase of a text with some words around it; line ends count as blanks."""
    words = " ".join(text.split())
    return [words[max(match.start() - 30, 0) : match.end() + 30] for match in PHRASES.finditer(words)]


def read_texts(source: str) -> Iterator[str]:
    """Yield the string constants of a module, docstrings among them, and its comments.

    Comments on adjacent lines are one text. The parts of an f-string are one text, with a mark for each value.
    """
    tree = ast.parse(source)
    parts = set[int]()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts |= {id(value) for value in node.values}
            yield "".join(value.value if isinstance(value, ast.Constant) else "…" for value in node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value
    block = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            block += f" {token.string.lstrip('# ')}"
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            yield block
            block = ""


def phrases_of(path: Path) -> list[str]:
    """Return the forbidden phrases in a module's texts."""
    return [phrase for text in read_texts(path.read_text()) for phrase in find_phrases(text)]


def test_phrases_are_found() -> None:
    """In docstrings, f-strings, adjacent strings, and comments over several lines; not inside other words."""
    source = '''"""Whoever reads this."""
# A comment of which
# nobody
# knows.
message = f"'{name}' is no target"
help = "goes on " "where it was"
clean = "the target is no longer there; this no rule forbids"  # it goes on
other = 1  # where a line of code parts two comments
'''
    texts = list(read_texts(source))
    assert [phrase for text in texts for phrase in find_phrases(text)] == [
        "'…' is no target",
        "Whoever reads this.",
        "goes on where it was",
        "A comment of which nobody knows.",
    ]


def test_there_are_texts() -> None:
    assert len(DOCUMENTS) > 20
    assert len(MODULES) > 60


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents(path: Path) -> None:
    assert find_phrases(path.read_text()) == []


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if name_module(path) not in NOT_YET_CLEAN],
    ids=lambda path: ".".join(path.relative_to(ROOT / "kproxylat").with_suffix("").parts),
)
def test_modules(path: Path) -> None:
    assert phrases_of(path) == []


@pytest.mark.slow
def test_modules_that_are_clean_are_not_excused() -> None:
    assert {name_module(path) for path in MODULES if phrases_of(path)} >= NOT_YET_CLEAN
