"""TensorFlow's messages of tensors, to and from arrays. Numbers stay bytes on the way, never Python lists.

Follows `Tensor::FromProto` of tensorflow/core/framework/tensor.cc: a tensor has its bytes in `tensor_content`, or its
elements in the field of its type. There the last element stands for all that are missing, and zeros if there is none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.errors import BadInput, cut
from inference.protocols.messages import descriptor_pool, message_class
from inference.protocols.tensorflow_examples import delimited_field
from inference.protocols.tensors import as_text, objects
from inference.schema import DType, GraphTensor, TensorSpec

#: limit of one tensor of a request: a short message can stand for a long tensor
MAX_TENSOR_BYTES = 8 * 1024 * 1024

#: TensorFlow's name of a type → its number
DATA_TYPES: dict[str, int] = {
    one.name: one.number for one in descriptor_pool().FindEnumTypeByName("tensorflow.DataType").values
}
_NUMBERS = {dtype: DATA_TYPES[GraphTensor.of_rows(TensorSpec("", dtype)).dtype] for dtype in DType}
_DTYPES = {number: dtype for dtype, number in _NUMBERS.items()}
#: the field for elements of a type; the others have `int_val`
_FIELDS = {
    DType.FLOAT32: "float_val",
    DType.FLOAT64: "double_val",
    DType.FLOAT16: "half_val",
    DType.INT64: "int64_val",
    DType.UINT32: "uint32_val",
    DType.UINT64: "uint64_val",
    DType.BOOL: "bool_val",
    DType.STRING: "string_val",
}
#: numbers of these types have as many bytes in a message as in memory; others are varints
_FIXED = (DType.FLOAT32, DType.FLOAT64, DType.BOOL)
_FIELD_NUMBERS: dict[str, int] = {
    one.name: one.number for one in message_class("tensorflow.TensorProto").DESCRIPTOR.fields
}


def dtype_of(message: Any) -> DType | None:
    """Return the type of a `TensorProto`'s elements; None if models here have no such type."""
    return _DTYPES.get(message.dtype)


def tensor_of(message: Any, name: str, *, most_bytes: int = MAX_TENSOR_BYTES) -> npt.NDArray[Any]:
    """Return the array in a `TensorProto`. Numbers in `tensor_content` are a read-only view.

    `most_bytes`: its limit in memory.

    Raises:
        BadInput: the message is no tensor of a known type, or too large a one; TensorFlow Serving's words.
    """
    dtype, shape = dtype_of(message), [dim.size for dim in message.tensor_shape.dim]
    if dtype is None or message.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise _unreadable(name)
    size = math.prod(shape)
    if size * dtype.numpy.itemsize > most_bytes:
        raise BadInput(f"tensor {cut(name)} takes {size * dtype.numpy.itemsize} bytes: at most {most_bytes}")
    values = _content(message, dtype) if message.tensor_content else _elements(message, dtype, size)
    if values is None or values.size != size:
        raise _unreadable(name)
    try:
        return values.reshape(shape)
    except ValueError as error:  # more dimensions than numpy has
        raise _unreadable(name) from error


def _unreadable(name: str) -> BadInput:
    return BadInput(f"tensor parsing error: {cut(name)}", field=cut(name))


def _content(message: Any, dtype: DType) -> npt.NDArray[Any] | None:
    content = message.tensor_content
    if dtype is DType.STRING or len(content) % dtype.numpy.itemsize:
        return None
    if dtype is DType.BOOL:  # every byte except 0 means true; numpy would keep the byte
        return np.frombuffer(content, np.uint8).astype(bool)
    return np.frombuffer(content, dtype.numpy)


def _elements(message: Any, dtype: DType, size: int) -> npt.NDArray[Any]:
    field = getattr(message, _FIELDS.get(dtype, "int_val"))
    given = min(len(field), size)
    values = _first(field, given, dtype)
    if given == size:
        return values
    return np.concatenate([values, np.full(size - given, values[-1] if given else _zero(dtype), values.dtype)])


def _zero(dtype: DType) -> str | int:
    return "" if dtype is DType.STRING else 0


def _first(field: Any, count: int, dtype: DType) -> npt.NDArray[Any]:
    if dtype is DType.STRING:
        return objects([as_text(value) for value in field[:count]])
    if dtype in _FIXED or dtype.numpy.itemsize == 8:
        return np.fromiter(field, dtype.numpy, count)
    # as in C++, a number that is too large keeps its lowest bits
    wide = np.fromiter(field, np.int64, count)
    return wide.astype(np.uint16).view(np.float16) if dtype is DType.FLOAT16 else wide.astype(dtype.numpy)


def write_content(message: Any, values: npt.NDArray[Any]) -> None:
    """Fill an empty `TensorProto` with an array: the bytes of its numbers, or its texts."""
    if _write_form(message, values) is DType.STRING:
        _write_texts(message, values)
    else:
        message.tensor_content = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def write_tensor(message: Any, values: npt.NDArray[Any]) -> None:
    """Fill an empty `TensorProto` with an array: its elements, as TensorFlow Serving answers."""
    dtype = _write_form(message, values)
    field = _FIELDS.get(dtype, "int_val")
    if dtype is DType.STRING:
        _write_texts(message, values)
        return
    if dtype is DType.FLOAT16:
        values = np.ascontiguousarray(values).view(np.uint16)
    # a packed field is its elements' bytes behind their length: protobuf copies them as they are
    data = values.astype(dtype.numpy, copy=False).tobytes() if dtype in _FIXED else varints(values)
    message.MergeFromString(delimited_field(_FIELD_NUMBERS[field], data))


def _write_form(message: Any, values: npt.NDArray[Any]) -> DType:
    """Write type and shape; return the type."""
    dtype = DType.STRING if values.dtype.kind == "O" else DType(values.dtype.name)
    message.dtype = _NUMBERS[dtype]
    message.tensor_shape.SetInParent()  # a scalar has a shape, too
    for size in values.shape:
        message.tensor_shape.dim.add(size=size)
    return dtype


def _write_texts(message: Any, values: npt.NDArray[Any]) -> None:
    message.string_val.extend(one.encode() if isinstance(one, str) else one for one in values.flat)


def varints(values: npt.NDArray[Any]) -> bytes:
    """Return integers as protobuf's varints: seven bits a byte, the lowest first; negative ones take ten bytes."""
    whole = (
        values.astype(np.int64, copy=False).view(np.uint64) if values.dtype.kind == "i" else values.astype(np.uint64)
    )
    if not whole.size:
        return b""
    most = -(-int(whole.max()).bit_length() // 7) or 1
    bits = whole.reshape(-1, 1) >> (np.arange(most, dtype=np.uint64) * np.uint64(7))
    kept = bits != 0
    kept[:, 0] = True
    groups = (bits & np.uint64(0x7F)).astype(np.uint8)
    groups[:, :-1][kept[:, 1:]] |= 0x80
    data: bytes = groups[kept].tobytes()
    return data
