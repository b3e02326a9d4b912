"""The face of the program: help pages, errors of the parser in our words, and options of all commands."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from functools import wraps
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import CommandInfo

from kproxylat.cli.spread import spread
from kproxylat.console import say, set_volume, show
from kproxylat.errors import MachineError, UsageError

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
GROUPS = {
    "Traffic": ("--from", "--generator", "--protocol", "--source", "--first-packet", "--places", "--packets", "--rate"),
    "Tracing": ("--probe", "--template", "--set", "--envelope", "--overhead", "--send-time", "--others"),
    "Lab": (
        "--lab",
        "--services",
        "--position",
        "--worker-ports",
        "--ruleset",
        "--every-service",
        "--keep",
        "--kube-proxy",
        "--endpoints",
        "--affinity",
        "--node-port",
    ),
    "Node": (
        *("--service", "--port", "--target", "--mode", "--backend", "--family", "--netns"),
        *("--node-container", "--allow", "--yes"),
    ),
    "Cluster": (
        *("--namespace", "--all-namespaces", "--kubeconfig", "--context", "--cluster", "--as", "--as-group"),
        "--request-timeout",
    ),
    "Pods on nodes": (
        "--node",
        "--selector",
        "--all-nodes",
        "--parallel",
        "--job-namespace",
        "--image",
        "--load-modules",
    ),
    "Virtual machine": ("--vm", "--vm-if-needed", "--kernel", "--clock"),
    "Order": ("--repeats", "--seed", "--fresh"),
    "Output": (
        *("--format", "--output", "--output-dir", "--plot", "--watch"),
        *("--dry-run", "--quiet", "--verbose", "--help"),
    ),
}
"""Heading on a help page with many options -> its options."""
_MANY = 12
_KINDS = {"integer": "a whole number", "number": "a number", "float": "a number"}
"""Word of the parser for what it takes -> ours."""


@dataclass(frozen=True)
class Common:
    """Options of all commands."""

    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")] = False
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also print each program that is run.")] = False


@dataclass(frozen=True)
class CommonWithFile(Common):
    """Options of all commands that have a --format."""

    file: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write the result to FILE in place of stdout.")
    ] = None


class Page(TyperCommand):
    """A command whose help page has many options in groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, and each group of options."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], **{name: [] for name in GROUPS}, "Options": []}
        parameters = self.get_params(ctx)
        headings = {option: name for name, options in GROUPS.items() for option in options}
        for parameter in parameters:
            if record := parameter.get_help_record(ctx):
                heading = (
                    headings.get(max(parameter.opts, key=len), "Options") if len(parameters) > _MANY else "Options"
                )
                sections["Arguments" if parameter.param_type_name == "argument" else heading].append(record)
        for name, records in sections.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


class Program(TyperGroup):
    """The program; the errors of its parser are errors like all others."""

    def main(self, args: Any = None, **more: Any) -> Any:  # type: ignore[override]
        """Parse the command line and run the command; return its exit status or what it returns.

        :raises UsageError: the command line is invalid.
        """
        try:
            return super().main(args, **{**more, "standalone_mode": False})
        except Exception as error:
            # Typer exports no class for all errors of its parser; a value of a flag has no context.
            if not hasattr(error, "format_message"):
                raise
            context = getattr(error, "ctx", None)
            path = context.command_path if context else more.get("prog_name")
            if type(error).__name__ == "NoArgsIsHelpError":
                show(error.format_message(), file=sys.stderr)
                sys.exit(UsageError.exit_code)
            raise UsageError(_describe(error), f"see {path} --help") from None


def _describe(error: Any) -> str:
    """Describe an error of the parser: for a wrong value, what the option takes."""
    parameter = getattr(error, "param", None)
    text = str(error.format_message()).rstrip(".")
    if parameter is None or type(error).__name__ != "BadParameter":
        return text[:1].lower() + text[1:]
    name = max(parameter.opts, key=len) if parameter.param_type_name == "option" else parameter.name.upper()
    message = error.message.rstrip(".").removeprefix("Value error, ")
    kind = next((words for word, words in _KINDS.items() if f"valid {word}" in message), None)
    details = error.__cause__.errors() if hasattr(error.__cause__, "errors") else []
    if not kind or not details:
        return f"{name}: {message}"
    return f"{name} takes {kind}, not {details[0]['input']!r}"


def present(command: CommandInfo) -> None:
    """Give a command, once, its page with the examples first, and the options of all commands."""
    if command.cls is Page:
        return
    text = inspect.cleandoc(command.help or command.callback.__doc__ or "") if command.callback else ""
    summary, *paragraphs = text.split("\n\n")
    paragraphs.sort(key=lambda paragraph: not paragraph.startswith("\b\nExample"))
    command.help, command.short_help = "\n\n".join([summary, *paragraphs]), " ".join(summary.split())
    command.cls, command.context_settings = Page, HELP_OPTIONS
    if command.callback:
        command.callback = _add_options(command.callback)


def _add_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --quiet and --verbose to a command, and --output to one that has a --format."""

    @wraps(command)
    def called(common: Common, **values: Any) -> None:
        if common.quiet and common.verbose:
            raise UsageError("--quiet and --verbose exclude each other", "leave out one of them")
        set_volume(common.quiet, common.verbose)
        form = values.get("form")
        if is_yaml := form == "yaml":
            values["form"] = type(form)("json")
            if "ctx" in values:
                values["ctx"].params["form"] = values["form"]
        try:
            with _write_to(getattr(common, "file", None), is_yaml):
                command(**values)
        finally:
            set_volume()

    signature = inspect.signature(command, eval_str=True)
    own = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in signature.parameters.values()]
    options = {name for parameter in own for name in _names(parameter)}
    has_file = "--format" in options and "--output" not in options and command.__name__ != "trace"
    common = inspect.Parameter(
        "common", inspect.Parameter.KEYWORD_ONLY, annotation=CommonWithFile if has_file else Common
    )
    called.__signature__ = signature.replace(parameters=[*own, common])  # type: ignore[attr-defined]
    return spread(called)


def _names(parameter: inspect.Parameter) -> tuple[str, ...]:
    """Return the names of an option; typer takes the first one for the default until it sees the annotation."""
    infos = getattr(parameter.annotation, "__metadata__", ())
    return next(((info.default, *(info.param_decls or ())) for info in infos if hasattr(info, "param_decls")), ())


@contextmanager
def _write_to(path: Path | None, is_yaml: bool) -> Iterator[None]:
    """Write what the block prints on stdout to a file, whatever ends the block (None: leave it on stdout).

    :param is_yaml: the block prints a JSON document, which becomes YAML.

    :raises MachineError: the file exists, or cannot be written; then the block has not begun.
    """
    from kproxylat.system.files import save_file

    if path is None and not is_yaml:
        yield
        return
    if path and (os.path.lexists(path) or not os.access(path.parent, os.W_OK)):
        reason = "it exists" if os.path.lexists(path) else f"no permission to write in {path.parent}"
        raise MachineError(f"{path} cannot be written: {reason}", "pass another --output")
    text = TextIOWrapper(BytesIO(), encoding="utf-8", newline="")
    ended = False
    try:
        with redirect_stdout(text):
            yield
        ended = True
    finally:
        text.flush()
        written = text.detach().getvalue()
        with suppress(ValueError):  # What an error cut stays as it is.
            written = _to_yaml(written) if is_yaml else written
        # An empty list is an answer, too; a command that failed without output has none.
        if path and (written or ended):
            save_file(path, written, "--output")
            say(f"saved: {path}")
        elif written:
            show(written.decode(), end="")


def _to_yaml(document: bytes) -> bytes:
    import yaml

    return str(yaml.safe_dump(json.loads(document), sort_keys=False)).encode()
