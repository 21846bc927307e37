"""Histograms whose buckets grow by a fixed factor: bounded in size, and their sum is a histogram again.

A minute of all API processes is the sum of their counts, so quantiles of any window come from the same few numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scale:
    """The buckets of one quantity; `name` starts their fields in Redis.

    Bucket N holds values up to `first * factor**N`; the last one holds whatever is above. Their sum is kept in Redis
    as a whole number of `sum_unit`, coarse enough for 63 bits.
    """

    name: str
    first: float
    factor: float
    size: int
    sum_unit: float = 1.0
    bounds: tuple[float, ...] = field(init=False)
    fields: tuple[str, ...] = field(init=False)
    sum_field: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bounds", tuple(self.first * self.factor**n for n in range(self.size - 1)))
        object.__setattr__(self, "fields", tuple(f"{self.name}:{n}" for n in range(self.size)))
        object.__setattr__(self, "sum_field", f"{self.name}:sum")

    def add(self, counts: MutableMapping[str, float], value: float, times: int = 1) -> None:
        """Count a value in its bucket and add it to the sum; below 0, where clocks differ, it adds nothing there."""
        counts[self.fields[bisect_left(self.bounds, value)]] += times
        if value > 0:
            counts[self.sum_field] += times * value / self.sum_unit

    def field_of(self, value: float) -> str:
        """Return the field that counts a value."""
        return self.fields[bisect_left(self.bounds, value)]

    def histogram(self, counts: Mapping[str, int]) -> Histogram:
        """Return this scale's part of summed fields."""
        return Histogram(
            self,
            tuple(counts.get(name, 0) for name in self.fields),
            counts.get(self.sum_field, 0) * self.sum_unit,
        )


#: seconds that requests took which were answered from the store alone, 0.25 ms to 14 s in steps of 19 %
HIT_LATENCY = Scale("hit_s", 0.00025, 2**0.25, 64, sum_unit=1e-6)
#: seconds that all other requests took
MISS_LATENCY = Scale("miss_s", 0.00025, 2**0.25, 64, sum_unit=1e-6)
#: seconds between an answer's `as_of` and the answer, 1 s to 24 days
AGE = Scale("age_s", 1.0, 2**0.5, 43)
#: entities or instances in one task message of the real-time queue
MICRO_BATCH = Scale("rows", 1.0, 2.0, 14)


@dataclass(frozen=True)
class Histogram:
    """Counts by bucket of a scale. `sum`: of all values, except those that older releases counted."""

    scale: Scale
    counts: tuple[int, ...]
    sum: float

    @property
    def total(self) -> int:
        """All values counted."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """Return the value that `share` (0 to 1) of all stay under, off by one bucket's width; None without values."""
        rank, below = share * self.total, 0
        for number, count in enumerate(self.counts):
            if count and below + count >= rank:
                return self._within(number, (rank - below) / count)
            below += count
        return None

    def _within(self, number: int, part: float) -> float:
        bounds = self.scale.bounds
        upper = bounds[min(number, len(bounds) - 1)]
        if number in (0, len(bounds)):
            return upper
        return float(bounds[number - 1] * (upper / bounds[number - 1]) ** part)
