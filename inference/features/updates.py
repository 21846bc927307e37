"""Changes of single entities' features: checked as a whole, merged with what is stored, never over what is newer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.clock import to_iso
from inference.entities import check_entity_id
from inference.errors import BadEntityId, BadInput, Conflict, ContractError, quoted
from inference.features.contract import FeatureContract
from inference.features.group_rows import GroupRows
from inference.features.groups import FeatureGroup
from inference.features.instances import check_names, rows_from_instances
from inference.features.key_columns import EARLIEST_S, LATEST_S
from inference.features.rows import FeatureRows, Mask, Times, blank, fill_missing
from inference.schema import Block
from inference.store import Table

#: how far ahead of Redis' clock an event time may be: clocks of well-kept hosts differ by less
CLOCK_TOLERANCE_S = 5.0
#: others may change an entity between reading and writing it; each time one of them has got on
_MAX_TRIES = 100


@dataclass(frozen=True)
class FeatureUpdate:
    """New values for some or all features of an entity, by name, or for all of them as a list in order.

    `event_at`: since when they hold, epoch seconds; None for now.
    """

    entity_id: str
    features: Mapping[str, Any] | Sequence[Any]
    event_at: float | None = None


@dataclass(frozen=True)
class UpdateResult:
    """What became of an update.

    `applied`: all of it; else newer features stand in the groups `not_applied`. `as_of`: of what stands now, of the
    groups that the update names the oldest, epoch seconds.
    """

    entity_id: str
    applied: bool
    as_of: float
    not_applied: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        as_of = to_iso(self.as_of)
        return {
            "entity_id": self.entity_id,
            "applied": self.applied,
            "as_of": as_of,
            "not_applied": list(self.not_applied),
        }


@dataclass
class _Given:
    """The values of all updates as columns: `named[feature]` marks the updates that name it, `null[feature]` those
    whose value is missing, for which its default stands.
    """  # fmt: skip

    block: Block
    named: dict[str, Mask]
    null: dict[str, Mask]


@dataclass
class _Outcome:
    """What became of the updates in one group: positions in the request that name it, and by position the rest.

    `changed_at`: the event times of those that were applied, to the fraction of a second; NaN for the others.
    """

    group: FeatureGroup
    named: npt.NDArray[np.intp]
    as_of: Times
    changed_at: Times
    left: npt.NDArray[np.intp] = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.named


class FeatureWriter:
    """Changes the features of single entities in a model's feature table.

    What was computed on demand from the older features is taken out of `predictions`; what a run computed is no hit
    any more if it is older than the change. `keep_s`: when Redis forgets a changed row.
    """

    def __init__(self, features: Table, predictions: Table, contract: FeatureContract, *, keep_s: float) -> None:
        self._features = features
        self._predictions = predictions
        self._contract = contract
        self._keep_s = keep_s

    def write(self, updates: Sequence[FeatureUpdate], *, place: str = "") -> list[UpdateResult]:
        """Store updates of different entities, all or none of them, and return what became of each, in order.

        Features of a group that an update names only in part stay as they are stored, and are as of its event time
        from then on: a group has one age. Of an entity without the group they take their defaults. May run twice.
        `place`: where an update stands in the request, such as "items.{}.", for the errors' fields.

        Raises:
            BadInput: an id is illegal or there twice, an event time lies in the future; names the field.
            ContractError: a feature is unknown, does not fit, is not stored, or is missing without a default.
            Conflict: the stored features are of another contract, or others change an entity without a pause.
            StoreUnavailable: Redis did not answer in time; the same updates may be sent again.
        """
        event_at = _check(updates, self._features.now(), place)
        given = self._given(updates, place)
        outcomes = [outcome for group in self._contract.table_groups if (outcome := _outcome(self, group, given))]
        if len(outcomes) > 1:
            for outcome in outcomes:  # what is wrong with one group is found before another is stored
                self._merged(updates, given, outcome, place)
        for outcome in outcomes:
            self._store(updates, given, event_at, outcome, place)
        newest = np.fmax.reduce([outcome.changed_at for outcome in outcomes], initial=np.nan)
        changed = np.flatnonzero(~np.isnan(newest))
        if len(changed):
            ids = [updates[position].entity_id for position in changed.tolist()]
            self._predictions.outdate(ids, changed_at=newest[changed], keep_s=self._keep_s)
        return [_result(update.entity_id, position, outcomes) for position, update in enumerate(updates)]

    def features_of(self, group: FeatureGroup) -> list[str]:
        """Return the names of a group's features."""
        return [feature.name for feature in self._contract.features_of(group.name)]

    def _store(
        self, updates: Sequence[FeatureUpdate], given: _Given, event_at: Times, outcome: _Outcome, place: str
    ) -> None:
        for _ in range(_MAX_TRIES):
            outcome.left = self._try(updates, given, event_at, outcome, place)
            if not len(outcome.left):
                return
        entity_id = updates[int(outcome.left[0])].entity_id
        raise Conflict(f"the features of {quoted(entity_id)} change all the time: send it again")

    def _try(
        self, updates: Sequence[FeatureUpdate], given: _Given, event_at: Times, outcome: _Outcome, place: str
    ) -> npt.NDArray[np.intp]:
        """Store what can be stored of what is left of an outcome; return what others were quicker with."""
        left = outcome.left
        stored, block = self._merged(updates, given, outcome, place)
        # now for those without a time of their own: asked after reading, so that it is no older than what was read
        known_at = np.fmin(event_at[left], self._features.now())
        outcome.as_of[left] = stored.as_of
        chosen = np.flatnonzero(stored.older_than(known_at))
        done = stored.table.replace(
            [updates[position].entity_id for position in left[chosen]],
            stored.form.fields,
            {name: values[chosen] for name, values in block.items()},
            known_at=known_at[chosen],
            expected=[stored.expected[row] for row in chosen.tolist()],
            keep_s=self._keep_s,
        )
        was_stored = np.array(done, np.bool_)
        positions = left[chosen[was_stored]]
        outcome.changed_at[positions] = known_at[chosen[was_stored]]
        outcome.as_of[positions] = np.floor(outcome.changed_at[positions])
        return left[chosen[~was_stored]]

    def _merged(
        self, updates: Sequence[FeatureUpdate], given: _Given, outcome: _Outcome, place: str
    ) -> tuple[GroupRows, Block]:
        """Return what is stored of a group, and whole rows of it: what is given, else what is stored, else defaults."""
        left = outcome.left
        ids = [updates[position].entity_id for position in left]
        stored = GroupRows.read(self._features, self._contract, outcome.group.name, ids)
        rows = FeatureRows({}, np.zeros(len(left), np.bool_))
        for feature in stored.form.features:
            name = feature.name
            named = given.named[name][left]
            values = stored.block[name].copy()
            values[named] = given.block[name][left][named]
            missing = np.where(named, given.null[name][left], stored.missing[name])
            fill_missing(rows, feature, values, missing)
        if rows.reasons:
            raise _incomplete(ids, rows, left, place)
        notes = stored.form.notes(rows.imputed, {}, len(left))
        return stored, rows.block | notes

    def _given(self, updates: Sequence[FeatureUpdate], place: str) -> _Given:
        features, count = self._contract.features, len(updates)
        given = _Given({feature.name: blank(feature, count) for feature in features}, {}, {})
        for feature in features:
            given.named[feature.name], given.null[feature.name] = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        for names, positions in self._by_names(updates, place).items():
            chosen = FeatureContract(tuple(feature for feature in features if feature.name in names))
            rows = rows_from_instances([updates[n].features for n in positions], chosen)
            _refuse(rows, positions, place)
            for name in chosen.names:
                given.block[name][positions] = rows.block[name]
                given.named[name][positions] = True
                if name in rows.imputed:
                    given.null[name][positions] = rows.imputed[name]
        return given

    def _by_names(self, updates: Sequence[FeatureUpdate], place: str) -> dict[frozenset[str], list[int]]:
        """Return which updates (by position) name the same features: they are checked together."""
        groups: dict[frozenset[str], list[int]] = {}
        for position, update in enumerate(updates):
            try:
                groups.setdefault(self._names(update), []).append(position)
            except ContractError as error:
                raise _placed(error, position, place) from error
        return groups

    def _names(self, update: FeatureUpdate) -> frozenset[str]:
        """Return the features that an update names; a list names all that are stored."""
        if not update.features:
            raise ContractError("no features: give at least one")
        stored = {feature.name for feature in self._contract.stored_form.features}
        names = frozenset(update.features) if isinstance(update.features, Mapping) else frozenset(stored)
        if isinstance(update.features, Mapping):
            check_names(update.features, self._contract)
        for name in names - stored:
            raise ContractError(
                f"feature {quoted(name)} is not stored: it is computed, or comes with requests", field=name
            )
        return names


def _outcome(writer: FeatureWriter, group: FeatureGroup, given: _Given) -> _Outcome | None:
    """Return the outcome of a group to begin with; None when no update names a feature of it."""
    named = np.any([given.named[name] for name in writer.features_of(group)], axis=0)
    if not named.any():
        return None
    nothing = np.full(len(named), np.nan)
    return _Outcome(group, np.flatnonzero(named), as_of=nothing.copy(), changed_at=nothing)


def _result(entity_id: str, position: int, outcomes: Sequence[_Outcome]) -> UpdateResult:
    own = [outcome for outcome in outcomes if position in outcome.named]
    not_applied = tuple(outcome.group.name for outcome in own if np.isnan(outcome.changed_at[position]))
    return UpdateResult(entity_id, not not_applied, min(float(one.as_of[position]) for one in own), not_applied)


def _incomplete(ids: Sequence[str], rows: FeatureRows, left: npt.NDArray[np.intp], place: str) -> ContractError:
    row = int(rows.reasons[0].rows[0])
    own = [reason for reason in rows.reasons if row in reason.rows]
    missing = [reason.feature for reason in own if reason.reason.startswith("missing")]
    why = (
        f"no features of {quoted(ids[row])} are stored yet: give those without a default too: {', '.join(missing[:20])}"
    )
    if not missing:  # what is stored was legal under an older contract
        why = f"feature {quoted(own[0].feature)} of {quoted(ids[row])} is stored, but {own[0].reason}: give it too"
    return ContractError(why, field=f"{place.format(left[row])}features")


def _check(updates: Sequence[FeatureUpdate], now: float, place: str) -> Times:
    """Return the event times, NaN for none."""
    seen: set[str] = set()
    event_at = np.full(len(updates), np.nan)
    for position, update in enumerate(updates):
        prefix = place.format(position)
        try:
            check_entity_id(update.entity_id)
        except BadEntityId as error:
            raise BadEntityId(error.message, field=f"{prefix}entity_id") from error
        if update.entity_id in seen:
            raise BadInput(
                f"{quoted(update.entity_id)} is there twice: send one update of it", field=f"{prefix}entity_id"
            )
        seen.add(update.entity_id)
        if update.event_at is not None:
            _check_event_time(update.event_at, now, f"{prefix}event_time")
            event_at[position] = update.event_at
    return event_at


def _check_event_time(event_at: float, now: float, field: str) -> None:
    if not math.isfinite(event_at) or event_at < EARLIEST_S:
        raise BadInput("event_time is before 1970: give a time since then", field=field)
    if event_at > now + CLOCK_TOLERANCE_S:
        shown = to_iso(event_at) if event_at <= LATEST_S else "beyond the year 9999"
        raise BadInput(
            f"event_time {shown} is in the future: it is {to_iso(now)} by Redis' clock, and "
            f"{CLOCK_TOLERANCE_S:g} s ahead are allowed",
            field=field,
        )


def _refuse(rows: FeatureRows, positions: Sequence[int], place: str) -> None:
    if rows.reasons:
        row, first = min(rows.first_reasons().items())
        named = first.feature and first.feature not in first.reason
        message = f"feature {quoted(first.feature)}: {first.reason}" if named else first.reason
        raise _placed(ContractError(message, field=first.feature or None), positions[row], place)


def _placed(error: ContractError, position: int, place: str) -> ContractError:
    where = f"{place.format(position)}features"
    return ContractError(error.message, field=f"{where}.{error.field}" if error.field else where)
