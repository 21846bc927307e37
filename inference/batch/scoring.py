"""Scores one chunk in three stages at once: prepare rows, call the model, write to the sinks. Knows no Redis."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.batch.gates import MAX_EXAMPLES, BadRows, HistogramCounter, merge_bad_rows
from inference.batch.quarantine import Quarantine
from inference.batch.sinks import CarriedRows, Sink, Window, WindowBuilder, every
from inference.batch.vectors import Compared, VectorCheck
from inference.entities import entity_ids_as_text, illegal_entity_ids
from inference.errors import ContractError, FunctionFailed, ModelError
from inference.features import FeatureRows, Vectoriser
from inference.features.key_columns import GroupTimes, group_times
from inference.features.rows import oldest, take
from inference.models import LoadedModel, MicroBatch, ScoredRows, score_rows
from inference.schema import Block
from inference.store import NOBODY, ForgottenIds
from inference.stored_data import json_of

#: prepared batches that wait for the model, and windows that wait for the sinks
READ_AHEAD, WRITE_BEHIND = 3, 1
#: rows of a chunk for which a model may raise, one by one, before the chunk fails
MAX_FAILING_ROWS = 64
#: different reasons that a chunk's result names
MAX_REASONS = 20

_BAD_ID = "the entity id (column {column!r}) is null, empty, over 512 bytes, or holds control characters"

T = TypeVar("T")


@dataclass(frozen=True)
class TableRows:
    """Rows of a table, with their ids as text and their `as_of` in epoch seconds.

    `digests`: of the vectors that the model gets; None unless the run keeps them.
    """

    source: pa.RecordBatch
    ids: pa.Array
    as_of: npt.NDArray[np.float64]
    digests: npt.NDArray[np.uint64] | None = None

    def take(self, keep: npt.NDArray[np.bool_]) -> TableRows:
        """Return the rows of a mask."""
        mask = pa.array(keep)
        digests = None if self.digests is None else self.digests[keep]
        return TableRows(self.source.filter(mask), self.ids.filter(mask), self.as_of[keep], digests)

    def slice(self, part: slice) -> TableRows:
        """Return consecutive rows, as views."""
        digests = None if self.digests is None else self.digests[part]
        return TableRows(self.source[part], self.ids[part], self.as_of[part], digests)


@dataclass(frozen=True)
class Refusal:
    """Positions of rows that cannot be scored, with the reason. `feature`: the column at fault, None for the id."""

    feature: str | None
    reason: str
    positions: npt.NDArray[np.intp]


@dataclass(frozen=True)
class PreparedRows:
    """A batch: all its `rows`, the refused ones, and the `usable` ones with their features in the same order.

    `features` also holds the fields that a feature table adds to the features (`StoredForm`). `compared`: what became
    of the usable rows' vectors; None unless the run keeps them. `forgotten`: the number of rows that are neither usable
    nor refused, since their entities are forgotten.
    """

    rows: TableRows
    refused: tuple[Refusal, ...]
    usable: TableRows
    features: Block
    #: which of `rows` are usable
    kept: npt.NDArray[np.bool_]
    compared: Compared | None = None
    forgotten: int = 0

    def take(self, mask: npt.NDArray[np.bool_]) -> PreparedRows:
        """Return the batch with some of its usable rows."""
        compared = None if self.compared is None else self.compared.take(mask)
        return replace(self, usable=self.usable.take(mask), features=take(self.features, mask), compared=compared)

    def to_carry(self) -> CarriedRows | None:
        """Return the usable rows whose predictions are known; None for none."""
        if self.compared is None or not self.compared.same.any():
            return None
        known = self.take(self.compared.same)
        rows, found = known.usable, known.compared or self.compared
        return CarriedRows(rows.ids, rows.as_of, found.digests, found.aged, found.places, known.features)

    def to_score(self) -> PreparedRows:
        """Return the batch without the rows that `to_carry` returns, its usable rows with their digests."""
        if self.compared is None:
            return self
        rest = self.take(~self.compared.same) if self.compared.same.any() else self
        return replace(rest, usable=replace(rest.usable, digests=(rest.compared or self.compared).digests))

    def split(self, chosen: npt.NDArray[np.bool_]) -> tuple[PreparedRows, Window]:
        """Return the batch with the chosen ones of its usable rows, and the features of the others.

        `chosen`: has an entry for each of the batch's `rows`.
        """
        mask = chosen[self.kept]
        others = self.usable.take(~mask)
        return self.take(mask), Window(others.ids, {}, others.as_of, take(self.features, ~mask))


@dataclass(frozen=True)
class Preparer:
    """Prepares batches for one model: the model's inputs of each row, or the reason why it has none.

    `loaded_at`: the instant of the run, in epoch seconds. Feature functions get it, and it is the `as_of` of rows
    without an event time. `vectors`: tells which rows need no model; None: all do. `forgotten`: entities that are left
    out.
    """

    vectoriser: Vectoriser
    entity_column: str
    event_time_column: str | None
    loaded_at: float
    vectors: VectorCheck | None = None
    forgotten: ForgottenIds = NOBODY

    def prepare(self, batch: pa.RecordBatch) -> PreparedRows:
        """Return a batch's rows, each usable, of a forgotten entity, or refused once, for its first reason.

        Raises:
            ContractError: a feature function failed.
        """
        ids = entity_ids_as_text(batch.column(self.entity_column), self.entity_column)
        times = self._times(batch)
        features = self._features(batch, times)
        rows = TableRows(batch, ids, self._as_of(times, batch.num_rows))
        block = features.block | self._notes(features, times)
        bad_ids = np.asarray(illegal_entity_ids(ids))
        gone = self.forgotten.mask(pc.fill_null(ids, ""))
        keep = ~(bad_ids | features.rejected | gone)
        if keep.all():
            return self._compared(PreparedRows(rows, (), rows, block, keep))
        refused = tuple(self._refusals(bad_ids, features, gone))
        usable = PreparedRows(rows, refused, rows.take(keep), take(block, keep), keep, forgotten=int(gone.sum()))
        return self._compared(usable)

    def _compared(self, prepared: PreparedRows) -> PreparedRows:
        """Add what became of the usable rows' vectors."""
        if self.vectors is None:
            return prepared
        rows = prepared.usable
        return replace(
            prepared, compared=self.vectors.compare(rows.ids, self.vectoriser.inputs(prepared.features), rows.as_of)
        )

    def _features(self, batch: pa.RecordBatch, times: GroupTimes) -> FeatureRows:
        try:
            return self.vectoriser.features_from_arrow(batch, at=self.loaded_at, times=times)
        except (FunctionFailed, ModelError) as error:  # of a feature function: other workers would fail too
            raise ContractError(error.message, field=error.field) from error

    def _notes(self, features: FeatureRows, times: GroupTimes) -> Block:
        # an event time in the future counts as now: no update could replace the features otherwise
        known_at = {group: np.minimum(of_group, self.loaded_at) for group, of_group in times.items()}
        return self.vectoriser.contract.stored_form.notes(features.imputed, known_at, len(features.rejected))

    def _refusals(
        self, bad_ids: npt.NDArray[np.bool_], features: FeatureRows, gone: npt.NDArray[np.bool_]
    ) -> Iterator[Refusal]:
        seen = bad_ids | gone
        if bad_ids.any():
            yield Refusal(None, _BAD_ID.format(column=self.entity_column), np.flatnonzero(bad_ids))
        for rejection in features.reasons:
            positions = rejection.rows[~seen[rejection.rows]]
            seen[rejection.rows] = True
            if len(positions):
                yield Refusal(rejection.feature, rejection.reason, positions)

    def _times(self, batch: pa.RecordBatch) -> GroupTimes:
        contract = self.vectoriser.contract
        times = group_times(batch, contract, self.event_time_column, self.loaded_at)
        if not contract.has_several_groups:  # all features of a row have one age; without an event time it is the run's
            times = {name: np.where(np.isnan(known), self.loaded_at, known) for name, known in times.items()}
        return times

    def _as_of(self, times: GroupTimes, rows: int) -> npt.NDArray[np.float64]:
        """Return the oldest event time among the groups that each row uses, or the run's time if none has one."""
        used = {
            group.name: np.where(times[group.name] < self.loaded_at - group.max_age_s, np.nan, times[group.name])
            if group.max_age_s is not None
            else times[group.name]
            for group in self.vectoriser.contract.table_groups
        }
        as_of = oldest(used, np.full(rows, np.nan))
        return np.where(np.isnan(as_of), self.loaded_at, as_of)


@dataclass
class ChunkResult:
    """Counts a chunk's rows: `rows` = stored + `outside` + `forgotten` + `quarantined` + `non_finite`.

    `outside`: rows that the run does not score, since their entities are outside its active set. `carried`: how many of
    the stored ones were known.
    """

    rows: int = 0
    outside: int = 0
    forgotten: int = 0
    carried: int = 0
    quarantined: int = 0
    non_finite: int = 0
    #: the quarantined rows for which the model raised
    raised: int = 0
    bad_rows: list[BadRows] = field(default_factory=list)
    #: of the stored predictions
    histogram: HistogramCounter = field(default_factory=HistogramCounter)

    def fail(self, bad: BadRows) -> None:
        """Count rows that are left out because of the model's answer."""
        self.bad_rows.append(bad)
        if bad.non_finite:
            self.non_finite += bad.rows
        else:
            self.quarantined += bad.rows
            self.raised += bad.rows

    def refuse(self, bad: BadRows) -> None:
        """Count rows that the model never saw."""
        self.bad_rows.append(bad)
        self.quarantined += bad.rows

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        reasons = merge_bad_rows(self.bad_rows)[:MAX_REASONS]
        return {
            "rows": self.rows,
            "outside": self.outside,
            "quarantined": self.quarantined,
            "non_finite": self.non_finite,
            **({"carried": self.carried} if self.carried else {}),
            **({"forgotten": self.forgotten} if self.forgotten else {}),
            "bad_rows": json_of(tuple[BadRows, ...], reasons),
        }


@dataclass
class ChunkScorer:
    """Scores a chunk's batches into sinks; left-out rows go to the quarantine.

    Calls `fence` before it writes a window, and `alive`, which must be cheap, before each model call, with the `device`
    that computes it, and with None before it carries rows over; both raise when this worker has lost the chunk.
    `feature_sinks` take the features from which the rows were scored.
    """

    model: LoadedModel
    preparer: Preparer
    sinks: Sequence[Sink]
    quarantine: Quarantine
    fence: Callable[[], None]
    alive: Callable[[str | None], None]
    micro_batch: MicroBatch
    feature_sinks: Sequence[Sink] = ()
    device: str | None = None

    def score(self, batches: Iterable[pa.RecordBatch], chosen: npt.NDArray[np.bool_] | None = None) -> ChunkResult:
        """Score every batch and commit the sinks; on any error remove what is not final.

        `chosen`: which of the batches' rows to score, in order; None for all. Feature sinks take the other rows too.
        Two threads read batches and write windows; they end before this returns.
        """
        result = ChunkResult()
        if chosen is not None and not self.feature_sinks:
            result.rows = result.outside = int((~chosen).sum())
            batches, chosen = _filtered(batches, chosen), None
        with ExitStack() as stages:
            for sink in self._all_sinks:
                stages.callback(sink.abandon)
            with (
                closing(read_ahead(map(self.preparer.prepare, batches), ahead=READ_AHEAD)) as prepared,
                WriteBehind(partial(self._write, result.histogram), behind=WRITE_BEHIND) as writer,
            ):
                self._score_all(prepared, writer, result, chosen)
            self.fence()
            for sink in self._all_sinks:
                sink.commit()
            self.quarantine.commit()
        return result

    @property
    def _all_sinks(self) -> Sequence[Sink]:
        return [*self.sinks, *self.feature_sinks]

    def _score_all(
        self,
        prepared: Iterator[PreparedRows],
        writer: WriteBehind[Window | CarriedRows],
        result: ChunkResult,
        chosen: npt.NDArray[np.bool_] | None,
    ) -> None:
        pending, outside, at = WindowBuilder(), WindowBuilder(), 0
        for batch in prepared:
            rows, at = batch, at + len(batch.rows.ids)
            if chosen is not None:
                rows, others = batch.split(chosen[at - len(batch.rows.ids) : at])
                result.outside += len(others.ids)
                _gather(others, outside, writer)
            carried = rows.to_carry()
            if carried is not None:
                self.alive(None)
                result.carried += len(carried.ids)
                writer.put(carried)
            for scored in self._score_batch(rows.to_score(), result):
                _gather(scored, pending, writer)
        for rest in (pending, outside):
            if rest.rows:
                writer.put(rest.take())

    def _write(self, histogram: HistogramCounter, window: Window | CarriedRows) -> None:
        self.fence()
        if isinstance(window, CarriedRows):
            self._carry(histogram, window)
            return
        for sink in self.feature_sinks:
            sink.write(window.of_features)
        if not window.block:  # these rows were not scored
            return
        for sink in self.sinks:
            sink.write(window)
        histogram.add(window.block)

    def _carry(self, histogram: HistogramCounter, rows: CarriedRows) -> None:
        for sink in self.feature_sinks:  # an equal vector does not mean that all stored features are equal
            sink.write(Window(rows.ids, rows.features or {}, rows.as_of))
        samples = [sink.carry(rows) for sink in self.sinks]
        histogram.add(samples[0] if samples else {}, times=every(len(rows.ids)))

    def _score_batch(self, prepared: PreparedRows, result: ChunkResult) -> Iterator[Window]:
        result.rows += len(prepared.rows.ids)
        result.forgotten += prepared.forgotten
        for one in prepared.refused:
            source, ids = prepared.rows.source, prepared.rows.ids
            result.refuse(BadRows(one.feature, one.reason, len(one.positions), _names(ids, one.positions)))
            self.quarantine.add(source, ids, one.positions, reason=one.reason, feature=one.feature)
        start, rows = 0, len(prepared.usable.ids)
        while start < rows:
            self.alive(self.device)
            part = slice(start, min(start + self.micro_batch.rows, rows))
            features = {name: values[part] for name, values in prepared.features.items()}
            yield self._micro_batch(features, prepared.usable.slice(part), result)
            start = part.stop

    def _micro_batch(self, features: Block, rows: TableRows, result: ChunkResult) -> Window:
        scored = score_rows(self.model, features)
        if scored.too_many_rows is not None:
            self.micro_batch.shrink(scored.too_many_rows)
        kept = features if self.feature_sinks else None
        if not scored.failed.any():
            return Window(rows.ids, scored.outputs, rows.as_of, kept, rows.digests)
        for bad, failed in _failed_by_reason(rows.ids, scored):
            result.fail(bad)
            self.quarantine.add(rows.source, rows.ids, failed, reason=bad.reason)
        if result.raised > MAX_FAILING_ROWS:
            raise ModelError(f"the model raises for too many rows, such as: {result.bad_rows[-1]}")
        good = ~scored.failed
        rows = rows.take(good)
        kept = take(kept, good) if kept else None
        return Window(rows.ids, take(scored.outputs, good), rows.as_of, kept, rows.digests)


def _gather(rows: Window, into: WindowBuilder, writer: WriteBehind[Window | CarriedRows]) -> None:
    into.add(rows)
    if into.is_full or (into.is_worth_writing and writer.is_idle):
        writer.put(into.take())


def _filtered(batches: Iterable[pa.RecordBatch], keep: npt.NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
    """Yield the batches with the rows to keep; `keep` has an entry for each row, in order."""
    at = 0
    for batch in batches:
        mask = keep[at : at + batch.num_rows]
        at += batch.num_rows
        if mask.any():
            yield batch.filter(pa.array(mask))


def _failed_by_reason(ids: pa.Array, scored: ScoredRows) -> Iterator[tuple[BadRows, npt.NDArray[np.intp]]]:
    by_reason: dict[str, list[int]] = {}
    for row, reason in scored.reasons.items():
        by_reason.setdefault(reason, []).append(row)
    for reason, rows in by_reason.items():
        # rows for which the model raised hold zeros, which are finite
        non_finite = not all(np.isfinite(values[rows]).all() for values in _floats(scored.outputs))
        yield BadRows(None, reason, len(rows), _names(ids, np.array(rows)), non_finite), np.array(rows)


def _floats(block: Block) -> Iterator[npt.NDArray[Any]]:
    return (values for values in block.values() if values.dtype.kind == "f")


def _names(ids: pa.Array, rows: npt.NDArray[Any]) -> tuple[str, ...]:
    named = pc.fill_null(ids.take(pa.array(rows[:MAX_EXAMPLES])), "null").to_pylist()
    return tuple(str(name)[:60] for name in named)


def read_ahead(items: Iterable[T], *, ahead: int) -> Generator[T]:
    """Yield the items, none of them None; a thread makes up to `ahead` of them in advance.

    Close the generator to end the thread.
    """
    make, context = partial(next, iter(items), None), copy_context()
    with ThreadPoolExecutor(1, thread_name_prefix="read ahead") as thread:
        made = deque(thread.submit(context.run, make) for _ in range(ahead))
        try:
            while (item := made.popleft().result()) is not None:
                made.append(thread.submit(context.run, make))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)


class WriteBehind(Generic[T]):
    """Calls `write` for each item in a thread, in order; at most `behind` items wait.

    After an error it writes no further item; the next `put`, or the end of the block, raises the error. If the block
    ends with an error, the waiting items are dropped.
    """

    def __init__(self, write: Callable[[T], None], *, behind: int) -> None:
        self._write = write
        self._behind = behind
        self._context = copy_context()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write behind")
        self._writes: deque[Future[None]] = deque()
        self._failed = False

    @property
    def is_idle(self) -> bool:
        """Whether every item is written."""
        return all(write.done() for write in self._writes)

    def put(self, item: T) -> None:
        """Hand an item over; wait while too many items wait."""
        while len(self._writes) > self._behind:
            self._writes.popleft().result()
        self._writes.append(self._thread.submit(self._context.run, self._write_next, item))

    def __enter__(self) -> WriteBehind[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=error is not None)
        if error is None:
            for write in self._writes:
                write.result()

    def _write_next(self, item: T) -> None:
        if self._failed:
            return
        try:
            self._write(item)
        except BaseException:
            self._failed = True
            raise
