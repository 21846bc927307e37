"""Scores one chunk: vectorise, micro-batches through the model, windows to the sinks. Knows no Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.batch.gates import MAX_EXAMPLES, BadRows, merge_bad_rows
from inference.batch.sinks import Sink, Window
from inference.entities import entity_ids_as_text, illegal_entity_ids
from inference.errors import ForecacheError, ModelError
from inference.features import FeatureRows, event_times
from inference.schema import Block, rows_in

#: rows written together: larger windows are faster (see the store), and this many float32 take a few MB
WINDOW_ROWS = 250_000
#: a window of wide outputs is written earlier
WINDOW_BYTES = 64 << 20
#: rows that a model may refuse one by one in a chunk before the chunk itself is given up
MAX_FAILING_ROWS = 64

_BAD_ID = "the entity id is null, empty, over 512 bytes, or holds control characters"
_NON_FINITE = "the prediction is not finite"
_RAISED = "the model raised"


class ScoringModel(Protocol):
    """What scoring needs of a loaded model."""

    vectoriser: Any

    def predict(self, inputs: Block) -> Block:
        """Return outputs by name, one row for each input row, in order."""


@dataclass
class ChunkResult:
    """What became of a chunk's rows: `rows` = stored + `quarantined` + `non_finite`."""

    rows: int = 0
    quarantined: int = 0
    non_finite: int = 0
    #: of the quarantined, those for which the model raised
    raised: int = 0
    bad_rows: list[BadRows] = field(default_factory=list)

    def note(self, bad: BadRows) -> None:
        """Count rows that were left out."""
        self.bad_rows.append(bad)
        if bad.reason == _NON_FINITE:
            self.non_finite += bad.rows
        else:
            self.quarantined += bad.rows

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        reasons = [bad.to_json() for bad in merge_bad_rows(self.bad_rows)]
        return {
            "rows": self.rows,
            "quarantined": self.quarantined,
            "non_finite": self.non_finite,
            "bad_rows": reasons,
        }


@dataclass
class ChunkScorer:
    """Scores a chunk's batches into sinks.

    `fence` is called before each window is written, and raises when this worker has lost the chunk.
    `loaded_at`: the `as_of` of rows without an event time, in epoch seconds.
    """

    model: ScoringModel
    sinks: Sequence[Sink]
    fence: Callable[[], None]
    entity_column: str
    event_time_column: str | None
    loaded_at: float
    micro_batch_rows: int

    def score(self, batches: Iterable[pa.RecordBatch]) -> ChunkResult:
        """Score every batch and commit the sinks; on any error what is not final is removed."""
        result, pending = ChunkResult(), _Pending()
        try:
            for batch in batches:
                result.rows += batch.num_rows
                for scored in self._score_batch(batch, result):
                    pending.add(scored)
                    if pending.is_full:
                        self._write(pending.take())
            if pending.rows:
                self._write(pending.take())
            self.fence()
            for sink in self.sinks:
                sink.commit()
        finally:
            for sink in self.sinks:
                sink.abandon()
        return result

    def _write(self, window: Window) -> None:
        self.fence()
        for sink in self.sinks:
            sink.write(window)

    def _score_batch(self, batch: pa.RecordBatch, result: ChunkResult) -> Iterable[Window]:
        ids = entity_ids_as_text(batch.column(self.entity_column), self.entity_column)
        features: FeatureRows = self.model.vectoriser.features_from_arrow(batch)
        bad_ids = np.asarray(illegal_entity_ids(ids))
        as_of = self._as_of(batch)
        if bad_ids.any() or features.rejected.any():
            keep = ~(bad_ids | features.rejected)
            _note_refused(result, ids, bad_ids, features)
            ids, as_of = ids.filter(pa.array(keep)), as_of[keep]
            features = FeatureRows(
                {name: values[keep] for name, values in features.block.items()}, np.zeros(len(ids), bool)
            )
        inputs = self.model.vectoriser.inputs(features.block)
        for start in range(0, len(ids), self.micro_batch_rows):
            part = slice(start, min(start + self.micro_batch_rows, len(ids)))
            rows = {name: values[part] for name, values in inputs.items()}
            yield self._micro_batch(rows, ids[part], as_of[part], result)

    def _micro_batch(
        self, inputs: Block, ids: pa.Array, as_of: npt.NDArray[np.float64], result: ChunkResult
    ) -> Window:
        outputs, failed = self._predict(inputs, ids, result)
        if failed.any():
            ids, as_of = ids.filter(pa.array(~failed)), as_of[~failed]
        bad = np.zeros(len(ids), dtype=bool)
        for values in outputs.values():
            bad |= _non_finite_rows(values)
        if bad.any():
            result.note(BadRows(None, _NON_FINITE, int(bad.sum()), _names(ids, np.flatnonzero(bad))))
            ids, as_of = ids.filter(pa.array(~bad)), as_of[~bad]
            outputs = {name: values[~bad] for name, values in outputs.items()}
        return Window(ids, outputs, as_of)

    def _predict(
        self, inputs: Block, ids: pa.Array, result: ChunkResult
    ) -> tuple[Block, npt.NDArray[np.bool_]]:
        """Return the outputs and a mask of the rows that make the model raise, found by halving."""
        rows = rows_in(inputs)
        try:
            return self.model.predict(inputs), np.zeros(rows, dtype=bool)
        except ForecacheError:
            raise
        except Exception as error:  # a model is the user's code and may raise anything
            if rows == 1:
                result.note(BadRows(None, f"{_RAISED} {type(error).__name__}", 1, _names(ids, np.array([0]))))
                result.raised += 1
                if result.raised > MAX_FAILING_ROWS:
                    raise ModelError(
                        f"the model raises for too many rows, last with {_brief(error)}"
                    ) from error
                return {}, np.ones(1, dtype=bool)
        half = rows // 2
        parts = [(slice(0, half), ids[:half]), (slice(half, rows), ids[half:])]
        halves = [self._predict({n: v[part] for n, v in inputs.items()}, own, result) for part, own in parts]
        blocks = [block for block, _ in halves if block]
        joined = (
            {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]} if blocks else {}
        )
        return joined, np.concatenate([mask for _, mask in halves])

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
    rows = [
        row for values in columns for row in values
    ]  # an inner dimension that differs between micro-batches
    joined = np.empty(len(rows), dtype=object)
    joined[:] = rows
    return joined


def _non_finite_rows(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if values.dtype.kind != "f":
        return np.zeros(len(values), dtype=bool)
    finite = np.isfinite(values)
    return np.asarray(~finite if values.ndim == 1 else ~finite.reshape(len(values), -1).all(axis=1))


def _note_refused(
    result: ChunkResult, ids: pa.Array, bad_ids: npt.NDArray[np.bool_], features: FeatureRows
) -> None:
    """Count each refused row once, under its first reason."""
    seen = bad_ids.copy()
    if bad_ids.any():
        result.note(BadRows(None, _BAD_ID, int(bad_ids.sum()), _names(ids, np.flatnonzero(bad_ids))))
    for rejection in features.reasons:
        rows = rejection.rows[~seen[rejection.rows]]
        seen[rows] = True
        if len(rows):
            result.note(BadRows(rejection.feature, rejection.reason, len(rows), _names(ids, rows)))


def _names(ids: pa.Array, rows: npt.NDArray[Any]) -> tuple[str, ...]:
    named = pc.fill_null(ids.take(pa.array(rows[:MAX_EXAMPLES])), "null").to_pylist()
    return tuple(str(name)[:60] for name in named)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
