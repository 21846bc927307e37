"""The little that is read of a table before anything is decided: first rows of a few columns, and footers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from inference.sources import Source, concat_rows, flat_columns, read_slices, whole_slices

HEAD_ROWS = 10_000
#: long texts end the head earlier
HEAD_BYTES = 64 << 20
_STEP_ROWS = 1_000
#: of a folder with more files, the last ones are looked at: names with a date sort so
_FOOTERS = 20


@dataclass(frozen=True)
class Head:
    """First rows of some columns of a table. `whole`: the table has no further rows."""

    table: pa.Table
    whole: bool

    @property
    def words(self) -> str:
        """What was looked at, in words."""
        rows = f"{self.table.num_rows:,}".replace(",", " ")
        return f"all {rows} rows" if self.whole else f"the first {rows} rows"


def read_head(source: Source, columns: Sequence[str], *, rows: int = HEAD_ROWS) -> Head:
    """Return the first rows of some columns, a bounded amount whatever the table holds.

    Raises:
        SourceError: a file cannot be read.
    """
    kept: list[pa.RecordBatch] = []
    seen = size = 0
    for batch in _batches(source, columns, min(rows, _STEP_ROWS)) if columns else ():
        kept.append(batch.slice(0, rows - seen))
        seen, size = seen + kept[-1].num_rows, size + batch.nbytes
        if seen >= rows or size >= HEAD_BYTES:
            break
    table = concat_rows([pa.Table.from_batches([batch]) for batch in kept]) if kept else pa.table({})
    return Head(table.combine_chunks(), seen >= source.rows)


def newest_times(source: Source, columns: Sequence[str]) -> dict[str, datetime]:
    """Return the newest instant of each column as far as the footers tell; columns without statistics are left out."""
    newest: dict[str, datetime] = {}
    for file in source.files[-_FOOTERS:]:
        metadata = pq.read_metadata(file.path)
        places = flat_columns(metadata) if columns else {}
        for name in columns:
            for instant in _maxima(metadata, places.get(name)):
                newest[name] = max(newest.get(name, instant), instant)
    return newest


def _batches(source: Source, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    return read_slices(source.files, whole_slices(source.files), columns=list(columns), batch_rows=rows)


def _maxima(metadata: Any, column: int | None) -> Iterator[datetime]:
    for group in range(metadata.num_row_groups) if column is not None else ():
        statistics = metadata.row_group(group).column(column).statistics
        if statistics is not None and statistics.has_min_max:
            value = statistics.max
            if isinstance(value, datetime):
                yield value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
            elif isinstance(value, date):
                yield datetime.combine(value, time(), UTC)
