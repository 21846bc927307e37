"""Gathers the features of entities at the instant of a request: stored values first, then fallbacks, then defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from inference.features.feature import Feature
from inference.features.groups import FeatureGroup, GroupStatus
from inference.features.rows import FeatureRows
from inference.features.vectoriser import Vectoriser
from inference.schema import Block
from inference.store import StoredRows, Table

#: the source of what the feature table holds
TABLE_SOURCE = "table"

Mask = npt.NDArray[np.bool_]


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
        stored = self._table.read_block(entity_ids) if count else None
        columns, missing = self._vectoriser.stored_columns(stored.block if stored else {}, count)
        readings = {}
        doubtful = np.zeros(count, dtype=bool)
        for group in self._vectoriser.contract.groups:
            reading = readings[group.name] = _read(group, stored, count, now)
            absent = reading.absent()
            if absent.any():
                for feature in self._vectoriser.contract.features_of(group.name):
                    missing[feature.name] = missing.get(feature.name, False) | absent
                if self._ask_fallback(group, entity_ids, reading, columns, missing, now):
                    doubtful |= reading.absent()
        rows = self._vectoriser.features_from_columns(columns, missing, count, overrides=overrides)
        return Gathered(rows, _known(readings, count), _oldest(readings, count, now), readings, doubtful)

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


def _read(group: FeatureGroup, stored: StoredRows | None, count: int, now: float) -> GroupReading:
    reading = GroupReading([GroupStatus.NOT_FOUND] * count, [None] * count, np.full(count, np.nan))
    if stored is None:
        return reading
    for row in np.flatnonzero(stored.found):
        as_of = min(float(stored.as_of[row]), now)
        if group.max_age_s is not None and as_of < now - group.max_age_s:
            reading.status[row] = GroupStatus.OUTSIDE_MAX_AGE
        else:
            reading.status[row], reading.source[row], reading.as_of[row] = GroupStatus.PRESENT, TABLE_SOURCE, as_of
    return reading


def _known(readings: Mapping[str, GroupReading], count: int) -> Mask:
    known = np.zeros(count, dtype=bool)
    for reading in readings.values():
        known |= reading.known()
    return known


def _oldest(readings: Mapping[str, GroupReading], count: int, now: float) -> npt.NDArray[np.float64]:
    oldest = np.full(count, now)
    for reading in readings.values():
        oldest = np.fmin(oldest, reading.as_of)
    return oldest
