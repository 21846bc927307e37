"""Tensors out of JSON as both protocols write it, and back: with NaN and infinities as bare words.

The usual case goes through numpy as a whole; only what does not fit is looked at value by value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from inference.errors import BadInput
from inference.schema import DType

_NOT_FINITE = (b"NaN", b"Infinity")
_UTF8_MARK = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_BLANKS = b" \t\r\n"
_LONGEST_QUOTE = 64
_TOO_DEEP = "it is nested more than 1 000 levels deep"


def parse(body: bytes) -> Any:
    """Return what JSON says; `NaN`, `Infinity` and `-Infinity` are numbers, and a UTF-8 byte order mark is skipped.

    Raises:
        BadInput: it is no JSON in UTF-8, or nested deeper than any tensor; the message says where.
    """
    body = body.removeprefix(_UTF8_MARK)
    if not body.strip(_BLANKS):
        raise _parse_error("The document is empty")
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        _require_utf8(body)
        if not any(word in body for word in _NOT_FINITE):
            raise _parse_error(_in_our_words(error.msg), error.pos) from error
    else:
        if _has_each_name_once(body, found):
            return found
    return _parse_slowly(body)


def _parse_slowly(body: bytes) -> Any:
    """Return what JSON says, with numbers that are not finite; refuse an object that has a name twice."""
    try:
        found = json.loads(body, object_pairs_hook=_without_repeats)
        if b"\\u" in body:
            # half of a surrogate pair is no text, which this parser lets through
            json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise _parse_error(error.msg, error.pos) from error
    except RecursionError as error:
        raise _parse_error(_TOO_DEEP) from error
    except UnicodeEncodeError as error:
        raise _parse_error("half of a surrogate pair is no text") from error
    except ValueError as error:  # digits beyond what Python reads
        raise _parse_error("a number has too many digits") from error
    return found


def _has_each_name_once(body: bytes, found: Any) -> bool:
    """Whether no object surely repeats a name, of which parsers keep the last: each name has a colon in the body."""
    colons = body.count(b":")
    if colons == _count_names(found):
        return True
    try:
        return colons == orjson.dumps(found).count(b":")  # text may hold some too
    except orjson.JSONEncodeError:  # it reads deeper than it writes
        return False


def _count_names(document: Any) -> int:
    """Return how many names the objects hold, but for those in lists of lists: it reads no large tensor."""
    found, waiting = 0, [document]
    while waiting:
        one = waiting.pop()
        if type(one) is dict:
            found += len(one)
            waiting.extend(value for value in one.values() if type(value) in (dict, list))
        elif type(one) is list and one and type(one[0]) is dict:
            waiting.extend(value for value in one if type(value) is dict)
    return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise _parse_error(f"an object has the name {repeated[:_LONGEST_QUOTE]!r} twice")
    return found


def _require_utf8(body: bytes) -> None:
    if body[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in body[:2]:
        raise _parse_error("this is UTF-16 or UTF-32: send UTF-8")
    if body[:2] == _GZIP:
        raise _parse_error("this is gzip: send the header Content-Encoding: gzip with it")
    try:
        body.decode()
    except UnicodeDecodeError as error:
        byte = f"byte 0x{body[error.start]:02x} is not UTF-8: send the text as UTF-8"
        raise _parse_error(byte, error.start) from error


def _in_our_words(message: str) -> str:
    if "depth" in message or "ecursion" in message:
        return _TOO_DEEP
    return "a number is larger than any float" if "infinity" in message else message


def array_of(value: Any, dtype: DType) -> npt.NDArray[Any] | None:
    """Return a number, text or boolean, or nested lists of them, as an array; None when something does not fit.

    Integers may stand for floats, if no digit is lost; floats never stand for integers, booleans for no number. Text
    may be bytes too, which JSON itself does not have.
    """
    try:
        found = np.array(value, dtype=object)
    except ValueError:  # lists of different shapes
        return None
    if not found.size:
        return np.zeros(found.shape, dtype=dtype.numpy)
    types = set(map(type, found.ravel()))
    if dtype is DType.STRING:
        return found if types <= {str, bytes} else None
    if dtype is DType.BOOL:
        return found.astype(bool) if types == {bool} else None
    try:
        if dtype.is_integer:
            return _integers(found, dtype) if types == {int} else None
        return _floats(found, dtype) if types <= {int, float} else None
    except OverflowError:  # an integer beyond 64 bits, or beyond any float
        return None


def render(document: Any) -> bytes:
    """Return JSON of plain values and numpy arrays; floats have a point or an exponent, NaN is a bare word."""
    if _is_finite(document):
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return json.dumps(_plain(document), ensure_ascii=False, separators=(",", ":")).encode()


def _parse_error(what: str, offset: int | None = None) -> BadInput:
    where = "" if offset is None else f" at offset: {offset}"
    return BadInput(f"JSON Parse error: {what}{where}", field="body")


def _integers(found: npt.NDArray[Any], dtype: DType) -> npt.NDArray[Any] | None:
    limits = np.iinfo(dtype.numpy)
    if found.min() < limits.min or found.max() > limits.max:
        return None
    return found.astype(dtype.numpy)


def _floats(found: npt.NDArray[Any], dtype: DType) -> npt.NDArray[Any] | None:
    values = found.astype(np.float64)
    size = np.abs(values)
    exact = 2 ** (np.finfo(dtype.numpy).nmant + 1) - 1  # up to here a float of this type holds every integer
    large = size > exact  # false for NaN
    if large.any() and any(type(one) is int and abs(one) > exact for one in found[large]):
        return None
    with np.errstate(over="ignore"):
        rounded = values.astype(dtype.numpy)
    return None if (np.isinf(rounded) & np.isfinite(values)).any() else rounded


def _is_finite(value: Any) -> bool:
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind != "f" or bool(np.isfinite(value).all())
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    return all(map(_is_finite, value)) if isinstance(value, list) else True


def _plain(value: Any) -> Any:
    """Return plain values; a float has the digits that its own type needs, rather than those of a double."""
    if isinstance(value, np.ndarray | np.generic):
        short = np.asarray(value)
        if short.dtype.kind == "f":
            short = short.astype("U").astype(np.float64)
        return short.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value
