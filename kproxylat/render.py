"""Templates to text: the only importer of jinja2."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from jinja2.sandbox import SandboxedEnvironment

from kproxylat.errors import MachineError, TemplateError, UsageError
from kproxylat.rights import check_trusted

SCRIPT = "trace-kubeproxy.bt.j2"
OVERHEAD_SCRIPT = "overhead.bt.j2"
_PACKAGE = Path(__file__).parent
DIRECTORIES = (_PACKAGE / "templates", _PACKAGE.parent / "templates")
"""Where the templates are: inside an installed wheel, or beside the package in a checkout."""

_MARK = re.compile("\ue000([^\ue001]*):(\\d+)\ue001")
_SYNTAX = "mend that line; docs/templates.md has examples, jinja2's documentation the syntax"
_VALUE = re.compile(r"[\w.:/@+-]{0,200}", re.ASCII)


PORT_STEP = 64
"""Of so many of our packets, one tells what the tables and chains are called."""


def _hex(*data: int) -> str:
    """Write up to 8 bytes, as they lie in memory, as the 64-bit number that this machine reads there."""
    return hex(int.from_bytes(bytes(data).ljust(8, b"\0"), sys.byteorder))


@dataclass(frozen=True)
class Flow:
    """Which packets are ours, as the kernel's conntrack entry of the packet has them: words in network byte order.

    :param daddr: the ClusterIP: one word, or four of an IPv6 address; none for all that our sources send to.
    :param port_protocol: its port, protocol and direction (original), 32 bits; None where our sources send to no other.
    :param saddr: the network address of our sources. ``saddr_mask``: its mask.
    """

    daddr: tuple[int, ...]
    port_protocol: int | None
    saddr: tuple[int, ...]
    saddr_mask: tuple[int, ...]

    daddr_mask = _hex(0, 0, 0, 0, *[255] * 4)
    """Mask of daddr0 in ``ends``, which is sport, l3num and daddr0."""
    stepping = _hex(0, PORT_STEP - 1), _hex(0, 1)
    """Mask and value in ``ends`` of one source port in 64: pktgen begins with the second, others with the first."""

    def match(self, conn: str, ends: str = "") -> str:
        """Write the condition that an entry is ours.

        :param conn: a variable that points to a ``struct kpl_conn``. ``ends``: one that holds its ``ends`` already.
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
    """Everything that the probe script is rendered from; the template's head describes the fields."""

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
        """The plan with other numbers in place of the sources and the namespace: its script costs the same."""
        flow = self.flow
        if flow:
            words = tuple(min(mask, 1) for mask in flow.saddr_mask)
            flow = replace(flow, saddr=words, saddr_mask=words)
        return replace(self, flow=flow, netns_inode=1 if self.netns_inode else 0)


class Script(str):
    """A rendered script that knows where its lines come from.

    :ivar origins: template and line of each of its lines; empty if they are not known.
    """

    origins: tuple[tuple[str, int], ...] = ()

    def locate(self, line: int) -> str:
        """Say which line of which template the script's line (from 1) was rendered from."""
        if not 0 < line <= len(self.origins):
            return f"script, line {line}"
        return "template {}, line {}".format(*self.origins[line - 1])


class _Marks(Extension):
    """Put a mark with the template's name and line before every line of a template's text, and every value."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        """Mark a template's tokens."""
        for token in stream:
            lines = token.value.split("\n") if token.type == "data" else [""]
            if token.type in ("data", "variable_begin"):
                marks = (f"\ue000{stream.name}:{token.lineno + number}\ue001" for number in range(len(lines)))
                marked = "\n".join(mark + line for mark, line in zip(marks, lines, strict=True))
                yield Token(token.lineno, "data", marked)
            if token.type != "data":
                yield token


class _TrustedLoader(jinja2.FileSystemLoader):
    """The user's directory: as root only what nobody else can change, which every include and extends passes, too."""

    def get_source(self, environment: jinja2.Environment, template: str) -> tuple[str, str, Callable[[], bool]]:
        source = super().get_source(environment, template)
        check_trusted(Path(source[1]))
        return source


@lru_cache
def environment(
    template: Path | None = None, kind: type[jinja2.Environment] = SandboxedEnvironment, marks: bool = False
) -> jinja2.Environment:
    """Return the jinja2 environment: the user's directory first, then ours.

    It is one for a whole sweep, and keeps what it compiled of files that stay as they are.

    :param marks: put one before every line, see :class:`_Marks`.
    :param kind: the sandbox, where a template makes text, and reaches nothing else. It asks before every access and
        call, which takes longer than they do: the rules' templates, which nobody else writes, go without.
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


def compile_script() -> None:
    """Compile our script's template, for all that this process and its forks render; it takes seconds, emulated."""
    for marks in (False, True):
        environment(None, marks=marks).get_template(SCRIPT)


def check_settings(settings: Mapping[str, str]) -> None:
    """Make sure that ``--set`` values can be put into a script.

    :raises UsageError: a name that is none, or a value with other than letters, digits and ``_ . : / @ + -``.
    """
    for name, value in settings.items():
        if not name.isidentifier() or not name.isascii() or name == "plan":
            raise UsageError(f"--set {name}: not a name for a variable", "use letters, digits and _")
        if not _VALUE.fullmatch(value):
            raise UsageError(
                f"--set {name}: a value takes letters, digits and _ . : / @ + - only", "put all else into the template"
            )


def render_script(
    plan: Plan, template: Path | None = None, settings: Mapping[str, str] | None = None, ours: str = SCRIPT
) -> Script:
    """Render the bpftrace script.

    :param template: the user's template (None: ours).
    :param settings: variables beside ``plan``.
    :param ours: name of our template.
    :raises TemplateError: it does not exist, is no template, or uses a variable that does not exist.
    :raises UsageError: as :func:`check_settings`.
    :raises MachineError: as root, the template is one that others can change.
    """
    check_settings(settings or {})
    name = template.name if template else ours
    variables: dict[str, Any] = {**(settings or {}), "plan": plan}
    try:
        plain, marked = (
            environment(template, marks=each).get_template(name).render(variables) for each in (False, True)
        )
        script = Script(plain)
    except MachineError:
        raise
    except jinja2.TemplateNotFound as error:
        missing = template if template and error.name == name else error.name
        raise TemplateError(f"template {missing} not found", "--template takes a file's path") from None
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(
            f"template {error.filename or name}, line {error.lineno}: {error.message}", _SYNTAX
        ) from None
    except jinja2.UndefinedError as error:
        known = ", ".join([*(settings or {}), *(f"plan.{each}" for each in asdict(plan))])
        raise TemplateError(f"template {name}, line {_line(error)}: {error.message}", f"there are: {known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(
            f"template {name} cannot be read: {error}", "--template takes a text file (UTF-8) of one's own"
        ) from None
    except Exception as error:
        # A template is a program of the user's: whatever it raises is the template's fault.
        raise TemplateError(f"template {name}, line {_line(error)}: {type(error).__name__}: {error}", _SYNTAX) from None
    if _MARK.sub("", marked) == script:
        script.origins = tuple(_read_marks(marked))
    return script


def _read_marks(marked: str) -> Iterator[tuple[str, int]]:
    """Find the origin of each line: the last mark before its first character, else that of the line above."""
    origin = ("", 0)
    for line in marked.split("\n"):
        start = re.match(f"({_MARK.pattern})*", line)
        for each in _MARK.finditer(start[0] if start else ""):
            origin = each[1], int(each[2])
        yield origin


def _line(error: Exception) -> int:
    """Return the template's line that raised: jinja2 rewrites the traceback so that its frames name it."""
    line, frame = 0, error.__traceback__
    while frame:
        line = frame.tb_lineno if "__jinja_exception__" in frame.tb_frame.f_globals else line
        frame = frame.tb_next
    return line


def render_rules(name: str, variables: Mapping[str, Any]) -> str:
    """Render one of the lab's rulesets: ``rules-NAME.j2``."""
    rules = environment(kind=jinja2.Environment)
    rules.filters["flat"] = chain.from_iterable
    return rules.get_template(f"rules-{name}.j2").render(variables)


def network_words(data: bytes) -> tuple[int, ...]:
    """Return the 32-bit numbers that this machine reads from bytes in network order."""
    return tuple(int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data), 4))
