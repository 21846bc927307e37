"""Where single updates go: whole rows of the feature table, or one group's rows beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from inference.errors import Conflict
from inference.features.contract import FeatureContract
from inference.features.stored import MISSING, StoredForm
from inference.schema import Block
from inference.store import ChangeableRows, StoredRows, Table


class Target(Protocol):
    """Rows that can be read and replaced; each has one age."""

    @property
    def table(self) -> Table:
        """What they are replaced in."""

    @property
    def form(self) -> StoredForm:
        """What they hold."""

    def read(self, ids: Sequence[str]) -> ChangeableRows | None:
        """Return the newest rows in this form, or as older releases stored them; None when nothing is stored.

        Raises:
            Conflict: what is stored is of another contract.
        """


@dataclass(frozen=True)
class WholeRows:
    """The rows of a feature table of one group."""

    table: Table
    form: StoredForm

    def read(self, ids: Sequence[str]) -> ChangeableRows | None:
        """See `Target.read`."""
        stored = self.table.read_for_change(ids)
        if stored is None or stored.fields in (self.form.fields, self.form.values):
            return stored
        if stored.is_loaded:
            raise Conflict("the stored features are of another contract than the model's: load them again first")
        return _without_values(stored)


@dataclass(frozen=True)
class GroupRows:
    """One group's rows when several are stored: single updates beside what was loaded."""

    loaded: Table
    table: Table
    whole: StoredForm
    form: StoredForm
    group: str

    def read(self, ids: Sequence[str]) -> ChangeableRows | None:
        """See `Target.read`."""
        loaded, single = self.loaded.read_block(ids), self.table.read_for_change(ids)
        if single is not None and single.fields != self.form.fields:
            single = _without_values(single)
        if loaded is None:
            return single
        if not {spec.name for spec in self.form.fields} - {MISSING} <= set(loaded.block):
            raise Conflict("the stored features are of another contract than the model's: load them again first")
        times = self.whole.times(loaded.block, self.group)
        found = loaded.found if times is None else loaded.found & ~np.isnan(times)
        as_of = np.where(found, loaded.as_of if times is None else np.nan_to_num(times), 0.0)
        missing = {name: mask & found for name, mask in self.whole.missing(loaded.block).items()}
        block = {feature.name: loaded.block[feature.name] for feature in self.form.features}
        block |= self.form.notes(missing, {}, len(found))
        if single is None:
            rows = StoredRows(block, found, as_of)
            return ChangeableRows(rows, self.form.fields, True, as_of.copy(), (None,) * len(found))
        return self._newer(single, block, found, as_of)

    def _newer(
        self, single: ChangeableRows, block: Block, found: npt.NDArray[np.bool_], as_of: npt.NDArray[np.float64]
    ) -> ChangeableRows:
        wins = single.rows.found & (single.rows.as_of >= as_of)
        merged = {
            name: np.where(wins.reshape(-1, *[1] * (values.ndim - 1)), single.rows.block[name], values)
            for name, values in block.items()
        }
        rows = StoredRows(merged, found | wins, np.where(wins, single.rows.as_of, as_of))
        return ChangeableRows(rows, self.form.fields, True, np.where(wins, single.known_at, as_of), single.overlay)


def targets_of(features: Table, contract: FeatureContract) -> list[Target]:
    """Return where the stored features of a contract are changed, each feature in one target."""
    if not contract.has_parts:
        return [WholeRows(features, contract.stored_form)] if contract.table_groups else []
    return [
        GroupRows(features, features.part(group.name), contract.stored_form, contract.part_form(group.name), group.name)
        for group in contract.table_groups
    ]


def _without_values(stored: ChangeableRows) -> ChangeableRows:
    """Return that nothing is stored, but what stands in the place of an update."""
    nobody = np.zeros(len(stored.overlay), dtype=bool)
    rows = StoredRows({}, nobody, stored.rows.as_of)
    return ChangeableRows(rows, (), False, stored.known_at, stored.overlay)


@dataclass(frozen=True)
class StoredGroup:
    """What is stored of an entity's features of one age. `imputed`: those whose default stands for a missing value."""

    values: dict[str, Any]
    as_of: float
    imputed: list[str]


def stored_groups(features: Table, contract: FeatureContract, entity_id: str) -> dict[str, StoredGroup]:
    """Return by group what is stored of an entity; a group of which nothing is, is left out.

    Raises:
        Conflict: what is stored is of another contract.
    """
    groups = {}
    for group, target in zip(contract.table_groups, targets_of(features, contract), strict=True):
        stored = target.read([entity_id])
        if stored is None or not stored.fields or not stored.rows.found[0]:
            continue
        block = stored.rows.block
        values = {feature.name: _plain(block[feature.name][0]) for feature in target.form.features}
        lacking = target.form.missing(block)
        imputed = [name for name, mask in lacking.items() if mask[0]]
        groups[group.name] = StoredGroup(values, float(stored.rows.as_of[0]), imputed)
    return groups


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
