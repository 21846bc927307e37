"""The columns that name and date the rows of a table: entity ids and event times.

An event time says when the values of a row were true. In arrays it stands in epoch seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.entities import check_entity_column_type, entity_ids_as_text, illegal_entity_ids
from inference.errors import SourceError
from inference.features.contract import FeatureContract
from inference.sources import (
    Slice,
    Source,
    column_type_name,
    count_distinct_ids,
    find_column,
    hash_ids,
    pack_mask,
    read_slices,
    whole_slices,
)

#: an event time before 1970 counts as its first second, for 0 stands for none where features are kept
EARLIEST_S = 1.0
#: one after the year 9999, such as a database's infinity, counts as its last second
LATEST_S = 253_402_300_799.0
_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6}
_WHOLE_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_UNKNOWN_TIME = np.iinfo(np.int64).min

#: by table group, when each row's values were true, in epoch seconds; NaN where a row has nothing of the group
GroupTimes = dict[str, npt.NDArray[np.float64]]
#: ids that are read before each run and load, some two seconds' worth; of larger tables as many, from all over it
LOOKED_AT_ROWS = 5_000_000
_BATCH_ROWS = 1 << 17
_EXAMPLES = 3


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


def repeated_ids_error(rows: int, examples: Sequence[str], entity_column: str) -> SourceError:
    """Return the error for a table with so many rows more than entities."""
    named = ", ".join(map(repr, examples))
    return SourceError(
        f"{rows:,} rows repeat an entity id, such as {named}, in the entity column {entity_column!r}: keep one row per "
        'entity, or set rows = "newest" and event_time_column in the settings to take the newest row of each',
        field=entity_column,
    )


def refuse_repeated_ids(source: Source, entity_column: str) -> None:
    """Refuses a source in which a legal id repeats, as far as a look at `LOOKED_AT_ROWS` of them tells.

    A repeat in a larger table that escapes this is found when what was stored is counted.

    Raises:
        SourceError: naming the column, ids that repeat, and the ways out; or the source cannot be read.
    """
    slices = list(_spread(list(whole_slices(source.files))))
    hashes = [np.empty(0, np.uint64)]
    for batch in read_slices(source.files, slices, columns=[entity_column], batch_rows=_BATCH_ROWS):
        ids = entity_ids_as_text(batch.column(entity_column), entity_column)
        hashes.append(hash_ids(ids.filter(pc.invert(illegal_entity_ids(ids)))))
    seen = np.concatenate(hashes)
    repeated = len(seen) - len(np.unique(seen))
    if repeated:
        # "" stands for ids that are missing, which are told of row by row
        counted = count_distinct_ids(source.files, entity_column, examples=_EXAMPLES + 1, slices=slices)
        raise repeated_ids_error(repeated, [one for one in counted.duplicates if one][:_EXAMPLES], entity_column)


def _spread(groups: list[Slice]) -> Iterator[Slice]:
    """Yield row groups from all over the table, of no more rows than are looked at."""
    left = LOOKED_AT_ROWS
    every = -(-sum(group.length for group in groups) // left)
    for group in groups[:: max(every, 1)]:
        if left > 0:
            yield replace(group, length=min(group.length, left))
        left -= group.length


class NewestRows:
    """Finds the newest row of each entity among rows that are added in the table's order.

    Takes some 60 bytes of memory a row. Ids are compared by 64-bit hashes.
    """

    def __init__(self) -> None:
        self._hashes = [np.empty(0, np.uint64)]
        self._instants = [np.empty((0, 2), np.int64)]
        self._illegal = [np.empty(0, np.bool_)]

    def add(
        self, hashes: npt.NDArray[np.uint64], instants: npt.NDArray[np.int64], illegal: npt.NDArray[np.bool_]
    ) -> None:
        """Add rows. `instants`: as `exact_instants` returns them; `illegal`: rows without a legal id."""
        self._hashes.append(hashes)
        self._instants.append(instants)
        self._illegal.append(illegal)

    def keep(self) -> npt.NDArray[np.bool_]:
        """Return which of all rows are the newest of their entity.

        Of equal event times the last row is; a row of unknown time is older than any other. Rows without a legal id
        all stay, so that they are told of as in any table.
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
    """Return the newest row of each entity as slices; reads the two columns once.

    Raises:
        SourceError: the source cannot be read.
    """
    slices, newest = list(whole_slices(source.files)), NewestRows()
    columns = list(dict.fromkeys([entity_column, event_time_column]))
    for batch in read_slices(source.files, slices, columns=columns, batch_rows=_BATCH_ROWS):
        newest.add(*_keys_of(batch, entity_column, event_time_column))
    keep, kept, at = newest.keep(), [], 0
    for part in slices:
        own = keep[at : at + part.length]
        at += part.length
        if own.any():
            kept.append(replace(part, mask=None if own.all() else pack_mask(own)))
    return kept


def _keys_of(
    batch: pa.RecordBatch, entity_column: str, event_time_column: str
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the rows' ids by hash, their exact event times, and which ids are illegal."""
    ids = entity_ids_as_text(batch.column(entity_column), entity_column)
    return (
        hash_ids(pc.fill_null(ids, "")),
        exact_instants(batch.column(event_time_column)),
        np.asarray(illegal_entity_ids(ids)),
    )


def check_key_columns(source: Source, entity_column: str, event_time_column: str | None) -> None:
    """Refuses a source without a usable entity column, or without the event-time column that was named.

    Raises:
        SourceError: naming the column and, when it is missing, the nearest one; or how to cast it.
    """
    field = find_column(source.schema, entity_column, source.path, role="entity_column")
    check_entity_column_type(entity_column, field.type, column_type_name(field))
    if event_time_column is not None:
        field = find_column(source.schema, event_time_column, source.path, role="event_time_column")
        check_event_time_column(event_time_column, field.type)
