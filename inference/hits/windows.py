"""Reads the minute counters back as totals over a window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from inference.clock import Clock, system_clock
from inference.errors import StoreUnavailable
from inference.keys import Keys
from inference.outcomes import Outcome

#: a week: counters are kept for a day longer
MAX_WINDOW_S = 7 * 24 * 3600


@dataclass(frozen=True)
class HitCounts:
    """What became of the requests of one window; `outcomes` names all seven."""

    outcomes: dict[Outcome, int]

    @property
    def total(self) -> int:
        """All requests counted."""
        return sum(self.outcomes.values())

    @property
    def hit_rate(self) -> float:
        """Share of requests answered from the store and fresh, 0 to 1; 0 when there were none."""
        hits = sum(count for outcome, count in self.outcomes.items() if outcome.is_hit)
        return hits / self.total if self.total else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: `total`, `hit_rate`, and `outcomes`, all seven in their order."""
        outcomes = {outcome.value: self.outcomes.get(outcome, 0) for outcome in Outcome}
        return {"total": self.total, "hit_rate": self.hit_rate, "outcomes": outcomes}


class HitWindows:
    """Reads hit statistics. Synchronous: callers with an event loop use a thread."""

    def __init__(self, client: redis.Redis, keys: Keys, clock: Clock = system_clock) -> None:
        self._client = client
        self._keys = keys
        self._clock = clock

    def read(self, model: str, window_s: float) -> HitCounts:
        """Return the counts of every minute that the last `window_s` seconds touch (at most a week).

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        now = self._clock()
        first = int((now - min(window_s, MAX_WINDOW_S)) // 60)
        pipeline = self._client.pipeline(transaction=False)
        for minute in range(first, int(now // 60) + 1):
            pipeline.hgetall(self._keys.hits(model, minute))
        try:
            return HitCounts(_sum(pipeline.execute()))
        except (redis.RedisError, OSError) as error:
            raise StoreUnavailable("the hit counters cannot be read: Redis does not answer") from error


def _sum(minutes: Iterable[Mapping[bytes, Any]]) -> dict[Outcome, int]:
    totals: Counter[str] = Counter()
    for minute in minutes:
        for outcome, count in minute.items():
            totals[outcome.decode()] += int(count)
    return {outcome: totals[outcome.value] for outcome in Outcome}
