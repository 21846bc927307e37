"""Updates the features of single entities: checks them, merges them with the stored ones, and keeps newer values."""

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
from inference.features.rows import FeatureRows, Mask, Times, blank
from inference.schema import Block
from inference.store import Table

#: how far an event time may be ahead of the clock of Redis: the clocks of well-kept hosts differ by less
CLOCK_TOLERANCE_S = 5.0
#: another client may change an entity between the read and the write; then that one has succeeded
_MAX_TRIES = 100


@dataclass(frozen=True)
class FeatureUpdate:
    """New values of an entity's features: some of them by name, or all of them as a list in order.

    `event_at`: the time from which they hold, epoch seconds; None for now.
    """

    entity_id: str
    features: Mapping[str, Any] | Sequence[Any]
    event_at: float | None = None


@dataclass(frozen=True)
class UpdateResult:
    """The outcome of an update.

    `applied`: all of it was stored. If not, the groups `not_applied` hold newer features. `as_of`: the oldest time of
    the groups that the update names, as they are stored now; epoch seconds.
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
    """The values of all updates as columns.

    `named[feature]` marks the updates that name the feature, `null[feature]` those that give null, which means the
    default.
    """  # fmt: skip

    block: Block
    named: dict[str, Mask]
    null: dict[str, Mask]


@dataclass
class _Outcome:
    """The outcome of the updates in one group, by their positions in the request.

    `named`: the updates that name a feature of the group. `left`: the positions that are still to be stored.
    `changed_at`: the exact event times of updates that were stored; NaN for the others.
    """

    group: FeatureGroup
    named: Mask
    as_of: Times
    changed_at: Times
    left: npt.NDArray[np.intp] = field(init=False)

    def __post_init__(self) -> None:
        self.left = np.flatnonzero(self.named)


class FeatureWriter:
    """Updates the features of single entities in a model's feature table.

    Removes the predictions that were computed on demand from the older features. A run's prediction that is older
    than the update is no hit any more. `keep_s`: when Redis forgets an updated row. `sharing`: the predictions of other
    models that are computed from the same features.
    """

    def __init__(
        self,
        features: Table,
        predictions: Table,
        contract: FeatureContract,
        *,
        keep_s: float,
        sharing: Sequence[Table] = (),
    ) -> None:
        self._features = features
        self._predictions = (predictions, *sharing)
        self._contract = contract
        self._keep_s = keep_s

    def write(self, updates: Sequence[FeatureUpdate], *, place: str = "") -> list[UpdateResult]:
        """Store updates of different entities, all or none of them, and return the outcome of each, in order.

        If an update names only some features of a group, the others keep their stored values, but take its event time:
        a group has one age. If nothing of the group is stored, they take their defaults. May run twice.
        `place`: the place of an update in the request, such as "items.{}.", for the fields of errors.

        Raises:
            BadInput: an id is illegal or repeats, or an event time lies in the future; names the field.
            ContractError: a feature is unknown, does not fit, is not stored, or is missing without a default.
            EntityForgotten: an entity is on the model's list of forgotten ones; names it.
            Conflict: another contract wrote the stored features, or other clients change an entity without a pause.
            StoreUnavailable: Redis did not answer in time; the same updates may be sent again.
        """
        event_at = _check(updates, self._features.now(), place)
        self._features.forgotten.refuse([update.entity_id for update in updates], field=f"{place}entity_id")
        given = self._given(updates, place)
        outcomes = [
            outcome for group in self._contract.table_groups if (outcome := self._new_outcome(group, given)) is not None
        ]
        if len(outcomes) > 1:
            for outcome in outcomes:  # an error in one group must be found before another group is stored
                self._merged(updates, given, outcome, place)
        for outcome in outcomes:
            self._store(updates, given, event_at, outcome, place)
        newest = np.fmax.reduce([outcome.changed_at for outcome in outcomes], initial=np.nan)
        changed = np.flatnonzero(~np.isnan(newest))
        if len(changed):
            ids = [updates[position].entity_id for position in changed.tolist()]
            for predictions in self._predictions:
                predictions.overlay.outdate(ids, changed_at=newest[changed], keep_s=self._keep_s)
        return [_result(update.entity_id, position, outcomes) for position, update in enumerate(updates)]

    def _new_outcome(self, group: FeatureGroup, given: _Given) -> _Outcome | None:
        """Return the initial outcome of a group; None if no update names a feature of it."""
        named = np.any([given.named[feature.name] for feature in self._contract.features_of(group.name)], axis=0)
        if not named.any():
            return None
        nothing = np.full(len(named), np.nan)
        return _Outcome(group, named, as_of=nothing.copy(), changed_at=nothing)

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
        """Store the updates that are left; return those whose entity another client has changed meanwhile."""
        left = outcome.left
        stored, block = self._merged(updates, given, outcome, place)
        # updates without an event time are of now; read the clock after the rows, so that now is no older than they
        known_at = np.fmin(event_at[left], self._features.now())
        outcome.as_of[left] = stored.as_of
        chosen = np.flatnonzero(stored.older_than(known_at))
        done = stored.table.overlay.replace(
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
        """Return a group's stored rows, and its new rows: the given values, else the stored ones, else defaults."""
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
            rows.add(feature, values, missing)
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
        """Return the positions of the updates by the features that they name: equal ones are checked together."""
        groups: dict[frozenset[str], list[int]] = {}
        for position, update in enumerate(updates):
            try:
                groups.setdefault(self._names(update), []).append(position)
            except ContractError as error:
                raise _placed(error, position, place) from error
        return groups

    def _names(self, update: FeatureUpdate) -> frozenset[str]:
        """Return the features that an update names. A list names all stored features."""
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


def _result(entity_id: str, position: int, outcomes: Sequence[_Outcome]) -> UpdateResult:
    named = [outcome for outcome in outcomes if outcome.named[position]]
    not_applied = tuple(outcome.group.name for outcome in named if np.isnan(outcome.changed_at[position]))
    return UpdateResult(entity_id, not not_applied, min(float(one.as_of[position]) for one in named), not_applied)


def _incomplete(ids: Sequence[str], rows: FeatureRows, left: npt.NDArray[np.intp], place: str) -> ContractError:
    row = int(rows.reasons[0].rows[0])
    reasons = [reason for reason in rows.reasons if row in reason.rows]
    missing = [reason.feature for reason in reasons if reason.reason.startswith("missing")]
    why = (
        f"no features of {quoted(ids[row])} are stored yet: give those without a default too: {', '.join(missing[:20])}"
    )
    if not missing:  # the stored value was legal under an older contract
        illegal = reasons[0]
        why = f"feature {quoted(illegal.feature)} of {quoted(ids[row])} is stored, but {illegal.reason}: give it too"
    return ContractError(why, field=f"{place.format(left[row])}features")


def _check(updates: Sequence[FeatureUpdate], now: float, place: str) -> Times:
    """Check ids and event times. Return the event times, NaN for none."""
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
        named = first.feature and quoted(first.feature) not in first.reason
        message = f"feature {quoted(first.feature)}: {first.reason}" if named else first.reason
        raise _placed(ContractError(message, field=first.feature or None), positions[row], place)


def _placed(error: ContractError, position: int, place: str) -> ContractError:
    where = f"{place.format(position)}features"
    return ContractError(error.message, field=f"{where}.{error.field}" if error.field else where)
