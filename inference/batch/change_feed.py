"""Leaves rows unread in a delta run, where a Delta or Iceberg table tells which rows were written since the last run.

The run reads the ids of all rows, and rows of three kinds: their ids are among the written ones, the run that serves
kept no vector of them, or their ages depend on the run. All others are carried over as if a worker had read them.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.batch.delta import Base, copied_at
from inference.batch.gates import HistogramCounter
from inference.batch.ledger import Ledger
from inference.batch.paths import vectors_folder
from inference.batch.records import Fingerprint, RunRecord
from inference.batch.selection import RowSlice, masked, row_groups
from inference.batch.sinks import CarriedRows, every
from inference.batch.vectors import Vectors, VectorSink, open_vectors, remove_vectors
from inference.entities import entity_ids_as_text
from inference.errors import NotFound
from inference.features import FeatureContract, event_times
from inference.logs import get_logger
from inference.schema import Block
from inference.settings import Settings
from inference.sources import NoChangeFeed, Source, hash_ids, written_since
from inference.store import Table, stored_ids
from inference.wording import counted

log = get_logger(__name__)

#: the number of the part with the vectors of the rows that were left out; no chunk has it
_UNREAD_PART = 10**9


@dataclass
class UnreadRows:
    """Decides which rows of a run's table are read, and carries the others over.

    `written`: ascending hashes of the ids of written rows. `read_before`: when the run read the table whose rows are
    carried over (epoch seconds); `as_of`: of all carried rows, None if they keep theirs. `some_of` returns predictions.
    """

    run: RunRecord
    entity_column: str
    event_time_column: str | None
    before: Vectors
    written: npt.NDArray[np.uint64]
    read_before: float
    as_of: float | None
    sink: VectorSink
    some_of: Callable[[list[str]], Block]
    give_way: Callable[[], None]
    rows: int = 0
    _histogram: HistogramCounter = field(default_factory=HistogramCounter)

    def leave_out(self, source: Source, pieces: Iterable[RowSlice]) -> Iterator[RowSlice]:
        """Yield the pieces with the rows to read. Reads the ids, and the event times, of the whole source.

        Raises:
            SourceError: the source cannot be read.
        """
        columns = [self.entity_column, *([self.event_time_column] if self.event_time_column else [])]
        for group, batches in row_groups(source, iter(pieces), columns):
            yield from masked(group, np.concatenate([self._to_read(batch) for batch in batches]))

    def keep(self, ledger: Ledger) -> dict[str, str | int]:
        """Keep what later steps must know of the rows that were left out; return fields for the run's record.

        Raises:
            OSError: `delta_path` cannot be written to.
        """
        self.sink.commit()
        ledger.keep_histogram(self.run.run_id, self._histogram.histograms)
        written = counted(len(self.written), "entity was", "entities were")
        told = f"{written} written since; {counted(self.rows, 'other row was', 'other rows were')} not read"
        return {"rows_unread": self.rows, "rows_done": self.rows, "rows_before": self.rows, "change_feed": told}

    def _to_read(self, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        self.give_way()
        ids = pc.fill_null(entity_ids_as_text(batch.column(self.entity_column), self.entity_column), "")
        hashes = hash_ids(stored_ids(ids))
        found = self.before.find(hashes)
        unread = found.known & ~np.isin(hashes, self.written)
        if self.event_time_column:  # a time that is unknown, or was in the future, gives way to the run's
            unread &= event_times(batch.column(self.event_time_column)) < self.read_before
        if unread.any():
            as_of = found.as_of[unread].astype(np.float64) if self.as_of is None else np.full(unread.sum(), self.as_of)
            nothing = np.zeros(len(as_of), np.bool_)
            self._carry(CarriedRows(ids.filter(unread), as_of, found.digests[unread], nothing, found.places[unread]))
        return ~unread

    def _carry(self, rows: CarriedRows) -> None:
        self.rows += len(rows.ids)
        self.sink.carry(rows)
        step = every(len(rows.ids))
        self._histogram.add(self.some_of(rows.ids[::step].to_pylist()), times=step)


@dataclass(frozen=True)
class ChangeFeeds:
    """Opens the feeds of tables for delta runs. `predictions` returns a model's prediction table."""

    settings: Settings
    ledger: Ledger
    predictions: Callable[[str], Table]
    give_way: Callable[[], None]

    def open(
        self, run: RunRecord, base: Base, source: Source, planned: Fingerprint, contract: FeatureContract
    ) -> tuple[dict[str, str | int], UnreadRows | None]:
        """Return fields for a run's record, and what leaves rows of its table unread; None if all are read."""
        # an attempt at this plan may have been killed
        remove_vectors(vectors_folder(self.settings, run.model, run.run_id))
        try:
            return {}, self._open(run, base, source, planned, contract)
        except NoChangeFeed as reason:
            log.info("run.reads_all_rows", run_id=run.run_id, reason=reason.message)
            return {"change_feed": f"all rows were read: {reason.message}"}, None

    def _open(
        self, run: RunRecord, base: Base, source: Source, planned: Fingerprint, contract: FeatureContract
    ) -> UnreadRows:
        manifest, batch = base.manifest, self.settings.models[run.model].batch
        if manifest is None or batch.parquet_path or batch.feature_table:
            raise NoChangeFeed("the run writes Parquet parts or a feature table, which need them")
        if not _depends_on_rows_alone(contract):
            raise NoChangeFeed("features of the model depend on the time, or on functions")
        earlier = self._earlier(base.facts.run_id)
        before = open_vectors(vectors_folder(self.settings, run.model, earlier.run_id))
        if before is None or earlier.fingerprint is None or planned.rows == "newest":
            raise NoChangeFeed("the table has several rows for an entity, or the vectors of the run before it are gone")
        if _columns(earlier.fingerprint) != _columns(planned):
            raise NoChangeFeed("the run before it read other columns, or other rows")
        return UnreadRows(
            run,
            planned.entity_column,
            planned.event_time_column,
            before,
            _written(earlier.table_version, source.version, planned.entity_column),
            earlier.created_at,
            copied_at(run, contract, planned.event_time_column),
            self._sink(run),
            partial(self.predictions(run.model).generations.some_of, manifest),
            self.give_way,
        )

    def _earlier(self, run_id: str) -> RunRecord:
        try:
            return self.ledger.load(run_id)
        except NotFound as error:
            raise NoChangeFeed(f"run {run_id}, whose rows are carried over, is not known any more") from error

    def _sink(self, run: RunRecord) -> VectorSink:
        folder = vectors_folder(self.settings, run.model, run.run_id)
        return VectorSink(folder, chunk=_UNREAD_PART, token=uuid.uuid4().hex, latest=math.inf, is_needed=True)


def _depends_on_rows_alone(contract: FeatureContract) -> bool:
    return not contract.has_several_groups and not any(
        group.max_age_s is not None or group.event_time_column or group.function for group in contract.groups
    )


def _columns(planned: Fingerprint) -> tuple[str, str | None, str, str]:
    return planned.entity_column, planned.event_time_column, planned.rows, planned.entities


def _written(before: str, now: str, column: str) -> npt.NDArray[np.uint64]:
    """Return the ascending hashes of the ids of written rows.

    Raises:
        NoChangeFeed: the table does not tell, or names a row without an id.
    """
    found = [np.empty(0, np.uint64)]
    for values in written_since(before, now, column):
        ids = entity_ids_as_text(values, column)
        if ids.null_count:
            raise NoChangeFeed(f"its change feed has rows without {column!r}")
        found.append(np.unique(hash_ids(stored_ids(ids))))
    return np.unique(np.concatenate(found))
