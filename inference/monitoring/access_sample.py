"""A sample of the accesses of a model: all accesses of few entities, chosen by their hashes, and of the most popular.

Spatial sampling (SHARDS: Waldspurger et al., FAST '15): an access is in the sample if the hash of its entity lies under
a threshold, so that an entity is in it with all of its accesses or with none. Each day has a fixed size: when it is
full, accesses that follow each other closely become one visit, and if that is not enough, the threshold sinks.
A few hundred entities get half of the accesses of a usual shop, and hardly one of them is under the threshold. So the
accesses of the entities that were popular the day before are logged apart from the sample, all of them. If these fill
the day, visits are joined over longer and longer gaps.
Of other entities that are hot on a day, the accesses are counted: an hour's favourites are not known a day before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.clock import Clock, system_clock
from inference.monitoring.asked_filters import DAY_S, count_asked
from inference.monitoring.id_hashes import Words
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.stored_data import count_in, reading

#: bytes of a model's visits in Redis, all days together, and of its counted entities; less than a megabyte
MOST_BYTES, _MOST_COUNTED_BYTES = 800_000, 150_000
#: the threshold of the upper 48 bits of hashes that takes every entity
EVERYBODY = 1 << 48
#: entities that are logged for being popular, and the visits that a day has room for, by each of them
_MOST_POPULAR, _POPULAR_VISITS = 2048, 2
#: entities that are counted on a day
_MOST_COUNTED = 2048
#: seconds of a unit of time within a day; a day has as many as 16 bits can count
TICK_S = DAY_S / (1 << 16)
#: accesses of an entity that are no further apart become one visit when a day is full: a minute
VISIT_GAP_TICKS = 45
#: the share of a day that is full after it was cut
_FULL_AFTER_CUT = 0.75
#: by chance, the number of sampled entities is hardly ever off by so many standard errors
_ODD = 4
_MOST_ACCESSES = (1 << 16) - 1
_TICKS = np.uint64((1 << 16) - 1)

#: one visit: the upper 48 bits of the hash and the tick it began in; ticks until the last access, and accesses
VISITS = np.dtype([("begun", "<u8"), ("length", "<u2"), ("accesses", "<u2")])
Visits = npt.NDArray[np.void]


def day_bytes(days: int) -> int:
    """Return the size in bytes of the visits of a day's popular entities, if so many days are kept."""
    return MOST_BYTES // (2 * days) // VISITS.itemsize * VISITS.itemsize


def sample_bytes(days: int, popular: int) -> int:
    """Return the size in bytes of a day's sample: what its popular entities' visits leave, and at least as much."""
    return 2 * day_bytes(days) - min(popular, day_bytes(days))


def most_popular(days: int) -> int:
    """Return how many entities are logged for being popular, if so many days are kept."""
    return min(_MOST_POPULAR, day_bytes(days) // (_POPULAR_VISITS * VISITS.itemsize))


def most_counted(days: int) -> int:
    """Return how many entities are counted on a day, if so many days are kept."""
    return min(_MOST_COUNTED, _MOST_COUNTED_BYTES // (days * VISITS.itemsize))


def visits_at(hashes: Words, at: float | npt.NDArray[np.float64], threshold: int) -> Visits:
    """Return the accesses under the threshold as visits. `at`: of all or of each of them, epoch seconds of one day."""
    under = _under(hashes, threshold)
    ticks = np.minimum((np.broadcast_to(at, len(hashes))[under] % DAY_S / TICK_S).astype(np.uint64), _TICKS)
    begun, accesses = np.unique(hashes[under] & ~_TICKS | ticks, return_counts=True)
    visits = np.zeros(len(begun), VISITS)
    visits["begun"], visits["accesses"] = begun, np.minimum(accesses, _MOST_ACCESSES)
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
    joined["accesses"] = np.minimum(counts, _MOST_ACCESSES)
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


def joined(visits: Visits, gap_ticks: int, most_bytes: int) -> tuple[Visits, int]:
    """Return a day's visits in less than its bytes, and the gap up to which those of one entity are joined for that."""
    visits = merged(visits, gap_ticks)
    while visits.nbytes > most_bytes * _FULL_AFTER_CUT and gap_ticks < 1 << 16:
        gap_ticks *= 2
        visits = merged(visits, gap_ticks)
    return visits, gap_ticks


def counts_of(hashes: Words, accesses: int) -> Visits:
    """Return some of this many accesses as visits that only count: each access stands for an equal part of all."""
    visits = visits_at(hashes, 0.0, EVERYBODY)
    each = round(accesses / max(len(hashes), 1))
    visits["accesses"] = np.minimum(visits["accesses"].astype(np.int64) * each, _MOST_ACCESSES)
    return visits


def hottest(visits: Visits, most: int) -> tuple[Visits, int]:
    """Return the entities with the most accesses, added up, and how many accesses the last of them has."""
    visits = merged(visits, 0)
    # by chance if they have equally many: the list must not depend on the hashes, which choose the sample too
    order = np.lexsort((np.random.default_rng().random(len(visits)), visits["accesses"]))[::-1][:most]
    return visits[np.sort(order)], int(visits["accesses"][order[-1]]) if len(order) else 0


def most_asked(visits: Visits, most: int) -> Words:
    """Return the entities with the most accesses in visits of a day, by the upper 48 bits of their hashes, in order."""
    entities, number = np.unique(visits["begun"] >> np.uint64(16), return_inverse=True)
    accesses = np.bincount(number, visits["accesses"], len(entities))
    found: Words = np.sort(entities[np.argsort(-accesses, kind="stable")[:most]])
    return found


def _under(hashes: npt.NDArray[Any], threshold: int) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = hashes >> np.uint64(16) < np.uint64(threshold)
    return found


@dataclass(frozen=True)
class SampledDay:
    """A day as it is in Redis: its visits, the threshold that they are under, and all accesses, sampled or not.

    `popular`: the visits of entities while they were popular, which are not in `visits`; `popular_total`: how many
    accesses those were. `entities`: how many were asked for, sampled or not; None: not known. `hottest`: the accesses
    of the hottest other entities, sampled or not; their times mean nothing.
    """

    visits: Visits
    threshold: int
    total: int
    popular: Visits = field(default_factory=lambda: np.zeros(0, VISITS))
    popular_total: int = 0
    entities: float | None = None
    hottest: Visits = field(default_factory=lambda: np.zeros(0, VISITS))


@dataclass(frozen=True, eq=False)  # equal only to itself, so that results about it can be remembered
class AccessSample:
    """Accesses of a sample of entities, in the order of entities and time.

    `entity`: which entity it was (48 bits of a hash; shape (n,), as all arrays); `begun` and `ended`: first and last
    access of a visit, epoch seconds, to a second; `accesses`: their number; `popular`: whether it was logged because
    the entity was popular, and not as one of the `rate` (0 to 1) of all entities. Of all accesses, logged or not:
    `totals`, their number by day (days since the epoch), `popular_totals`, the number of those with `popular`,
    `day_entities`, the number of each day's entities (a day without it is missing), and `distinct`, the number of
    entities on all days. `since`, `until`: what the sample covers, epoch seconds. `hottest`: of each day, as in
    `SampledDay`.
    """

    entity: Words
    begun: npt.NDArray[np.float64]
    ended: npt.NDArray[np.float64]
    accesses: npt.NDArray[np.int64]
    popular: npt.NDArray[np.bool_]
    rate: float
    totals: dict[int, int]
    popular_totals: dict[int, int]
    day_entities: dict[int, float]
    distinct: float
    since: float
    until: float
    hottest: dict[int, Visits] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """The number of all accesses, in the sample or not."""
        return sum(self.totals.values())

    @property
    def under_threshold(self) -> npt.NDArray[np.bool_]:
        """Tell of each visit whether its entity is one of the `rate` of all: the sample has all of its accesses."""
        return self.entity < np.uint64(round(self.rate * EVERYBODY))

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
            names = (keys.access_sample(model, day), keys.popular_accesses(model, day), keys.hottest(model, day))
            about = ("HMGET", keys.accesses(model, day), "total", "threshold", "popular")
            commands += [about, *[("GET", name) for name in names]]
        since, *replies = client.exchange(commands)
        distinct = client.pfcount(*[keys.asked(model, day) for day in numbers])
        entities = count_asked(client, keys, model, numbers)
        read = {}
        with reading("the access log"):
            for day, about, *parts in zip(numbers, *[replies[at::4] for at in range(4)], strict=True):
                total, threshold, popular_total = (count_in(each or b"0") for each in about)
                visits, popular, counted = (np.frombuffer(part or b"", VISITS) for part in parts)
                if total:
                    read[day] = SampledDay(
                        visits,
                        threshold or EVERYBODY,
                        total,
                        popular,
                        popular_total,
                        entities.get(day),
                        hottest(counted, most_counted(days))[0],
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
            (number, merged(visits, 0), popular)
            for number, day in days.items()
            for visits, popular in ((day.visits[_under(day.visits["begun"], threshold)], False), (day.popular, True))
        ]
        visits = np.concatenate([np.zeros(0, VISITS), *[part for _, part, _ in parts]])
        lengths = [len(part) for _, part, _ in parts]
        midnights = np.repeat([float(number * DAY_S) for number, _, _ in parts], lengths)
        begun = midnights + (visits["begun"] & _TICKS) * TICK_S
        popular = np.repeat([is_popular for _, _, is_popular in parts], lengths).astype(np.bool_)
        entity = visits["begun"] >> np.uint64(16)
        order = np.lexsort((begun, entity))
        rate, sampled = threshold / EVERYBODY, len(np.unique(entity[entity < threshold]))
        if rate == 1 or distinct is None or abs(distinct * rate - sampled) > _ODD * (sampled + 1) ** 0.5:
            distinct = len(np.unique(entity)) if rate == 1 else sampled / rate if rate else 0
        return cls(
            entity[order],
            begun[order],
            (begun + visits["length"] * TICK_S)[order],
            visits["accesses"].astype(np.int64)[order],
            popular[order],
            rate,
            {number: day.total for number, day in days.items()},
            {number: day.popular_total for number, day in days.items()},
            {number: day.entities for number, day in days.items() if day.entities is not None},
            distinct,
            since,
            until,
            {number: day.hottest for number, day in days.items()},
        )
