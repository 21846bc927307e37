"""Gathers the features of entities at the time of a request: stored values, then fallbacks, then defaults.

`explain` says where each value comes from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from inference.clock import to_iso
from inference.features.contract import FeatureContract
from inference.features.feature import Feature
from inference.features.groups import FeatureGroup, GroupSource, GroupStatus
from inference.features.rows import FeatureColumns, FeatureRows, Mask, Times, oldest, take
from inference.features.vectoriser import Vectoriser
from inference.schema import Block
from inference.store import StoredRows, Table

#: the source of what the feature table holds, and of a default
TABLE_SOURCE, DEFAULT_SOURCE = "table", "default"


@dataclass(frozen=True)
class Found:
    """The answer of a fallback, a row for each entity in the order of the question. Rows not `found` hold anything.

    `block`: features by name, in their dtypes; a feature that it lacks is missing, and so are the rows that `missing`
    marks. `as_of`: NaN for values without a time, which count as of now. `source`: the fallback that knew the row,
    such as "fallback:sql". `outage`: why a part of the fallback did not answer, so that an entity that was not found
    may exist nevertheless; None if all parts answered.
    """

    found: Mask
    block: Block
    as_of: Times
    source: Sequence[str]
    missing: Mapping[str, Mask] = field(default_factory=dict)
    outage: str | None = None


class Fallback(Protocol):
    """Answers for entities of which the feature table has nothing, or nothing young enough."""

    name: str

    def find(self, entity_ids: Sequence[str], group: FeatureGroup, features: Sequence[Feature]) -> Found:
        """Return the entities' features of one group. It is no error if there are none."""


@dataclass
class GroupReading:
    """One group of many entities, a value a row. `as_of` is NaN where no value is used."""

    status: list[GroupStatus]
    source: list[str | None]
    as_of: Times

    def absent(self) -> Mask:
        """Return the rows without a value that is used."""
        return np.array([status is not GroupStatus.PRESENT for status in self.status], dtype=bool)

    def too_old(self) -> Mask:
        """Return the rows whose values are too old to be used."""
        return np.array([status is GroupStatus.OUTSIDE_MAX_AGE for status in self.status], dtype=bool)

    def known(self) -> Mask:
        """Return the rows with values, even too old ones."""
        return np.array([status is not GroupStatus.NOT_FOUND for status in self.status], dtype=bool)


@dataclass(frozen=True)
class Gathered:
    """Features of entities, in the order of the question, and their origin.

    `known`: the table or a fallback has something of the entity. `as_of`: the oldest time of a row's values; the time
    of the request where no value has a time. `doubtful`: a fallback that did not answer may know more of the entity.
    """

    rows: FeatureRows
    known: Mask
    as_of: Times
    groups: dict[str, GroupReading]
    doubtful: Mask


class FeatureGatherer:
    """Finds the features of one model. `fallback` answers where the table does not; None for no fallback.

    `written_by`: the contract of the model whose table it is; None for the model's own.
    """

    def __init__(
        self,
        table: Table,
        vectoriser: Vectoriser,
        fallback: Fallback | None = None,
        *,
        written_by: FeatureContract | None = None,
    ) -> None:
        self._table = table
        self._vectoriser = vectoriser
        self._fallback = fallback
        self._written_by = written_by or vectoriser.contract

    def gather(self, entity_ids: Sequence[str], *, now: float, overrides: Mapping[str, Any] | None = None) -> Gathered:
        """Return the features of entities at `now` (epoch seconds, Redis time). `overrides` replace the named ones.

        Rejects rows that cannot be used, with the reason, and keeps the others.

        Raises:
            ContractError: an override names no feature, or does not fit it.
            StoreUnavailable: the table did not answer in time.
        """
        count = len(entity_ids)
        contract = self._vectoriser.contract
        stored, updates = self._read(entity_ids)
        columns = self._vectoriser.stored_columns(
            stored.block if stored else {}, count, written=self._written_by.stored_form
        )
        readings: dict[str, GroupReading] = {}
        doubtful = np.zeros(count, dtype=bool)
        for group in contract.table_groups:
            times = self._times(group, stored, count)
            self._apply_updates(group, updates.get(group.name), times, columns)
            reading = readings[group.name] = _reading(group, np.minimum(times, now), now)
            absent = reading.absent()
            if absent.any():
                for feature in contract.features_of(group.name):
                    columns.missing[feature.name] = columns.missing.get(feature.name, False) | absent
                if self._fill_from_fallback(group, entity_ids, reading, columns, now):
                    doubtful |= reading.absent()
                columns.too_old[group.name] = reading.too_old()
        rows = self._vectoriser.features_from_columns(columns, count, overrides=overrides, at=now)
        as_of = oldest({name: reading.as_of for name, reading in readings.items()}, np.full(count, now))
        known = _known(readings, count)
        for group in contract.groups:
            if group.name not in readings:
                readings[group.name] = _unstored(group, count, self._has_values(group, overrides or {}))
        return Gathered(rows, known, as_of, readings, doubtful)

    def _read(self, entity_ids: Sequence[str]) -> tuple[StoredRows | None, dict[str, StoredRows | None]]:
        """Return the stored rows and, of several groups, the single updates of each."""
        if not entity_ids:
            return None, {}
        if not self._written_by.has_several_groups:
            return self._table.read_block(entity_ids), {}
        wanted = {group.name for group in self._vectoriser.contract.table_groups}
        names = [group.name for group in self._written_by.table_groups if group.name in wanted]
        stored, *updates = self._table.read_blocks(entity_ids, names)
        return stored, dict(zip(names, updates, strict=True))

    def _times(self, group: FeatureGroup, stored: StoredRows | None, count: int) -> Times:
        """Return the times of a group's stored values; NaN where there are none."""
        if stored is None:
            return np.full(count, np.nan)
        times = self._written_by.stored_form.times(stored.block, group.name)
        return np.where(stored.found, stored.as_of if times is None else times, np.nan)

    def _apply_updates(
        self, group: FeatureGroup, updates: StoredRows | None, times: Times, columns: FeatureColumns
    ) -> None:
        """Replace a group's loaded values and their `times` by its single updates, unless those are older."""
        if updates is None:
            return
        newer = updates.found & ~(updates.as_of < times)  # also where the loaded values have no time
        if not newer.any():
            return
        form, written = (one.group_form(group.name) for one in (self._vectoriser.contract, self._written_by))
        updated = self._vectoriser.stored_columns(updates.block, len(newer), form, written=written)
        nothing = np.zeros(len(newer), dtype=bool)
        for feature in form.features:
            name = feature.name
            chosen = newer.reshape(-1, *[1] * len(feature.shape))
            columns.values[name] = np.where(chosen, updated.values[name], columns.values[name])
            columns.missing[name] = np.where(
                newer, updated.missing.get(name, nothing), columns.missing.get(name, nothing)
            )
        columns.to_check |= updated.to_check
        times[newer] = updates.as_of[newer]

    def _has_values(self, group: FeatureGroup, overrides: Mapping[str, Any]) -> bool:
        """Tell whether a group that is not stored has values: a function computes it, or the request has all of it."""
        features = self._vectoriser.contract.features_of(group.name)
        return group.function is not None or all(feature.name in overrides for feature in features)

    def _fill_from_fallback(
        self,
        group: FeatureGroup,
        entity_ids: Sequence[str],
        reading: GroupReading,
        columns: FeatureColumns,
        now: float,
    ) -> bool:
        """Take values of entities that lack a group from the fallback; tell whether a part of it failed."""
        if self._fallback is None:
            return False
        absent = np.flatnonzero(reading.absent())
        features = self._vectoriser.contract.features_of(group.name)
        answer = self._fallback.find([entity_ids[row] for row in absent.tolist()], group, features)
        rows = absent[answer.found]
        for feature in features:
            values = answer.block.get(feature.name)
            if values is None:
                continue
            columns.values[feature.name] = columns.values[feature.name].copy()
            columns.values[feature.name][rows] = values[answer.found]
            columns.to_check.add(feature.name)
            lacking = answer.missing.get(feature.name)
            columns.missing[feature.name][rows] = False if lacking is None else lacking[answer.found]
        reading.as_of[rows] = np.fmin(answer.as_of[answer.found], now)
        for position in np.flatnonzero(answer.found).tolist():
            row = absent[position]
            reading.status[row], reading.source[row] = GroupStatus.PRESENT, answer.source[position]
        return answer.outage is not None


def _reading(group: FeatureGroup, times: Times, now: float) -> GroupReading:
    count = len(times)
    reading = GroupReading([GroupStatus.NOT_FOUND] * count, [None] * count, np.full(count, np.nan))
    since = -np.inf if group.max_age_s is None else now - group.max_age_s
    for row in np.flatnonzero(~np.isnan(times)):
        if times[row] < since:
            reading.status[row] = GroupStatus.OUTSIDE_MAX_AGE
        else:
            reading.status[row], reading.source[row], reading.as_of[row] = GroupStatus.PRESENT, TABLE_SOURCE, times[row]
    return reading


def _unstored(group: FeatureGroup, count: int, is_there: bool) -> GroupReading:
    """Return the reading of a group without an age: a function computes it, or it comes with the request."""
    status = GroupStatus.PRESENT if is_there else GroupStatus.NOT_FOUND
    source = group.function or group.source.value
    return GroupReading([status] * count, [source if is_there else None] * count, np.full(count, np.nan))


def _known(readings: Mapping[str, GroupReading], count: int) -> Mask:
    known = np.full(count, not readings)  # if no group is stored, every entity is known
    for reading in readings.values():
        known |= reading.known()
    return known


_FIRST = np.array([0])
_AGELESS = {"source": None, "as_of": None, "age_s": None}


def explain(
    gathered: Gathered, contract: FeatureContract, now: float, *, hash_of: Callable[[Block], str]
) -> dict[str, Any]:
    """Return plain JSON about the first entity that was gathered at `now` (epoch seconds).

    `features`: name → `value`, `group`, `source` (`table`, the name of a fallback or a function, `default`, or null),
    and `as_of` and `age_s` of its group, null where it has none. `groups`: name → `status`, `source`, `as_of`, `age_s`.
    If the features cannot be used, `problem` says why, and `vector_hash` (`hash_of` a row of features) is null.
    """
    rows = gathered.rows
    why = rows.first_reasons().get(0)
    groups = {group.name: _explain_group(gathered.groups[group.name], group.source, now) for group in contract.groups}
    imputed = [name for name in contract.names if name in rows.imputed and rows.imputed[name][0]]
    features = {
        feature.name: {
            "value": _plain(rows.block[feature.name][0]) if not _lacks(feature.name, gathered) else None,
            "group": feature.group,
            **_explain_origin(groups[feature.group], is_default=feature.name in imputed),
        }
        for feature in contract.features
    }
    return {
        "at": to_iso(now),
        "contract_hash": contract.hash,
        "vector_hash": None if why else hash_of(take(rows.block, _FIRST)),
        "known": bool(gathered.known[0]),
        "problem": f"feature {why.feature!r}: {why.reason}" if why else None,
        "imputed_features": imputed,
        "features": features,
        "groups": groups,
    }


def _explain_group(reading: GroupReading, source: GroupSource, now: float) -> dict[str, Any]:
    as_of = float(reading.as_of[0])
    is_aged = source is GroupSource.TABLE and reading.status[0] is GroupStatus.PRESENT
    return {
        "status": reading.status[0].value,
        "source": reading.source[0],
        "as_of": to_iso(as_of) if is_aged else None,
        "age_s": round(now - as_of, 3) if is_aged else None,
    }


def _explain_origin(group: dict[str, Any], *, is_default: bool) -> dict[str, Any]:
    return {**_AGELESS, "source": DEFAULT_SOURCE} if is_default else {key: group[key] for key in _AGELESS}


def _lacks(name: str, gathered: Gathered) -> bool:
    """Tell whether the feature holds only zeros or "" in place of a missing value."""
    return any(reason.feature == name and 0 in reason.rows for reason in gathered.rows.reasons)


def _plain(value: Any) -> Any:
    plain = value.tolist() if hasattr(value, "tolist") else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
