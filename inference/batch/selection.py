"""Which rows of a source a partial run scores: those of some entities, or those that changed since an instant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.batch.gates import MAX_EXAMPLES
from inference.batch.partial_request import Selection
from inference.batch.plan import RowSlice
from inference.entities import entity_ids_as_text, illegal_entity_ids
from inference.features import event_times
from inference.features.key_columns import NewestRows, exact_instants, repeated_ids_error
from inference.sources import (
    Slice,
    Source,
    count_distinct_ids,
    flat_columns,
    hash_ids,
    newest_instants,
    pack_mask,
    read_slices,
    unpack_mask,
)

_BATCH_ROWS = 1 << 17


@dataclass(frozen=True)
class Selected:
    """The rows found. `missing`: how many of the asked ids no row has, and some of them."""

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
    """Return which rows of `pieces` (the whole source) are meant. Reads ids and event times, no features.

    Row groups whose statistics say that nothing in them is new enough are not read. `newest`: of an entity with several
    rows only the newest is meant (see `NewestRows`); needs `event_time_column`.

    Raises:
        SourceError: two rows that are meant have the same id, or the source cannot be read.
    """
    scan = _Scan(selection, entity_column, event_time_column, newest=newest)
    kept: list[RowSlice] = []
    for group, batches in _row_groups(source, _prune(source, pieces, selection.since, event_time_column), scan.columns):
        kept += _masked(group, np.concatenate([scan.mask(batch) for batch in batches]))
    if scan.newest is None:
        _refuse_repeated(source, kept, scan.hashes, entity_column)
    else:
        kept = list(_refined(kept, scan.newest.keep()))
    return replace(scan.missing(), pieces=kept)


class _Scan:
    """Says of each row whether it is meant, and remembers the ids of those that are."""

    def __init__(
        self, selection: Selection, entity_column: str, event_time_column: str | None, *, newest: bool
    ) -> None:
        self._asked = None if selection.entities is None else _WantedIds(selection.entities)
        self._since = -np.inf if selection.since is None else selection.since
        self._entity_column = entity_column
        self._time_column = event_time_column if newest or selection.since is not None else None
        self.newest = NewestRows() if newest else None
        self.columns = [entity_column, *([self._time_column] if self._time_column else [])]
        #: of the legal ids that are meant
        self.hashes: list[npt.NDArray[np.uint64]] = []

    def mask(self, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        ids = entity_ids_as_text(batch.column(self._entity_column), self._entity_column)
        hashed = hash_ids(pc.fill_null(ids, ""))
        mask = np.ones(len(ids), bool) if self._asked is None else self._asked.find(hashed)
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
        return Selected() if self._asked is None else self._asked.missing()


class _WantedIds:
    """The ids that a partial run asks for, by hash, and which of them were found."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = ids
        self._own = hash_ids(pa.array(ids, pa.string()))
        self._sorted = np.unique(self._own)
        self._found = np.zeros(len(self._sorted), bool)

    def find(self, hashed: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        places = np.minimum(np.searchsorted(self._sorted, hashed), len(self._sorted) - 1)
        mask: npt.NDArray[np.bool_] = self._sorted[places] == hashed
        self._found[places[mask]] = True
        return mask

    def missing(self) -> Selected:
        lost = self._sorted[~self._found]
        rows = np.flatnonzero(np.isin(self._own, lost)) if len(lost) else np.empty(0, np.intp)
        return Selected(missing=len(rows), missing_examples=tuple(self._ids[row] for row in rows[:MAX_EXAMPLES]))


def _row_groups(
    source: Source, pieces: Iterator[RowSlice], columns: list[str]
) -> Iterator[tuple[list[RowSlice], Iterator[pa.RecordBatch]]]:
    """Yield each row group's pieces with its rows, which must be read before the next is asked for."""
    groups = [list(group) for _, group in groupby(pieces, key=lambda p: (p.slice.file, p.slice.row_group))]
    whole = [replace(group[0].slice, offset=0, length=sum(piece.rows for piece in group)) for group in groups]
    batches = read_slices(source.files, whole, columns=columns, batch_rows=_BATCH_ROWS)
    for group, part in zip(groups, whole, strict=True):
        yield group, _first_rows(batches, part.length)
    next(batches, None)  # lets the reader compare the last file with the plan once more


def _first_rows(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield batches until that many rows were read; no batch spans two row groups."""
    while rows > 0:
        batch = next(batches)
        rows -= batch.num_rows
        yield batch


def _masked(group: Sequence[RowSlice], mask: npt.NDArray[np.bool_]) -> Iterator[RowSlice]:
    for piece in group:
        own = mask[piece.slice.offset : piece.slice.offset + piece.slice.length]
        rows = int(own.sum())
        if rows:
            packed = None if rows == len(own) else pack_mask(own)
            yield RowSlice(replace(piece.slice, mask=packed), rows, piece.bytes * rows // len(own))


def _refined(pieces: Sequence[RowSlice], keep: npt.NDArray[np.bool_]) -> Iterator[RowSlice]:
    """Yield of pieces the rows to keep; `keep` says it of each row that is meant, in order."""
    at = 0
    for piece in pieces:
        length = piece.slice.length
        mask = np.ones(length, bool) if piece.slice.mask is None else unpack_mask(piece.slice.mask, length)
        mask[mask] = keep[at : at + piece.rows]
        at += piece.rows
        rows = int(mask.sum())
        if rows:
            packed = None if rows == length else pack_mask(mask)
            yield RowSlice(replace(piece.slice, mask=packed), rows, piece.bytes * rows // piece.rows)


def _refuse_repeated(
    source: Source, pieces: Sequence[RowSlice], hashes: Sequence[npt.NDArray[np.uint64]], entity_column: str
) -> None:
    every = np.concatenate([np.empty(0, np.uint64), *hashes])
    repeated = len(every) - len(np.unique(every))
    if repeated:
        slices: list[Slice] = [piece.slice for piece in pieces]
        counted = count_distinct_ids(source.files, entity_column, examples=MAX_EXAMPLES, slices=slices)
        raise repeated_ids_error(repeated, counted.duplicates, entity_column)


def _prune(source: Source, pieces: Iterator[RowSlice], since: float | None, column: str | None) -> Iterator[RowSlice]:
    """Leave out the row groups in which, by their statistics, nothing is new enough."""
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
    """Return the newest event time of each row group of a file, where it is known."""
    file, metadata = source.files[number], source.metadata[number]
    place = flat_columns(metadata).get(column)
    if place is None:
        [own] = [value.scalar for value in file.partition if value.column == column]
        [known] = event_times(pa.array([own], own.type))
        return {} if np.isnan(known) else dict.fromkeys(range(len(file.row_groups)), float(known))
    return newest_instants(metadata, place)
