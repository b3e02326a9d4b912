"""Rendering of templates: the probe script and the rulesets. Only this module imports jinja2."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from jinja2.sandbox import SandboxedEnvironment

from kproxylat.console import plain
from kproxylat.errors import MachineError, TemplateError, find_page
from kproxylat.system.trust import check_trusted

_PACKAGE = Path(__file__).parent
DIRECTORIES = (_PACKAGE / "templates", _PACKAGE.parent / "templates")
"""Directories of the templates: in an installed wheel, and in a checkout."""
_SYNTAX = f"correct that line; {find_page('templates.md')} has examples, jinja2's documentation the syntax"
_MARK = re.compile("\ue000([^\ue001]*):(\\d+)\ue001")
"""Mark with a template's name and line, in characters for private use."""


class _Marks(Extension):
    """Extension that puts a mark with the template's name and line before every line of text and every value."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        """Yield a template's tokens with the marks."""
        for token in stream:
            lines = token.value.split("\n") if token.type == "data" else [""]
            if token.type in ("data", "variable_begin"):
                marks = (f"\ue000{stream.name}:{token.lineno + number}\ue001" for number in range(len(lines)))
                marked = "\n".join(mark + line for mark, line in zip(marks, lines, strict=True))
                yield Token(token.lineno, "data", marked)
            if token.type != "data":
                yield token


class _TrustedLoader(jinja2.FileSystemLoader):
    """Loader of the user's templates, also by include and extends; as root it refuses files that others can change."""

    def get_source(self, environment: jinja2.Environment, template: str) -> tuple[str, str, Callable[[], bool]]:
        source = super().get_source(environment, template)
        check_trusted(Path(source[1]))
        return source


@lru_cache
def environment(
    template: Path | None = None, kind: type[jinja2.Environment] = SandboxedEnvironment, marks: bool = False
) -> jinja2.Environment:
    """Return the jinja2 environment, which looks in the user's directory first, then in ours.

    One environment serves a whole sweep: it keeps compiled templates until their files change.

    :param template: the user's template (None: ours).
    :param kind: the class. In the sandbox, a template can only make text; a check before every access and call makes
        it slow. The rulesets' templates are our own and do without it.
    :param marks: whether to put a mark before every line, see :class:`_Marks`.
    """
    loaders: list[jinja2.BaseLoader] = [_TrustedLoader(template.parent)] if template else []
    return kind(
        loader=jinja2.ChoiceLoader([*loaders, jinja2.FileSystemLoader(DIRECTORIES)]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
        keep_trailing_newline=True,
        autoescape=False,
        extensions=[_Marks] if marks else [],
    )


def render_template(name: str, variables: Mapping[str, Any], template: Path | None = None, marks: bool = False) -> str:
    """Render a template in the sandbox.

    :param name: the template's name.
    :param variables: its input.
    :param template: the user's template, which may extend or include those beside it and ours (None: ours only).
    :param marks: whether to put marks into the text, for :func:`split_marks`.
    :raises TemplateError: a template is missing, unreadable or invalid, or uses an unknown variable.
    :raises MachineError: kproxylat runs as root and others can change the user's template.
    """
    try:
        return environment(template, marks=marks).get_template(name).render(variables)
    except MachineError:
        raise
    except jinja2.TemplateNotFound as error:
        missing = template if template and error.name == name else error.name
        raise TemplateError(f"template {missing} not found", "--template takes the path of a file") from None
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(
            f"template {error.filename or name}, line {error.lineno}: {error.message}", _SYNTAX
        ) from None
    except jinja2.UndefinedError as error:
        known = ", ".join(_list_names(variables))
        raise TemplateError(
            f"template {name}, line {_line(error)}: {error.message}", f"known variables: {known}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(
            f"cannot read template {name}: {error}", "--template takes a UTF-8 text file that you can read"
        ) from None
    except Exception as error:
        # A template is the user's program: any exception comes from the template.
        raise TemplateError(f"template {name}, line {_line(error)}: {type(error).__name__}: {error}", _SYNTAX) from None


def _list_names(variables: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names that a template can use: of variables, or of the fields of those that have some."""
    for name, value in variables.items():
        if is_dataclass(value):
            yield from (f"{name}.{field.name}" for field in fields(value))
        else:
            yield name


def _line(error: Exception) -> int:
    """Return the line of the template that raised the error; jinja2 puts it into the frames of the traceback."""
    line, frame = 0, error.__traceback__
    while frame:
        line = frame.tb_lineno if "__jinja_exception__" in frame.tb_frame.f_globals else line
        frame = frame.tb_next
    return line


def split_marks(marked: str) -> tuple[str, tuple[tuple[str, int], ...]]:
    """Split a text that was rendered with marks.

    :return: the text without marks; and for each line the template and the line in it, which the last mark before the
        line's first character names, or else those of the line above.
    """
    origin, origins = ("", 0), []
    for line in marked.split("\n"):
        start = re.match(f"({_MARK.pattern})*", line)
        for mark in _MARK.finditer(start[0] if start else ""):
            origin = mark[1], int(mark[2])
        origins.append(origin)
    return _MARK.sub("", marked), tuple(origins)


def _show(value: object) -> str:
    """Write a value into HTML, which jinja2 escapes; nothing in it controls a terminal or cannot be encoded."""
    return plain(str(value))


def render_page(name: str, variables: Mapping[str, Any], escape: Callable[[object], str] = _show) -> str:
    """Render a page of our own, in which every value is escaped but for those that the template calls safe.

    :param escape: escapes a value for a language other than HTML.
    """
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(DIRECTORIES),
        undefined=jinja2.StrictUndefined,
        autoescape=escape is _show,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: value if hasattr(value, "__html__") else escape(value),
    )
    return pages.get_template(name).render(variables)


def render_rules(name: str, variables: Mapping[str, Any]) -> str:
    """Render one of the lab's rulesets.

    :param name: NAME of the template ``rules-NAME.j2``.
    :param variables: the template's input, see its head.
    """
    rules = environment(kind=jinja2.Environment)
    rules.filters["flat"] = chain.from_iterable
    return rules.get_template(f"rules-{name}.j2").render(variables)
