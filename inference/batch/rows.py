"""A batch of table rows as what a model can be called with, and the rows that it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from inference.entities import entity_ids_as_text, illegal_entity_ids
from inference.features import FeatureRows, Vectoriser, event_times
from inference.features.rows import take
from inference.schema import Block

_BAD_ID = "the entity id (column {column!r}) is null, empty, over 512 bytes, or holds control characters"


@dataclass(frozen=True)
class TableRows:
    """Rows as they were read, with their ids as text and their `as_of` in epoch seconds."""

    source: pa.RecordBatch
    ids: pa.Array
    as_of: npt.NDArray[np.float64]

    def take(self, keep: npt.NDArray[np.bool_]) -> TableRows:
        """Return the rows of a mask."""
        mask = pa.array(keep)
        return TableRows(self.source.filter(mask), self.ids.filter(mask), self.as_of[keep])

    def slice(self, part: slice) -> TableRows:
        """Return consecutive rows, as views."""
        return TableRows(self.source[part], self.ids[part], self.as_of[part])


@dataclass(frozen=True)
class Refusal:
    """Positions of rows that cannot be scored, and why. `feature`: the column at fault, None for the id."""

    feature: str | None
    reason: str
    positions: npt.NDArray[np.intp]


@dataclass(frozen=True)
class PreparedRows:
    """A batch: all its `rows`, those refused, and the `usable` ones with their features in the same order."""

    rows: TableRows
    refused: tuple[Refusal, ...]
    usable: TableRows
    features: Block


@dataclass(frozen=True)
class Preparer:
    """Prepares batches for one model. `loaded_at`: the `as_of` of rows without an event time, in epoch seconds."""

    vectoriser: Vectoriser
    entity_column: str
    event_time_column: str | None
    loaded_at: float

    def prepare(self, batch: pa.RecordBatch) -> PreparedRows:
        """Return a batch's rows, each either usable or refused once, under its first reason."""
        ids = entity_ids_as_text(batch.column(self.entity_column), self.entity_column)
        rows = TableRows(batch, ids, self._as_of(batch))
        features = self.vectoriser.features_from_arrow(batch)
        bad_ids = np.asarray(illegal_entity_ids(ids))
        if not bad_ids.any() and not features.rejected.any():
            return PreparedRows(rows, (), rows, features.block)
        keep = ~(bad_ids | features.rejected)
        refused = tuple(self._refusals(bad_ids, features))
        return PreparedRows(rows, refused, rows.take(keep), take(features.block, keep))

    def _refusals(self, bad_ids: npt.NDArray[np.bool_], features: FeatureRows) -> Iterator[Refusal]:
        seen = bad_ids.copy()
        if bad_ids.any():
            yield Refusal(None, _BAD_ID.format(column=self.entity_column), np.flatnonzero(bad_ids))
        for rejection in features.reasons:
            positions = rejection.rows[~seen[rejection.rows]]
            seen[rejection.rows] = True
            if len(positions):
                yield Refusal(rejection.feature, rejection.reason, positions)

    def _as_of(self, batch: pa.RecordBatch) -> npt.NDArray[np.float64]:
        if self.event_time_column is None:
            return np.full(batch.num_rows, self.loaded_at)
        times = event_times(batch.column(self.event_time_column))
        return np.where(np.isnan(times), self.loaded_at, times)
