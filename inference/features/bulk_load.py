"""Loads a whole Parquet table, or nothing of it, as one generation of a model's feature table."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.entities import entity_ids_as_text, illegal_entity_ids
from inference.errors import Conflict, SourceError, StoreUnavailable
from inference.features.key_columns import (
    check_key_columns,
    group_times,
    newest_slices,
    refuse_repeated_ids,
    repeated_ids_error,
)
from inference.features.rows import examples, oldest
from inference.features.vectoriser import Vectoriser
from inference.sources import Slice, Source, count_distinct_ids, open_any, read_slices, whole_slices
from inference.store import ForgottenIds, GenerationState, Manifest, Table
from inference.wording import counted

#: rows written together: large windows put several fields into each HSET
ROWS_PER_WINDOW = 250_000
#: rows read at once, so that memory does not grow with the table
_READ_ROWS = 65_536
_EXAMPLES = 3


@dataclass(frozen=True)
class LoadReport:
    """The generation that `load_features` published."""

    source: str
    generation: int
    rows: int
    took_s: float


@dataclass(frozen=True)
class _Source:
    """A checked Parquet table, and the columns that are read from it."""

    name: str
    source: Source
    entity_column: str
    event_time_column: str | None
    vectoriser: Vectoriser
    slices: Sequence[Slice]

    @property
    def rows(self) -> int:
        """The number of rows to load."""
        return sum(part.rows for part in self.slices)


def load_features(
    table: Table,
    source: str,
    vectoriser: Vectoriser,
    *,
    entity_column: str,
    event_time_column: str | None = None,
    newest: bool = False,
    keep_s: float,
    rows_per_window: int = ROWS_PER_WINDOW,
) -> LoadReport:
    """Publish a source (an absolute path, a URI or a `TableName`) as the current features of all its entities.

    A row that cannot be used refuses the whole load, and the current features stay. Without an event-time column the
    features are as of this load. `newest`: load the newest row of an entity (see `NewestRows`); without it, several
    rows of an entity refuse the load. `keep_s`: when Redis forgets them. All feature groups come from this table; if
    there are several, a row may have nothing of some of them. Rows of forgotten entities are left out.

    Raises:
        SourceError: the table cannot be read, lacks a column, or has rows that cannot be used (null, illegal or
            duplicate ids, missing values without a default); names examples.
        StoreUnavailable: Redis did not answer in time.
    """
    started = time.monotonic()
    checked = _open(source, entity_column, event_time_column, vectoriser, newest=newest)
    contract = vectoriser.contract
    manifest = table.generations.begin(
        contract.stored_fields,
        rows_expected=checked.rows,
        model_version=0,
        contract_hash=contract.hash,
        keep_s=keep_s,
    )
    try:
        forgotten, left_out = table.forgotten.all(), 0
        for batch in _windows(checked, rows_per_window):
            left_out += _write(table, manifest, checked, batch, forgotten)
        _refuse_duplicates(table, manifest, checked, left_out)
        latest = table.forgotten.all()
        if latest.added_since(manifest.created_at):
            table.generations.sweep(manifest, latest, give_way=lambda: None)
        table.generations.publish(manifest.number)
    except BaseException:
        # if even this fails, the generation ends with the deadline of its manifest
        with suppress(StoreUnavailable, Conflict):
            table.generations.discard(manifest.number, GenerationState.FAILED)
            table.generations.collect(manifest.number, sweep_after_s=0)
        raise
    for number in table.generations.collectable():
        table.generations.collect(number)
    return LoadReport(checked.name, manifest.number, checked.rows - left_out, round(time.monotonic() - started, 3))


def _open(
    path: str, entity_column: str, event_time_column: str | None, vectoriser: Vectoriser, *, newest: bool
) -> _Source:
    source = open_any(path, as_text=[entity_column, *vectoriser.text_columns])
    check_key_columns(source, entity_column, event_time_column)
    vectoriser.check_schema(source.schema, path, stored_only=True)
    name = PurePosixPath(path).name
    if newest and event_time_column is not None:
        slices = newest_slices(source, entity_column, event_time_column)
    else:
        try:
            refuse_repeated_ids(source, entity_column)
        except SourceError as error:
            raise SourceError(f"{name}: {error.message}", field=error.field) from error
        slices = list(whole_slices(source.files))
    return _Source(name, source, entity_column, event_time_column, vectoriser, slices)


def _windows(source: _Source, rows: int) -> Iterator[pa.RecordBatch]:
    contract = source.vectoriser.contract
    columns = {source.entity_column, *(feature.table_column for feature in contract.stored_form.features)}
    columns |= {group.event_time_column for group in contract.table_groups if group.event_time_column is not None}
    if source.event_time_column is not None:
        columns.add(source.event_time_column)
    files = source.source.files
    waiting: list[pa.RecordBatch] = []
    for batch in read_slices(files, source.slices, columns=sorted(columns), batch_rows=min(rows, _READ_ROWS)):
        if waiting and batch.schema != waiting[0].schema:  # a column of the next file has another width, or only nulls
            yield pa.concat_batches(waiting)
            waiting = []
        waiting.append(batch)
        if sum(one.num_rows for one in waiting) >= rows:
            yield pa.concat_batches(waiting)
            waiting = []
    if waiting:
        yield pa.concat_batches(waiting)


def _write(table: Table, manifest: Manifest, source: _Source, batch: pa.RecordBatch, forgotten: ForgottenIds) -> int:
    """Write a window of rows, and return how many were left out, since their entities are forgotten."""
    ids = entity_ids_as_text(batch.column(source.entity_column), source.entity_column)
    illegal = illegal_entity_ids(ids)
    if pc.any(illegal).as_py():
        bad = ids.filter(illegal).slice(0, _EXAMPLES).to_pylist()
        have = counted(pc.sum(illegal).as_py(), "row has", "rows have")
        raise SourceError(
            f"{source.name}: {have} no legal id in {source.entity_column!r}, "
            f"such as {', '.join(map(repr, bad))}: give every row 1 to 512 bytes without control characters",
            field=source.entity_column,
        )
    gone = forgotten.mask(ids)
    if gone.any():
        batch, ids = batch.filter(pa.array(~gone)), ids.filter(pa.array(~gone))
    contract = source.vectoriser.contract
    times = group_times(batch, contract, source.event_time_column, manifest.created_at)
    if not contract.has_several_groups:
        _refuse_without_time(source, ids, next(iter(times.values())))
    rows = source.vectoriser.stored_from_arrow(batch, times)
    if rows.reasons:
        problems = "; ".join(examples(rows.reasons[:_EXAMPLES], lambda row: ids[row].as_py()))
        raise SourceError(f"{source.name}: {problems}", field=rows.reasons[0].feature)
    # a time in the future counts as now: else no update could replace the values
    times = {group: np.minimum(group_times, manifest.created_at) for group, group_times in times.items()}
    notes = contract.stored_form.notes(rows.imputed, times, batch.num_rows)
    table.generations.write(
        manifest, ids, rows.block | notes, oldest(times, np.full(batch.num_rows, manifest.created_at))
    )
    return int(gone.sum())


def _refuse_without_time(source: _Source, ids: pa.Array, times: npt.NDArray[np.float64]) -> None:
    unknown = np.flatnonzero(np.isnan(times))
    if len(unknown):
        [group] = source.vectoriser.contract.table_groups
        column = group.event_time_column or source.event_time_column
        raise SourceError(
            f"{source.name}: {counted(len(unknown), 'row has', 'rows have')} no {column!r}, such as that of "
            f"{ids[int(unknown[0])].as_py()!r}",
            field=column,
        )


def _refuse_duplicates(table: Table, manifest: Manifest, source: _Source, left_out: int) -> None:
    stored, rows = table.generations.count(manifest), source.rows - left_out
    if rows - table.forgotten.all().added_since(manifest.created_at) <= stored <= rows:
        return
    distinct = count_distinct_ids(source.source.files, source.entity_column, examples=_EXAMPLES, slices=source.slices)
    if not distinct.duplicates:
        raise StoreUnavailable(
            f"{counted(rows, 'row was', 'rows were')} written but Redis holds {stored}: load them again"
        )
    raise repeated_ids_error(rows - stored, distinct.duplicates, source.entity_column)
