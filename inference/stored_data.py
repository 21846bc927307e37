"""Reads and writes the records in Redis and in files. Foreign data raises one error, `Unreadable`."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from inference.errors import UnknownFormat, Unreadable, cut
from inference.field_errors import describe_error_in_file

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError


T = TypeVar("T")


def record_from_json(kind: Callable[..., T], text: bytes | str, what: str) -> T:
    """Return a record of this kind, a dataclass or a list of them, from its JSON. `what` names it in an error.

    Ignores fields that another release added.

    Raises:
        Unreadable: the text is not JSON, or not a record of this kind; the message names the field.
    """
    from pydantic import ValidationError  # slow to import, and `--help` need not wait

    try:
        record: T = _adapter_of(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise _unreadable_field(what, error) from error
    return record


def record_from_hash(kind: Callable[..., T], data: Mapping[bytes, bytes], what: str) -> T:
    """Return a record of this kind, a dataclass, from its Redis hash: field → text. `what` names it in an error.

    Ignores fields that another release added.

    Raises:
        Unreadable: the hash is not a record of this kind; the message names the field.
    """
    from pydantic import ValidationError  # see above

    with reading(what):
        texts = {name.decode(): text.decode() for name, text in data.items()}
    try:
        record: T = _adapter_of(kind).validate_python(texts)
    except ValidationError as error:
        raise _unreadable_field(what, error) from error
    return record


def json_of(kind: Callable[..., T], record: T) -> Any:
    """Return a record of this kind as plain JSON values."""
    return _adapter_of(kind).dump_python(record, mode="json")


def json_text_of(kind: Callable[..., T], record: T) -> str:
    """Return a record of this kind as the JSON that `record_from_json` reads."""
    return _adapter_of(kind).dump_json(record).decode()


def _unreadable_field(what: str, error: ValidationError) -> Unreadable:
    first = error.errors(include_url=False)[0]
    field = cut(".".join(map(str, first["loc"])))
    problem = "it is not JSON" if first["type"] == "json_invalid" else f"{field}: {describe_error_in_file(first)}"
    return Unreadable(f"{what} cannot be read: {problem.removeprefix(': ')}")


@cache
def _adapter_of(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # see above

    return TypeAdapter(kind)


def count_in(text: bytes | str) -> int:
    """Return the value of a counter in Redis.

    Raises:
        ValueError: the text is not a whole number from 0 to 2**63 - 1.
    """
    number = int(text)
    if not 0 <= number < 1 << 63:
        raise ValueError("it is not a count")
    return number


#: errors that parsers of JSON, numbers and packed rows raise on foreign data
UNREADABLE = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, struct.error, zlib.error,
)  # fmt: skip


def unreadable(what: str, error: Exception) -> Unreadable:
    """Return the error for data on which a parser raised one of UNREADABLE. `what` names the data."""
    return Unreadable(f"{what} cannot be read ({type(error).__name__}): it is not in the format of this release")


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn the exceptions of parsers within the block into one error. `what` names the data.

    Raises:
        Unreadable: the data is not ours.
    """
    try:
        yield
    except Unreadable as error:  # from a part of it
        raise Unreadable(f"{what} cannot be read: {error.message}") from error
    except UNREADABLE as error:
        raise unreadable(what, error) from error


#: format of runs in Redis. Increase it if an older release would misread new data
DATA_FORMAT = 1
#: format of data without a number: older releases wrote none
FIRST_FORMAT = 1


def unknown_format(what: str, written: int, newest: int = DATA_FORMAT) -> UnknownFormat:
    """Return the error for data in another release's format; the message names the fix. `newest`: the newest known."""
    fix = "upgrade this process" if written > newest else "let a run of this release replace it"
    known = f"{FIRST_FORMAT}" if newest == FIRST_FORMAT else f"{FIRST_FORMAT} to {newest}"
    return UnknownFormat(f"{what} was written in format {written}, and this release knows {known}: {fix}")


def installed_release() -> str | None:
    """Return the installed version, such as `1.2.0`; None when it runs from its sources."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and `--help` need not wait

    try:
        return version("forecache")
    except PackageNotFoundError:
        return None
