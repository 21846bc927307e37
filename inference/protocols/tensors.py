"""Named tensors: checked against a model's inputs, and as they travel to a worker and back.

Unlike features they are what the model itself takes and gives: nothing is filled in, NaN and infinities are values
like any other. Elements of text are `str`, or `bytes` where they are no UTF-8.
"""

from __future__ import annotations

import binascii
import struct
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.errors import BadInput, cut, quoted
from inference.schema import Block, DType, TensorSpec, rows_in

#: rows of one request
MAX_TENSOR_ROWS = 4096

#: an answer, and what a worker gives for it
MAX_ANSWER_BYTES = 128 * 1024 * 1024

_LENGTH = struct.Struct("<I")


def check_tensors(tensors: Block, specs: Sequence[TensorSpec]) -> None:
    """Refuse tensors that are not exactly those of `specs`, or have no rows, too many, or different numbers of them.

    Raises:
        BadInput: it names the tensor.
    """
    by_name = {spec.name: spec for spec in specs}
    for name in tensors.keys() ^ by_name.keys():
        what = "is missing" if name in by_name else f"is no input of the model: {', '.join(by_name)}"
        raise BadInput(f"tensor {quoted(name)} {what}", field=cut(name))
    for name, values in tensors.items():
        spec = by_name[name]
        if values.dtype != spec.dtype.numpy:
            raise BadInput(f"tensor {name!r} is {values.dtype}, but the model takes {spec.dtype}", field=name)
        if not fits(values.shape, spec):
            raise BadInput(
                f"tensor {name!r} has shape {shape_text(values.shape)}, but the model takes {shape_text(full(spec))}",
                field=name,
            )
        if len(values) != rows_in(tensors):
            raise BadInput(f"tensor {name!r} has {len(values)} rows, another one {rows_in(tensors)}", field=name)
    check_rows(rows_in(tensors))


def check_rows(rows: int) -> None:
    """Refuse a request without rows, or with too many.

    Raises:
        BadInput: it says how many may come.
    """
    if not 0 < rows <= MAX_TENSOR_ROWS:
        raise BadInput(f"{rows} rows: send 1 to {MAX_TENSOR_ROWS} in a request")


def bytes_of(tensors: Block) -> int:
    """Return how many bytes tensors take, without the characters of their texts."""
    return sum(values.nbytes for values in tensors.values())


def check_outputs(tensors: Block) -> None:
    """Refuse outputs that no answer may hold.

    Raises:
        BadInput: it says how many bytes there are, and how many may be.
    """
    texts = sum(sum(map(len, values.flat)) for values in tensors.values() if values.dtype.kind == "O")
    size = bytes_of(tensors) + texts
    if size > MAX_ANSWER_BYTES:
        rows = rows_in(tensors)
        raise BadInput(f"the outputs of {rows} rows take {size} bytes: at most {MAX_ANSWER_BYTES}, send fewer rows")


def full(spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape with the row dimension, of which any size may come."""
    return (-1, *spec.shape)


def fits(shape: Sequence[int], spec: TensorSpec) -> bool:
    """Tell whether a tensor of this shape, rows included, is one of `spec`."""
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


def joined(parts: Sequence[Block]) -> Block:
    """Return the rows of all parts, in order.

    Raises:
        BadInput: parts give rows of different shapes, so that no tensor holds them all.
    """
    if len(parts) == 1:
        return parts[0]
    try:
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    except ValueError as error:
        raise BadInput("the rows' outputs have different shapes: send fewer rows at a time") from error


def pack(tensors: Block) -> dict[str, Any]:
    """Return tensors as JSON for a message: dtype, shape, and the bytes in base 64."""
    return {name: _pack_one(values) for name, values in tensors.items()}


def unpack(packed: Any) -> Block:
    """Return the tensors of a message. Numbers are read-only views.

    Raises:
        BadInput: it is not what `pack` makes.
    """
    if not isinstance(packed, Mapping) or not packed:
        raise BadInput("inputs must be an object of packed tensors", field="inputs")
    return {str(name): _unpack_one(str(name), one) for name, one in packed.items()}


def packed_rows(packed: Mapping[str, Any]) -> int:
    """Return how many rows packed tensors have."""
    return int(next(iter(packed.values()))["shape"][0])


def text_to_bytes(values: npt.NDArray[Any]) -> bytes:
    """Return texts row-major, each after its length in four little-endian bytes."""
    encoded = [value.encode() if isinstance(value, str) else value for value in values.ravel()]
    return b"".join(part for one in encoded for part in (_LENGTH.pack(len(one)), one))


def text_from_bytes(data: bytes | memoryview) -> npt.NDArray[Any]:
    """Return the texts of `text_to_bytes`, in one dimension.

    Raises:
        ValueError: a length leads past the end.
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
    """Return a one-dimensional object array, whatever the values are."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def as_text(value: bytes) -> str | bytes:
    """Return bytes as text; as they are where they are no UTF-8."""
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
