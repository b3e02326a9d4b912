"""Templates to text: the only importer of jinja2."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from kproxylat.errors import TemplateError, UsageError

SCRIPT = "trace-kubeproxy.bt.j2"
_PACKAGE = Path(__file__).parent
DIRECTORIES = (_PACKAGE / "templates", _PACKAGE.parent / "templates")
"""Where the templates are: inside an installed wheel, or beside the package in a checkout."""

_VALUE = re.compile(r"[\w.:/@+-]{0,200}", re.ASCII)


@dataclass(frozen=True)
class Flow:
    """Which packets are ours, as the kernel's conntrack entry of the packet has them: numbers in network byte order.

    :param daddr: the ClusterIP. ``port_protocol``: its port, protocol and direction (original), 32 bits.
    :param saddr: the network address of our sources. ``saddr_mask``: its mask.
    """

    daddr: int
    port_protocol: int
    saddr: int
    saddr_mask: int


@dataclass(frozen=True)
class Plan:
    """Everything that the probe script is rendered from; the template's head describes the fields."""

    mode: str
    backend: str
    engine: str
    module: str
    entry: str
    exit: str
    skb: str
    state: str
    priv: str
    offsets: Mapping[str, int] = field(default_factory=dict)
    flow: Flow | None = None
    interval_s: int = 0


def environment(template: Path | None = None) -> jinja2.Environment:
    """Return the jinja2 environment: the user's directory first, then ours."""
    search = [template.parent, *DIRECTORIES] if template else [*DIRECTORIES]
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(search),
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
        keep_trailing_newline=True,
        autoescape=False,
    )


def check_settings(settings: Mapping[str, str]) -> None:
    """Make sure that ``--set`` values can be put into a script.

    :raises UsageError: a name that is none, or a value with other than letters, digits and ``_ . : / @ + -``.
    """
    for name, value in settings.items():
        if not name.isidentifier() or name == "plan":
            raise UsageError(f"--set {name}: not a name for a variable", "use letters, digits and _")
        if not _VALUE.fullmatch(value):
            raise UsageError(f"--set {name}: a value takes letters, digits and _ . : / @ + - only")


def render_script(plan: Plan, template: Path | None = None, settings: Mapping[str, str] | None = None) -> str:
    """Render the bpftrace script.

    :param template: the user's template (None: ours).
    :param settings: variables beside ``plan``.
    :raises TemplateError: it does not exist, is no template, or uses a variable that does not exist.
    :raises UsageError: as :func:`check_settings`.
    """
    check_settings(settings or {})
    name = template.name if template else SCRIPT
    variables: dict[str, Any] = {**(settings or {}), "plan": plan}
    try:
        return environment(template).get_template(name).render(variables)
    except jinja2.TemplateNotFound as error:
        missing = template if template and error.name == name else error.name
        raise TemplateError(f"template {missing} not found", "--template takes a file's path") from None
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"template {error.filename or name}, line {error.lineno}: {error.message}") from None
    except jinja2.UndefinedError as error:
        known = ", ".join([*(settings or {}), *(f"plan.{each}" for each in asdict(plan))])
        raise TemplateError(f"template {name}, line {_line(error)}: {error.message}", f"there are: {known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"template {name} cannot be read: {error}") from None
    except Exception as error:
        # A template is a program of the user's: whatever it raises is the template's fault.
        raise TemplateError(f"template {name}, line {_line(error)}: {type(error).__name__}: {error}") from None


def _line(error: Exception) -> int:
    """Return the template's line that raised: jinja2 rewrites the traceback so that its frames name it."""
    line, frame = 0, error.__traceback__
    while frame:
        line = frame.tb_lineno if "__jinja_exception__" in frame.tb_frame.f_globals else line
        frame = frame.tb_next
    return line


def render_rules(name: str, variables: Mapping[str, Any]) -> str:
    """Render one of the lab's rulesets: ``rules-NAME.j2``."""
    return environment().get_template(f"rules-{name}.j2").render(variables)


def network_order(data: bytes) -> int:
    """Return the number that this machine reads from bytes in network order."""
    return int.from_bytes(data, sys.byteorder)
