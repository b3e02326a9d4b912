"""Rendering of templates: the probe script and the rulesets. Only this module imports jinja2."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from jinja2.sandbox import SandboxedEnvironment

from kproxylat.errors import MachineError, TemplateError, UsageError
from kproxylat.system.trust import check_trusted

_PACKAGE = Path(__file__).parent
DIRECTORIES = (_PACKAGE / "templates", _PACKAGE.parent / "templates")
"""Directories of the templates: in an installed wheel, and in a checkout."""
_SYNTAX = "correct that line; see docs/templates.md for examples, jinja2's documentation for the syntax"
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
    :param variables: the template's input.
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
            yield from (f"{name}.{each.name}" for each in fields(value))
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


def render_rules(name: str, variables: Mapping[str, Any]) -> str:
    """Render one of the lab's rulesets.

    :param name: NAME of the template ``rules-NAME.j2``.
    :param variables: the template's input, see its head.
    """
    rules = environment(kind=jinja2.Environment)
    rules.filters["flat"] = chain.from_iterable
    return rules.get_template(f"rules-{name}.j2").render(variables)


PORT_STEP = 64
"""The script reads the names of tables and chains from one of this many packets."""


def _hex(*data: int) -> str:
    """Return the 64-bit number, in hex, that this machine reads from up to 8 bytes in memory."""
    return hex(int.from_bytes(bytes(data).ljust(8, b"\0"), sys.byteorder))


@dataclass(frozen=True)
class Flow:
    """Condition for kproxylat's own packets, on words in network byte order of the packet's conntrack entry.

    :param daddr: the ClusterIP: one word, or four for an IPv6 address; empty for every destination of our sources.
    :param port_protocol: port, protocol and direction (original), 32 bits; None if our sources send to no other port.
    :param saddr: the network address of our sources.
    :param saddr_mask: the mask of ``saddr``.
    """

    daddr: tuple[int, ...]
    port_protocol: int | None
    saddr: tuple[int, ...]
    saddr_mask: tuple[int, ...]

    daddr_mask = _hex(0, 0, 0, 0, *[255] * 4)
    """Mask of daddr0 in ``ends``, which holds sport, l3num and daddr0."""
    stepping = _hex(0, PORT_STEP - 1), _hex(0, 1)
    """Mask and value in ``ends`` of one source port in 64: the second port of pktgen, the first of other generators."""

    def match(self, conn: str, ends: str = "") -> str:
        """Return the condition, in bpftrace's language, that a conntrack entry is ours.

        :param conn: a variable that points to a ``struct kpl_conn``.
        :param ends: a variable that already holds its ``ends``.
        """
        terms = [f"{conn}->daddr{number} == {word}" for number, word in enumerate(self.daddr) if number]
        if self.daddr:
            word = _hex(0, 0, 0, 0, *self.daddr[0].to_bytes(4, sys.byteorder))
            terms.insert(0, f"({ends or f'{conn}->ends'} & {self.daddr_mask}) == {word}")
        terms += [] if self.port_protocol is None else [f"{conn}->port_protocol == {self.port_protocol}"]
        sources = enumerate(zip(self.saddr, self.saddr_mask, strict=True))
        terms += [f"({conn}->saddr{number} & {mask}) == {word}" for number, (word, mask) in sources if mask]
        return " && ".join(terms)


@dataclass(frozen=True)
class Plan:
    """Input of the probe script's template, whose head describes the fields."""

    mode: str
    backend: str
    kind: str
    entry: str
    exit: str
    scope: str
    args: str
    engine: str
    functions: tuple[str, ...]
    skb: str
    state: str
    priv: str
    offsets: Mapping[str, int] = field(default_factory=dict)
    flow: Flow | None = None
    interval_s: int = 0
    envelope: bool = False
    netns_inode: int = 0
    nested: bool = False
    hook: int = 0
    stepping: bool = False
    others: bool = False
    reasons: Mapping[int, str] = field(default_factory=dict)
    fields: str = "args->"

    @property
    def anonymous(self) -> Plan:
        """The plan with the sources and the namespace replaced by other numbers; its script costs the same."""
        flow = self.flow
        if flow:
            words = tuple(min(mask, 1) for mask in flow.saddr_mask)
            flow = replace(flow, saddr=words, saddr_mask=words)
        return replace(self, flow=flow, netns_inode=1 if self.netns_inode else 0)


def network_words(data: bytes) -> tuple[int, ...]:
    """Return the 32-bit numbers that this machine reads from bytes in network order."""
    return tuple(int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data), 4))


SCRIPT = "trace-kubeproxy.bt.j2"
OVERHEAD_SCRIPT = "overhead.bt.j2"
_VALUE = re.compile(r"[\w.:/@+-]{0,200}", re.ASCII)


class Script(str):
    """A rendered script that knows the origin of its lines.

    :ivar origins: for each line the template and the line in it; empty if unknown.
    """

    origins: tuple[tuple[str, int], ...] = ()

    def locate(self, line: int) -> str:
        """Return, in words, the template and the line that the script's line (from 1) was rendered from."""
        if not 0 < line <= len(self.origins):
            return f"script, line {line}"
        return "template {}, line {}".format(*self.origins[line - 1])


def compile_script() -> None:
    """Compile our script's template once for this process and its forks; in an emulated machine it takes seconds."""
    for marks in (False, True):
        environment(None, marks=marks).get_template(SCRIPT)


def check_settings(settings: Mapping[str, str]) -> None:
    """Check that ``--set`` values are safe inside a script.

    :raises UsageError: an invalid name, or a value with characters other than letters, digits and ``_ . : / @ + -``.
    """
    for name, value in settings.items():
        if not name.isidentifier() or not name.isascii() or name == "plan":
            raise UsageError(f"--set {name}: invalid name of a variable", "use letters, digits and _, but not 'plan'")
        if not _VALUE.fullmatch(value):
            raise UsageError(
                f"--set {name}: a value takes letters, digits and _ . : / @ + - only, at most 200",
                "put other text into the template",
            )


def render_script(
    plan: Plan, template: Path | None = None, settings: Mapping[str, str] | None = None, ours: str = SCRIPT
) -> Script:
    """Render the bpftrace script.

    :param plan: the variable ``plan``.
    :param template: the user's template (None: ours).
    :param settings: variables beside ``plan``.
    :param ours: name of our template.
    :raises TemplateError: see :func:`render_template`.
    :raises MachineError: see :func:`render_template`.
    :raises UsageError: see :func:`check_settings`.
    """
    check_settings(settings or {})
    name = template.name if template else ours
    variables = {**(settings or {}), "plan": plan}
    script = Script(render_template(name, variables, template))
    text, origins = split_marks(render_template(name, variables, template, marks=True))
    if text == script:
        script.origins = origins
    return script
