"""The stored rows of one feature group, read so that they can be changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inference.errors import Conflict
from inference.features.contract import FeatureContract
from inference.features.rows import Mask, StoredForm, Times, blank
from inference.schema import Block
from inference.store import StoredRows, Table


@dataclass
class GroupRows:
    """The newest values of a group, a row for each entity in the order of the question.

    `table` and `form`: the table for changes of the group, and the form of its rows. `missing[feature]`: the rows with
    a default in place of a value. `as_of`: whole epoch seconds; `known_at`: the exact time, which orders rows of one
    second. Both are 0 where nothing is stored. `expected`: the argument of `Table.replace`.
    """

    table: Table
    form: StoredForm
    block: Block
    missing: dict[str, Mask]
    as_of: Times
    known_at: Times
    expected: Sequence[bytes | None]

    @classmethod
    def read(cls, table: Table, contract: FeatureContract, group: str, ids: Sequence[str]) -> GroupRows:
        """Read a group of entities.

        Raises:
            Conflict: the stored rows were loaded under another contract.
            StoreUnavailable: Redis did not answer in time.
        """
        updates = table.part(group) if contract.has_several_groups else table
        form = contract.group_form(group) if contract.has_several_groups else contract.stored_form
        count = len(ids)
        rows = cls(
            updates,
            form,
            {feature.name: blank(feature, count) for feature in form.features},
            {feature.name: np.ones(count, np.bool_) for feature in form.features},
            np.zeros(count),
            np.zeros(count),
            (None,) * count,
        )
        if contract.has_several_groups:
            rows._take_whole(table.read_block(ids), contract.stored_form, group)
        changed = updates.read_for_change(ids)
        if changed is not None:
            rows.expected = changed.overlay
            if changed.fields == form.fields:
                rows._take(changed.rows, form, changed.rows.as_of, changed.rows.found)
            elif changed.is_loaded:
                raise Conflict("the stored features are of another contract than the model's: load them again first")
            newest = changed.rows.as_of >= rows.as_of
            rows.as_of = np.maximum(rows.as_of, changed.rows.as_of)
            rows.known_at = np.where(newest, changed.known_at, rows.known_at)
        return rows

    def older_than(self, known_at: Times) -> Mask:
        """Return the rows that a change with these event times replaces."""
        seconds = np.floor(known_at)
        return np.asarray((seconds > self.as_of) | ((seconds == self.as_of) & (known_at >= self.known_at)))

    def _take_whole(self, stored: StoredRows | None, form: StoredForm, group: str) -> None:
        """Take over the group's values from whole rows."""
        times = None if stored is None else form.times(stored.block, group)
        if stored is None or times is None:
            return
        found = stored.found & ~np.isnan(times)
        self._take(stored, form, np.nan_to_num(times), found)
        self.as_of = np.where(found, np.nan_to_num(times), 0.0)

    def _take(self, stored: StoredRows, form: StoredForm, as_of: Times, found: Mask) -> None:
        """Take over rows that are no older than these."""
        newer = found & (as_of >= self.as_of)
        missing = form.missing(stored.block)
        for feature in self.form.features:
            values = stored.block.get(feature.name)
            if values is None or values.dtype != feature.dtype.numpy or values.shape[1:] != feature.shape:
                continue  # an older contract wrote it
            self.block[feature.name][newer] = values[newer]
            lacking = missing.get(feature.name)
            self.missing[feature.name][newer] = False if lacking is None else lacking[newer]


def stored_features(table: Table, contract: FeatureContract, entity_id: str) -> tuple[dict[str, Any], dict[str, float]]:
    """Return an entity's stored features as plain values, and the time of each group in epoch seconds.

    Leaves out features without a value, and groups without a stored row.

    Raises:
        StoreUnavailable: Redis did not answer in time.
    """
    values: dict[str, Any] = {}
    times: dict[str, float] = {}
    for group in contract.table_groups:
        rows = GroupRows.read(table, contract, group.name, [entity_id])
        if not rows.as_of[0]:
            continue
        times[group.name] = float(rows.as_of[0])
        for feature in contract.features_of(group.name):
            if not rows.missing[feature.name][0]:
                values[feature.name] = rows.block[feature.name].tolist()[0]
    return values, times
