"""Feature values of many rows: why some cannot be used, and how rows stand in the feature table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.features.feature import Feature
from inference.schema import Block, DType, TensorSpec

Mask = npt.NDArray[np.bool_]
Times = npt.NDArray[np.float64]

#: bits of the features that have defaults, in order, lowest bit first: 1 where the default stands for a missing value
MISSING = "@missing"
_TIME_PREFIX = "@at:"


@dataclass(frozen=True)
class Rejection:
    """Rows (positions in the block) that one feature makes unusable, and why."""

    feature: str
    reason: str
    rows: npt.NDArray[np.intp]


@dataclass
class FeatureRows:
    """Features by name in the contract's dtypes. Rejected rows hold zeros or "" and must not be used.

    `imputed`: by feature, the rows in which its default stands for a missing value; only features with such a row.
    """

    block: Block
    rejected: npt.NDArray[np.bool_]
    reasons: list[Rejection] = field(default_factory=list)
    imputed: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)

    def reject(self, feature: str, reason: str, mask: npt.NDArray[np.bool_]) -> None:
        """Mark the rows of the mask as unusable; nothing happens when it marks none."""
        rows = np.flatnonzero(mask)
        if len(rows):
            self.rejected[rows] = True
            self.reasons.append(Rejection(feature, reason, rows))

    def first_reasons(self) -> dict[int, Rejection]:
        """Return row → the first reason it was rejected for."""
        return {int(row): one for one in reversed(self.reasons) for row in one.rows}

    def imputed_names(self) -> list[list[str]]:
        """Return for each usable row the features in which a default stands, order kept."""
        names: list[list[str]] = [[] for _ in range(len(self.rejected))]
        for name, mask in self.imputed.items():
            for row in np.flatnonzero(mask):
                names[row].append(name)
        return [of_row for of_row, rejected in zip(names, self.rejected, strict=True) if not rejected]

    def usable(self) -> Block:
        """Return the block without the rejected rows, order kept."""
        return take(self.block, ~self.rejected) if self.rejected.any() else self.block


def take(block: Block, rows: npt.NDArray[Any]) -> Block:
    """Return the rows of a mask or of positions."""
    return {name: values[rows] for name, values in block.items()}


def blank(feature: Feature, rows: int) -> npt.NDArray[Any]:
    """Return an array of zeros, or of "" for text, for so many rows of a feature."""
    shape = (rows, *feature.shape)
    if feature.dtype is DType.STRING:
        return np.full(shape, "", dtype=object)
    return np.zeros(shape, dtype=feature.dtype.numpy)


def fill_missing(
    rows: FeatureRows,
    feature: Feature,
    values: npt.NDArray[Any],
    missing: npt.NDArray[np.bool_],
    *,
    too_old: npt.NDArray[np.bool_] | None = None,
    excused: npt.NDArray[np.bool_] | None = None,
) -> None:
    """Add a feature to the rows: missing values take its default, NaN or None, else their rows are rejected.

    Numbers that are infinite in the feature's dtype, and values that are not legal, are rejected, never sent to a
    model. `too_old`: those that are missing because their group is outside its maximum age. `excused`: rows that
    are not rejected for want of a value.
    """
    if missing.any():
        values = _writable(values)
        nothing = np.zeros_like(missing)
        _fill(rows, feature, values, missing, too_old=nothing if too_old is None else too_old, excused=excused)
    if feature.dtype.is_float:
        infinite = np.isinf(values)
        if infinite.any():
            mask = per_row(infinite)
            values = _writable(values)
            values[mask] = 0
            rows.reject(feature.name, f"infinite, or too large for {feature.dtype}", mask)
    add_checked(rows, feature, values, but=missing & excused if excused is not None else None)


def add_checked(
    rows: FeatureRows, feature: Feature, values: npt.NDArray[Any], *, but: npt.NDArray[np.bool_] | None = None
) -> None:
    """Add a feature whose values are all there; rows whose value is not legal are rejected, `but` those of a mask."""
    rows.block[feature.name] = values
    if feature.legal is not None:
        # what was not filled in holds zeros or "", which nobody gave
        illegal = feature.illegal(values) & ~rows.rejected
        if but is not None:
            illegal &= ~but
        rows.reject(feature.name, f"not {feature.legal}{feature.of_group}", illegal)


def _fill(
    rows: FeatureRows,
    feature: Feature,
    values: npt.NDArray[Any],
    missing: npt.NDArray[np.bool_],
    *,
    too_old: npt.NDArray[np.bool_],
    excused: npt.NDArray[np.bool_] | None,
) -> None:
    if feature.nullable:
        values[missing] = feature.missing_value
    elif feature.default is not None:
        values[missing] = np.array(feature.default, dtype=feature.dtype.numpy)
        rows.imputed[feature.name] = missing
    else:
        values[missing] = blank(feature, 1)[0]
        missing = missing if excused is None else missing & ~excused
        old = missing & too_old
        why = f"outside the maximum age of group {feature.group!r}, and the feature has no default"
        rows.reject(feature.name, why, old)
        rows.reject(feature.name, f"missing, and the feature has no default{feature.of_group}", missing & ~old)


def _writable(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values if values.flags.writeable else values.copy()  # a view into Arrow's memory is read-only


def per_row(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return whether any element of each row is marked."""
    return mask if mask.ndim == 1 else np.asarray(mask.any(axis=tuple(range(1, mask.ndim))))


def examples(reasons: list[Rejection], name_of: Any, *, most: int = 3) -> Iterator[str]:
    """Yield one sentence a reason, with the first few rows named by `name_of(row)`."""
    for one in reasons:
        names = ", ".join(str(name_of(int(row))) for row in one.rows[:most])
        yield f"feature {one.feature!r}: {one.reason} ({len(one.rows)} rows, such as {names})"


@dataclass(frozen=True)
class StoredForm:
    """A row of some features. `timed`: the groups whose times stand in the row; none when the row's own is theirs."""

    features: tuple[Feature, ...]
    timed: tuple[str, ...] = ()

    @property
    def values(self) -> tuple[TensorSpec, ...]:
        """The schema of the values alone: of tables that older releases filled."""
        return tuple(feature.spec for feature in self.features)

    @cached_property
    def fields(self) -> tuple[TensorSpec, ...]:
        """The schema of a table of such rows."""
        fields = list(self.values)
        if self._optional:
            fields.append(TensorSpec(MISSING, DType.UINT8, (-(-len(self._optional) // 8),)))
        fields += [TensorSpec(_TIME_PREFIX + group, DType.UINT32) for group in self.timed]
        return tuple(fields)

    def notes(self, missing: Mapping[str, Mask], times: Mapping[str, Times], rows: int) -> Block:
        """Return what stands in rows beside the values.

        `missing`: by feature, which rows hold its default for want of a value. `times`: by group, epoch seconds, kept
        as whole ones, rounded down; NaN where a row has nothing of the group.
        """
        notes: Block = {}
        if self._optional:
            bits = np.zeros((rows, len(self._optional)), dtype=bool)
            for index, name in enumerate(self._optional):
                if name in missing:
                    bits[:, index] = missing[name]
            notes[MISSING] = np.packbits(bits, axis=1, bitorder="little")
        for group in self.timed:
            notes[_TIME_PREFIX + group] = np.nan_to_num(np.floor(times[group])).clip(0, 2**32 - 1).astype(np.uint32)
        return notes

    def missing(self, block: Block) -> dict[str, Mask]:
        """Return by feature which stored rows hold its default for want of a value; only those with any such row."""
        bits = block.get(MISSING)
        if bits is None or not bits.any():
            return {}
        marks = np.unpackbits(bits, axis=1, count=len(self._optional), bitorder="little").astype(bool)
        return {name: marks[:, index] for index, name in enumerate(self._optional) if marks[:, index].any()}

    def times(self, block: Block, group: str) -> Times | None:
        """Return a group's times in stored rows as epoch seconds, NaN for none; None when the rows do not say."""
        stored = block.get(_TIME_PREFIX + group)
        return None if stored is None else np.where(stored == 0, np.nan, stored.astype(np.float64))

    @cached_property
    def _optional(self) -> list[str]:
        return [feature.name for feature in self.features if feature.default is not None]
