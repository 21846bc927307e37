"""Names the nearest keyword argument where a call has one that does not exist, as Python does from 3.13 on."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def check_keywords(call: F) -> F:
    """Return a function that refuses unknown keyword arguments with the nearest known one, and else is the same."""
    parameters = inspect.signature(call).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return call
    known = set(parameters)

    @functools.wraps(call)
    def checked(*arguments: Any, **named: Any) -> Any:
        if named and not named.keys() <= known:
            _refuse(call.__qualname__, min(named.keys() - known), known - {"self"})
        return call(*arguments, **named)

    if inspect.iscoroutinefunction(call):

        @functools.wraps(call)
        async def awaited(*arguments: Any, **named: Any) -> Any:
            return await checked(*arguments, **named)

        return awaited  # type: ignore[return-value]  # the same signature, by `wraps`
    return checked  # type: ignore[return-value]  # see above


def check_all_keywords(cls: type[T]) -> type[T]:
    """Do the same for the constructor and all public methods of a class."""
    for name, one in list(vars(cls).items()):
        if inspect.isfunction(one) and (name == "__init__" or not name.startswith("_")):
            setattr(cls, name, check_keywords(one))
    return cls


def _refuse(call: str, name: str, known: set[str]) -> None:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(known))}"
    raise TypeError(f"{call.removesuffix('.__init__')}() has no argument {name!r}: {hint}")
