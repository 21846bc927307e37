"""Gathers the features of entities at the time of a request: stored values, then fallbacks, then defaults.

`explain` says where each value comes from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from inference.clock import to_iso
from inference.features.contract import FeatureContract
from inference.features.feature import Feature
from inference.features.groups import FeatureGroup, GroupSource, GroupStatus
from inference.features.key_columns import oldest
from inference.features.rows import FeatureRows, Mask, Times, take
from inference.features.vectoriser import Vectoriser
from inference.schema import Block
from inference.store import StoredRows, Table

#: the source of what the feature table holds
TABLE_SOURCE = "table"

DEFAULT_SOURCE = "default"


@dataclass(frozen=True)
class Found:
    """What a fallback knows of some entities, in the order asked; rows that were not `found` hold anything.

    `block`: features by name, in their dtypes; one that is left out is missing, as are the rows that `missing` marks.
    `as_of`: epoch seconds; NaN for values that have no time, which count as of now. `source`: who knew each row,
    such as "fallback:sql". `outage`: why a part of it did not answer, so that what was not found may exist all the
    same; None when all did.
    """

    found: Mask
    block: Block
    as_of: npt.NDArray[np.float64]
    source: Sequence[str]
    missing: Mapping[str, Mask] = field(default_factory=dict)
    outage: str | None = None


class Fallback(Protocol):
    """Asked for the entities of which the feature table has nothing, or nothing young enough."""

    name: str

    def find(self, entity_ids: Sequence[str], group: FeatureGroup, features: Sequence[Feature]) -> Found:
        """Return what is known of the entities' features of one group; nothing found is no error."""


@dataclass
class GroupReading:
    """One group of many entities, a value a row. `as_of`: epoch seconds, NaN where no value is used."""

    status: list[GroupStatus]
    source: list[str | None]
    as_of: npt.NDArray[np.float64]

    def absent(self) -> Mask:
        """Return which rows have no values that are used."""
        return np.array([status is not GroupStatus.PRESENT for status in self.status], dtype=bool)

    def too_old(self) -> Mask:
        """Return which rows have values that are not used for their age."""
        return np.array([status is GroupStatus.OUTSIDE_MAX_AGE for status in self.status], dtype=bool)

    def known(self) -> Mask:
        """Return which rows have values at all, perhaps too old ones."""
        return np.array([status is not GroupStatus.NOT_FOUND for status in self.status], dtype=bool)


@dataclass(frozen=True)
class Gathered:
    """Features of entities in the order asked, and where they are from.

    `known`: of which entities anything is stored, or a fallback had something. `as_of`: the oldest of what a row was
    made from, in epoch seconds; the instant asked for where that was nothing. `doubtful`: of which entities a fallback
    that did not answer may know what was not found.
    """

    rows: FeatureRows
    known: Mask
    as_of: npt.NDArray[np.float64]
    groups: dict[str, GroupReading]
    doubtful: Mask


class FeatureGatherer:
    """Finds features of one model. `fallback`: asked for what the table lacks; None for nobody."""

    def __init__(self, table: Table, vectoriser: Vectoriser, fallback: Fallback | None = None) -> None:
        self._table = table
        self._vectoriser = vectoriser
        self._fallback = fallback

    def gather(self, entity_ids: Sequence[str], *, now: float, overrides: Mapping[str, Any] | None = None) -> Gathered:
        """Return the features of entities at `now` (epoch seconds, Redis time); `overrides` replace those they name.

        Rows that cannot be used are rejected, with the reason; the others stand.

        Raises:
            ContractError: an override names no feature, or does not fit it.
            StoreUnavailable: the table did not answer in time.
        """
        count = len(entity_ids)
        contract = self._vectoriser.contract
        stored, parts = self._read(entity_ids)
        columns, missing = self._vectoriser.stored_columns(stored.block if stored else {}, count)
        readings: dict[str, GroupReading] = {}
        too_old: dict[str, Mask] = {}
        doubtful = np.zeros(count, dtype=bool)
        for group in contract.table_groups:
            times = self._times(group, stored, count)
            self._take_part(group, parts.get(group.name), times, columns, missing)
            reading = readings[group.name] = _reading(group, np.minimum(times, now), now)
            absent = reading.absent()
            if absent.any():
                for feature in contract.features_of(group.name):
                    missing[feature.name] = missing.get(feature.name, False) | absent
                if self._ask_fallback(group, entity_ids, reading, columns, missing, now):
                    doubtful |= reading.absent()
                too_old[group.name] = reading.too_old()
        rows = self._vectoriser.features_from_columns(
            columns, missing, count, overrides=overrides, at=now, too_old=too_old
        )
        known, as_of = (
            _known(readings, count),
            oldest({name: r.as_of for name, r in readings.items()}, _full(count, now)),
        )
        others = {
            group.name: _unstored(group, count, self._comes_along(group, overrides or {}))
            for group in contract.groups
            if group.name not in readings
        }
        return Gathered(rows, known, as_of, readings | others, doubtful)

    def _read(self, entity_ids: Sequence[str]) -> tuple[StoredRows | None, dict[str, StoredRows | None]]:
        """Return the stored rows and, when there are several groups, what stands beside them of each."""
        if not entity_ids:
            return None, {}
        contract = self._vectoriser.contract
        if not contract.has_parts:
            return self._table.read_block(entity_ids), {}
        names = [group.name for group in contract.table_groups]
        stored, *parts = self._table.read_blocks(entity_ids, names)
        return stored, dict(zip(names, parts, strict=True))

    def _times(self, group: FeatureGroup, stored: StoredRows | None, count: int) -> Times:
        """Return since when a group's stored values hold; NaN where there are none."""
        if stored is None:
            return _full(count, np.nan)
        own = self._vectoriser.contract.stored_form.times(stored.block, group.name)
        return np.where(stored.found, stored.as_of if own is None else own, np.nan)

    def _take_part(
        self,
        group: FeatureGroup,
        part: StoredRows | None,
        times: Times,
        columns: Block,
        missing: dict[str, Mask],
    ) -> None:
        """Put a group's single updates over what was loaded, where they are no older."""
        if part is None:
            return
        newer = part.found & ~(part.as_of < times)  # also where there is no time
        if not newer.any():
            return
        form = self._vectoriser.contract.part_form(group.name)
        values, lacking = self._vectoriser.stored_columns(part.block, len(newer), form)
        nothing = np.zeros(len(newer), dtype=bool)
        for feature in form.features:
            name = feature.name
            columns[name] = np.where(newer.reshape(-1, *[1] * len(feature.shape)), values[name], columns[name])
            missing[name] = np.where(newer, lacking.get(name, nothing), missing.get(name, nothing))
        times[newer] = part.as_of[newer]

    def _comes_along(self, group: FeatureGroup, overrides: Mapping[str, Any]) -> bool:
        """Whether a group that is not stored has values: it is computed, or the request brings all of it along."""
        own = self._vectoriser.contract.features_of(group.name)
        return group.function is not None or all(feature.name in overrides for feature in own)

    def _ask_fallback(
        self,
        group: FeatureGroup,
        entity_ids: Sequence[str],
        reading: GroupReading,
        columns: Block,
        missing: dict[str, Mask],
        now: float,
    ) -> bool:
        """Offer the entities that lack a group to the fallback, and take over what it has; tell whether it failed."""
        if self._fallback is None:
            return False
        asked = np.flatnonzero(reading.absent())
        features = self._vectoriser.contract.features_of(group.name)
        answer = self._fallback.find([entity_ids[row] for row in asked.tolist()], group, features)
        rows = asked[answer.found]
        for feature in features:
            values = answer.block.get(feature.name)
            if values is None:
                continue
            columns[feature.name] = columns[feature.name].copy()
            columns[feature.name][rows] = values[answer.found]
            lacking = answer.missing.get(feature.name)
            missing[feature.name][rows] = False if lacking is None else lacking[answer.found]
        reading.as_of[rows] = np.fmin(answer.as_of[answer.found], now)
        for row, source in zip(asked, answer.source, strict=True):
            if row in rows:
                reading.status[row], reading.source[row] = GroupStatus.PRESENT, source
        return answer.outage is not None


def _reading(group: FeatureGroup, times: Times, now: float) -> GroupReading:
    count = len(times)
    reading = GroupReading([GroupStatus.NOT_FOUND] * count, [None] * count, _full(count, np.nan))
    since = -np.inf if group.max_age_s is None else now - group.max_age_s
    for row in np.flatnonzero(~np.isnan(times)):
        if times[row] < since:
            reading.status[row] = GroupStatus.OUTSIDE_MAX_AGE
        else:
            reading.status[row], reading.source[row], reading.as_of[row] = GroupStatus.PRESENT, TABLE_SOURCE, times[row]
    return reading


def _unstored(group: FeatureGroup, count: int, is_there: bool) -> GroupReading:
    """Return the reading of a group that is computed or comes with the request, and so has no age."""
    status = GroupStatus.PRESENT if is_there else GroupStatus.NOT_FOUND
    source = group.function or group.source.value
    return GroupReading([status] * count, [source if is_there else None] * count, _full(count, np.nan))


def _known(readings: Mapping[str, GroupReading], count: int) -> Mask:
    known = np.full(count, not readings)  # when nothing is stored of anybody, everybody is known
    for reading in readings.values():
        known |= reading.known()
    return known


def _full(count: int, value: float) -> Times:
    return np.full(count, value)


def explain(
    gathered: Gathered, contract: FeatureContract, now: float, *, hash_of: Callable[[Block], str]
) -> dict[str, Any]:
    """Return plain JSON about the first entity that was gathered at `now` (epoch seconds).

    `features`: name → `value`, `group`, `source` (`table`, the name of a fallback, of a function, `default`, or null),
    `as_of` and `age_s` of its group, null where it has none. `groups`: name → `status`, `source`, `as_of`, `age_s`.
    `vector_hash` (`hash_of` a row of features) is null, and `problem` says why, when the features cannot be used.
    """
    rows = gathered.rows
    why = rows.first_reasons().get(0)
    groups = {group.name: _group(gathered.groups[group.name], group.source, now) for group in contract.groups}
    imputed = [name for name in contract.names if name in rows.imputed and rows.imputed[name][0]]
    features = {
        feature.name: {
            "value": _plain(rows.block[feature.name][0]) if not _lacks(feature.name, gathered) else None,
            "group": feature.group,
            **({**_AGELESS, "source": DEFAULT_SOURCE} if feature.name in imputed else _of(groups[feature.group])),
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


_FIRST = np.array([0])
_AGELESS = {"source": None, "as_of": None, "age_s": None}


def _group(reading: GroupReading, source: GroupSource, now: float) -> dict[str, Any]:
    as_of = float(reading.as_of[0])
    is_aged = source is GroupSource.TABLE and reading.status[0] is GroupStatus.PRESENT
    return {
        "status": reading.status[0].value,
        "source": reading.source[0],
        "as_of": to_iso(as_of) if is_aged else None,
        "age_s": round(now - as_of, 3) if is_aged else None,
    }


def _of(group: dict[str, Any]) -> dict[str, Any]:
    return {key: group[key] for key in _AGELESS}


def _lacks(name: str, gathered: Gathered) -> bool:
    """Whether the feature holds only what fills the place of a missing value."""
    return any(reason.feature == name and 0 in reason.rows for reason in gathered.rows.reasons)


def _plain(value: Any) -> Any:
    plain = value.tolist() if hasattr(value, "tolist") else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
