"""Scores one chunk in three stages at once: read and vectorise, call the model, write to the sinks. Knows no Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.batch.drift import HistogramCounter
from inference.batch.gates import MAX_EXAMPLES, BadRows, merge_bad_rows
from inference.batch.pipeline import ReadAhead, WriteBehind
from inference.batch.quarantine import Quarantine
from inference.batch.rows import PreparedRows, Preparer, TableRows
from inference.batch.sinks import Sink, Window
from inference.batch.windows import WindowBuilder
from inference.errors import ModelError
from inference.features.rows import take
from inference.models import LoadedModel, MicroBatch, ScoredRows, score_rows
from inference.schema import Block

#: batches that are read before the model wants them, and windows that wait for the sinks
READ_AHEAD, WRITE_BEHIND = 2, 1
#: rows that a model may refuse one by one in a chunk before the chunk itself is given up
MAX_FAILING_ROWS = 64
#: different reasons that a chunk's result names
MAX_REASONS = 20


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

    `fence` is called before each window is written, and `alive`, which must be cheap, before each model call; both
    raise when this worker has lost the chunk. `feature_sinks` take what the rows were scored from.
    """

    model: LoadedModel
    preparer: Preparer
    sinks: Sequence[Sink]
    quarantine: Quarantine
    fence: Callable[[], None]
    alive: Callable[[], None]
    micro_batch: MicroBatch
    feature_sinks: Sequence[Sink] = ()

    def score(self, batches: Iterable[pa.RecordBatch]) -> ChunkResult:
        """Score every batch and commit the sinks; on any error what is not final is removed.

        Batches are read, and windows written, in threads that end before this returns.
        """
        result = ChunkResult()
        with ExitStack() as stages:
            for sink in self._all_sinks:
                stages.callback(sink.abandon)
            with (
                ReadAhead(map(self.preparer.prepare, batches), ahead=READ_AHEAD) as prepared,
                WriteBehind(partial(self._write, result.histogram), behind=WRITE_BEHIND) as writer,
            ):
                self._score_all(prepared, writer, result)
            self.fence()
            for sink in self._all_sinks:
                sink.commit()
            self.quarantine.commit()
        return result

    @property
    def _all_sinks(self) -> Sequence[Sink]:
        return [*self.sinks, *self.feature_sinks]

    def _score_all(self, prepared: Iterator[PreparedRows], writer: WriteBehind[Window], result: ChunkResult) -> None:
        pending = WindowBuilder()
        for rows in prepared:
            for scored in self._score_batch(rows, result):
                pending.add(scored)
                if pending.is_full or (pending.is_worth_writing and writer.is_idle):
                    writer.put(pending.take())
        if pending.rows:
            writer.put(pending.take())

    def _write(self, histogram: HistogramCounter, window: Window) -> None:
        self.fence()
        for sink in self.feature_sinks:
            sink.write(window.of_features)
        for sink in self.sinks:
            sink.write(window)
        histogram.add(window.block)

    def _score_batch(self, prepared: PreparedRows, result: ChunkResult) -> Iterator[Window]:
        result.rows += len(prepared.rows.ids)
        for one in prepared.refused:
            source, ids = prepared.rows.source, prepared.rows.ids
            result.refuse(BadRows(one.feature, one.reason, len(one.positions), _names(ids, one.positions)))
            self.quarantine.add(source, ids, one.positions, reason=one.reason, feature=one.feature)
        start, rows = 0, len(prepared.usable.ids)
        while start < rows:
            self.alive()
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
            return Window(rows.ids, scored.outputs, rows.as_of, kept)
        for bad, failed in _failed_by_reason(rows.ids, scored):
            result.note(bad)
            self.quarantine.add(rows.source, rows.ids, failed, reason=bad.reason)
        if result.raised > MAX_FAILING_ROWS:
            raise ModelError(f"the model raises for too many rows, such as: {result.bad_rows[-1]}")
        good = ~scored.failed
        rows = rows.take(good)
        return Window(rows.ids, take(scored.outputs, good), rows.as_of, take(kept, good) if kept else None)


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
