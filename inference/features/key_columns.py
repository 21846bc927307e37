"""The columns that name and date the rows of a table: entity ids and event times.

An event time is the time at which the values of a row were true. Arrays hold it in epoch seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.entities import check_entity_column_type, entity_ids_as_text, illegal_entity_ids
from inference.errors import SourceError
from inference.features.contract import FeatureContract
from inference.features.rows import Mask, Times
from inference.sources import (
    Slice,
    Source,
    column_type_name,
    count_distinct_ids,
    find_column,
    hash_ids,
    pack_mask,
    read_slices,
    repeated_hashes,
    whole_slices,
)
from inference.wording import counted

#: an event time before 1970 counts as its first second: in the feature table, 0 means no time
EARLIEST_S = 1.0
#: an event time after the year 9999, such as a database's infinity, counts as its last second
LATEST_S = 253_402_300_799.0
_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6}
_WHOLE_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_UNKNOWN_TIME = np.iinfo(np.int64).min

#: by table group, the event time of each row; NaN where a row has nothing of the group
GroupTimes = dict[str, Times]
#: so many ids are read before each run and load, which takes half a second; from all over a larger table
LOOKED_AT_ROWS = 5_000_000
_BATCH_ROWS = 1 << 17
_EXAMPLES = 3


def check_event_time_column(name: str, type_: pa.DataType) -> None:
    """Refuse a column without times.

    Raises:
        SourceError: the type is neither a timestamp nor a date.
    """
    if not (pa.types.is_timestamp(type_) or pa.types.is_date(type_)):
        raise SourceError(
            f"event time column {name!r} is {type_}: cast it to a timestamp (text and numbers are ambiguous)",
            field=name,
        )


def event_times(column: pa.Array) -> Times:
    """Return epoch seconds from `EARLIEST_S` to `LATEST_S`, NaN for nulls.

    Timestamps without a zone, and dates, count as UTC. Does not cast to another unit: far times would wrap around.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    count = _counted(column)
    seconds: Times
    if pa.types.is_date32(column.type):
        seconds = count * 86_400.0
    else:
        unit = _unit(column.type)
        # a float64 holds today's microseconds, but not nanoseconds
        seconds = count // 1_000 / 1e6 if unit == "ns" else count / _PER_SECOND[unit]
    seconds = np.clip(seconds, EARLIEST_S, LATEST_S)
    if column.null_count:
        seconds[column.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return seconds


def exact_instants(column: pa.Array) -> npt.NDArray[np.int64]:
    """Return [rows, 2]: whole seconds and nanoseconds since 1970, neither rounded nor bounded.

    They tell which of two rows is newer, also where `event_times` are equal. A null is older than all other times.
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
    """Return times in the unit of their column, or in days; 0 for nulls."""
    counted = pc.cast(pc.cast(column, pa.int32()) if pa.types.is_date32(column.type) else column, pa.int64())
    count: npt.NDArray[Any] = pc.fill_null(counted, 0).to_numpy(zero_copy_only=False)
    return count


def _unit(type_: pa.DataType) -> str:
    if pa.types.is_null(type_):  # no row of this file has a time
        return "us"
    return "ms" if pa.types.is_date64(type_) else str(type_.unit)


def group_times(
    batch: pa.RecordBatch, contract: FeatureContract, event_time_column: str | None, loaded_at: float
) -> GroupTimes:
    """Return the times of each table group's values in a table's rows.

    Reads the group's own column, else `event_time_column`; without either, the time is `loaded_at`. NaN for nulls, and
    if there are several groups, for rows without any value of the group.
    """
    times: GroupTimes = {}
    for group in contract.table_groups:
        column = group.event_time_column or event_time_column
        times[group.name] = np.full(batch.num_rows, loaded_at) if column is None else event_times(batch.column(column))
        if contract.has_several_groups:
            empty = np.ones(batch.num_rows, dtype=bool)
            for feature in contract.features_of(group.name):
                empty &= batch.column(feature.name).is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
            times[group.name][empty] = np.nan
    return times


def repeated_ids_error(rows: int, examples: Sequence[str], entity_column: str) -> SourceError:
    """Return the error for a table with `rows` rows more than entities."""
    named = ", ".join(map(repr, examples))
    repeat = counted(rows, "row repeats", "rows repeat")
    return SourceError(
        f"{repeat} an entity id, such as {named}, in the entity column {entity_column!r}: keep one row per "
        'entity, or set rows = "newest" and event_time_column in the settings to take the newest row of each',
        field=entity_column,
    )


def refuse_repeated_ids(source: Source, entity_column: str) -> None:
    """Refuse a source in which a legal id repeats. Reads `LOOKED_AT_ROWS` ids.

    A larger table may repeat other ids. The count of the stored rows finds those.

    Raises:
        SourceError: an id repeats, or the source cannot be read; names the column, some ids, and the fix.
    """
    slices = list(_spread(list(whole_slices(source.files))))
    readers = os.cpu_count() or 1
    with ThreadPoolExecutor(readers, thread_name_prefix="read ids") as threads:
        parts = [slices[first::readers] for first in range(readers)]
        hashes = list(threads.map(partial(_hashes_of_legal_ids, source, entity_column), parts))
    repeated = len(repeated_hashes(np.concatenate(hashes)))
    if repeated:
        # "" stands for missing ids, which have errors of their own
        counted = count_distinct_ids(source.files, entity_column, examples=_EXAMPLES + 1, slices=slices)
        raise repeated_ids_error(repeated, [one for one in counted.duplicates if one][:_EXAMPLES], entity_column)


def _hashes_of_legal_ids(source: Source, entity_column: str, slices: Sequence[Slice]) -> npt.NDArray[np.uint64]:
    """Return the hashes in ascending order."""
    hashes = [np.empty(0, np.uint64)]
    for batch in read_slices(source.files, slices, columns=[entity_column], batch_rows=_BATCH_ROWS):
        ids = entity_ids_as_text(batch.column(entity_column), entity_column)
        hashes.append(hash_ids(ids.filter(pc.invert(illegal_entity_ids(ids)))))
    of_all = np.concatenate(hashes)
    of_all.sort()
    return of_all


def _spread(groups: list[Slice]) -> Iterator[Slice]:
    """Yield row groups from all over the table, of at most `LOOKED_AT_ROWS` rows together."""
    left = LOOKED_AT_ROWS
    every = -(-sum(group.length for group in groups) // left)
    for group in groups[:: max(every, 1)]:
        if left > 0:
            yield replace(group, length=min(group.length, left))
        left -= group.length


class NewestRows:
    """Finds the newest row of each entity among rows that come in the table's order.

    Takes some 60 bytes of memory a row. Compares ids by 64-bit hashes.
    """

    def __init__(self) -> None:
        self._hashes = [np.empty(0, np.uint64)]
        self._instants = [np.empty((0, 2), np.int64)]
        self._illegal = [np.empty(0, np.bool_)]

    def add(self, hashes: npt.NDArray[np.uint64], instants: npt.NDArray[np.int64], illegal: Mask) -> None:
        """Add rows. `instants`: the result of `exact_instants`. `illegal`: rows without a legal id."""
        self._hashes.append(hashes)
        self._instants.append(instants)
        self._illegal.append(illegal)

    def keep(self) -> Mask:
        """Return which rows are the newest of their entity.

        The last row wins if event times are equal. A row of unknown time is older than any other. Keeps all rows
        without a legal id: they have an error of their own.
        """
        hashes, instants = np.concatenate(self._hashes), np.concatenate(self._instants)
        order = np.lexsort((instants[:, 1], instants[:, 0], hashes))  # stable: equal ones stay in the table's order
        ordered = hashes[order]
        last = np.ones(len(order), np.bool_)
        last[:-1] = ordered[1:] != ordered[:-1]
        keep = np.concatenate(self._illegal)
        keep[order[last]] = True
        return keep


def newest_slices(source: Source, entity_column: str, event_time_column: str) -> list[Slice]:
    """Return slices with the newest row of each entity. Reads the two columns once.

    Raises:
        SourceError: the source cannot be read.
    """
    slices, newest = list(whole_slices(source.files)), NewestRows()
    columns = list(dict.fromkeys([entity_column, event_time_column]))
    for batch in read_slices(source.files, slices, columns=columns, batch_rows=_BATCH_ROWS):
        newest.add(*_keys_of(batch, entity_column, event_time_column))
    keep, kept, at = newest.keep(), [], 0
    for part in slices:
        mask = keep[at : at + part.length]
        at += part.length
        if mask.any():
            kept.append(replace(part, mask=None if mask.all() else pack_mask(mask)))
    return kept


def _keys_of(
    batch: pa.RecordBatch, entity_column: str, event_time_column: str
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], Mask]:
    """Return the hashes of the rows' ids, their exact event times, and which ids are illegal."""
    ids = entity_ids_as_text(batch.column(entity_column), entity_column)
    return (
        hash_ids(pc.fill_null(ids, "")),
        exact_instants(batch.column(event_time_column)),
        np.asarray(illegal_entity_ids(ids)),
    )


def check_key_columns(source: Source, entity_column: str, event_time_column: str | None) -> None:
    """Refuse a source without a usable entity column, or without the named event-time column.

    Raises:
        SourceError: names the column, and the nearest one if it is missing, or says how to cast it.
    """
    field = find_column(source.schema, entity_column, source.path, role="entity_column")
    check_entity_column_type(entity_column, field.type, column_type_name(field))
    if event_time_column is not None:
        field = find_column(source.schema, event_time_column, source.path, role="event_time_column")
        check_event_time_column(event_time_column, field.type)
