"""Reads data that Forecache, or anybody else, has left in Redis and in files: what is none of ours is one error."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from inference.errors import UnknownFormat, Unreadable, cut
from inference.field_errors import describe_error_in_file

if TYPE_CHECKING:
    from pydantic import TypeAdapter


T = TypeVar("T")


def record_from_json(kind: Callable[..., T], text: bytes | str, what: str) -> T:
    """Return a record of this kind, a dataclass or a list of them, that `what` holds as JSON.

    What another release has added to it is left out.

    Raises:
        Unreadable: it is no JSON, or no record of this kind; the message names the field.
    """
    from pydantic import ValidationError  # slow to import, and `--help` need not wait

    try:
        record: T = _reader_of(kind).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = cut(".".join(map(str, first["loc"])))
        mistake = "it is no JSON" if first["type"] == "json_invalid" else f"{field}: {describe_error_in_file(first)}"
        raise Unreadable(f"{what} cannot be read: {mistake.removeprefix(': ')}") from error
    return record


@cache
def _reader_of(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # see above

    return TypeAdapter(kind)


def count_in(text: bytes | str) -> int:
    """Return a number that Redis has counted.

    Raises:
        ValueError: it is none, or larger than any that Redis counts.
    """
    number = int(text)
    if not 0 <= number < 1 << 63:
        raise ValueError("it counts nothing")
    return number


#: what parsers raise of data that are none of ours: of JSON, of numbers in texts, of packed rows
UNREADABLE = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, struct.error, zlib.error,
)  # fmt: skip


def unreadable(what: str, error: Exception) -> Unreadable:
    """Return the error for data on which a parser has raised one of UNREADABLE."""
    return Unreadable(f"{what} cannot be read ({type(error).__name__}): this release of Forecache writes it otherwise")


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Within this, whatever parsers raise of data that are none of ours becomes one error.

    Raises:
        Unreadable: `what` is none of our data.
    """
    try:
        yield
    except Unreadable as error:  # a part of it
        raise Unreadable(f"{what} cannot be read: {error.message}") from error
    except UNREADABLE as error:
        raise unreadable(what, error) from error


#: how tables and runs are laid out in Redis. Raised when another release would misread what this one writes
DATA_FORMAT = 1


def unknown_format(what: str, written: int) -> UnknownFormat:
    """Return the error for what another release wrote in another format, with what to do about it."""
    fix = "upgrade this process" if written > DATA_FORMAT else "let a run of this release replace it"
    return UnknownFormat(f"{what} was written in format {written}, and this release knows {DATA_FORMAT}: {fix}")


def installed_release() -> str | None:
    """Return the installed version, such as `1.2.0`; None when it runs from its sources."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and `--help` need not wait

    try:
        return version("forecache")
    except PackageNotFoundError:
        return None
