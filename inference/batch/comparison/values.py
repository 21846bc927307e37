"""Measures how the values of one output differ between two generations, part after part, in bounded memory.

Counts are of all rows. Quantiles and histograms come from the first rows up to a million: rows come in the order of
their ids' hashes, so these are a random sample.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.batch.comparison.differences import (
    DiffOptions,
    Distribution,
    Flips,
    OutputDiff,
    Segment,
    SideBySide,
    TextChange,
)
from inference.schema import DType, TensorSpec

#: noise of floats: the same model on another machine gives such differences
NOISE_RELATIVE, NOISE_ABSOLUTE = 1e-5, 1e-6
MAX_SAMPLE = 1 << 20
QUANTILES = {"p1": 0.01, "p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99}
_BINS = 30
#: the histogram shows values between these quantiles, if others lie far away
_CENTRE = (0.005, 0.995)
_FAR = 2.0
_MOST_CHANGES = 20

Values = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


@dataclass
class ValueSample:
    """The first values, up to a million."""

    parts: list[Values] = field(default_factory=list)
    size: int = 0

    def add(self, values: Values) -> None:
        """Add values until the sample is full."""
        if self.size < MAX_SAMPLE:
            taken = values.reshape(-1)[: MAX_SAMPLE - self.size]
            self.parts.append(taken.copy())
            self.size += len(taken)

    def values(self) -> Values:
        """Return the sample, as floats."""
        return np.concatenate([np.empty(0), *self.parts]).astype(np.float64)


@dataclass
class Side:
    """The values of one generation."""

    sample: ValueSample = field(default_factory=ValueSample)
    count: int = 0
    mean: float = 0.0
    #: sum of squared distances from the mean
    squares: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    def add(self, values: Values) -> None:
        """Count values; the mean by the formula of Chan, Golub and LeVeque (1983) for pairs of samples."""
        if not values.size:
            return
        self.sample.add(values)
        mean, count = float(values.mean(dtype=np.float64)), self.count + values.size
        far = mean - self.mean
        self.squares += float(values.var(dtype=np.float64)) * values.size + far**2 * self.count * values.size / count
        self.mean += far * values.size / count
        self.count = count
        self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))

    @property
    def std(self) -> float:
        """The standard deviation."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def distribution(self) -> Distribution | None:
        """Return it as a record; None without values."""
        if not self.count:
            return None
        return Distribution(self.count, self.mean, self.std, self.least, self.most, quantiles(self.sample.values()))


def quantiles(values: Values) -> dict[str, float]:
    """Return the quantiles by name; empty without values."""
    if not values.size:
        return {}
    found = np.quantile(values, list(QUANTILES.values()))
    return dict(zip(QUANTILES, found.tolist(), strict=True))


def side_by_side(before: Values, after: Values) -> SideBySide | None:
    """Return both samples in the same bins; None if one is empty."""
    if not before.size or not after.size:
        return None
    both = np.concatenate([before, after])
    low, high = float(both.min()), float(both.max())
    centre_low, centre_high = np.quantile(both, _CENTRE).tolist()
    if high - low > _FAR * (centre_high - centre_low) > 0:
        low, high = centre_low, centre_high
    if high <= low:
        high = low + max(abs(low) * NOISE_RELATIVE, NOISE_ABSOLUTE)
    edges = np.linspace(low, high, _BINS + 1)
    shares = (np.histogram(np.clip(values, low, high), edges)[0] / values.size for values in (before, after))
    return SideBySide(edges.tolist(), *(share.tolist() for share in shares))


@dataclass
class SegmentCounts:
    """Sums by segment."""

    sums: dict[str, Values] = field(default_factory=dict)

    def add(self, name: str, segments: Values, weights: Values | None = None) -> None:
        """Add a weight, or one, for each row to its segment."""
        counted = np.bincount(segments, weights)
        before = self.sums.get(name, np.zeros(0))
        longer = np.zeros(max(len(before), len(counted)))
        longer[: len(before)] += before
        longer[: len(counted)] += counted
        self.sums[name] = longer

    def records(self, names: Sequence[str]) -> list[Segment]:
        """Return the segments with rows, the largest first."""
        rows = self.sums.get("rows", np.zeros(0))
        found = [
            Segment(
                value=names[at],
                rows=int(rows[at]),
                moved=self._mean("moved", at) or 0.0,
                mean_before=self._mean("before", at),
                mean_after=self._mean("after", at),
                flipped=self._mean("flipped", at),
            )
            for at in np.flatnonzero(rows).tolist()
        ]
        return sorted(found, key=lambda one: -one.rows)

    def _mean(self, name: str, at: int) -> float | None:
        sums = self.sums.get(name)
        return None if sums is None else float((sums[at] if at < len(sums) else 0.0) / self.sums["rows"][at])


@dataclass
class Movers:
    """The entities that moved most: distance, hash and bucket of the id, and both values."""

    most: int
    kept: list[tuple[float, int, int, Any, Any]] = field(default_factory=list)

    def add(self, distance: Values, old: Values, new: Values, hashes: Values, buckets: Values) -> None:
        """Keep those that moved more than the ones that are kept."""
        least = self.kept[-1][0] if len(self.kept) == self.most else 0.0
        rows = np.flatnonzero(distance > least)
        if len(rows) > self.most:
            rows = rows[np.argpartition(distance[rows], -self.most)[-self.most :]]
        found = (distance, hashes, buckets, old, new)
        self.kept += zip(*(column[rows].tolist() for column in found), strict=True)
        self.kept = sorted(self.kept, key=lambda one: -one[0])[: self.most]


def moved_rows(old: Values, new: Values, tolerance: float | None = None) -> Mask:
    """Tell which rows differ by more than the tolerance; None: floats by more than noise, integers and flags at all."""
    before, after = old.reshape(len(old), -1), new.reshape(len(new), -1)
    if tolerance is None and "f" not in (before.dtype.kind, after.dtype.kind):
        differs = before != after  # as floats, large integers would be equal
    else:
        before, after = before.astype(np.float64), after.astype(np.float64)
        allowed = NOISE_ABSOLUTE + NOISE_RELATIVE * np.abs(before) if tolerance is None else tolerance
        differs = np.abs(after - before) > allowed
    moved: Mask = np.asarray(differs.any(axis=1))
    return moved


class NumberComparison:
    """Compares numbers, or vectors of them: by distance, that of a vector being its largest among the elements.

    A decision is a number's side of the threshold, a flag itself, or the place of a vector's largest element.
    """

    def __init__(self, spec: TensorSpec, options: DiffOptions) -> None:
        self._spec, self._options = spec, options
        self._sides = {False: Side(), True: Side()}
        self._movement = ValueSample()
        self._rows = self._moved = self._flipped = self._up = 0
        self._segments = SegmentCounts()
        self._width = math.prod(spec.shape)

    @property
    def sides(self) -> tuple[Side, Side]:
        """The values before and after."""
        return self._sides[False], self._sides[True]

    def add_side(self, values: Values, *, is_new: bool) -> None:
        """Count all values of one generation in a part."""
        self._sides[is_new].add(values.astype(np.float64) if values.dtype.kind == "b" else values)

    def add_pairs(self, old: Values, new: Values, segments: Values | None) -> Values | None:
        """Count the entities of a part that both generations have; return how far each one moved.

        `segments`: the number of each one's segment.
        """
        before, after = old.reshape(len(old), -1).astype(np.float64), new.reshape(len(new), -1).astype(np.float64)
        apart = np.abs(after - before)
        far: Values = apart.max(axis=1, initial=0.0)
        moved = moved_rows(old, new, self._options.tolerance)
        self._movement.add(far)
        self._rows += len(old)
        self._moved += int(moved.sum())
        flipped = self._flips(before, after)
        if segments is not None:
            self._segments.add("rows", segments)
            self._segments.add("moved", segments, moved)
            self._segments.add("before", segments, before.mean(axis=1))
            self._segments.add("after", segments, after.mean(axis=1))
            if flipped is not None:
                self._segments.add("flipped", segments, flipped)
        return far

    def _flips(self, before: Values, after: Values) -> Mask | None:
        old, new = self._decisions(before), self._decisions(after)
        if old is None or new is None:
            return None
        flipped: Mask = np.asarray(old != new)
        self._flipped += int(flipped.sum())
        self._up += int((new > old).sum())
        return flipped

    def _decisions(self, values: Values) -> Values | None:
        if self._width > 1:
            return np.asarray(values.argmax(axis=1))
        threshold = 0.5 if self._spec.dtype is DType.BOOL else self._options.threshold
        return None if threshold is None else np.asarray(values[:, 0] >= threshold)

    def _decision(self) -> str | None:
        if self._width > 1:
            return "the place of the largest element"
        if self._spec.dtype is DType.BOOL:
            return "the value itself"
        threshold = self._options.threshold
        return None if threshold is None else f"at least {threshold:g}, or below"

    def result(self, names: Sequence[str]) -> OutputDiff:
        """Return the record, without the movers. `names`: of the segments."""
        before, after = self.sides
        decision = self._decision()
        flips = None
        if decision is not None:
            directed = self._width == 1
            flips = Flips(
                self._flipped,
                _share(self._flipped, self._rows),
                self._up if directed else None,
                self._flipped - self._up if directed else None,
            )
        return OutputDiff(
            name=self._spec.name,
            kind="number" if self._width == 1 else "vector",
            moved=_share(self._moved, self._rows),
            before=before.distribution(),
            after=after.distribution(),
            histogram=side_by_side(before.sample.values(), after.sample.values()),
            movement=quantiles(self._movement.values()),
            decision=decision,
            flips=flips,
            segments=self._segments.records(names),
            left_out=self._left_out(),
        )

    def _left_out(self) -> list[str]:
        if self._width > 1:
            return ["the distribution is that of all elements together"]
        return [] if self._decision() else ["decisions that flip: give a threshold"]


class TextComparison:
    """Compares texts, or arrays of any length, by their digests: equal or not. A decision is the text itself."""

    def __init__(self, spec: TensorSpec, texts: Mapping[int, str]) -> None:
        self._spec, self._texts = spec, texts
        self._rows = self._changed = 0
        self._changes: Counter[tuple[int, int]] = Counter()
        self._segments = SegmentCounts()

    def add_side(self, values: Values, *, is_new: bool) -> None:
        """Do nothing: texts have no distribution."""

    def add_pairs(self, old: Values, new: Values, segments: Values | None) -> Values | None:
        """Count the entities of a part that both generations have; return None, since texts have no distance."""
        changed = old != new
        self._rows += len(old)
        self._changed += int(changed.sum())
        if len(self._changes) < MAX_SAMPLE >> 6:
            self._changes.update(zip(old[changed].tolist(), new[changed].tolist(), strict=True))
        if segments is not None:
            self._segments.add("rows", segments)
            self._segments.add("moved", segments, changed)
            if self._is_text:
                self._segments.add("flipped", segments, changed)
        return None

    @property
    def _is_text(self) -> bool:
        return self._spec.dtype is DType.STRING

    def result(self, names: Sequence[str]) -> OutputDiff:
        """Return the record."""
        share = _share(self._changed, self._rows)
        changes = [
            TextChange(self._texts.get(old), self._texts.get(new), rows)
            for (old, new), rows in self._changes.most_common(_MOST_CHANGES)
        ]
        kind = "text" if self._is_text else "arrays of any length"
        return OutputDiff(
            name=self._spec.name,
            kind="text",
            moved=share,
            decision="the text itself" if self._is_text else None,
            flips=Flips(self._changed, share) if self._is_text else None,
            changes=changes if self._is_text else [],
            segments=self._segments.records(names),
            left_out=[f"distribution, distances, tolerance and threshold: {kind} can only be equal or not"],
        )


Comparison = NumberComparison | TextComparison


def comparison_of(spec: TensorSpec, options: DiffOptions, texts: Mapping[int, str]) -> Comparison:
    """Return an empty comparison of an output. `texts`: by digest, filled as rows are read."""
    return NumberComparison(spec, options) if spec.is_fixed_number else TextComparison(spec, texts)


def _share(some: int, rows: int) -> float:
    return some / rows if rows else 0.0
