"""The probe script, rendered from its template.

Imported in functions: :mod:`kproxylat.templates`, for the sake of ``--help``, because it imports jinja2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from kproxylat.errors import UsageError
from kproxylat.trace.plan import Plan

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
    from kproxylat.templates import environment

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
    from kproxylat.templates import render_template, split_marks

    check_settings(settings or {})
    name = template.name if template else ours
    variables = {**(settings or {}), "plan": plan}
    script = Script(render_template(name, variables, template))
    text, origins = split_marks(render_template(name, variables, template, marks=True))
    if text == script:
        script.origins = origins
    return script
