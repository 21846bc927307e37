"""Turns columns of databases into those that Parquet, and so a table of features, can have."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from inference.sources.source import unreadable_field


def storable(batch: pa.RecordBatch, as_text: Collection[str]) -> pa.RecordBatch:
    """Return rows as Parquet takes them. `as_text`: columns whose numbers stay text, such as the ids.

    PostgreSQL's `numeric`, which the driver spells as text, becomes the nearest float64. A column of another type that
    Parquet lacks, such as an interval, or one that the query returns twice, has no values; those who need it are told.
    """
    names = batch.schema.names
    first = [at for at, name in enumerate(names) if names.index(name) == at]
    found = [_storable(batch.schema.field(at), batch.column(at), names, as_text) for at in first]
    return pa.RecordBatch.from_arrays([column for _, column in found], schema=pa.schema([field for field, _ in found]))


def _storable(
    field: pa.Field, column: pa.Array, names: Sequence[str], as_text: Collection[str]
) -> tuple[pa.Field, pa.Array]:
    if (count := names.count(field.name)) > 1:
        problem = f"the query returns {count} columns {field.name!r}: name those that you need, or rename one by AS"
        return unreadable_field(pa.field(field.name, pa.null()), problem), pa.nulls(len(column))
    if isinstance(field.type, pa.OpaqueType) and field.type.type_name == "numeric":
        text = column.storage
        column = text if field.name in as_text else text.cast(pa.float64())
    elif not _is_storable(field.type):
        column = pa.nulls(len(column))
        problem = f"column {field.name!r} has the type {field.type}, which no feature has: cast it in the query"
        return unreadable_field(pa.field(field.name, column.type), problem), column
    return pa.field(field.name, column.type), column


@lru_cache(maxsize=256)
def _is_storable(type_: pa.DataType) -> bool:
    try:
        pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([pa.field("column", type_)])).close()
    except pa.ArrowException:
        return False
    return True
