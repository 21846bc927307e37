"""Named tensors: checks them against a model's inputs, packs them into messages, and translates them to and from JSON.

The model takes and gives these tensors as they are, unlike features: nothing fills a gap, and NaN and infinities are
values like any other. An element of text is a `str`, or `bytes` if it is not UTF-8.

JSON follows both protocols: NaN and infinities are bare words. numpy converts whole arrays; the slower way, value by
value, only explains errors.
"""

from __future__ import annotations

import binascii
import json
import struct
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from inference.errors import BadInput, cut, quoted
from inference.schema import Block, DType, GraphTensor, TensorSpec, rows_in
from inference.wording import counted

#: limit of the rows in one request
MAX_TENSOR_ROWS = 4096

#: limit of one answer, and of a worker's outputs for it
MAX_ANSWER_BYTES = 128 * 1024 * 1024

#: elements to convert at once, in a few milliseconds: numpy and the encoders hold the interpreter meanwhile
AT_ONCE = 16_384

#: the largest version number: an int64 in both protocols
MOST_VERSION = 2**63 - 1

_LENGTH = struct.Struct("<I")


def check_named(tensors: Block, declared: Sequence[GraphTensor]) -> None:
    """Check that the tensors have these names and types, in any shapes, and that there are not too many rows.

    Optional ones may be missing.

    Raises:
        BadInput: it names the tensor.
    """
    by_name = {one.name: one for one in declared}
    _check_names(tensors, {name: one for name, one in by_name.items() if name in tensors or not one.optional})
    for name, values in tensors.items():
        element = by_name[name].element
        if element is None or values.dtype != element.numpy:
            raise BadInput(f"tensor {name!r} is {values.dtype}, but the model takes {by_name[name].dtype}", field=name)
    check_rows(most_rows(tensors) or 1)


def _check_names(tensors: Block, by_name: Mapping[str, object]) -> None:
    for name in tensors.keys() ^ by_name.keys():
        what = "is missing" if name in by_name else f"is no input of the model: {', '.join(by_name)}"
        raise BadInput(f"tensor {quoted(name)} {what}", field=cut(name))


def check_tensors(tensors: Block, specs: Sequence[TensorSpec]) -> None:
    """Check that the tensors are exactly those of `specs`, and have the same, legal number of rows.

    Raises:
        BadInput: it names the tensor.
    """
    by_name = {spec.name: spec for spec in specs}
    _check_names(tensors, by_name)
    for name, values in tensors.items():
        spec = by_name[name]
        if values.dtype != spec.dtype.numpy:
            raise BadInput(f"tensor {name!r} is {values.dtype}, but the model takes {spec.dtype}", field=name)
        if not fits(values.shape, spec):
            raise wrong_shape(name, values.shape, full(spec))
        if len(values) != rows_in(tensors):
            raise BadInput(
                f"tensor {name!r} has {counted(len(values), 'row')}, another one {rows_in(tensors)}", field=name
            )
    check_rows(rows_in(tensors))


def wrong_shape(name: str, shape: Sequence[int], wanted: Sequence[int]) -> BadInput:
    """Return the error for a tensor with another shape than the model declares."""
    has, takes = shape_text(shape), shape_text(wanted)
    return BadInput(f"tensor {name!r} has shape {has}, but the model takes {takes}", field=name)


def check_rows(rows: int) -> None:
    """Check the number of rows in a request.

    Raises:
        BadInput: there are none or too many; the message has the limit.
    """
    if not 0 < rows <= MAX_TENSOR_ROWS:
        raise BadInput(f"{rows} rows: send 1 to {MAX_TENSOR_ROWS} in a request")


def most_rows(tensors: Block) -> int:
    """Return the rows of the longest tensor. A scalar counts as a row."""
    return max((len(values) if values.ndim else 1 for values in tensors.values()), default=0)


def bytes_of(tensors: Block) -> int:
    """Return the size of tensors in bytes, without the characters of their texts."""
    return sum(values.nbytes for values in tensors.values())


def check_outputs(tensors: Block) -> None:
    """Check that outputs fit into an answer.

    Raises:
        BadInput: they are too large; the message has their size and the limit.
    """
    texts = sum(sum(map(len, values.flat)) for values in tensors.values() if values.dtype.kind == "O")
    size = bytes_of(tensors) + texts
    if size > MAX_ANSWER_BYTES:
        rows = most_rows(tensors)
        raise BadInput(
            f"the outputs of {counted(rows, 'row')} take {size} bytes: at most {MAX_ANSWER_BYTES}, send fewer rows"
        )


def full(spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape with the row dimension in front, as -1: any number of rows."""
    return (-1, *spec.shape)


def fits(shape: Sequence[int], spec: TensorSpec) -> bool:
    """Return whether this shape, rows included, fits `spec`."""
    wanted = full(spec)
    return len(shape) == len(wanted) and all(
        size in (-1, found) for size, found in zip(wanted, shape, strict=True)
    )  # fmt: skip


def shape_text(shape: Iterable[int]) -> str:
    """Return a shape as the protocols print it: `[-1,3]`."""
    return f"[{','.join(map(str, shape))}]"


def rows_between(tensors: Block, start: int, stop: int) -> Block:
    """Return the rows from `start` up to `stop`, as views."""
    return {name: values[start:stop] for name, values in tensors.items()}


def are_rows_of(parts: Sequence[Block], outputs: Sequence[Block]) -> bool:
    """Return whether the outputs of several parts are as many rows as the parts, of one shape; true for one part."""
    if len(parts) == 1:
        return True
    shapes = {name: values.shape[1:] for name, values in outputs[0].items()}
    return all(
        values.ndim and len(values) == rows_in(part) and values.shape[1:] == shapes[name]
        for part, block in zip(parts, outputs, strict=True)
        for name, values in block.items()
    )


def joined(parts: Sequence[Block]) -> Block:
    """Return the rows of all parts, in order. They have one shape."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def pack(tensors: Block) -> dict[str, Any]:
    """Return tensors as JSON for a message: dtype, shape, and bytes in base 64."""
    return {name: _pack_one(values) for name, values in tensors.items()}


def unpack(packed: Any) -> Block:
    """Return the tensors of a message. Numbers are read-only views.

    Raises:
        BadInput: `pack` did not make it.
    """
    if not isinstance(packed, Mapping) or not packed:
        raise BadInput("inputs must be an object of packed tensors", field="inputs")
    return {str(name): _unpack_one(str(name), one) for name, one in packed.items()}


def packed_rows(packed: Mapping[str, Any]) -> int:
    """Return the rows of the longest of packed tensors. A scalar counts as a row."""
    return max((int(one["shape"][0]) if one["shape"] else 1 for one in packed.values()), default=0)


def text_to_bytes(values: npt.NDArray[Any]) -> bytes:
    """Return the texts' bytes in row-major order; four little-endian bytes in front of each text hold its length."""
    encoded = [value.encode() if isinstance(value, str) else value for value in values.ravel()]
    return b"".join(part for one in encoded for part in (_LENGTH.pack(len(one)), one))


def text_from_bytes(data: bytes | memoryview) -> npt.NDArray[Any]:
    """Return the texts from the bytes of `text_to_bytes`, in one dimension.

    Raises:
        ValueError: a length points past the end.
    """
    found: list[str | bytes] = []
    start = 0
    while start < len(data):
        if start + _LENGTH.size > len(data):
            raise ValueError("a length is cut off")
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        if start + length > len(data):
            raise ValueError("a text is cut off")
        found.append(as_text(bytes(data[start : start + length])))
        start += length
    return objects(found)


def objects(values: Sequence[Any]) -> npt.NDArray[Any]:
    """Return the values as a one-dimensional object array, even if they are lists."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def as_text(value: bytes) -> str | bytes:
    """Return the text if the bytes are UTF-8, otherwise the bytes."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _pack_one(values: npt.NDArray[Any]) -> dict[str, Any]:
    text = values.dtype.kind == "O"
    data = text_to_bytes(values) if text else values.tobytes()
    dtype = DType.STRING.value if text else values.dtype.name
    return {"dtype": dtype, "shape": list(values.shape), "data": b64encode(data).decode("ascii")}


def _unpack_one(name: str, packed: Any) -> npt.NDArray[Any]:
    try:
        dtype = DType(packed["dtype"])
        data = b64decode(packed["data"], validate=True)
        values = text_from_bytes(data) if dtype is DType.STRING else np.frombuffer(data, dtype.numpy)
        return values.reshape([int(size) for size in packed["shape"]])
    except (TypeError, KeyError, ValueError, binascii.Error) as error:
        raise BadInput(f"tensor {quoted(name)} is not packed as it should be: {error}", field=cut(name)) from error


def array_of(value: Any, dtype: DType, *, rounds: bool = False) -> npt.NDArray[Any] | None:
    """Return a number, a text, a boolean, or nested lists of them, as an array; None if something does not fit.

    An integer may become a float if it loses no digit, and a number beyond the largest float never does; if it
    `rounds`, both may. A float never becomes an integer, and a boolean never becomes a number. A text may also be
    bytes, which JSON itself lacks.
    """
    size = _size(value)
    if size <= AT_ONCE:
        return _array_at_once(value, dtype, rounds)
    rows = AT_ONCE * len(value) // size
    parts: list[npt.NDArray[Any]] = []
    for part in value if rows == 0 else (value[start : start + rows] for start in range(0, len(value), rows)):
        found = array_of(part, dtype, rounds=rounds) if rows == 0 else _array_at_once(part, dtype, rounds)
        if found is None or found.shape[rows > 0 :] != (parts or [found])[0].shape[rows > 0 :]:
            return None
        parts.append(found)
    return np.stack(parts) if rows == 0 else np.concatenate(parts)


def _size(value: Any) -> int:
    """Return the number of elements in nested lists, on all levels. Assumes lists as long as the first ones."""
    size, total = 1, 0
    while isinstance(value, list):
        size *= len(value)
        total += size
        value = value[0] if value else None
    return total


def _array_at_once(value: Any, dtype: DType, rounds: bool = False) -> npt.NDArray[Any] | None:
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
        return _floats(found, dtype, rounds) if types <= {int, float} else None
    except OverflowError:  # an integer beyond 64 bits, or beyond any float
        return None


def render(document: Any) -> bytes:
    """Return plain values and numpy arrays as JSON; floats have a point or an exponent, NaN is a bare word."""
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


def _floats(found: npt.NDArray[Any], dtype: DType, rounds: bool) -> npt.NDArray[Any] | None:
    values = found.astype(np.float64)
    if rounds:
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(dtype.numpy)
    size = np.abs(values)
    exact = 2 ** (np.finfo(dtype.numpy).nmant + 1) - 1  # a float of this type holds every integer up to here
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
    """Return the document with its arrays already encoded, each in small steps so that other threads can run."""
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
    """Return plain values; a float keeps the digits of its own type, not those of a double."""
    if isinstance(value, np.ndarray | np.generic):
        short = np.asarray(value)
        if short.dtype.kind == "f":
            short = short.astype("U").astype(np.float64)
        return short.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def whole_number(text: str, most: int) -> int | None:
    """Return the number in a path or header; None if the text is not digits only, or the number is over `most`."""
    # int() raises on thousands of digits
    if not (text.isascii() and text.isdecimal()) or len(text.lstrip("0")) > len(str(most)):
        return None
    number = int(text)
    return number if number <= most else None
