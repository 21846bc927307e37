"""Updates the features of single entities: checks them, merges them with the stored ones, and keeps newer values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from inference.clock import to_iso
from inference.entities import check_entity_id
from inference.errors import BadInput, Conflict, ContractError, ForecacheError, quoted
from inference.features.contract import FeatureContract
from inference.features.group_rows import GroupRows
from inference.features.groups import FeatureGroup
from inference.features.instances import check_names, rows_from_instances
from inference.features.key_columns import EARLIEST_S, LATEST_S
from inference.features.rows import FeatureRows, Mask, Times, blank, take
from inference.schema import Block
from inference.store import Table, stored_id

#: how far an event time may be ahead of the clock of Redis: the clocks of well-kept hosts differ by less
CLOCK_TOLERANCE_S = 5.0
#: another client may change an entity between the read and the write; then that one has succeeded
_MAX_TRIES = 100
_NO_NAMES: frozenset[str] = frozenset()


class FeatureUpdate(NamedTuple):
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


@dataclass(frozen=True)
class EachWritten:
    """The outcome of updates that were stored each on its own, by their positions.

    `applied`: all of it was stored; the others were refused, or newer features were stored already. `refused`: why.
    """

    applied: Mask
    refused: Mapping[int, ForecacheError]


class _Refused(dict[int, ForecacheError]):
    """The updates that are not stored, by position, and why. `raises`: the first one is raised instead."""

    def __init__(self, *, raises: bool) -> None:
        super().__init__()
        self._raises = raises

    def add(self, position: int, error: ForecacheError) -> None:
        """Refuse an update; its first error counts."""
        if self._raises:
            raise error
        self.setdefault(position, error)

    def without(self, positions: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Return the positions that are not refused."""
        return positions[[position not in self for position in positions.tolist()]] if self else positions


@dataclass
class _Given:
    """The values of all updates as columns.

    `named[feature]` marks the updates that name the feature, `null[feature]` those that give null, which means the
    default. `names`: the features that each update names.
    """  # fmt: skip

    block: Block
    named: dict[str, Mask]
    null: dict[str, Mask]
    names: list[frozenset[str]]

    def take(self, positions: Sequence[int]) -> _Given:
        """Return the values of some updates."""
        block, named, null = (take(of, np.array(positions)) for of in (self.block, self.named, self.null))
        return _Given(block, named, null, [self.names[position] for position in positions])


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
        refused = _Refused(raises=True)
        event_at = self._checked(updates, refused, place)
        _refuse_repeated(updates, refused, place)
        given = self._given(updates, refused, place)
        outcomes = self._apply(updates, given, event_at, refused, place)
        return [_result(update.entity_id, position, outcomes) for position, update in enumerate(updates)]

    def write_each(self, updates: Sequence[FeatureUpdate]) -> EachWritten:
        """Store updates as `write` does, each on its own: a wrong one keeps no other from being stored. May run twice.

        An entity may be there several times: the outcome is as if each update came by itself, in order. Updates without
        an event time are all of now.

        Raises:
            Conflict, StoreUnavailable: as `write`.
        """
        refused = _Refused(raises=False)
        event_at = self._checked(updates, refused, "")
        given = self._given(updates, refused, "")
        applied = np.zeros(len(updates), np.bool_)
        for positions in _rounds(updates, given.names, event_at, refused):
            of_round = _Refused(raises=False)
            chosen = [updates[position] for position in positions]
            outcomes = self._apply(chosen, given.take(positions), event_at[positions], of_round, "")
            late = np.any([one.named & np.isnan(one.changed_at) for one in outcomes], axis=0)
            applied[positions] = ~late
            for row, error in of_round.items():
                refused.add(positions[row], error)
        applied[list(refused)] = False
        return EachWritten(applied, refused)

    def _checked(self, updates: Sequence[FeatureUpdate], refused: _Refused, place: str) -> Times:
        """Check ids and event times. Return the event times, NaN for none."""
        event_at = _check(updates, self._features.now(), refused, place)
        good = [position for position in range(len(updates)) if position not in refused]
        found = self._features.forgotten.find([stored_id(updates[position].entity_id) for position in good])
        for row in np.flatnonzero(found).tolist():
            field_name = f"{place.format(good[row])}entity_id"
            refused.add(good[row], self._features.forgotten.error(field=field_name))
        return event_at

    def _apply(
        self, updates: Sequence[FeatureUpdate], given: _Given, event_at: Times, refused: _Refused, place: str
    ) -> list[_Outcome]:
        """Store updates of different entities, and return the outcomes in the groups that they name."""
        outcomes = [
            outcome for group in self._contract.table_groups if (outcome := self._new_outcome(group, given)) is not None
        ]
        if len(outcomes) > 1:
            for outcome in outcomes:  # an error in one group must be found before another group is stored
                self._merged(updates, given, outcome, refused, place)
        for outcome in outcomes:
            self._store(updates, given, event_at, outcome, refused, place)
        newest = np.fmax.reduce([outcome.changed_at for outcome in outcomes], initial=np.nan)
        changed = np.flatnonzero(~np.isnan(newest))
        if len(changed):
            ids = [updates[position].entity_id for position in changed.tolist()]
            for predictions in self._predictions:
                predictions.overlay.outdate(ids, changed_at=newest[changed], keep_s=self._keep_s)
        return outcomes

    def _new_outcome(self, group: FeatureGroup, given: _Given) -> _Outcome | None:
        """Return the initial outcome of a group; None if no update names a feature of it."""
        named = np.any([given.named[feature.name] for feature in self._contract.features_of(group.name)], axis=0)
        if not named.any():
            return None
        nothing = np.full(len(named), np.nan)
        return _Outcome(group, named, as_of=nothing.copy(), changed_at=nothing)

    def _store(
        self,
        updates: Sequence[FeatureUpdate],
        given: _Given,
        event_at: Times,
        outcome: _Outcome,
        refused: _Refused,
        place: str,
    ) -> None:
        for _ in range(_MAX_TRIES):
            stored, block = self._merged(updates, given, outcome, refused, place)
            outcome.left = self._try(updates, event_at, outcome, stored, block)
            if not len(outcome.left):
                return
        entity_id = updates[int(outcome.left[0])].entity_id
        raise Conflict(f"the features of {quoted(entity_id)} change all the time: send it again")

    def _try(
        self, updates: Sequence[FeatureUpdate], event_at: Times, outcome: _Outcome, stored: GroupRows, block: Block
    ) -> npt.NDArray[np.intp]:
        """Store the updates that are left; return those whose entity another client has changed meanwhile."""
        left = outcome.left
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
        self, updates: Sequence[FeatureUpdate], given: _Given, outcome: _Outcome, refused: _Refused, place: str
    ) -> tuple[GroupRows, Block]:
        """Return a group's stored rows, and its new rows: the given values, else the stored ones, else defaults.

        Both are of the updates that are left, without those that are refused.
        """
        left = outcome.left = refused.without(outcome.left)
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
            for row in np.flatnonzero(rows.rejected).tolist():
                refused.add(int(left[row]), _incomplete(ids, rows, left, row, place))
            return self._merged(updates, given, outcome, refused, place)
        notes = stored.form.notes(rows.imputed, {}, len(left))
        return stored, rows.block | notes

    def _given(self, updates: Sequence[FeatureUpdate], refused: _Refused, place: str) -> _Given:
        features, count = self._contract.features, len(updates)
        given = _Given({feature.name: blank(feature, count) for feature in features}, {}, {}, [_NO_NAMES] * count)
        for feature in features:
            given.named[feature.name], given.null[feature.name] = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        for names, positions in self._by_names(updates, refused, place).items():
            chosen = FeatureContract(tuple(feature for feature in features if feature.name in names))
            rows = rows_from_instances([updates[n].features for n in positions], chosen)
            _refuse(rows, positions, refused, place)
            for position in positions:
                given.names[position] = names
            for name in chosen.names:
                given.block[name][positions] = rows.block[name]
                given.named[name][positions] = True
                if name in rows.imputed:
                    given.null[name][positions] = rows.imputed[name]
        return given

    def _by_names(
        self, updates: Sequence[FeatureUpdate], refused: _Refused, place: str
    ) -> dict[frozenset[str], list[int]]:
        """Return the positions of the updates by the features that they name: equal ones are checked together."""
        groups: dict[frozenset[str], list[int]] = {}
        known: dict[tuple[str, ...] | None, frozenset[str]] = {}
        for position, update in enumerate(updates):
            features = update.features
            given = tuple(features) if isinstance(features, dict) else None
            try:
                if given is None or given not in known:
                    known[given] = self._names(features)
            except ContractError as error:
                refused.add(position, _placed(error, position, place))
            else:
                if position not in refused:
                    groups.setdefault(known[given], []).append(position)
        return groups

    def _names(self, features: Mapping[str, Any] | Sequence[Any]) -> frozenset[str]:
        """Return the features that an update names. A list names all stored features."""
        if not features:
            raise ContractError("no features: give at least one")
        stored = {feature.name for feature in self._contract.stored_form.features}
        names = frozenset(features) if isinstance(features, Mapping) else frozenset(stored)
        if isinstance(features, Mapping):
            check_names(features, self._contract)
        for name in names - stored:
            raise ContractError(
                f"feature {quoted(name)} is not stored: it is computed, or comes with requests", field=name
            )
        return names


def _rounds(
    updates: Sequence[FeatureUpdate], names: Sequence[frozenset[str]], event_at: Times, refused: _Refused
) -> Iterable[list[int]]:
    """Return the positions to store, so that an entity is once in each round, and its updates stay in order.

    If all updates of an entity name the same features, only the newest one counts.
    """
    first: dict[str, int] = {}
    repeated: dict[str, list[int]] = {}
    for position, update in enumerate(updates):
        if position not in refused:
            before = first.setdefault(update.entity_id, position)
            if before != position:
                repeated.setdefault(update.entity_id, [before]).append(position)
    rounds = [[position for entity_id, position in first.items() if entity_id not in repeated]]
    times = np.where(np.isnan(event_at), np.inf, event_at).tolist() if repeated else []
    for positions in repeated.values():
        if len({names[position] for position in positions}) == 1:
            positions = [max(positions, key=lambda position: (times[position], position))]
        rounds.extend([] for _ in range(len(positions) - len(rounds)))
        for of_round, position in zip(rounds, positions, strict=False):
            of_round.append(position)
    return [of_round for of_round in rounds if of_round]


def _result(entity_id: str, position: int, outcomes: Sequence[_Outcome]) -> UpdateResult:
    named = [outcome for outcome in outcomes if outcome.named[position]]
    not_applied = tuple(outcome.group.name for outcome in named if np.isnan(outcome.changed_at[position]))
    return UpdateResult(entity_id, not not_applied, min(float(one.as_of[position]) for one in named), not_applied)


def _incomplete(
    ids: Sequence[str], rows: FeatureRows, left: npt.NDArray[np.intp], row: int, place: str
) -> ContractError:
    reasons = [reason for reason in rows.reasons if row in reason.rows]
    missing = [reason.feature for reason in reasons if reason.reason.startswith("missing")]
    why = (
        f"no features of {quoted(ids[row])} are stored yet: give those without a default too: {', '.join(missing[:20])}"
    )
    if not missing:  # the stored value was legal under an older contract
        illegal = reasons[0]
        why = f"feature {quoted(illegal.feature)} of {quoted(ids[row])} is stored, but {illegal.reason}: give it too"
    return ContractError(why, field=f"{place.format(left[row])}features")


def _check(updates: Sequence[FeatureUpdate], now: float, refused: _Refused, place: str) -> Times:
    event_at = np.full(len(updates), np.nan)
    for position, update in enumerate(updates):
        try:
            check_entity_id(update.entity_id)
            if update.event_at is not None:
                _check_event_time(update.event_at, now)
                event_at[position] = update.event_at
        except BadInput as error:
            refused.add(position, type(error)(error.message, field=f"{place.format(position)}{error.field}"))
    return event_at


def _refuse_repeated(updates: Sequence[FeatureUpdate], refused: _Refused, place: str) -> None:
    seen: set[str] = set()
    for position, update in enumerate(updates):
        if update.entity_id in seen:
            why = f"{quoted(update.entity_id)} is there twice: send one update of it"
            refused.add(position, BadInput(why, field=f"{place.format(position)}entity_id"))
        seen.add(update.entity_id)


def _check_event_time(event_at: float, now: float) -> None:
    if not math.isfinite(event_at) or event_at < EARLIEST_S:
        raise BadInput("event_time is before 1970: give a time since then", field="event_time")
    if event_at > now + CLOCK_TOLERANCE_S:
        shown = to_iso(event_at) if event_at <= LATEST_S else "beyond the year 9999"
        raise BadInput(
            f"event_time {shown} is in the future: it is {to_iso(now)} by Redis' clock, and "
            f"{CLOCK_TOLERANCE_S:g} s ahead are allowed",
            field="event_time",
        )


def _refuse(rows: FeatureRows, positions: Sequence[int], refused: _Refused, place: str) -> None:
    for row, first in sorted(rows.first_reasons().items()):
        named = first.feature and quoted(first.feature) not in first.reason
        message = f"feature {quoted(first.feature)}: {first.reason}" if named else first.reason
        position = positions[row]
        refused.add(position, _placed(ContractError(message, field=first.feature or None), position, place))


def _placed(error: ContractError, position: int, place: str) -> ContractError:
    where = f"{place.format(position)}features"
    return ContractError(error.message, field=f"{where}.{error.field}" if error.field else where)
