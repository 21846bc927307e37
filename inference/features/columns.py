"""Arrow columns as arrays of a feature: casts that keep the meaning, nothing else."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.features.feature import Feature
from inference.features.rows import blank, per_row
from inference.schema import DType


class Values(NamedTuple):
    """A column as an array: `missing` marks nulls and NaN, `misfit` values that the feature cannot hold."""

    array: npt.NDArray[Any]
    missing: npt.NDArray[np.bool_]
    misfit: npt.NDArray[np.bool_]


def type_problem(feature: Feature, type_: pa.DataType) -> str | None:
    """Return why a column of this type cannot become the feature, with the fix; None when it can."""
    for _ in feature.shape:
        if not _is_list(type_):
            return f"is {type_}, but the feature has shape {list(feature.shape)}: store lists"
        type_ = type_.value_type
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if pa.types.is_null(type_) or _fits(feature.dtype, type_):
        return None
    return f"is {type_}, but the feature is {feature.dtype}: {_fix(feature.dtype, type_)}"


def column_values(column: pa.Array, feature: Feature) -> Values:
    """Return a column, whose type has no `type_problem`, as an array of shape [rows, *feature.shape]."""
    return _nested(column, feature) if feature.shape else _scalars(column, feature)


def _is_list(type_: pa.DataType) -> bool:
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_))


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _fits(dtype: DType, type_: pa.DataType) -> bool:
    if dtype is DType.STRING:
        return _is_text(type_)
    if dtype is DType.BOOL:
        return bool(pa.types.is_boolean(type_))
    if pa.types.is_integer(type_) or pa.types.is_boolean(type_):
        return True
    return dtype.is_float and bool(pa.types.is_floating(type_) or pa.types.is_decimal(type_))


def _fix(dtype: DType, type_: pa.DataType) -> str:
    if pa.types.is_temporal(type_):
        return (
            "dates and times are no features; write what the model needs of it, such as days since then or the hour, "
            "as a column of numbers, for training too"
        )
    if dtype is DType.STRING:
        return "write it as text in the table"
    if _is_text(type_):
        return f"write it as {dtype} in the table, or declare the feature as a string"
    return f"cast it to {dtype} in the table"


def _nested(column: pa.Array, feature: Feature) -> Values:
    size, inner = feature.shape[0], Feature(feature.name, feature.dtype, feature.shape[1:])
    missing = column.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_null(column.type):
        return Values(blank(feature, len(column)), missing, np.zeros(len(column), dtype=bool))
    lengths = pc.fill_null(pc.list_value_length(column), size).to_numpy(zero_copy_only=False)
    misfit = lengths != size
    whole = ~(missing | misfit)
    leaf = column_values(column.filter(pa.array(whole)).flatten(), inner)
    values = blank(feature, len(column))
    values[whole] = leaf.array.reshape(-1, *feature.shape)
    missing[whole] = per_row(leaf.missing.reshape(-1, size))
    misfit[whole] = per_row(leaf.misfit.reshape(-1, size))
    return Values(values, missing, misfit)


def _scalars(column: pa.Array, feature: Feature) -> Values:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    fine = np.zeros(len(column), dtype=bool)
    if pa.types.is_null(column.type):
        return Values(blank(feature, len(column)), ~fine, fine)
    missing = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else fine
    if pa.types.is_decimal(column.type):
        column = pc.cast(column, pa.float64())
    if column.null_count:
        # numpy has no null: without this, integers would pass through float64 and lose digits past 2**53
        column = pc.fill_null(column, "" if feature.dtype is DType.STRING else _zero(column.type))
    raw = column.to_numpy(zero_copy_only=False)
    return _cast(raw, missing, feature.dtype)


def _zero(type_: pa.DataType) -> pa.Scalar:
    return pa.scalar(False if pa.types.is_boolean(type_) else 0, type=type_)


def _cast(raw: npt.NDArray[Any], missing: npt.NDArray[np.bool_], dtype: DType) -> Values:
    fine = np.zeros(len(raw), dtype=bool)
    if raw.dtype.kind == "f":
        nan = np.isnan(raw)
        missing = missing | nan if nan.any() else missing
    with np.errstate(over="ignore"):  # a float64 too large for the feature becomes infinite, and is rejected as such
        values = raw.astype(dtype.numpy, copy=False)
    if dtype.is_integer and raw.dtype.kind in "iu":
        limits = np.iinfo(dtype.numpy)
        return Values(values, missing, outside(raw, int(limits.min), int(limits.max)))
    return Values(values, missing, fine)


def outside(raw: npt.NDArray[Any], least: int, most: int) -> npt.NDArray[np.bool_]:
    """Return which integers lie outside the limits."""
    own = np.iinfo(raw.dtype)
    bad = np.zeros(len(raw), dtype=bool)
    if own.min < least:
        bad |= raw < least
    if own.max > most:
        bad |= raw > most
    return bad
