"""Reads a column of a run's source, to tell a comparison's entities apart by its values."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.batch.joining import HASH, Parts, match
from inference.entities import entity_ids_as_text
from inference.errors import BadInput
from inference.features.key_columns import event_times
from inference.settings import ModelSettings
from inference.sources import Source, find_column, hash_ids, plain_column, read_slices, whole_slices
from inference.store.codec import stored_ids

#: different values of a segment column
MAX_SEGMENTS = 1_000
NULL, NOT_THERE = "(null)", "(not in the table)"
_BATCH_ROWS = 1 << 17
SEGMENT_ROW = np.dtype([(HASH, "<u8"), ("time", "<f8"), ("segment", "<i4")])


@dataclass
class Segments:
    """The segment of each entity of a source, in `parts` of `SEGMENT_ROW`. `names`: of the segments, by number."""

    parts: Parts
    names: list[str] = field(default_factory=lambda: [NOT_THERE])

    def read(self, source: Source, model: ModelSettings, column: str) -> None:
        """Read the ids and the column of all rows; of an entity with several rows, the newest counts.

        Raises:
            SourceError: the source lacks the column, or cannot be read.
            BadInput: it has too many different values, or values of a kind that is no segment.
        """
        check_segment(source, column)
        times = [model.event_time_column] if model.rows == "newest" and model.event_time_column else []
        columns = list(dict.fromkeys([model.entity_column, column, *times]))
        batches = read_slices(source.files, whole_slices(source.files), columns=columns, batch_rows=_BATCH_ROWS)
        for batch in batches:
            self._add(batch, model.entity_column, column, times)

    def of(self, part: int, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Return the number of each entity's segment; 0 for an entity that the source lacks."""
        rows = self.parts.part(part)
        rows = rows[np.lexsort((rows["time"], rows[HASH]))]
        last = np.append(rows[HASH][1:] != rows[HASH][:-1], np.ones(min(len(rows), 1), bool))
        rows = rows[last]
        segments = np.zeros(len(hashes), np.int64)
        of_hashes, of_rows = match(hashes, rows[HASH])
        segments[of_hashes] = rows["segment"][of_rows]
        return segments

    def _add(self, batch: pa.RecordBatch, entity_column: str, column: str, times: list[str]) -> None:
        ids = pc.fill_null(entity_ids_as_text(batch.column(entity_column), entity_column), "")
        rows = np.zeros(len(ids), SEGMENT_ROW)
        rows[HASH] = hash_ids(stored_ids(ids))
        rows["segment"] = self._numbers(_as_text(batch.column(column), column), column)
        if times:
            rows["time"] = np.nan_to_num(event_times(batch.column(times[0])), nan=-np.inf)
        self.parts.add(rows)

    def _numbers(self, texts: pa.Array, column: str) -> npt.NDArray[np.int64]:
        encoded = texts.dictionary_encode()
        known = {name: number for number, name in enumerate(self.names)}
        for name in encoded.dictionary.to_pylist():
            if name not in known:
                known[name] = len(self.names)
                self.names.append(name)
        if len(self.names) > MAX_SEGMENTS + 1:
            raise BadInput(
                f"column {column!r} has over {MAX_SEGMENTS:,} different values: choose one with fewer", field="segment"
            )
        numbers = np.array([known[name] for name in encoded.dictionary.to_pylist()], np.int64)
        found: npt.NDArray[np.int64] = numbers[encoded.indices.to_numpy()]
        return found


def check_segment(source: Source, column: str) -> None:
    """Check that a column can tell segments.

    Raises:
        SourceError: the source lacks the column.
        BadInput: its values are lists or structs.
    """
    type_ = find_column(source.schema, column, source.path, role="segment").type
    if pa.types.is_nested(type_) or pa.types.is_binary(type_):
        raise BadInput(f"column {column!r} is {type_}: a segment is text, a number, a flag or a date", field="segment")


def _as_text(values: pa.Array, column: str) -> pa.Array:
    try:
        return pc.fill_null(pc.cast(plain_column(values), pa.string()), NULL)
    except pa.ArrowException as error:
        raise BadInput(f"column {column!r} cannot be read as text: {error}", field="segment") from error
