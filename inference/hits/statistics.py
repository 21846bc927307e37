"""What the counters of one window say: outcomes, latencies, ages, sizes of micro-batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference.hits.histograms import AGE, HIT_LATENCY, MICRO_BATCH, MISS_LATENCY, Histogram
from inference.outcomes import Outcome

#: name → share of all values below it
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class HitCounts:
    """What became of the requests of one window; `outcomes` names every outcome."""

    outcomes: dict[Outcome, int]

    @property
    def total(self) -> int:
        """Requests that the hit rate divides by: all but those for entities that nobody knows."""
        return sum(count for outcome, count in self.outcomes.items() if outcome.is_rated)

    @property
    def hit_rate(self) -> float:
        """Share of requests answered from the store and fresh, 0 to 1; 0 when there were none."""
        hits = sum(count for outcome, count in self.outcomes.items() if outcome.is_hit)
        return hits / self.total if self.total else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: `total`, `hit_rate`, and `outcomes`, all of them in their order."""
        outcomes = {outcome.value: self.outcomes.get(outcome, 0) for outcome in Outcome}
        return {"total": self.total, "hit_rate": self.hit_rate, "outcomes": outcomes}


@dataclass(frozen=True)
class Statistics:
    """Everything counted in one window."""

    counts: HitCounts
    hit_latency: Histogram
    miss_latency: Histogram
    age: Histogram
    micro_batch: Histogram

    @classmethod
    def of(cls, fields: Mapping[str, int]) -> Statistics:
        """Return what summed fields of minute hashes say."""
        return cls(
            HitCounts({outcome: fields.get(outcome.value, 0) for outcome in Outcome}),
            HIT_LATENCY.histogram(fields),
            MISS_LATENCY.histogram(fields),
            AGE.histogram(fields),
            MICRO_BATCH.histogram(fields),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: those of `HitCounts`, and quantiles; None where nothing was counted.

        `hit_latency_s`, `miss_latency_s` and `age_s` in seconds, `micro_batch_rows` in rows.
        """
        return {
            **self.counts.to_json(),
            "hit_latency_s": _quantiles(self.hit_latency),
            "miss_latency_s": _quantiles(self.miss_latency),
            "age_s": _quantiles(self.age),
            "micro_batch_rows": _quantiles(self.micro_batch),
        }


def _quantiles(histogram: Histogram) -> dict[str, float | None]:
    return {name: histogram.quantile(share) for name, share in QUANTILES.items()}
