"""Selects the rows that a run scores: some entities, rows that changed since an instant, each entity's newest row."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.batch.gates import MAX_EXAMPLES
from inference.entities import check_entity_id, entity_ids_as_text, illegal_entity_ids
from inference.errors import BadEntityId, BadInput, quoted
from inference.features import EARLIEST_S, check_key_columns, event_times
from inference.features.key_columns import NewestRows, exact_instants, repeated_ids_error
from inference.settings import ModelSettings, parse_duration
from inference.small_files import open_small, read_at_most
from inference.sources import (
    Slice,
    Source,
    count_distinct_ids,
    flat_columns,
    hash_ids,
    newest_instants,
    open_source,
    pack_mask,
    read_ids,
    read_slices,
    repeated_hashes,
    unpack_mask,
    whole_slices,
)
from inference.stored_data import reading

#: entities of one partial run; more need a run over a table of their own
MAX_ENTITIES = 1_000_000
#: bytes that are read of a file with ids
MOST_ID_BYTES = 256 << 20
#: rows of ids and event times that are read at once
_BATCH_ROWS = 1 << 17


@dataclass(frozen=True)
class Selection:
    """The rows that a request selects; with both conditions, rows must meet both. `since`: epoch seconds."""

    entities: tuple[str, ...] | None = None
    since: float | None = None


@dataclass(frozen=True)
class RowSlice:
    """A slice with its weight: selected rows, and bytes before compression."""

    slice: Slice
    rows: int
    bytes: int


def read_entities(path: str, entity_column: str) -> list[str]:
    """Return the ids in a file: text with one id a line, or Parquet with the entity column.

    Raises:
        BadInput: the file cannot be read, or holds no ids.
    """
    try:
        # a pipe can be read only once
        with open_small(Path(path)) as stream:
            is_parquet = stream.peek(4)[:4] == b"PAR1"
            text = "" if is_parquet else read_at_most(stream, MOST_ID_BYTES).decode("utf-8-sig")
        ids = _ids_in_parquet(str(Path(path).absolute()), entity_column) if is_parquet else _ids_in_lines(text)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read as a list of ids: {error}", field="entities") from error
    if not ids:
        raise BadInput(f"{path} holds no ids: write one a line", field="entities")
    return ids


def _ids_in_lines(text: str) -> list[str]:
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [line for line in lines if line]  # other white space may be part of an id


def _ids_in_parquet(path: str, entity_column: str) -> list[str]:
    source = open_source(path, as_text=[entity_column])
    check_key_columns(source, entity_column, None)
    return [
        each for ids in read_ids(source.files, whole_slices(source.files), entity_column) for each in ids.to_pylist()
    ]


def check_entities(ids: Sequence[str]) -> tuple[str, ...]:
    """Return the ids without repetitions, in order.

    Raises:
        BadInput: there are no ids, or too many.
        BadEntityId: an id is illegal; the error names its place.
    """
    if not ids:
        raise BadInput("entities is empty: give at least one id", field="entities")
    if len(ids) > MAX_ENTITIES:
        raise BadInput(f"entities holds {len(ids):,}: at most {MAX_ENTITIES:,}", field="entities")
    for number, entity_id in enumerate(ids):
        try:
            check_entity_id(entity_id)
        except BadEntityId as error:
            raise BadEntityId(f"entity {number + 1}: {error.message}", field=f"entities.{number}") from error
    return tuple(dict.fromkeys(ids))


def since_of(name: str, model: ModelSettings, text: str, *, now: float) -> float:
    """Return the instant in `text` (epoch seconds), which selects the model's rows that changed since then.

    Raises:
        BadInput: the model names no event-time column, or `parse_since` refuses the text.
    """
    if model.event_time_column is None:
        problem = f"since needs models.{name}.event_time_column: set it to the column that says when a row changed"
        raise BadInput(problem, field="since")
    return parse_since(text, now=now)


def parse_since(text: str, *, now: float) -> float:
    """Return epoch seconds of an ISO 8601 instant (UTC if it names no zone), or of a duration before `now`.

    Raises:
        BadInput: the text is neither, or the instant lies in the future.
    """
    try:
        since = as_utc(datetime.fromisoformat(text)).timestamp()
    except ValueError:
        try:
            since = now - parse_duration(text)
        except ValueError as error:
            problem = f"since {quoted(text)} is no instant: write 2026-01-31T06:00:00Z, or a duration such as 6h"
            raise BadInput(problem, field="since") from error
    if since > now:
        raise BadInput(f"since {quoted(text)} lies in the future: nothing has changed after it", field="since")
    return max(since, EARLIEST_S)  # no event time counts as earlier


def pack_entities(ids: Sequence[str]) -> bytes:
    """Return the ids as few bytes; no id may hold a line break."""
    return zlib.compress("\n".join(ids).encode())


def unpack_entities(data: bytes) -> tuple[str, ...]:
    """Return the ids that `pack_entities` packed.

    Raises:
        Unreadable: `pack_entities` did not write these bytes.
    """
    with reading("the ids of a partial run"):
        return tuple(zlib.decompress(data).decode().split("\n"))


def as_utc(instant: datetime) -> datetime:
    """Return an aware instant; an instant without a zone is UTC."""
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Selected:
    """The rows found. `missing`: how many of the requested ids no row has; `missing_examples`: some of them."""

    pieces: list[RowSlice] = field(default_factory=list)
    missing: int = 0
    missing_examples: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows that the run scores."""
        return sum(piece.rows for piece in self.pieces)


def select_rows(
    source: Source,
    pieces: Iterator[RowSlice],
    selection: Selection,
    *,
    entity_column: str,
    event_time_column: str | None,
    newest: bool = False,
) -> Selected:
    """Return the selected rows of `pieces` (the whole source). Reads ids and event times, no features.

    Skips row groups in which no row is new enough by their statistics. `newest`: selects only the newest row of an
    entity with several rows (see `NewestRows`); needs `event_time_column`.

    Raises:
        SourceError: two selected rows have the same id, or the source cannot be read.
    """
    scan = _Scan(selection, entity_column, event_time_column, newest=newest)
    kept: list[RowSlice] = []
    for group, batches in row_groups(source, _prune(source, pieces, selection.since, event_time_column), scan.columns):
        kept += masked(group, np.concatenate([scan.mask(batch) for batch in batches]))
    if scan.newest is None:
        _refuse_repeated(source, kept, scan.hashes, entity_column)
    else:
        kept = list(_refined(kept, scan.newest.keep()))
    return replace(scan.missing(), pieces=kept)


class _Scan:
    """Decides for each row whether it is selected, and remembers the ids of the selected rows."""

    def __init__(
        self, selection: Selection, entity_column: str, event_time_column: str | None, *, newest: bool
    ) -> None:
        self._wanted = None if selection.entities is None else _WantedIds(selection.entities)
        self._since = -np.inf if selection.since is None else selection.since
        self._entity_column = entity_column
        self._time_column = event_time_column if newest or selection.since is not None else None
        self.newest = NewestRows() if newest else None
        self.columns = [entity_column, *([self._time_column] if self._time_column else [])]
        #: of the selected legal ids
        self.hashes: list[npt.NDArray[np.uint64]] = []

    def mask(self, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        ids = entity_ids_as_text(batch.column(self._entity_column), self._entity_column)
        hashed = hash_ids(pc.fill_null(ids, ""))
        mask = np.ones(len(ids), bool) if self._wanted is None else self._wanted.find(hashed)
        illegal = np.asarray(illegal_entity_ids(ids))
        if self._time_column is not None:
            column = batch.column(self._time_column)
            if self._since > -np.inf:
                mask = mask & (event_times(column) >= self._since)  # an unknown time is not newer
            if self.newest is not None:
                self.newest.add(hashed[mask], exact_instants(column)[mask], illegal[mask])
                return mask
        self.hashes.append(hashed[mask & ~illegal])
        return mask

    def missing(self) -> Selected:
        return Selected() if self._wanted is None else self._wanted.missing()


class _WantedIds:
    """The ids that a partial run requests, by hash, and which of them the source has."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = ids
        self._hashed = hash_ids(pa.array(ids, pa.string()))
        self._sorted = np.unique(self._hashed)
        self._found = np.zeros(len(self._sorted), bool)

    def find(self, hashed: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        places = np.minimum(np.searchsorted(self._sorted, hashed), len(self._sorted) - 1)
        mask: npt.NDArray[np.bool_] = self._sorted[places] == hashed
        self._found[places[mask]] = True
        return mask

    def missing(self) -> Selected:
        lost = self._sorted[~self._found]
        rows = np.flatnonzero(np.isin(self._hashed, lost)) if len(lost) else np.empty(0, np.intp)
        return Selected(missing=len(rows), missing_examples=tuple(self._ids[row] for row in rows[:MAX_EXAMPLES]))


def row_groups(
    source: Source, pieces: Iterator[RowSlice], columns: list[str]
) -> Iterator[tuple[list[RowSlice], Iterator[pa.RecordBatch]]]:
    """Yield each row group's pieces with all rows of the row group; read the rows before you take the next one."""
    groups = [list(group) for _, group in groupby(pieces, key=lambda p: (p.slice.file, p.slice.row_group))]
    places = [(group[0].slice.file, group[0].slice.row_group) for group in groups]
    whole = [Slice(file, number, 0, source.files[file].row_groups[number]) for file, number in places]
    batches = read_slices(source.files, whole, columns=columns, batch_rows=_BATCH_ROWS)
    for group, part in zip(groups, whole, strict=True):
        yield group, _first_rows(batches, part.length)
    next(batches, None)  # the reader compares the last file with the plan once more


def _first_rows(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield batches with that many rows in all; no batch spans two row groups."""
    while rows > 0:
        batch = next(batches)
        rows -= batch.num_rows
        yield batch


def masked(group: Sequence[RowSlice], mask: npt.NDArray[np.bool_]) -> Iterator[RowSlice]:
    """Yield a row group's pieces with the rows of a mask, which has an entry for each row of the row group."""
    for piece in group:
        of_piece = mask[piece.slice.offset : piece.slice.offset + piece.slice.length]
        if of_piece.any():
            yield _with_mask(piece, of_piece, piece.slice.length)


def _refined(pieces: Sequence[RowSlice], keep: npt.NDArray[np.bool_]) -> Iterator[RowSlice]:
    """Yield the pieces with the rows to keep; `keep` has an entry for each selected row, in order."""
    at = 0
    for piece in pieces:
        length = piece.slice.length
        mask = np.ones(length, bool) if piece.slice.mask is None else unpack_mask(piece.slice.mask, length)
        mask[mask] = keep[at : at + piece.rows]
        at += piece.rows
        if mask.any():
            yield _with_mask(piece, mask, piece.rows)


def _with_mask(piece: RowSlice, mask: npt.NDArray[np.bool_], rows_before: int) -> RowSlice:
    rows = int(mask.sum())
    packed = None if rows == len(mask) else pack_mask(mask)
    return RowSlice(replace(piece.slice, mask=packed), rows, piece.bytes * rows // rows_before)


def _refuse_repeated(
    source: Source, pieces: Sequence[RowSlice], hashes: Sequence[npt.NDArray[np.uint64]], entity_column: str
) -> None:
    repeated = len(repeated_hashes(np.concatenate([np.empty(0, np.uint64), *hashes])))
    if repeated:
        slices: list[Slice] = [piece.slice for piece in pieces]
        counted = count_distinct_ids(source.files, entity_column, examples=MAX_EXAMPLES, slices=slices)
        raise repeated_ids_error(repeated, counted.duplicates, entity_column)


def _prune(source: Source, pieces: Iterator[RowSlice], since: float | None, column: str | None) -> Iterator[RowSlice]:
    """Leave out the row groups in which no row is new enough, by their statistics."""
    if since is None or column is None:
        return pieces
    newest: dict[int, Mapping[int, float]] = {}

    def may_match(piece: RowSlice) -> bool:
        number = piece.slice.file
        if number not in newest:
            newest.clear()  # pieces come file by file
            newest[number] = _newest_times(source, number, column)
        return newest[number].get(piece.slice.row_group, since) >= since

    return (piece for piece in pieces if may_match(piece))


def _newest_times(source: Source, number: int, column: str) -> dict[int, float]:
    """Return row group → its newest event time, for the row groups of a file where it is known."""
    file, metadata = source.files[number], source.metadata[number]
    place = flat_columns(metadata).get(column)
    if place is None:
        [scalar] = [value.scalar for value in file.partition if value.column == column]
        [known] = event_times(pa.array([scalar], scalar.type))
        return {} if np.isnan(known) else dict.fromkeys(range(len(file.row_groups)), float(known))
    return newest_instants(metadata, place)
