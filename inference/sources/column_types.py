"""Converts columns to a few plain types, so that no reader needs to know the other types of Parquet files.

| in the file | plain type |
|---|---|
| string, large_string, string_view, JSON | large_string: a batch may hold over 2 GiB of it |
| UUID | large_string, such as `8f14e45f-ceea-467f-a8e0-9d1f0a3b5c7d` |
| binary, large_binary, binary_view, binary of a fixed size | large_binary |
| decimals of any width | decimal128, decimal256 if that is too narrow |
| half floats, date64, bool8 | float32, date32, bool |
| dictionaries (categories), extension types | their values |
| lists, large lists, list views | list; lists of a fixed size stay so |

Other types stay, and so do columns of nulls.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_TEXT = pa.large_string()
_UUID, _BOOL = "arrow.uuid", "arrow.bool8"
_UUID_CHARS = 36
#: the places of the 32 digits in a UUID's text
_DIGIT_PLACES = [place for place in range(_UUID_CHARS) if place not in (8, 13, 18, 23)]
_HEX = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), np.uint8).reshape(256, 2)
#: bits of an integer → its decimal digits
_DIGITS = {8: 3, 16: 5, 32: 10, 64: 20}
_MAX_DIGITS = 76


def plain_type(type_: pa.DataType) -> pa.DataType:
    """Return the plain type of a column type."""
    if isinstance(type_, pa.BaseExtensionType):
        known = {_UUID: _TEXT, _BOOL: pa.bool_()}
        return known.get(type_.extension_name) or plain_type(type_.storage_type)
    if pa.types.is_dictionary(type_):
        return plain_type(type_.value_type)
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(plain_type(type_.value_type), type_.list_size)
    if is_list(type_):
        return pa.list_(plain_type(type_.value_type))
    if pa.types.is_decimal(type_):
        return _decimal(type_.precision, type_.scale)
    return _plain_scalar(type_)


def _plain_scalar(type_: pa.DataType) -> pa.DataType:
    kinds = pa.types
    if kinds.is_string(type_) or kinds.is_string_view(type_):
        return _TEXT
    if kinds.is_binary(type_) or kinds.is_binary_view(type_) or kinds.is_fixed_size_binary(type_):
        return pa.large_binary()
    if kinds.is_float16(type_):
        return pa.float32()
    return pa.date32() if kinds.is_date64(type_) else type_


def plain_column(column: pa.Array) -> pa.Array:
    """Return a column in its `plain_type`. Slices and nulls keep their place."""
    type_ = column.type
    plain = plain_type(type_)
    if plain == type_:
        return column
    if isinstance(type_, pa.BaseExtensionType):
        return (
            _uuid_text(column.storage)
            if type_.extension_name == _UUID
            else pc.cast(plain_column(column.storage), plain)
        )
    if pa.types.is_dictionary(type_):
        return plain_column(column.dictionary).take(column.indices)
    if pa.types.is_fixed_size_list(type_):
        size = type_.list_size
        values = plain_column(column.values.slice(column.offset * size, len(column) * size))
        return pa.FixedSizeListArray.from_arrays(values, size, mask=column.is_null())
    if is_list(type_):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        values = plain_column(column.flatten())  # without null rows
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=column.is_null())
    return pc.cast(column, plain)


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the plain type for the values of two types; None if they mean something different.

    It may be float64 for whole numbers with more digits. Rows are read in the type of their own file, so they stay
    exact.
    """
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if _is_number(one) and _is_number(other):
        return _common_number(one, other)
    if _is_instant(one) and _is_instant(other):
        zones = [type_.tz for type_ in (one, other) if pa.types.is_timestamp(type_) and type_.tz]
        return pa.timestamp("us", zones[0] if zones else None)
    if is_list(one) and is_list(other):
        inner = common_type(one.value_type, other.value_type)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        return _common_struct(one, other)
    return None


def concat_rows(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of tables with the same columns, in order. Each column has the common type of all tables."""
    if all(table.schema.equals(tables[0].schema) for table in tables):
        return pa.concat_tables(tables)
    rows = reduce(_common_struct, (pa.struct(list(table.schema)) for table in tables))
    if rows is None:
        raise ValueError("the tables have other columns, or columns that mean something different")
    # a float64 may round a number, as it does in every reader that takes the column as float64
    return pa.concat_tables([table.cast(pa.schema(list(rows)), safe=False) for table in tables])


def type_name(type_: pa.DataType) -> str:
    """Return the usual name of a plain type."""
    return str(type_).replace("large_", "")


def holds_text(type_: pa.DataType) -> bool:
    """Tell whether a plain type is text, or lists of text."""
    while is_list(type_):
        type_ = type_.value_type
    return bool(pa.types.is_large_string(type_))


def is_list(type_: pa.DataType) -> bool:
    """Tell whether a column of the type holds lists, in any layout."""
    kinds = pa.types
    return bool(
        kinds.is_list(type_)
        or kinds.is_large_list(type_)
        or kinds.is_fixed_size_list(type_)
        or kinds.is_list_view(type_)
        or kinds.is_large_list_view(type_)
    )


def _is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_))


def _is_instant(type_: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(type_) or pa.types.is_date(type_))


def _common_struct(one: pa.StructType, other: pa.StructType) -> pa.StructType | None:
    if [field.name for field in one] != [field.name for field in other]:
        return None
    types = [common_type(mine.type, its.type) for mine, its in zip(one, other, strict=True)]
    return None if None in types else pa.struct([(field.name, type_) for field, type_ in zip(one, types, strict=True)])


def _common_number(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if pa.types.is_floating(one) or pa.types.is_floating(other):
        return pa.float64()  # it holds float32 and all integers, but for their last digits
    if pa.types.is_integer(one) and pa.types.is_integer(other):
        return _common_integer(one, other)
    whole = max(_whole_digits(one), _whole_digits(other))
    scale = max(getattr(one, "scale", 0), getattr(other, "scale", 0))
    return None if whole + scale > _MAX_DIGITS else _decimal(whole + scale, scale)


def _common_integer(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if pa.types.is_signed_integer(one) == pa.types.is_signed_integer(other):
        return max(one, other, key=lambda type_: type_.bit_width)
    unsigned = one if pa.types.is_unsigned_integer(one) else other
    return pa.int64() if unsigned.bit_width < 64 else _decimal(_DIGITS[64], 0)


def _whole_digits(type_: pa.DataType) -> int:
    if pa.types.is_integer(type_):
        return _DIGITS[type_.bit_width]
    return int(type_.precision - type_.scale)


def _decimal(digits: int, scale: int) -> pa.DataType:
    return pa.decimal128(digits, scale) if digits <= 38 else pa.decimal256(digits, scale)


def _uuid_text(storage: Any) -> pa.Array:
    """Return UUIDs, 16 bytes each, in their usual spelling."""
    rows = len(storage)
    if not rows:
        return pa.array([], _TEXT)
    data = np.frombuffer(storage.buffers()[1], np.uint8)[storage.offset * 16 :][: rows * 16].reshape(rows, 16)
    chars = np.full((rows, _UUID_CHARS), ord("-"), np.uint8)
    chars[:, _DIGIT_PLACES] = _HEX[data].reshape(rows, 32)
    offsets = np.arange(rows + 1, dtype=np.int64) * _UUID_CHARS
    text = pa.LargeStringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(chars))
    return pc.if_else(storage.is_null(), pa.scalar(None, _TEXT), text)
