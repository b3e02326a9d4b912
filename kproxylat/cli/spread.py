"""Commands that take dataclasses of options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take dataclasses of options, which typer does not know: each of their fields becomes an option."""
    parameters: list[inspect.Parameter] = []
    shared: dict[str, Any] = {}
    for each in inspect.signature(command, eval_str=True).parameters.values():
        if is_dataclass(each.annotation):
            hints = get_type_hints(each.annotation, include_extras=True)
            shared[each.name] = each.annotation
            parameters += [
                inspect.Parameter(one.name, each.KEYWORD_ONLY, default=one.default, annotation=hints[one.name])
                for one in fields(each.annotation)
            ]
        else:
            parameters.append(each.replace(kind=each.KEYWORD_ONLY))

    @wraps(command)
    def called(**values: Any) -> None:
        made = {name: kind(**{one.name: values.pop(one.name) for one in fields(kind)}) for name, kind in shared.items()}
        command(**values, **made)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called
