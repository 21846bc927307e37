"""A sample of the accesses of a model: all accesses of few entities, chosen by their hashes.

Spatial sampling (SHARDS: Waldspurger et al., FAST '15): an access is in the sample if the hash of its entity lies under
a threshold, so that an entity is in it with all of its accesses or with none. Each day has a fixed size: when it is
full, accesses that follow each other closely become one visit, and if that is not enough, the threshold sinks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.clock import Clock, system_clock
from inference.monitoring.asked_filters import DAY_S
from inference.monitoring.id_hashes import Words
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.stored_data import count_in, reading

#: bytes of a model's sample in Redis, all days together
MOST_BYTES = 1_000_000
#: the threshold of the upper 48 bits of hashes that takes every entity
EVERYBODY = 1 << 48
#: seconds of a unit of time within a day; a day has as many as 16 bits can count
TICK_S = DAY_S / (1 << 16)
#: accesses of an entity that are no further apart become one visit when a day is full: a minute
VISIT_GAP_TICKS = 45
#: the share of a day that is full after it was cut
_FULL_AFTER_CUT = 0.75
#: by chance, the number of sampled entities is hardly ever off by so many standard errors
_ODD = 4
_MOST_COUNTED = (1 << 16) - 1
_TICKS = np.uint64((1 << 16) - 1)

#: one visit: the upper 48 bits of the hash and the tick it began in; ticks until the last access, and accesses
VISITS = np.dtype([("begun", "<u8"), ("length", "<u2"), ("accesses", "<u2")])
Visits = npt.NDArray[np.void]


def day_bytes(days: int) -> int:
    """Return the size of a day's sample in bytes, if so many days are kept."""
    return MOST_BYTES // days // VISITS.itemsize * VISITS.itemsize


def visits_at(hashes: Words, at: float | npt.NDArray[np.float64], threshold: int) -> Visits:
    """Return the accesses under the threshold as visits. `at`: of all or of each of them, epoch seconds of one day."""
    under = _under(hashes, threshold)
    ticks = np.minimum((np.broadcast_to(at, len(hashes))[under] % DAY_S / TICK_S).astype(np.uint64), _TICKS)
    begun, accesses = np.unique(hashes[under] & ~_TICKS | ticks, return_counts=True)
    visits = np.zeros(len(begun), VISITS)
    visits["begun"], visits["accesses"] = begun, np.minimum(accesses, _MOST_COUNTED)
    return visits


def merged(visits: Visits, gap_ticks: int = VISIT_GAP_TICKS) -> Visits:
    """Return a day's visits in order, those of one entity that are no further apart joined.

    The result does not depend on the order in which visits come, or on earlier merges.
    """
    if not len(visits):
        return visits
    visits = visits[np.argsort(visits["begun"], kind="stable")]
    begun, length = visits["begun"], visits["length"].astype(np.uint64)
    # a tick more or less never reaches another entity's visits: those begin 2^16 later
    last = np.maximum.accumulate(begun + length)
    same = (begun[1:] >> np.uint64(16)) == (begun[:-1] >> np.uint64(16))
    first = np.flatnonzero(np.append(True, ~same | (begun[1:] > last[:-1] + np.uint64(gap_ticks))))
    joined = visits[first]
    joined["length"] = np.append(last[first[1:] - 1], last[-1]) - joined["begun"]
    counts = np.add.reduceat(visits["accesses"].astype(np.uint64), first)
    joined["accesses"] = np.minimum(counts, _MOST_COUNTED)
    return joined


def cut(visits: Visits, threshold: int, most_bytes: int) -> tuple[Visits, int]:
    """Return a day's visits in less than its bytes, and the threshold that they are under."""
    visits = merged(visits[_under(visits["begun"], threshold)])
    most = int(most_bytes * _FULL_AFTER_CUT) // VISITS.itemsize
    if len(visits) <= most:
        return visits, threshold
    # whole entities only: the first one that does not fit is out
    threshold = int(visits["begun"][most] >> np.uint64(16))
    return visits[_under(visits["begun"], threshold)], threshold


def _under(hashes: npt.NDArray[Any], threshold: int) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = hashes >> np.uint64(16) < np.uint64(threshold)
    return found


@dataclass(frozen=True)
class SampledDay:
    """A day as it is in Redis: its visits, the threshold that they are under, and all accesses, sampled or not."""

    visits: Visits
    threshold: int
    total: int


@dataclass(frozen=True, eq=False)  # equal only to itself, so that results about it can be remembered
class AccessSample:
    """Accesses of a sample of entities, in the order of entities and time.

    `entity`: which entity it was (48 bits of a hash; shape (n,), as all arrays); `begun` and `ended`: first and last
    access of a visit, epoch seconds, to a second; `accesses`: their number. `rate`: the share of all entities in the
    sample, 0 to 1. Of all accesses, in the sample or not: `totals`, their number by day (days since the epoch), and
    `distinct`, the number of their entities. `since`, `until`: what the sample covers, epoch seconds.
    """

    entity: Words
    begun: npt.NDArray[np.float64]
    ended: npt.NDArray[np.float64]
    accesses: npt.NDArray[np.int64]
    rate: float
    totals: dict[int, int]
    distinct: float
    since: float
    until: float

    @property
    def total(self) -> int:
        """The number of all accesses, in the sample or not."""
        return sum(self.totals.values())

    @property
    def hours(self) -> float:
        """How long the sample covers; 0 if nothing was logged."""
        return max(self.until - self.since, 0.0) / 3600 if self.totals else 0.0

    @property
    def entities(self) -> int:
        """The number of entities in the sample."""
        return int(np.count_nonzero(np.diff(self.entity))) + 1 if len(self.entity) else 0

    @classmethod
    def empty(cls) -> AccessSample:
        """Return the sample of nothing."""
        return cls.of({}, since=0.0, until=0.0)

    @classmethod
    def load(cls, client: Client, keys: Keys, model: str, days: int, clock: Clock = system_clock) -> AccessSample:
        """Return the sample of today and the `days` - 1 days before (UTC); empty if nothing was logged.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        now = clock()
        numbers = range(int(now // DAY_S) - days + 1, int(now // DAY_S) + 1)
        commands: list[Any] = [("HGET", keys.access_log(model), "since")]
        for day in numbers:
            commands += [("HGETALL", keys.accesses(model, day)), ("GET", keys.access_sample(model, day))]
        since, *replies = client.exchange(commands)
        distinct = client.pfcount(*[keys.asked(model, day) for day in numbers])
        read = {}
        with reading("the access log"):
            for day, fields, visits in zip(numbers, replies[::2], replies[1::2], strict=True):
                about = dict(zip(fields[::2], map(count_in, fields[1::2]), strict=True))
                if about.get(b"total"):
                    read[day] = SampledDay(
                        np.frombuffer(visits or b"", VISITS), about.get(b"threshold", EVERYBODY), about[b"total"]
                    )
            start = max(float(since or now), numbers[0] * DAY_S)
        return cls.of(read, distinct=int(distinct), since=start, until=now)

    @classmethod
    def of(
        cls, days: dict[int, SampledDay], *, since: float, until: float, distinct: float | None = None
    ) -> AccessSample:
        """Return the sample of some days, by their numbers since the epoch.

        `distinct`: the counted number of entities; None, or too far from the sample's: estimated from the sample.
        """
        threshold = min([day.threshold for day in days.values()], default=EVERYBODY)
        parts = [
            (number, merged(day.visits[_under(day.visits["begun"], threshold)], 0)) for number, day in days.items()
        ]
        visits = np.concatenate([np.zeros(0, VISITS), *[part for _, part in parts]])
        midnights = np.repeat([float(number * DAY_S) for number, _ in parts], [len(part) for _, part in parts])
        begun = midnights + (visits["begun"] & _TICKS) * TICK_S
        entity = visits["begun"] >> np.uint64(16)
        order = np.lexsort((begun, entity))
        rate, sampled = threshold / EVERYBODY, len(np.unique(entity))
        if rate == 1 or distinct is None or abs(distinct * rate - sampled) > _ODD * (sampled + 1) ** 0.5:
            distinct = sampled / rate if rate else 0
        return cls(
            entity[order],
            begun[order],
            (begun + visits["length"] * TICK_S)[order],
            visits["accesses"].astype(np.int64)[order],
            rate,
            {number: day.total for number, day in days.items()},
            distinct,
            since,
            until,
        )
