"""Answers many requests at once by the product's rules of freshness, while one generation serves.

The rules are `FreshnessRules.judge`, the choice between a generation's row and an overlay entry
(`inference.store.reading`), and `step_down`; a test walks random traces through the product's own code. An entity's
answers depend on the generation, on its last computation and on the time. So a search finds, for all entities together,
the first request that must be computed after the last computation. All instants are epoch milliseconds. A computation
takes no time here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from inference.economics.policies import Policy
from inference.economics.traces import Requests, Times
from inference.outcomes import Outcome

#: outcomes that a replay has, by their numbers in `Part.outcomes`
OUTCOMES = (
    Outcome.HIT_BATCH, Outcome.HIT_REALTIME, Outcome.COMPUTED, Outcome.STALE, Outcome.PREVIOUS, Outcome.DEFAULT,
    Outcome.SHED,
)  # fmt: skip
_HIT_BATCH, _HIT_REALTIME, _COMPUTED, _STALE, _PREVIOUS, _DEFAULT, _SHED = range(len(OUTCOMES))
#: long before any instant, and long after, without overflow in sums
NEVER, FOREVER = -(1 << 60), 1 << 60
#: an instant within a part of the trace takes so many bits; the number of an entity takes the bits above
_TIME_BITS = 42
#: searches that go on for all entities together; the chains that are longer are walked one by one
_ROUNDS = 24

Bools = npt.NDArray[np.bool_]
Indexes = npt.NDArray[np.intp]


class Part(NamedTuple):
    """The replay of consecutive requests, each array in their order.

    `outcomes`: index into `OUTCOMES`; `computes`: whether a real-time worker was asked to compute, also behind a stale
    answer.
    """

    times: Times
    outcomes: npt.NDArray[np.uint8]
    computes: Bools


@dataclass(frozen=True)
class Generation:
    """One run's predictions. `members`: by entity, None for all. `deadline`: when Redis forgets them."""

    started: int
    deadline: int
    members: Bools | None = None

    @property
    def as_of(self) -> int:
        """The `as_of` of its rows: whole seconds."""
        return self.started // 1000 * 1000

    def has(self, entities: Any) -> Bools:
        """Return which entities have a row."""
        if self.members is None:
            return np.ones(len(entities), np.bool_)
        found: Bools = self.members[entities]
        return found


#: serves nothing: no run was published yet
NOTHING = Generation(NEVER, NEVER)


@dataclass(frozen=True)
class Limits:
    """A policy's durations in milliseconds."""

    batch: int
    realtime: int
    stale: int
    recompute: int
    keep: int

    @classmethod
    def of(cls, policy: Policy) -> Limits:
        """Return those of a policy."""
        rules = policy.rules
        return cls(
            batch=milliseconds(rules.batch_ttl_s),
            realtime=milliseconds(rules.realtime_ttl_s),
            stale=milliseconds(rules.stale_while_revalidate_s),
            recompute=milliseconds(rules.min_recompute_interval_s),
            keep=milliseconds(policy.realtime_keep_s),
        )


def milliseconds(seconds: float) -> int:
    """Return a duration or an instant in whole milliseconds."""
    return round(seconds * 1000)


class Memory:
    """The last computation of each entity: when, and with which `as_of`."""

    def __init__(self, entities: int) -> None:
        self.computed_at = np.full(entities, NEVER, np.int64)
        self.as_of = np.full(entities, NEVER, np.int64)


class Histories:
    """Some requests by entity, then by time; one generation serves meanwhile.

    `starts` and `ends`: of each entity's requests; `group`: the number of each request's entity among those here.
    """

    def __init__(self, requests: Requests, memory: Memory, generation: Generation, limits: Limits, *, now: bool):
        self._memory, self._generation, self._limits, self._now = memory, generation, limits, now
        self._requested_at = requests.times
        self.order = _by_entity(requests.entities)
        entities = requests.entities[self.order]
        self.times = requests.times[self.order]
        new = np.empty(len(entities), np.bool_)
        new[:1] = True
        np.not_equal(entities[1:], entities[:-1], out=new[1:])
        self.starts = np.flatnonzero(new)
        self.ends = np.append(self.starts[1:], len(entities))
        self.group = np.cumsum(new) - 1
        self.who = entities[self.starts]
        self._since = int(requests.times[0])
        self._key = (self.group << _TIME_BITS) | (self.times - self._since)
        is_there = generation.deadline > self._since
        self.has_row = generation.has(self.who) if is_there else np.zeros(len(self.who), np.bool_)
        # from then on, the row alone must be computed again
        row_is_old = max(generation.as_of + limits.batch + 1, generation.started + limits.recompute)
        self._row_is_old = np.where(self.has_row, row_is_old, NEVER)

    def as_of(self, times: Times) -> Times:
        """Return the `as_of` of answers that are computed then."""
        if self._now or self._generation is NOTHING:
            return times // 1000 * 1000
        return np.full(len(times), self._generation.as_of)

    def initial(self) -> tuple[Times, Times]:
        """Return when each entity here was computed last, before these requests, and with which `as_of`."""
        return self._memory.computed_at[self.who], self._memory.as_of[self.who]

    def find_computed(self) -> Indexes:
        """Return the requests that must be computed, if each is, in no order."""
        groups = np.arange(len(self.who))
        found = self._next(groups, *self.initial())
        rounds: list[Indexes] = []
        while True:
            goes_on = found < self.ends[groups]
            groups, found = groups[goes_on], found[goes_on]
            if not len(groups):
                break
            if len(rounds) == _ROUNDS:
                rounds.append(self._walk(groups, found))
                break
            rounds.append(found)
            times = self.times[found]
            found = self._next(groups, times, self.as_of(times))
        return np.concatenate([np.empty(0, np.intp), *rounds])

    def _walk(self, groups: Indexes, found: Indexes) -> Indexes:
        """Return the rest of long chains of computations."""
        left = np.concatenate([np.arange(*ends) for ends in zip(found, self.ends[groups], strict=True)])
        times = self.times[left]
        following = np.full(len(self.times), len(self.times), np.intp)
        following[left] = self._next(self.group[left], times, self.as_of(times))
        after, walked = memoryview(following.data), []
        for at, end in zip(found.tolist(), self.ends[groups].tolist(), strict=True):
            while at < end:
                walked.append(at)
                at = after[at]
        return np.array(walked, np.intp)

    def _next(self, group: Indexes, computed_at: Times, as_of: Times) -> Indexes:
        """Return the first request of each group that must be computed after a computation."""
        limits, row_is_old = self._limits, self._row_is_old[group]
        wins = self._overlay_wins(self.has_row[group], computed_at, as_of)
        forgotten = computed_at + limits.keep
        # an answer is as fresh as the row that it is newer than
        old = np.maximum(np.maximum(as_of + limits.realtime + 1, computed_at + limits.recompute), row_is_old)
        retried = computed_at + min(limits.recompute, limits.keep)
        found = self._first(group, np.where(wins, np.minimum(old, forgotten), np.maximum(row_is_old, retried)))
        # an overlay entry may be forgotten before the next request: the row counts again
        ended = np.flatnonzero(wins & (found < self.ends[group]))
        ended = ended[self.times[found[ended]] >= forgotten[ended]]
        found[ended] = self._first(group[ended], np.maximum(forgotten[ended], row_is_old[ended]))
        return found

    def _first(self, group: Indexes, instants: Times) -> Indexes:
        """Return the first request of each group at or after an instant; one of the next group if there is none."""
        inside = np.clip(instants - self._since, 0, (1 << _TIME_BITS) - 1)
        return np.searchsorted(self._key, (group << _TIME_BITS) | inside)

    def _overlay_wins(self, has_row: Bools, computed_at: Times, as_of: Times) -> Bools:
        row = self._generation
        newer: Bools = (as_of > row.as_of) | ((as_of == row.as_of) & (computed_at >= row.started))
        return ~has_row | newer

    def answer(self, computed: Indexes | None, previous: Generation, *, has_default: bool) -> Part:
        """Return the answers, in the order of the requests, and remember the computations.

        `computed`: from `find_computed`; None if no worker computes anything. `previous`: the generation before.
        """
        last = np.full(len(self.times), -1)
        if computed is not None:
            last[computed] = computed
        last = np.maximum.accumulate(last)
        judged = self._judge(*self._before(last))
        outcomes = np.where(judged.fresh, np.where(judged.wins, _HIT_REALTIME, _HIT_BATCH), _STALE).astype(np.uint8)
        missing = np.flatnonzero(judged.computes & ~judged.tolerated)
        outcomes[missing] = (
            _COMPUTED if computed is not None else self._step_down(missing, judged, previous, has_default)
        )
        self._remember(last)
        by_request, computes = np.empty_like(outcomes), np.empty(len(outcomes), np.bool_)
        by_request[self.order], computes[self.order] = outcomes, judged.computes
        return Part(self._requested_at, by_request, computes)

    def _before(self, last: Indexes) -> tuple[Times, Times]:
        """Return when each request's entity was computed last before it, and with which `as_of`."""
        computed_at, as_of = (values[self.group] for values in self.initial())
        before = np.append(-1, last[:-1])
        inside = np.flatnonzero(before >= self.starts[self.group])
        computed_at[inside] = self.times[before[inside]]
        as_of[inside] = self.as_of(computed_at[inside])
        return computed_at, as_of

    def _remember(self, last: Indexes) -> None:
        newest = last[self.ends - 1]
        known = newest >= self.starts
        times = self.times[newest[known]]
        self._memory.computed_at[self.who[known]] = times
        self._memory.as_of[self.who[known]] = self.as_of(times)

    def _step_down(self, missing: Indexes, judged: Judged, previous: Generation, has_default: bool) -> Any:
        """Return the outcomes of requests that no worker computes."""
        was_there = previous.has(self.who[self.group[missing]]) & (self.times[missing] < previous.deadline)
        last = _DEFAULT if has_default else _SHED
        return np.where(judged.is_there[missing], _STALE, np.where(was_there, _PREVIOUS, last))

    def _judge(self, computed_at: Times, as_of: Times) -> Judged:
        """Judge each request, after the last computation before it."""
        limits, row = self._limits, self._generation
        has_row, is_kept = self.has_row[self.group], self.times < computed_at + limits.keep
        wins = is_kept & self._overlay_wins(has_row, computed_at, as_of)
        over, row_over = self.times - as_of - limits.realtime, self.times - row.as_of - limits.batch
        over = np.where(wins, np.where(has_row, np.minimum(over, row_over), over), row_over)
        newest = np.where(wins, computed_at, np.where(is_kept, np.maximum(computed_at, row.started), row.started))
        is_there = wins | has_row
        fresh = is_there & (over <= 0)
        just = is_there & (self.times - newest < limits.recompute)
        return Judged(wins, is_there, fresh, just, is_there & (over <= limits.stale))


class Judged(NamedTuple):
    """What is stored for each request. `wins`: an overlay entry; `tolerated`: within `stale_while_revalidate`."""

    wins: Bools
    is_there: Bools
    fresh: Bools
    just_computed: Bools
    tolerated: Bools

    @property
    def computes(self) -> Bools:
        """Whether a worker is asked, before or after the answer."""
        asked: Bools = ~self.fresh & ~self.just_computed
        return asked


def _by_entity(entities: npt.NDArray[np.int32]) -> Indexes:
    """Return the stable order by entity. Sorting whole numbers is several times as fast as `argsort`."""
    packed = (entities.astype(np.int64) << 32) | np.arange(len(entities))
    packed.sort()
    return packed & 0xFFFFFFFF
