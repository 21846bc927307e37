"""Turns Arrow columns into arrays of a feature, by casts that keep the meaning."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.features.feature import Feature
from inference.features.rows import blank, per_row
from inference.schema import DType, cast_expression
from inference.sources.column_types import is_list, plain_column, plain_type


class Values(NamedTuple):
    """A column as an array. `missing` marks nulls and NaN, `misfit` marks values that the feature cannot hold."""

    array: npt.NDArray[Any]
    missing: npt.NDArray[np.bool_]
    misfit: npt.NDArray[np.bool_]


def type_problem(feature: Feature, type_: pa.DataType, called: str = "") -> str | None:
    """Return why a column of this type cannot become the feature, with the fix; None if it can.

    `called`: the name of the type in the message, if not its own.
    """
    type_name, type_ = called or str(type_), plain_type(type_)
    for depth, _ in enumerate(feature.shape):
        if pa.types.is_null(type_):  # lists of nothing but empty lists, or no list at all
            return None
        if not is_list(type_):
            fix = f"nest the lists, or declare shape [{feature.width}] in features.json" if depth else "store lists"
            return f"is {type_name}, but the feature has shape {list(feature.shape)}: {fix}"
        type_ = type_.value_type
    if is_list(type_):
        shaped = f"has shape {list(feature.shape)}: nest the lists less"
        what = shaped if feature.shape else f"is {feature.dtype}: store single values"
        return f"is {type_name}, but the feature {what}, or correct its shape in features.json"
    if pa.types.is_null(type_) or _fits(feature.dtype, type_):
        return None
    return f"is {type_name}, but the feature is {feature.dtype}: {_fix(feature, type_)}"


def column_values(column: pa.Array, feature: Feature) -> Values:
    """Return a column as an array of shape [rows, *feature.shape]. Its type must have no `type_problem`."""
    column = plain_column(column)
    return _nested(column, feature) if feature.shape else _scalars(column, feature)


def _fits(dtype: DType, type_: pa.DataType) -> bool:
    if dtype is DType.STRING:
        return bool(pa.types.is_large_string(type_))
    if dtype is DType.BOOL:
        return bool(pa.types.is_boolean(type_))
    if pa.types.is_integer(type_) or pa.types.is_boolean(type_):
        return True
    if pa.types.is_decimal(type_):
        return dtype.is_float or type_.scale == 0
    return dtype.is_float and bool(pa.types.is_floating(type_))


def _fix(feature: Feature, type_: pa.DataType) -> str:
    if pa.types.is_temporal(type_):
        return (
            "dates and times are no features; write what the model needs of it, such as days since then or the hour, "
            "as a column of numbers, for training too"
        )
    dtype = feature.dtype
    how = (
        ""
        if feature.shape or pa.types.is_nested(type_)
        else f", such as {cast_expression(feature.table_column, dtype)}"
    )
    if dtype is DType.STRING:
        return f"write it as text in the table{how}"
    if pa.types.is_large_string(type_):
        return f"write it as {dtype} in the table, or declare the feature as a string"
    return f"cast it to {dtype} in the table{how}"


def _nested(column: pa.Array, feature: Feature) -> Values:
    size = feature.shape[0]
    inner = Feature(feature.name, feature.dtype, feature.shape[1:], nullable=feature.nullable)
    missing = column.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_null(column.type):
        return Values(blank(feature, len(column)), missing, np.zeros(len(column), dtype=bool))
    lengths = pc.fill_null(pc.list_value_length(column), size).to_numpy(zero_copy_only=False)
    misfit = lengths != size
    whole = ~(missing | misfit)
    leaf = column_values(column.filter(pa.array(whole)).flatten(), inner)
    values = blank(feature, len(column))
    values[whole] = leaf.array.reshape(-1, *feature.shape)
    gaps = leaf.missing.reshape(-1, size)
    if feature.nullable and feature.dtype.is_float:  # the model takes NaN for each missing element
        values[whole] = np.where(gaps.reshape(*gaps.shape, *[1] * len(inner.shape)), np.nan, values[whole])
    else:
        missing[whole] = per_row(gaps)
    misfit[whole] = per_row(leaf.misfit.reshape(-1, size))
    return Values(values, missing, misfit)


def _scalars(column: pa.Array, feature: Feature) -> Values:
    fine = np.zeros(len(column), dtype=bool)
    if pa.types.is_null(column.type):
        return Values(blank(feature, len(column)), ~fine, fine)
    missing = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else fine
    if pa.types.is_decimal(column.type):
        return _decimals(column, missing, feature.dtype)
    if column.null_count:
        # numpy has no null: it would turn integers into float64, which loses digits past 2**53
        column = pc.fill_null(column, "" if feature.dtype is DType.STRING else _zero(column.type))
    raw = column.to_numpy(zero_copy_only=False)
    return _cast(raw, missing, feature.dtype)


def _decimals(column: pa.Array, missing: npt.NDArray[np.bool_], dtype: DType) -> Values:
    if dtype.is_float:
        # by way of text: Arrow's own cast is off in the last digit, so the 1.15 of a request would be another number
        numbers = pc.cast(pc.cast(column, pa.string()), pa.float64())
        return _cast(numbers.to_numpy(zero_copy_only=False), missing, dtype)
    limits = np.iinfo(dtype.numpy)
    low, high = (pa.scalar(Decimal(int(limit)), pa.decimal128(20, 0)) for limit in (limits.min, limits.max))
    misfit = pc.or_(pc.less(column, low), pc.greater(column, high))
    whole = pc.fill_null(pc.if_else(misfit, pa.scalar(None, column.type), column), Decimal(0))
    values = pc.cast(whole, pa.from_numpy_dtype(dtype.numpy)).to_numpy(zero_copy_only=False)
    return Values(values, missing, pc.fill_null(misfit, False).to_numpy(zero_copy_only=False))


def _zero(type_: pa.DataType) -> pa.Scalar:
    return pa.scalar(False if pa.types.is_boolean(type_) else 0, type=type_)


def _cast(raw: npt.NDArray[Any], missing: npt.NDArray[np.bool_], dtype: DType) -> Values:
    fine = np.zeros(len(raw), dtype=bool)
    if raw.dtype.kind == "f":
        nan = np.isnan(raw)
        missing = missing | nan if nan.any() else missing
    with np.errstate(over="ignore"):  # a float64 that is too large becomes infinite, and its row is rejected for that
        values = raw.astype(dtype.numpy, copy=False)
    if dtype.is_integer and raw.dtype.kind in "iu":
        limits = np.iinfo(dtype.numpy)
        return Values(values, missing, outside(raw, int(limits.min), int(limits.max)))
    return Values(values, missing, fine)


def outside(raw: npt.NDArray[Any], least: int, most: int) -> npt.NDArray[np.bool_]:
    """Return which integers lie outside the limits."""
    possible = np.iinfo(raw.dtype)
    bad = np.zeros(len(raw), dtype=bool)
    if possible.min < least:
        bad |= raw < least
    if possible.max > most:
        bad |= raw > most
    return bad
