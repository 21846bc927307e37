"""How features stand in a row of the feature table: their values, which of them were missing, how old each group is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

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
