"""Event times: when the values of a row were true, as epoch seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.errors import SourceError
from inference.features.contract import FeatureContract

#: an event time before 1970 counts as its first second, for 0 stands for none where features are kept
EARLIEST_S = 1.0
#: one after the year 9999, such as a database's infinity, counts as its last second
LATEST_S = 253_402_300_799.0
_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6}
_WHOLE_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_UNKNOWN_TIME = np.iinfo(np.int64).min

#: by table group, when each row's values were true, in epoch seconds; NaN where a row has nothing of the group
GroupTimes = dict[str, npt.NDArray[np.float64]]


def check_event_time_column(name: str, type_: pa.DataType) -> None:
    """Refuse a column that holds no instants.

    Raises:
        SourceError: the type is neither a timestamp nor a date.
    """
    if not (pa.types.is_timestamp(type_) or pa.types.is_date(type_)):
        raise SourceError(
            f"event time column {name!r} is {type_}: cast it to a timestamp (text and numbers are ambiguous)",
            field=name,
        )


def event_times(column: pa.Array) -> npt.NDArray[np.float64]:
    """Return epoch seconds from `EARLIEST_S` to `LATEST_S`, NaN for nulls.

    Timestamps without a zone, and dates, are taken as UTC. No cast to another unit: it would wrap far instants around.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    count = _counted(column)
    seconds: npt.NDArray[np.float64]
    if pa.types.is_date32(column.type):
        seconds = count * 86_400.0
    else:
        unit = _unit(column.type)
        # a float64 keeps today's microseconds, and no nanoseconds
        seconds = count // 1_000 / 1e6 if unit == "ns" else count / _PER_SECOND[unit]
    seconds = np.clip(seconds, EARLIEST_S, LATEST_S)
    if column.null_count:
        seconds[column.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return seconds


def exact_instants(column: pa.Array) -> npt.NDArray[np.int64]:
    """Return [rows, 2]: whole seconds and nanoseconds since 1970, as exact and as far as the column has them.

    They tell which of two rows is newer, which `event_times` cannot where it rounds or bounds. A null is older than all
    others.
    """
    count = _counted(column)
    if pa.types.is_date32(column.type):
        seconds, rest = count * 86_400, np.zeros_like(count)
    else:
        per_second = _WHOLE_PER_SECOND[_unit(column.type)]
        seconds, rest = np.divmod(count, per_second)
        rest = rest * (10**9 // per_second)
    if column.null_count:
        seconds[column.is_null().to_numpy(zero_copy_only=False)] = _UNKNOWN_TIME
    return np.stack([seconds, rest], axis=1)


def _counted(column: pa.Array) -> npt.NDArray[Any]:
    """Return instants as their column counts them: days, or its unit; 0 for nulls."""
    counted = pc.cast(pc.cast(column, pa.int32()) if pa.types.is_date32(column.type) else column, pa.int64())
    count: npt.NDArray[Any] = pc.fill_null(counted, 0).to_numpy(zero_copy_only=False)
    return count


def _unit(type_: pa.DataType) -> str:
    if pa.types.is_null(type_):  # of a file in which no row has a time, beside others
        return "us"
    return "ms" if pa.types.is_date64(type_) else str(type_.unit)


def group_times(
    batch: pa.RecordBatch, contract: FeatureContract, event_time_column: str | None, loaded_at: float
) -> GroupTimes:
    """Return the times of each table group's values in a table's rows.

    They stand in the group's own column, else in `event_time_column`; without either they are as of `loaded_at`. NaN
    for nulls; of several groups also where a row has no value of the group at all.
    """
    times: GroupTimes = {}
    for group in contract.table_groups:
        column = group.event_time_column or event_time_column
        times[group.name] = np.full(batch.num_rows, loaded_at) if column is None else event_times(batch.column(column))
        if contract.has_parts:
            empty = np.ones(batch.num_rows, dtype=bool)
            for feature in contract.features_of(group.name):
                empty &= batch.column(feature.name).is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
            times[group.name][empty] = np.nan
    return times


def oldest(times: Mapping[str, npt.NDArray[np.float64]], at_most: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return each row's oldest time; `at_most` where none is older, or there is none."""
    result = at_most
    for own in times.values():
        result = np.fmin(result, own)
    return result
