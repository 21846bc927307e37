"""Hit statistics as JSON."""

from __future__ import annotations

from inference.monitoring.statistics import HitCounts
from inference.outcomes import Outcome


def test_counts_are_spelled_with_all_outcomes_in_their_order() -> None:
    data = HitCounts({Outcome.COMPUTED: 1, Outcome.HIT_BATCH: 2, Outcome.HIT_REALTIME: 1}).to_json()
    assert (data["total"], data["hit_rate"]) == (4, 0.75)
    assert list(data["outcomes"]) == [outcome.value for outcome in Outcome]
    assert sum(data["outcomes"].values()) == 4


def test_without_requests_the_rate_is_zero() -> None:
    assert HitCounts({}).to_json()["hit_rate"] is None
