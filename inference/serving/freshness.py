"""When a stored prediction is young enough to be the answer. Pure rules."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from inference.outcomes import AnswerSource, Outcome
from inference.settings import ModelSettings
from inference.store import Entry, Origin


class Freshness(Enum):
    """What to do with a stored prediction."""

    #: within its age limit: it is the answer
    FRESH = auto()
    #: too old, but computed so recently that computing again would read the same old features
    JUST_COMPUTED = auto()
    #: too old, but within `stale_while_revalidate`: it is the answer, and is computed anew behind it
    REVALIDATE = auto()
    #: too old: compute, and keep it to fall back on
    STALE = auto()


# Python 3.11 takes a twentieth of a hit to look up its enums' members
_FRESH, _REALTIME = Freshness.FRESH, Origin.REALTIME
#: not computed on demand, computed on demand
_BY_ORIGIN = ((AnswerSource.BATCH, Outcome.HIT_BATCH), (AnswerSource.REALTIME, Outcome.HIT_REALTIME))


@dataclass(frozen=True, slots=True)
class FreshnessRules:
    """A model's age limits, in seconds."""

    batch_ttl_s: float
    realtime_ttl_s: float
    min_recompute_interval_s: float
    stale_while_revalidate_s: float = 0.0

    @classmethod
    def of(cls, model: ModelSettings) -> FreshnessRules:
        """Return the rules that a model's settings ask for."""
        realtime = model.realtime
        return cls(
            batch_ttl_s=model.batch.ttl,
            realtime_ttl_s=realtime.ttl,
            min_recompute_interval_s=realtime.min_recompute_interval,
            stale_while_revalidate_s=realtime.stale_while_revalidate or 0.0,
        )

    def judge(self, entry: Entry, now: float, max_staleness_s: float | None = None) -> Freshness:
        """Judge an entry by the age of its oldest feature.

        `max_staleness_s`: the request's own limit, which is meant: nothing older is revalidated behind it. None
        means the `ttl` of the entry's origin, 0 forces computing whatever the entry's age.
        """
        if max_staleness_s == 0 or entry.outdated:
            return Freshness.STALE
        limit = max_staleness_s
        if limit is None:
            limit = self.realtime_ttl_s if entry.origin is _REALTIME else self.batch_ttl_s
        age_s = now - entry.as_of
        if age_s <= limit:
            return _FRESH
        if now - max(entry.computed_at, entry.retried_at or 0.0) < self.min_recompute_interval_s:
            return Freshness.JUST_COMPUTED
        if max_staleness_s is None and age_s <= limit + self.stale_while_revalidate_s:
            return Freshness.REVALIDATE
        return Freshness.STALE


def source_of(entry: Entry) -> AnswerSource:
    """Return where an entry came from: computed on demand, or ahead (a run or an upsert)."""
    return _BY_ORIGIN[entry.origin is _REALTIME][0]


def hit_outcome(entry: Entry) -> Outcome:
    """Return what a fresh entry counts as."""
    return _BY_ORIGIN[entry.origin is _REALTIME][1]
