"""Scores one chunk: vectorise, micro-batches through the model, windows to the sinks. Knows no Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.batch.drift import HistogramCounter
from inference.batch.gates import MAX_EXAMPLES, BadRows, merge_bad_rows
from inference.batch.quarantine import Quarantine
from inference.batch.sinks import Sink, Window
from inference.entities import entity_ids_as_text, illegal_entity_ids
from inference.errors import ModelError
from inference.features import FeatureRows, event_times
from inference.models import LoadedModel, ScoredRows, score_rows
from inference.schema import Block

#: rows written together: larger windows are faster (see the store), and this many float32 take a few MB
WINDOW_ROWS = 250_000
#: a window of wide outputs is written earlier
WINDOW_BYTES = 64 << 20
#: rows that a model may refuse one by one in a chunk before the chunk itself is given up
MAX_FAILING_ROWS = 64
#: different reasons that a chunk's result names
MAX_REASONS = 20

_BAD_ID = "the entity id (column {column!r}) is null, empty, over 512 bytes, or holds control characters"


@dataclass
class ChunkResult:
    """What became of a chunk's rows: `rows` = stored + `quarantined` + `non_finite`."""

    rows: int = 0
    quarantined: int = 0
    non_finite: int = 0
    #: of the quarantined, those for which the model raised
    raised: int = 0
    bad_rows: list[BadRows] = field(default_factory=list)
    #: of the predictions that were stored
    histogram: HistogramCounter = field(default_factory=HistogramCounter)

    def note(self, bad: BadRows) -> None:
        """Count rows that were left out after the model had seen them."""
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
        reasons = [bad.to_json() for bad in merge_bad_rows(self.bad_rows)[:MAX_REASONS]]
        return {
            "rows": self.rows,
            "quarantined": self.quarantined,
            "non_finite": self.non_finite,
            "bad_rows": reasons,
        }


@dataclass
class ChunkScorer:
    """Scores a chunk's batches into sinks; the rows that are left out go to the quarantine.

    `fence` is called before each window is written, and raises when this worker has lost the chunk.
    `loaded_at`: the `as_of` of rows without an event time, in epoch seconds.
    """

    model: LoadedModel
    sinks: Sequence[Sink]
    fence: Callable[[], None]
    entity_column: str
    event_time_column: str | None
    loaded_at: float
    micro_batch_rows: int
    quarantine: Quarantine

    def score(self, batches: Iterable[pa.RecordBatch]) -> ChunkResult:
        """Score every batch and commit the sinks; on any error what is not final is removed."""
        result, pending = ChunkResult(), _Pending()
        try:
            for batch in batches:
                result.rows += batch.num_rows
                for scored in self._score_batch(batch, result):
                    pending.add(scored)
                    if pending.is_full:
                        self._write(pending.take(), result)
            if pending.rows:
                self._write(pending.take(), result)
            self.fence()
            for sink in self.sinks:
                sink.commit()
            self.quarantine.commit()
        finally:
            for sink in self.sinks:
                sink.abandon()
        return result

    def _write(self, window: Window, result: ChunkResult) -> None:
        self.fence()
        for sink in self.sinks:
            sink.write(window)
        result.histogram.add(window.block)

    def _score_batch(self, batch: pa.RecordBatch, result: ChunkResult) -> Iterable[Window]:
        ids = entity_ids_as_text(batch.column(self.entity_column), self.entity_column)
        features: FeatureRows = self.model.vectoriser.features_from_arrow(batch)
        bad_ids = np.asarray(illegal_entity_ids(ids))
        as_of = self._as_of(batch)
        if bad_ids.any() or features.rejected.any():
            keep = ~(bad_ids | features.rejected)
            self._refuse(result, batch, ids, bad_ids, features)
            batch, ids, as_of = batch.filter(pa.array(keep)), ids.filter(pa.array(keep)), as_of[keep]
            features = FeatureRows(
                {name: values[keep] for name, values in features.block.items()}, np.zeros(len(ids), bool)
            )
        for start in range(0, len(ids), self.micro_batch_rows):
            part = slice(start, start + self.micro_batch_rows)
            rows = {name: values[part] for name, values in features.block.items()}
            yield self._micro_batch(rows, batch[part], ids[part], as_of[part], result)

    def _micro_batch(
        self,
        features: Block,
        batch: pa.RecordBatch,
        ids: pa.Array,
        as_of: npt.NDArray[np.float64],
        result: ChunkResult,
    ) -> Window:
        scored = score_rows(self.model, features)
        if not scored.failed.any():
            return Window(ids, scored.outputs, as_of)
        for bad, failed in _failed_by_reason(ids, scored):
            result.note(bad)
            self.quarantine.add(batch, ids, failed, reason=bad.reason)
        if result.raised > MAX_FAILING_ROWS:
            raise ModelError(f"the model raises for too many rows, such as: {result.bad_rows[-1]}")
        keep = ~scored.failed
        outputs = {name: values[keep] for name, values in scored.outputs.items()}
        return Window(ids.filter(pa.array(keep)), outputs, as_of[keep])

    def _refuse(
        self,
        result: ChunkResult,
        batch: pa.RecordBatch,
        ids: pa.Array,
        bad_ids: npt.NDArray[np.bool_],
        features: FeatureRows,
    ) -> None:
        """Count each refused row once, under its first reason."""
        seen = bad_ids.copy()
        refused: list[tuple[str | None, str, npt.NDArray[np.intp]]] = []
        if bad_ids.any():
            refused.append((None, _BAD_ID.format(column=self.entity_column), np.flatnonzero(bad_ids)))
        for rejection in features.reasons:
            refused.append((rejection.feature, rejection.reason, rejection.rows[~seen[rejection.rows]]))
            seen[rejection.rows] = True
        for feature, reason, rows in refused:
            if len(rows):
                result.refuse(BadRows(feature, reason, len(rows), _names(ids, rows)))
                self.quarantine.add(batch, ids, rows, reason=reason, feature=feature)

    def _as_of(self, batch: pa.RecordBatch) -> npt.NDArray[np.float64]:
        if self.event_time_column is None:
            return np.full(batch.num_rows, self.loaded_at)
        times = event_times(batch.column(self.event_time_column))
        return np.where(np.isnan(times), self.loaded_at, times)


class _Pending:
    """Scored rows that wait for their window to fill."""

    def __init__(self) -> None:
        self._parts: list[Window] = []
        self.rows = 0
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        return self.rows >= WINDOW_ROWS or self._bytes >= WINDOW_BYTES

    def add(self, part: Window) -> None:
        if len(part.ids):
            self._parts.append(part)
            self.rows += len(part.ids)
            self._bytes += sum(values.nbytes for values in part.block.values())

    def take(self) -> Window:
        parts, self._parts, self.rows, self._bytes = self._parts, [], 0, 0
        ids = pa.concat_arrays([part.ids for part in parts])
        block = {name: _join([part.block[name] for part in parts]) for name in parts[0].block}
        return Window(ids, block, np.concatenate([part.as_of for part in parts]))


def _join(columns: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    if len({values.shape[1:] for values in columns}) == 1:
        return np.concatenate(columns)
    rows = [row for values in columns for row in values]  # an inner dimension that differs between micro-batches
    joined = np.empty(len(rows), dtype=object)
    joined[:] = rows
    return joined


def _failed_by_reason(ids: pa.Array, scored: ScoredRows) -> Iterator[tuple[BadRows, npt.NDArray[np.intp]]]:
    by_reason: dict[str, list[int]] = {}
    for row, reason in scored.reasons.items():
        by_reason.setdefault(reason, []).append(row)
    for reason, rows in by_reason.items():
        # a row for which the model raised holds zeros, which are finite
        non_finite = not all(np.isfinite(values[rows]).all() for values in _floats(scored.outputs))
        yield BadRows(None, reason, len(rows), _names(ids, np.array(rows)), non_finite), np.array(rows)


def _floats(block: Block) -> Iterator[npt.NDArray[Any]]:
    return (values for values in block.values() if values.dtype.kind == "f")


def _names(ids: pa.Array, rows: npt.NDArray[Any]) -> tuple[str, ...]:
    named = pc.fill_null(ids.take(pa.array(rows[:MAX_EXAMPLES])), "null").to_pylist()
    return tuple(str(name)[:60] for name in named)
