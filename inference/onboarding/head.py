"""The little that is read of a table before anything is decided: first rows of a few columns, and footers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from inference.features import EARLIEST_S, LATEST_S, event_times
from inference.sources import Source, concat_rows, flat_columns, newest_instants, read_slices, whole_slices

HEAD_ROWS = 10_000
#: long texts end the head earlier
HEAD_BYTES = 64 << 20
_STEP_ROWS = 1_000
#: of a folder with more files, the last ones are looked at: names with a date sort so
_FOOTERS = 20


@dataclass(frozen=True)
class TableHead:
    """First rows of some columns of a table. `whole`: the table has no further rows."""

    table: pa.Table
    whole: bool

    @property
    def words(self) -> str:
        """What was looked at, in words."""
        rows = f"{self.table.num_rows:,}".replace(",", " ")
        return f"all {rows} rows" if self.whole else f"the first {rows} rows"


def read_head(source: Source, columns: Sequence[str], *, rows: int = HEAD_ROWS) -> TableHead:
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
    return TableHead(table.combine_chunks(), seen >= source.rows)


def newest_times(source: Source, columns: Sequence[str]) -> dict[str, datetime]:
    """Return the newest instant of each column as far as the footers tell; else that of some rows of the last file.

    Left out are columns of which neither tells any.
    """
    newest: dict[str, float] = {}
    for file in source.files[-_FOOTERS:]:
        metadata = pq.read_metadata(file.path)
        places = flat_columns(metadata) if columns else {}
        for name in columns:
            told = newest_instants(metadata, places[name]).values() if name in places else ()
            newest[name] = max([newest.get(name, -np.inf), *told])
    for name in [name for name in columns if not np.isfinite(newest.get(name, np.nan))]:
        newest[name] = _newest_in_last_rows(source, name)
    return {name: datetime.fromtimestamp(_held(at), UTC) for name, at in newest.items() if not np.isnan(at)}


def _held(at: float) -> float:
    return min(max(at, EARLIEST_S), LATEST_S)


def _newest_in_last_rows(source: Source, column: str) -> float:
    """Return the newest instant of the first rows of the last file; NaN without any. INT96 has no statistics."""
    type_ = source.schema.field(column).type
    if not (pa.types.is_timestamp(type_) or pa.types.is_date(type_)):
        return np.nan
    files = source.files[-1:]
    batch = next(read_slices(files, whole_slices(files), columns=[column], batch_rows=HEAD_ROWS), None)
    times = event_times(batch.column(column)) if batch is not None else np.empty(0)
    return float(np.fmax.reduce(times, initial=np.nan))


def _batches(source: Source, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    return read_slices(source.files, whole_slices(source.files), columns=list(columns), batch_rows=rows)
