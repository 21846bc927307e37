"""How far predictions moved: histograms whose bins never depend on the data, and one number between two of them.

The bins are the upper bits of a float32 (sign, exponent, five bits of the fraction): each is at most 3 % wide, zero
and every magnitude included. So chunks, runs and generations can be added up and compared without a first look.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.schema import Block

#: counts by bin; bins are numbered by the values they hold, the smallest first
Histogram = Mapping[int, int]

#: values of one output that are looked at in a window; more would tell nothing new
MAX_VALUES = 1 << 17
#: fewer values than this scatter too much to be compared
MIN_VALUES = 1_000

_SHIFT = 18
_HALF = 1 << (31 - _SHIFT)
#: groups of about equal count that the reference is cut into
_GROUPS = 10
#: share that an empty group is taken for, so that the logarithm stays finite
_LEAST_SHARE = 1e-4


class HistogramCounter:
    """Counts the values of every numeric output; an output of several numbers a row has one histogram of all."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[int]] = {}

    def add(self, block: Block) -> None:
        """Count the rows of a window; of very many values, evenly spaced ones."""
        for name, values in block.items():
            if values.dtype.kind in "fiub" and values.size:
                self._counts.setdefault(name, Counter()).update(_count(values))

    def to_json(self) -> dict[str, dict[int, int]]:
        """Return output → bin → count."""
        return {name: dict(counts) for name, counts in self._counts.items()}


def population_stability_index(reference: Histogram, new: Histogram) -> float:
    """Return Σ (p - q) ln(p / q) over ten groups of about equal count in the reference, and its two outsides.

    0 for equal shares; a shift by a full standard deviation gives about 1. Neither may be empty. The index is that of
    N. Siddiqi, Credit Risk Scorecards (2006).
    """
    cuts = _cuts(reference)
    old_total, new_total = sum(reference.values()), sum(new.values())
    pairs = zip(_grouped(reference, cuts), _grouped(new, cuts), strict=True)
    shares = ((max(a / old_total, _LEAST_SHARE), max(b / new_total, _LEAST_SHARE)) for a, b in pairs)
    return sum((p - q) * math.log(p / q) for p, q in shares)


def drift(reference: Mapping[str, Histogram], new: Mapping[str, Histogram]) -> dict[str, float]:
    """Return the index of each output that both have in sufficient number."""
    enough = [
        name
        for name in new
        if sum(new[name].values()) >= MIN_VALUES and sum(reference.get(name, {}).values()) >= MIN_VALUES
    ]
    return {name: round(population_stability_index(reference[name], new[name]), 4) for name in enough}


def _count(values: npt.NDArray[Any]) -> dict[int, int]:
    flat = values.reshape(-1)
    flat = flat[:: -(-flat.size // MAX_VALUES)]
    with np.errstate(over="ignore"):  # a float64 beyond float32 counts as infinite
        bits = flat.astype(np.float32).view(np.uint32) >> _SHIFT
    counts = np.bincount(bits, minlength=2 * _HALF)
    # negative floats grow with their bits' fall
    in_order = np.concatenate([counts[: _HALF - 1 : -1], counts[:_HALF]])
    return {int(at): int(in_order[at]) for at in np.flatnonzero(in_order)}


def _cuts(reference: Histogram) -> list[int]:
    """Return the last bin of each group: first what lies below the reference, then tenths of it."""
    total, seen, group, cuts = sum(reference.values()), 0, 1, [min(reference) - 1]
    for at in sorted(reference):
        seen += reference[at]
        if seen * _GROUPS >= total * group:
            cuts.append(at)
            group = seen * _GROUPS // total + 1
    return cuts


def _grouped(counts: Histogram, cuts: Sequence[int]) -> list[int]:
    groups = [0] * (len(cuts) + 1)
    for at, count in counts.items():
        groups[int(np.searchsorted(cuts, at))] += count
    return groups
