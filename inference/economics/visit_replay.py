"""Replays visits of a sample under a policy: how many accesses of each visit are misses.

A stored answer counts as fresh as in `FreshnessRules`, and a miss is answered and stored at once. `replay` does the
same for whole traces, request by request; a sample has visits, each of many accesses, so it is replayed by visits
here. A test holds both equal. Of a visit, the first and the last access are known. Those between came at random times.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.batch.schedule import slots_between
from inference.economics.policies import Policy
from inference.monitoring.access_sample import AccessSample
from inference.monitoring.asked_filters import DAY_S

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

#: of a visit with more accesses, only the first and the last time are known
KNOWN = 2
#: the fractions of its multiples are spread evenly
GOLDEN = (5**0.5 - 1) / 2
#: a rounding error must not move an access over the edge of a ttl
EPSILON = 1e-9


def misses(sample: AccessSample, policy: Policy, precomputed: Mask | None = None) -> Integers:
    """Return the misses of each visit of the sample. `precomputed`: whether runs score its entity; None: all.

    A miss is computed from features of its moment. Stale answers are not served, and no worker is short.
    """
    entity, number = entities_of(sample), np.arange(len(sample.entity))
    start = sample.since // DAY_S * DAY_S  # small numbers, which floats hold exactly
    begun, ended = sample.begun - start, sample.ended - start
    visits = _Visits.of(entity, begun, ended, np.where(ended > begun, sample.accesses, 1), number)
    scored = np.full(len(entity), policy.schedule is not None) if precomputed is None else precomputed
    parts = [visits.where(~scored)]
    if policy.schedule is not None and len(entity):
        run_s = policy.run_s or 0.0
        slots = slots_between(policy.schedule, policy.timezone, sample.begun.min() - run_s, sample.ended.max())
        parts.append(_by_runs(visits.where(scored), np.array(slots) - start, run_s, policy.batch_fresh_s))
    found = np.zeros(len(entity), np.int64)
    for part in parts:
        np.add.at(found, part.visit, _misses_in_chains(part, policy.realtime_fresh_s))
    return found


@dataclass(frozen=True)
class _Visits:
    """Visits, or parts of them, in the order of chains and time: evenly spaced accesses, the last one at `ended`.

    A chain is an entity. `visit`: the visit that a part belongs to. `cycle`: the slot of the run that is published then
    (-1: runs do not score the entity), and `is_fresh`, whether its answer is; `slot`: the latest slot then, which comes
    before its run is published.
    """

    chain: Integers
    begun: Floats
    ended: Floats
    accesses: Integers
    visit: Integers
    cycle: Integers
    is_fresh: Mask
    slot: Integers

    @classmethod
    def of(cls, chain: Integers, begun: Floats, ended: Floats, accesses: Integers, visit: Integers) -> _Visits:
        count = len(chain)
        cycle, slot = np.full(count, -1, np.int64), np.zeros(count, np.int64)
        return cls(chain, begun, ended, accesses, visit, cycle, np.zeros(count, np.bool_), slot)

    def where(self, mask: Mask | Integers) -> _Visits:
        return _Visits(*(values[mask] for values in vars(self).values()))

    @property
    def gap(self) -> Floats:
        """Seconds between two accesses; 1 where there is only one."""
        gaps = (self.ended - self.begun) / np.maximum(self.accesses - 1, 1)
        return np.where(gaps > 0, gaps, 1.0)


def _by_runs(visits: _Visits, slots: Floats, run_s: float, fresh_s: float) -> _Visits:
    """Return the visits in parts: a part is before or after each slot, publishing, and end of a run's freshness.

    `slots`: the instants of the runs' features, from before the first access to after the last one. `run_s`: from a
    slot until the run is published; `fresh_s`: until its answers are too old.
    """
    published = slots + run_s
    if fresh_s - run_s >= np.diff(slots).max():
        return visits.where(np.zeros(len(visits.chain), np.bool_))
    first, last = (np.searchsorted(published, at + EPSILON, "right") - 1 for at in (visits.begun, visits.ended))
    rows = np.repeat(np.arange(len(first)), last - first + 1)
    cycle = first[rows] + np.arange(len(rows)) - np.searchsorted(rows, rows)
    low, high = published[cycle], published[cycle + 1]
    # an access at the last fresh instant is fresh
    stale = np.clip(slots[cycle] + fresh_s + 2 * EPSILON, low, high)
    later = np.clip(slots[cycle + 1], low, high)
    edges = np.stack([low, np.minimum(stale, later), np.maximum(stale, later), high], 1)
    low, high = edges[:, :-1], edges[:, 1:]
    is_fresh, is_later = high <= stale[:, None], low >= later[:, None]
    row = np.arange(3 * len(rows)) // 3
    pieces = visits.where(rows[row])
    pieces = replace(
        pieces,
        cycle=cycle[row],
        is_fresh=is_fresh.ravel(),
        slot=cycle[row] + is_later.ravel(),
        visit=visits.visit[rows[row]],
    )
    return _cut(pieces, low.ravel(), high.ravel())


def _cut(pieces: _Visits, low: Floats, high: Floats) -> _Visits:
    """Return the accesses of each piece: those of its visit from `low` until before `high`.

    A visit's first and last access are known, the others came at random times between.
    """
    rng = np.random.default_rng(len(low))
    begun, ended, accesses = pieces.begun, pieces.ended, pieces.accesses
    has_first = (begun >= low - EPSILON) & (begun < high - EPSILON)
    has_last = (ended >= low - EPSILON) & (ended < high - EPSILON) & (accesses > 1)
    low, high = np.maximum(low, begun), np.minimum(high, ended)
    between = _drawn(rng, pieces.visit, np.maximum(accesses - KNOWN, 0), np.maximum(high - low, 0.0))
    some = np.flatnonzero(has_first | has_last | (between > 0))
    has_first, has_last, between = has_first[some], has_last[some], between[some]
    low, high = low[some], high[some]
    begun, ended = begun[some], ended[some]
    # the first and the last of so many random times
    chance, later = rng.random((2, len(some)))
    first = low + (high - low) * (1 - chance ** (1 / np.maximum(between, 1)))
    first = np.where(has_first, begun, np.where(between > 0, first, ended))
    rest = between - ~has_first
    last = np.where(rest > 0, first + (high - first) * later ** (1 / np.maximum(rest, 1)), first)
    return replace(
        pieces.where(some),
        begun=first,
        ended=np.where(has_last, ended, last),
        accesses=between + has_first + has_last,
    )


def _drawn(rng: np.random.Generator, visit: Integers, accesses: Integers, lengths: Floats) -> Integers:
    """Return how many of a visit's random accesses come in each of its pieces, which have these lengths."""
    found = np.zeros(len(visit), np.int64)
    at = np.flatnonzero(np.append(True, np.diff(visit) != 0)[: len(visit)])
    after = np.append(at[1:], len(visit))
    left, rest = accesses[at], np.add.reduceat(lengths, at) if len(at) else lengths
    while True:
        going = (at < after) & (left > 0)
        at, after, left, rest = at[going], after[going], left[going], rest[going]
        if not len(at):
            return found
        found[at] = rng.binomial(left, np.clip(lengths[at] / np.maximum(rest, EPSILON), 0, 1))
        at, left, rest = at + 1, left - found[at], rest - lengths[at]


def _numbered(changes: Mask, count: int) -> Integers:
    """Return the number of the group of each of `count` rows. `changes`: where the next row is of another group."""
    return np.cumsum(np.append(False, changes))[:count]


def entities_of(sample: AccessSample) -> Integers:
    """Return the number of the entity of each visit."""
    return _numbered(sample.entity[1:] != sample.entity[:-1], len(sample.entity))


def _misses_in_chains(visits: _Visits, ttl_s: float) -> Integers:
    """Return the misses of each visit, if each miss is computed and kept for `ttl_s`.

    What is computed counts until a run of a later slot is published, also if that is too old; while a run's answer is
    fresh, so is what is newer. All chains advance at the same time, each from one miss to the visit of its next one.
    """
    found = np.zeros(len(visits.chain), np.int64)
    if not len(found):
        return found
    times = visits.begun.min()
    begun, ended, gap, cycle = visits.begun - times, visits.ended - times, visits.gap, visits.cycle
    step = np.floor(ttl_s / gap + EPSILON).astype(np.int64) + 1
    # accesses that became one visit came at random: after a ttl, the next one came a gap later on average
    random = visits.accesses > KNOWN
    period, late = np.where(random, ttl_s + gap, step * gap), np.where(random, gap, 0.0)
    # a part of a period is one or none, so that many visits have the right sum; hardly if gaps are short beside the ttl
    rounding = visits.visit * GOLDEN % 1 * np.minimum(2 * gap / period, 1)
    span, cycles = float(ended.max()) + ttl_s + 1, int(cycle.max()) + 2
    ends, runs = visits.chain * span + ended, visits.chain * cycles + cycle
    first = np.flatnonzero(np.append(True, np.diff(visits.chain) != 0))
    after = np.append(first[1:], len(found))
    next_stale = _next_true(~visits.is_fresh)
    at, fresh_until, computed_in = first, np.full(len(first), -1.0), np.full(len(first), -2)
    while True:
        at = np.where(visits.is_fresh[at], next_stale[at], at)
        going = at < after
        at, after, fresh_until, computed_in = at[going], after[going], fresh_until[going], computed_in[going]
        if not len(at):
            return found
        # a run's answer is newer than what was computed
        fresh_until = np.where(cycle[at] > computed_in, -1.0, fresh_until)
        stale = np.where(fresh_until < begun[at], begun[at], np.minimum(fresh_until + late[at], ended[at]))
        computed = np.where(random[at] | (stale == begun[at]), stale, ended[at])
        left = ended[at] - computed
        periods = left / period[at]
        # of random accesses, the last one at least is a miss if the rest is longer than a ttl
        periods = np.where(random[at], np.maximum(periods + rounding[at], left > ttl_s), periods)
        more = np.floor(periods + EPSILON).astype(np.int64)
        found[at] += more + 1
        fresh_until = np.minimum(computed + more * period[at], ended[at]) + ttl_s
        computed_in, chain = visits.slot[at], visits.chain[at]
        stale_at = np.maximum(np.searchsorted(ends, chain * span + fresh_until + EPSILON, "right"), at + 1)
        replaced_at = np.searchsorted(runs, chain * cycles + np.minimum(computed_in, cycles - 2), "right")
        at = np.minimum(stale_at, np.maximum(replaced_at, at + 1))
        going = at < after
        at, after, fresh_until, computed_in = at[going], after[going], fresh_until[going], computed_in[going]


def _next_true(mask: Mask) -> Integers:
    """Return of each place the next one that is true, itself included; the length if there is none."""
    places = np.where(mask, np.arange(len(mask)), len(mask))
    return np.minimum.accumulate(places[::-1])[::-1]
