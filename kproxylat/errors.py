"""The exception tree. Each class carries the exit status that the command ends with.

Exit statuses: 0 fine; 1 the user's or the machine's fault, or a declined question; 2 usage, also a question without a
terminal; 3 an internal error; 4 measured, but the books don't close (no exception: the result is there); 5 compared,
and B is worse than --fail-if-worse allows; 130 Ctrl-C (128 + the signal's number).
"""

from __future__ import annotations

BOOKS_OPEN = 4
BUG = 3
WORSE = 5


class KproxylatError(Exception):
    """Something a user can mend.

    :param message: what happened and why, in one line.
    :param remedy: what to do next; printed on a line of its own, without the word "remedy".
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class UsageError(KproxylatError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class DeclinedError(KproxylatError):
    """A person was asked, and did not say yes."""


class MachineError(KproxylatError):
    """This machine, or what surrounds it, lacks what the command needs."""


class CommandError(MachineError):
    """A program that we ran failed.

    :param argv: the command, as a list.
    :param status: its exit status.
    :param output: what it printed on stderr (on stdout, where stderr is empty).
    """

    def __init__(self, argv: list[str], status: int, output: str, remedy: str = "") -> None:
        said = " ".join(output.split())[:300] or "(it printed nothing)"
        super().__init__(f"{' '.join(argv)[:120]} ended with status {status}: {said}", remedy)
        self.status = status
        self.output = output


class ApiError(MachineError):
    """The cluster's API server refused a request.

    :param status: of HTTP, such as 403.
    :param reason: the Status object's, such as "AlreadyExists" (Kubernetes, ``metav1.StatusReason``); "" if none came.
    """

    def __init__(self, message: str, remedy: str, status: int, reason: str = "") -> None:
        super().__init__(message, remedy)
        self.status = status
        self.reason = reason


class TemplateError(KproxylatError):
    """A template that does not exist, does not render or does not compile."""


class RulesetError(KproxylatError):
    """A ruleset that cannot be read, is none of kube-proxy's, or has a line that is not believed."""


class LogError(KproxylatError):
    """A log that cannot be read, or holds no run."""


def refuse_options(why: str, alternative: str = "", **options: object) -> None:
    """Refuse options that would have no effect.

    :param why: the reason, as the first part of a sentence.
    :param alternative: what else than leaving them out is possible.
    :param options: option, with ``_`` for ``-`` and without the leading ``--``, -> its value; None or False if it
        was not passed.
    :raises UsageError: one of them was passed.
    """
    passed = [f"--{name.replace('_', '-')}" for name, value in options.items() if not (value is None or value is False)]
    if passed:
        names = ", ".join(passed)
        remedy = f"leave out {names}, or {alternative}" if alternative else f"leave out {names}"
        raise UsageError(f"{why}: {names} would have no effect", remedy)


class Interrupted(BaseException):
    """A signal asked us to end: clean up, save what there is, leave with 128 + its number."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum
