"""A batch of table rows as what a model can be called with, and the rows that it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from inference.entities import entity_ids_as_text, illegal_entity_ids
from inference.errors import ContractError, FunctionFailed, ModelError
from inference.features import FeatureRows, Vectoriser
from inference.features.key_columns import GroupTimes, group_times
from inference.features.rows import oldest, take
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
    """A batch: all its `rows`, those refused, and the `usable` ones with their features in the same order.

    `features` holds beside the features what a feature table keeps of them (`StoredForm`).
    """

    rows: TableRows
    refused: tuple[Refusal, ...]
    usable: TableRows
    features: Block


@dataclass(frozen=True)
class Preparer:
    """Prepares batches for one model.

    `loaded_at`: the instant of the run, in epoch seconds: what functions are told, and the `as_of` of rows without an
    event time.
    """

    vectoriser: Vectoriser
    entity_column: str
    event_time_column: str | None
    loaded_at: float

    def prepare(self, batch: pa.RecordBatch) -> PreparedRows:
        """Return a batch's rows, each either usable or refused once, under its first reason.

        Raises:
            ContractError: a function of the features failed.
        """
        ids = entity_ids_as_text(batch.column(self.entity_column), self.entity_column)
        times = self._times(batch)
        features = self._features(batch, times)
        rows = TableRows(batch, ids, self._as_of(times, batch.num_rows))
        block = features.block | self._notes(features, times)
        bad_ids = np.asarray(illegal_entity_ids(ids))
        if not bad_ids.any() and not features.rejected.any():
            return PreparedRows(rows, (), rows, block)
        keep = ~(bad_ids | features.rejected)
        refused = tuple(self._refusals(bad_ids, features))
        return PreparedRows(rows, refused, rows.take(keep), take(block, keep))

    def _features(self, batch: pa.RecordBatch, times: GroupTimes) -> FeatureRows:
        try:
            return self.vectoriser.features_from_arrow(batch, at=self.loaded_at, times=times)
        except (FunctionFailed, ModelError) as error:  # a function's: no other worker would fare better
            raise ContractError(error.message, field=error.field) from error

    def _notes(self, features: FeatureRows, times: GroupTimes) -> Block:
        # what is said to come from the future is of now: else no update could replace it
        known_at = {group: np.minimum(own, self.loaded_at) for group, own in times.items()}
        return self.vectoriser.contract.stored_form.notes(features.imputed, known_at, len(features.rejected))

    def _refusals(self, bad_ids: npt.NDArray[np.bool_], features: FeatureRows) -> Iterator[Refusal]:
        seen = bad_ids.copy()
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
        if not contract.has_several_groups:  # all that is there is of one age, if only that of the run
            times = {name: np.where(np.isnan(own), self.loaded_at, own) for name, own in times.items()}
        return times

    def _as_of(self, times: GroupTimes, rows: int) -> npt.NDArray[np.float64]:
        """Return the oldest time of what each row was made from; that of the run where nothing has one."""
        used = {
            group.name: np.where(times[group.name] < self.loaded_at - group.max_age_s, np.nan, times[group.name])
            if group.max_age_s is not None
            else times[group.name]
            for group in self.vectoriser.contract.table_groups
        }
        as_of = oldest(used, np.full(rows, np.nan))
        return np.where(np.isnan(as_of), self.loaded_at, as_of)
