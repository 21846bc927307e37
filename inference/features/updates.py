"""Changes of single entities' features: checked as a whole, merged with what is stored, never over what is newer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.clock import to_iso
from inference.entities import check_entity_id
from inference.errors import BadEntityId, BadInput, Conflict, ContractError
from inference.features.contract import FeatureContract
from inference.features.instances import check_names, rows_from_instances
from inference.features.rows import FeatureRows, blank, fill_missing
from inference.features.targets import Target, targets_of
from inference.schema import Block
from inference.store import ChangeableRows, Table

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
    """What became of an update: `applied`, or not because a newer row stands. `as_of`: of the row that stands now."""

    entity_id: str
    applied: bool
    as_of: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"entity_id": self.entity_id, "applied": self.applied, "as_of": to_iso(self.as_of)}


@dataclass(frozen=True)
class _Given:
    """The values of all updates as columns; `named[feature]` marks the updates that name it."""

    block: Block
    named: dict[str, npt.NDArray[np.bool_]]


class FeatureWriter:
    """Changes the features of single entities in a model's feature table.

    What was computed on demand from the older features is taken out of `predictions`; what a run computed is no hit
    any more if it is older than the change. `keep_s`: when Redis forgets a changed row.
    """

    def __init__(self, features: Table, predictions: Table, contract: FeatureContract, *, keep_s: float) -> None:
        self._features = features
        self._targets = targets_of(features, contract)
        self._predictions = predictions
        self._contract = contract
        self._keep_s = keep_s

    def write(self, updates: Sequence[FeatureUpdate], *, place: str = "") -> list[UpdateResult]:
        """Store updates of different entities, all or none of them, and return what became of each, in order.

        Features that an update does not name stay as they are stored, and are as of its event time from then on: a
        row has one age. Of an entity that is not stored they take their defaults. May run twice. `place`: where an
        update stands in the request, such as "items.{}.", for the errors' fields.

        Raises:
            BadInput: an id is illegal or there twice, an event time lies in the future; names the field.
            ContractError: a feature is unknown, does not fit, or is missing without a default; nothing is stored.
            Conflict: the stored features are of another contract, or others change an entity without a pause.
            StoreUnavailable: Redis did not answer in time; the same updates may be sent again.
        """
        event_at = _check(updates, self._features.now(), place)
        given = self._given(updates, place)
        # as_of: of the oldest group that an update names
        as_of, applied = np.full(len(updates), np.inf), np.ones(len(updates), np.bool_)
        for target in self._targets:
            named = np.flatnonzero(np.any([given.named[one.name] for one in target.form.features], axis=0))
            if len(named):
                self._merged(target, updates, given, named, target.read(_ids(updates, named)), place)
        for target in self._targets:
            named = np.flatnonzero(np.any([given.named[one.name] for one in target.form.features], axis=0))
            own_as_of, own_applied = self._store(target, updates, given, event_at, named, place)
            as_of[named] = np.minimum(as_of[named], own_as_of[named])
            applied[named] &= own_applied[named]
        changed = [update.entity_id for update, is_applied in zip(updates, applied, strict=True) if is_applied]
        if changed:
            self._predictions.outdate(changed, as_of=as_of[applied], keep_s=self._keep_s)
        return [
            UpdateResult(update.entity_id, bool(is_applied), float(at))
            for update, is_applied, at in zip(updates, applied, as_of, strict=True)
        ]

    def _store(
        self,
        target: Target,
        updates: Sequence[FeatureUpdate],
        given: _Given,
        event_at: npt.NDArray[np.float64],
        left: npt.NDArray[np.intp],
        place: str,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Store what some updates name of a target; return what stands there now, and whether it is theirs."""
        as_of, applied = np.zeros(len(updates)), np.zeros(len(updates), np.bool_)
        for _ in range(_MAX_TRIES):
            if not len(left):
                return as_of, applied
            left = self._try(target, updates, given, event_at, left, as_of, applied, place)
        if len(left):
            raise Conflict(f"the features of {updates[left[0]].entity_id!r} change all the time: send it again")
        return as_of, applied

    def _try(
        self,
        target: Target,
        updates: Sequence[FeatureUpdate],
        given: _Given,
        event_at: npt.NDArray[np.float64],
        left: npt.NDArray[np.intp],
        as_of: npt.NDArray[np.float64],
        applied: npt.NDArray[np.bool_],
        place: str,
    ) -> npt.NDArray[np.intp]:
        """Store what can be stored of the updates that are `left`; return those that others were quicker with."""
        ids, now = _ids(updates, left), self._features.now()
        known_at = np.fmin(event_at[left], now)  # now for those without a time of their own
        stored = target.read(ids)
        newest = np.full(len(left), True)
        expected: Sequence[bytes | None] = (None,) * len(left)
        if stored is not None:
            # another writer may have got in between with a later instant
            untimed = np.isnan(event_at[left])
            known_at = np.where(untimed, np.maximum(known_at, stored.known_at), known_at)
            newest, expected = _is_newest(known_at, stored), stored.overlay
            as_of[left] = stored.rows.as_of
        block = self._merged(target, updates, given, left, stored, place)
        chosen = np.flatnonzero(newest)
        # rows are read by the fields of those that were loaded
        fields = stored.fields if stored and stored.fields else target.form.fields
        done = target.table.replace(
            [ids[row] for row in chosen],
            fields,
            {spec.name: block[spec.name][chosen] for spec in fields},
            known_at=known_at[chosen],
            expected=[expected[int(row)] for row in chosen],
            keep_s=self._keep_s,
        )
        was_stored = np.array(done, np.bool_)
        stored_now = chosen[was_stored]
        applied[left[stored_now]] = True
        as_of[left[stored_now]] = np.floor(known_at[stored_now])
        return left[chosen[~was_stored]]

    def _given(self, updates: Sequence[FeatureUpdate], place: str) -> _Given:
        features = self._contract.stored_form.features
        given = _Given(
            {feature.name: blank(feature, len(updates)) for feature in features},
            {feature.name: np.zeros(len(updates), np.bool_) for feature in features},
        )
        for names, positions in self._by_names(updates, place).items():
            chosen = FeatureContract(tuple(feature for feature in features if feature.name in names))
            rows = rows_from_instances([updates[n].features for n in positions], chosen)
            _refuse(rows, positions, place)
            for name in chosen.names:
                given.block[name][positions] = rows.block[name]
                given.named[name][positions] = True
        return given

    def _by_names(self, updates: Sequence[FeatureUpdate], place: str) -> dict[frozenset[str], list[int]]:
        """Return which updates (by position) name the same features: they are checked together."""
        groups: dict[frozenset[str], list[int]] = {}
        for position, update in enumerate(updates):
            if not update.features:
                raise ContractError("no features: give at least one", field=f"{place.format(position)}features")
            names = frozenset(feature.name for feature in self._contract.stored_form.features)
            if isinstance(update.features, Mapping):
                names = frozenset(update.features)
                try:
                    check_names(update.features, self._contract)
                    self._check_stored(names)
                except ContractError as error:
                    raise _placed(error, position, place) from error
            groups.setdefault(names, []).append(position)
        return groups

    def _check_stored(self, names: Iterable[str]) -> None:
        stored = {feature.name for feature in self._contract.stored_form.features}
        for feature in self._contract.features:
            if feature.name in names and feature.name not in stored:
                raise ContractError(f"feature {feature.name!r}{feature.of_group} is never stored", field=feature.name)

    def _merged(
        self,
        target: Target,
        updates: Sequence[FeatureUpdate],
        given: _Given,
        left: npt.NDArray[np.intp],
        stored: ChangeableRows | None,
        place: str,
    ) -> Block:
        """Return whole rows of a target: what is given, else what is stored, else defaults."""
        rows = FeatureRows({}, np.zeros(len(left), np.bool_))
        old = stored.rows if stored and stored.fields else None
        found = old.found if old else rows.rejected.copy()
        lacking = target.form.missing(old.block) if old else {}
        for feature in target.form.features:
            named = given.named[feature.name][left]
            known = named | (found & ~lacking.get(feature.name, np.zeros_like(found)))
            values = old.block[feature.name].copy() if old else blank(feature, len(left))
            values[named] = given.block[feature.name][left][named]
            fill_missing(rows, feature, values, ~known)
        if rows.reasons:
            raise self._incomplete(updates, rows, left, place)
        return rows.block | target.form.notes(rows.imputed, {}, len(left))

    def _incomplete(
        self, updates: Sequence[FeatureUpdate], rows: FeatureRows, left: npt.NDArray[np.intp], place: str
    ) -> ContractError:
        row = int(rows.reasons[0].rows[0])
        names = [reason.feature for reason in rows.reasons if row in reason.rows]
        return ContractError(
            f"no features of {updates[left[row]].entity_id!r} are stored yet: give those without a default too: "
            + ", ".join(names[:20]),
            field=f"{place.format(left[row])}features",
        )


def _ids(updates: Sequence[FeatureUpdate], positions: npt.NDArray[np.intp]) -> list[str]:
    return [updates[position].entity_id for position in positions.tolist()]


def _check(updates: Sequence[FeatureUpdate], now: float, place: str) -> npt.NDArray[np.float64]:
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
            raise BadInput(f"{update.entity_id!r} is there twice: send one update of it", field=f"{prefix}entity_id")
        seen.add(update.entity_id)
        if update.event_at is not None:
            _check_event_time(update.event_at, now, f"{prefix}event_time")
            event_at[position] = update.event_at
    return event_at


def _check_event_time(event_at: float, now: float, field: str) -> None:
    if not math.isfinite(event_at) or event_at < 0:
        raise BadInput("event_time is before 1970: give a time since then", field=field)
    if event_at > now + CLOCK_TOLERANCE_S:
        raise BadInput(
            f"event_time {to_iso(event_at)} is in the future: it is {to_iso(now)} by Redis' clock, and "
            f"{CLOCK_TOLERANCE_S:g} s ahead are allowed",
            field=field,
        )


def _is_newest(known_at: npt.NDArray[np.float64], stored: ChangeableRows) -> npt.NDArray[np.bool_]:
    """Return which rows a reader would take rather than the stored ones: by whole seconds, then by the exact time."""
    seconds, old = np.floor(known_at), stored.rows.as_of
    return np.asarray((seconds > old) | ((seconds == old) & (known_at >= stored.known_at)))


def _refuse(rows: FeatureRows, positions: Sequence[int], place: str) -> None:
    if rows.reasons:
        row, first = min(rows.first_reasons().items())
        named = first.feature and first.feature not in first.reason
        message = f"feature {first.feature!r}: {first.reason}" if named else first.reason
        raise _placed(ContractError(message, field=first.feature or None), positions[row], place)


def _placed(error: ContractError, position: int, place: str) -> ContractError:
    where = f"{place.format(position)}features"
    return ContractError(error.message, field=f"{where}.{error.field}" if error.field else where)
