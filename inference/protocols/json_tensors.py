"""Tensors out of JSON as both protocols write it, and back: with NaN and infinities as bare words.

The usual case goes through numpy as a whole; only what does not fit is looked at value by value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from inference.schema import DType

#: elements that are converted at once: numpy and the encoders hold the interpreter meanwhile, a few milliseconds
AT_ONCE = 16_384


def array_of(value: Any, dtype: DType) -> npt.NDArray[Any] | None:
    """Return a number, text or boolean, or nested lists of them, as an array; None when something does not fit.

    Integers may stand for floats, if no digit is lost; floats never stand for integers, booleans for no number. Text
    may be bytes too, which JSON itself does not have.
    """
    size = _size(value)
    if size <= AT_ONCE:
        return _array_at_once(value, dtype)
    rows = AT_ONCE * len(value) // size
    parts: list[npt.NDArray[Any]] = []
    for part in value if rows == 0 else (value[start : start + rows] for start in range(0, len(value), rows)):
        found = array_of(part, dtype) if rows == 0 else _array_at_once(part, dtype)
        if found is None or found.shape[rows > 0 :] != (parts or [found])[0].shape[rows > 0 :]:
            return None
        parts.append(found)
    return np.stack(parts) if rows == 0 else np.concatenate(parts)


def _size(value: Any) -> int:
    """Return how many elements nested lists have, of all levels together, if all are as long as the first ones."""
    size, total = 1, 0
    while isinstance(value, list):
        size *= len(value)
        total += size
        value = value[0] if value else None
    return total


def _array_at_once(value: Any, dtype: DType) -> npt.NDArray[Any] | None:
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
    if _elements(document) > AT_ONCE:
        return orjson.dumps(_with_fragments(document))
    if _is_finite(document):
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return json.dumps(_plain(document), ensure_ascii=False, separators=(",", ":")).encode()


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


def _elements(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.size
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return sum(map(_elements, values))


def _with_fragments(value: Any) -> Any:
    """Return the document with its arrays spelt already, each in steps that hold nobody up."""
    if isinstance(value, np.ndarray | np.generic):
        return orjson.Fragment(b"".join(_steps(np.asarray(value))))
    if isinstance(value, Mapping):
        return {name: _with_fragments(one) for name, one in value.items()}
    return [_with_fragments(one) for one in value] if isinstance(value, list) else value


def _steps(values: npt.NDArray[Any]) -> Iterator[bytes]:
    if values.size <= AT_ONCE:
        yield render(np.ascontiguousarray(values) if values.ndim else values[()])
        return
    rows = AT_ONCE * len(values) // values.size
    between = b"["
    for start in range(0, len(values), max(rows, 1)):
        yield between
        if rows:
            yield render(np.ascontiguousarray(values[start : start + rows]))[1:-1]
        else:
            yield from _steps(values[start])
        between = b","
    yield b"]"


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
