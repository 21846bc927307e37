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
from inference.wording import counted

#: one bool a row
Mask = npt.NDArray[np.bool_]
#: epoch seconds a row, NaN for none
Times = npt.NDArray[np.float64]

#: the stored field with one bit for each feature that has a default, in order, lowest bit first. 1: the default stands
#: for a missing value
MISSING = "@missing"
_TIME_PREFIX = "@at:"


@dataclass
class FeatureColumns:
    """Values by feature, in the contract's dtypes, before defaults are filled in and rules are checked.

    `missing`: by feature, the rows without a value; a feature may be left out if every row has one.
    `to_check`: the features whose numbers may be infinite, or too large for the dtype. All others were checked before.
    `too_old`: by group, the rows whose values are missing because of their age.
    """

    values: Block
    missing: dict[str, Mask]
    to_check: set[str] = field(default_factory=set)
    too_old: dict[str, Mask] = field(default_factory=dict)


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
    rejected: Mask
    reasons: list[Rejection] = field(default_factory=list)
    imputed: dict[str, Mask] = field(default_factory=dict)

    def reject(self, feature: str, reason: str, mask: Mask) -> None:
        """Mark the rows of the mask as unusable. Does nothing for an empty mask."""
        rows = np.flatnonzero(mask)
        if len(rows):
            self.rejected[rows] = True
            self.reasons.append(Rejection(feature, reason, rows))

    def first_reasons(self) -> dict[int, Rejection]:
        """Return row → the first reason for its rejection."""
        return {int(row): one for one in reversed(self.reasons) for row in one.rows}

    def imputed_names(self) -> list[list[str]]:
        """Return for each usable row, in order, the features in which a default stands."""
        names: list[list[str]] = [[] for _ in range(len(self.rejected))]
        for name, mask in self.imputed.items():
            for row in np.flatnonzero(mask):
                names[row].append(name)
        return [of_row for of_row, rejected in zip(names, self.rejected, strict=True) if not rejected]

    def usable(self) -> Block:
        """Return the block without the rejected rows, in order."""
        return take(self.block, ~self.rejected) if self.rejected.any() else self.block

    def add(
        self,
        feature: Feature,
        values: npt.NDArray[Any],
        missing: Mask | None = None,
        *,
        too_old: Mask | None = None,
        excused: Mask | None = None,
        check_numbers: bool = True,
    ) -> None:
        """Add a feature. Missing values take its default, else NaN or None if it is nullable, else the row is rejected.

        Rows with an illegal value are rejected too. A number that is infinite in the feature's dtype must never reach
        a model: its row is rejected as well, but for `check_numbers` False, which says that they were checked before.
        `missing`: None if every row has a value. `too_old`: rows without a value because of their age. `excused`: rows
        that may lack a value.
        """
        if missing is not None and missing.any():
            values = _writable(values)
            self._fill(feature, values, missing, too_old, excused)
        if check_numbers and feature.dtype.is_float:
            infinite = np.isinf(values)
            if infinite.any():
                mask = per_row(infinite)
                values = _writable(values)
                values[mask] = 0
                self.reject(feature.name, f"infinite, or too large for {feature.dtype}", mask)
        self.block[feature.name] = values
        if feature.legal is not None:
            # rejected and excused rows hold zeros or "", which nobody gave
            illegal = feature.illegal(values) & ~self.rejected
            if missing is not None and excused is not None:
                illegal &= ~(missing & excused)
            self.reject(feature.name, f"not {feature.legal}{feature.of_group}", illegal)

    def _fill(
        self, feature: Feature, values: npt.NDArray[Any], missing: Mask, too_old: Mask | None, excused: Mask | None
    ) -> None:
        """Write what stands for the missing values into `values`."""
        if feature.nullable:
            values[missing] = feature.missing_value
        elif feature.default is not None:
            values[missing] = np.array(feature.default, dtype=feature.dtype.numpy)
            self.imputed[feature.name] = missing
        else:
            values[missing] = blank(feature, 1)[0]
            missing = missing if excused is None else missing & ~excused
            old = np.zeros_like(missing) if too_old is None else missing & too_old
            why = f"outside the maximum age of group {feature.group!r}, and the feature has no default"
            self.reject(feature.name, why, old)
            self.reject(feature.name, f"missing, and the feature has no default{feature.of_group}", missing & ~old)


def take(block: Block, rows: npt.NDArray[Any]) -> Block:
    """Return the rows of a mask or of positions."""
    return {name: values[rows] for name, values in block.items()}


def blank(feature: Feature, rows: int) -> npt.NDArray[Any]:
    """Return `rows` rows of zeros, or of "" for text, in the shape of the feature."""
    shape = (rows, *feature.shape)
    if feature.dtype is DType.STRING:
        return np.full(shape, "", dtype=object)
    return np.zeros(shape, dtype=feature.dtype.numpy)


def _writable(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values if values.flags.writeable else values.copy()  # a view into Arrow's memory is read-only


def per_row(mask: Mask) -> Mask:
    """Return for each row whether the mask marks any element of it."""
    return mask if mask.ndim == 1 else np.asarray(mask.any(axis=tuple(range(1, mask.ndim))))


def oldest(times: Mapping[str, Times], at_most: Times) -> Times:
    """Return each row's oldest time; `at_most` where none is older, or there is none."""
    result = at_most
    for group_times in times.values():
        result = np.fmin(result, group_times)
    return result


def examples(reasons: list[Rejection], name_of: Any, *, most: int = 3) -> Iterator[str]:
    """Yield a sentence for each reason. It names the first few rows by `name_of(row)`."""
    for one in reasons:
        names = ", ".join(str(name_of(int(row))) for row in one.rows[:most])
        yield f"feature {one.feature!r}: {one.reason} ({counted(len(one.rows), 'row')}, such as {names})"


@dataclass(frozen=True)
class StoredForm:
    """How a row of some features stands in the feature table: values, which were missing, and the age of each group.

    `timed`: the groups whose times stand in the row. Without any, the row's own time is that of all its values.
    """

    features: tuple[Feature, ...]
    timed: tuple[str, ...] = ()

    @property
    def values(self) -> tuple[TensorSpec, ...]:
        """The schema of the values alone. Older releases wrote such tables."""
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
        """Return the fields of `rows` rows that stand beside the values.

        `missing`: by feature, the rows that hold its default in place of a value. `times`: by group, in epoch seconds,
        stored as whole ones, rounded down; NaN where a row has nothing of the group.
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
        """Return by feature the stored rows that hold its default in place of a value; only features with any."""
        bits = block.get(MISSING)
        if bits is None or not bits.any():
            return {}
        marks = np.unpackbits(bits, axis=1, count=len(self._optional), bitorder="little").astype(bool)
        return {name: marks[:, index] for index, name in enumerate(self._optional) if marks[:, index].any()}

    def times(self, block: Block, group: str) -> Times | None:
        """Return a group's times in stored rows, NaN for none; None if the rows do not say."""
        stored = block.get(_TIME_PREFIX + group)
        return None if stored is None else np.where(stored == 0, np.nan, stored.astype(np.float64))

    @cached_property
    def _optional(self) -> list[str]:
        return [feature.name for feature in self.features if feature.default is not None]
