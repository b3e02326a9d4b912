"""Errors, and the exit statuses of the command.

Exit statuses: 0 success; 1 an error in the environment or the input, or a declined question; 2 invalid usage, also a
question without a terminal; 3 an internal error; 4 measured, but the packet accounting does not balance (not an
exception, since the result exists); 5 compared, and B is worse than --fail-if-worse allows; 130 Ctrl-C (128 + the
number of the signal).
"""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten

BUG = 3
"""Exit status: an internal error."""
BOOKS_OPEN = 4
"""Exit status: the packet accounting does not balance."""
WORSE = 5
"""Exit status: B is worse than allowed."""


def find_page(name: str) -> str:
    """Return the path of a page of the documentation: in an installed wheel, or in a checkout."""
    pages = [directory / "docs" / name for directory in Path(__file__).parents[:2]]
    return str(next((page for page in pages if page.exists()), name))


class KproxylatError(Exception):
    """An error that a user can fix.

    :param message: what failed and why, in one line.
    :param remedy: the next step; printed on a separate line, without the word "remedy".
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class UsageError(KproxylatError):
    """The command line is invalid."""

    exit_code = 2


class DeclinedError(KproxylatError):
    """A person did not answer a question with yes."""


class MachineError(KproxylatError):
    """This machine or its environment lacks something that the command needs."""


class CommandError(MachineError):
    """A program that kproxylat ran has failed.

    :param argv: the command, as a list.
    :param status: its exit status.
    :param output: its stderr, or its stdout if stderr is empty.
    :param remedy: as in :class:`KproxylatError`.
    """

    def __init__(self, argv: list[str], status: int, output: str, remedy: str = "") -> None:
        message = shorten(output, 300, placeholder=" ...") or "(it printed nothing)"
        super().__init__(f"{' '.join(argv)[:120]} ended with status {status}: {message}", remedy)
        self.status = status
        self.output = output


class ApiError(MachineError):
    """The API server of the cluster refused a request.

    :param message: as in :class:`KproxylatError`; so is ``remedy``.
    :param status: the HTTP status, such as 403.
    :param reason: the reason in the Status object, such as "AlreadyExists" (Kubernetes, ``metav1.StatusReason``); ""
        if there is none.
    """

    def __init__(self, message: str, remedy: str, status: int, reason: str = "") -> None:
        super().__init__(message, remedy)
        self.status = status
        self.reason = reason


class TemplateError(KproxylatError):
    """A template does not exist, or cannot be rendered or compiled."""


class RulesetError(KproxylatError):
    """A ruleset cannot be read, is not one of kube-proxy, or has an untrusted line."""


class LogError(KproxylatError):
    """A log cannot be read, or has no run."""


def refuse_options(why: str, alternative: str = "", **options: object) -> None:
    """Refuse options that would have no effect.

    :param why: the reason, as the first part of a sentence.
    :param alternative: a remedy other than leaving them out.
    :param options: option, with ``_`` for ``-`` and without the leading ``--``, -> its value; None or False if it
        was not passed.
    :raises UsageError: one of the options was passed.
    """
    passed = [f"--{name.replace('_', '-')}" for name, value in options.items() if not (value is None or value is False)]
    if passed:
        names = ", ".join(passed)
        remedy = f"leave out {names}, or {alternative}" if alternative else f"leave out {names}"
        raise UsageError(f"{why}: {names} would have no effect", remedy)


class Interrupted(BaseException):
    """A signal that ends the command: it cleans up, saves the results so far, and exits with 128 + the number.

    :param signum: the number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum
