"""Replays a trace of requests against a policy: runs begin, end or fail, and requests are answered meanwhile."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from inference.batch.schedule import slot_after, slot_at
from inference.economics.histories import (
    FOREVER,
    NOTHING,
    Bools,
    Generation,
    Histories,
    Indexes,
    Limits,
    Memory,
    Part,
    milliseconds,
)
from inference.economics.policies import Policy, Precomputed
from inference.economics.traces import Requests, Times, Trace

#: most requests that are replayed at once
_AT_ONCE = 1 << 20
_FEWEST_AT_ONCE = 64


@dataclass(frozen=True)
class Speeds:
    """How fast a run is (rows/s and seconds until its first row), and one real-time worker (answers/s)."""

    rows_per_s: float
    startup_s: float
    worker_rps: float


@dataclass(frozen=True)
class Run:
    """A run of a replay: its instants in epoch milliseconds, and its rows."""

    started: int
    ended: int
    rows: int
    published: bool


class Replay:
    """Replays a trace against one policy; iterate once over its parts. `rows`: entities of the table.

    At the first request, the generation of the last slot before it serves. `runs`: those that began within the trace,
    complete after the last part. Memory: 16 to 30 bytes an entity, and some 200 MB.
    """

    def __init__(self, trace: Trace, policy: Policy, rows: int, speeds: Speeds) -> None:
        self._requests, self._policy, self._speeds = trace.requests, policy, speeds
        self._rows = max(rows, trace.entities)
        self._limits = Limits.of(policy)
        self._memory = Memory(trace.entities)
        self._asked = Asked(policy.precomputed, trace.entities, self._rows)
        self._serving = self._previous = NOTHING
        self._capacity = Capacity(None if policy.workers is None else policy.workers * speeds.worker_rps)
        self._free_at = 0
        self.runs: list[Run] = []

    def __iter__(self) -> Iterator[Part]:
        at = 0
        for slot in self._slots():
            at = yield from self._until(slot, at)
            members = self._asked.choose(slot)
            run = self._begin(slot, self._rows if members is None else int(members.sum()))
            at = yield from self._until(run.ended, at)
            if run.published:
                generation = Generation(slot, slot + milliseconds(self._policy.keep_s), members)
                self._serving, self._previous = generation, self._serving
        yield from self._until(FOREVER, at)

    def _slots(self) -> Iterator[int]:
        """Yield the slots at which a run begins; one that comes while a run goes on gets none."""
        policy = self._policy
        if policy.schedule is None:
            return
        begins_s = int(self._requests.times[0]) / 1000
        slot = slot_at(policy.schedule, policy.timezone, begins_s - self._run_s(self._rows))
        while milliseconds(slot) <= self._requests.times[-1]:
            yield milliseconds(slot)
            slot = slot_after(policy.schedule, policy.timezone, max(slot, (self._free_at - 1) / 1000))

    def _begin(self, slot: int, rows: int) -> Run:
        within = slot >= self._requests.times[0]
        fails = within and len(self.runs) + 1 in self._policy.failed_runs
        run = Run(slot, slot + max(milliseconds(self._run_s(rows)), 1), rows, not fails)
        self._free_at = run.ended
        if within:
            self.runs.append(run)
        return run

    def _run_s(self, rows: int) -> float:
        if self._policy.run_s is not None:
            return self._policy.run_s
        return self._speeds.startup_s + rows / (self._speeds.rows_per_s * self._policy.batch_workers)

    def _until(self, instant: int, at: int) -> Generator[Part, None, int]:
        """Replay the requests before an instant; return the position of the first one after."""
        times = self._requests.times
        end = int(np.searchsorted(times, instant))
        while at < end:
            # the rows of a generation vanish at its deadline
            forgotten = int(np.searchsorted(times, self._serving.deadline))
            stop = min(end, at + self._capacity.at_once, forgotten if forgotten > at else end)
            part = self._replay(at, stop)
            self._asked.count(self._requests.entities[at : at + len(part.times)], part.times)
            yield part
            at += len(part.times)
        return at

    def _replay(self, at: int, stop: int) -> Part:
        """Replay some requests from a position on, as far as the workers keep up."""
        histories = self._histories(at, stop)
        computed = histories.find_computed()
        served, works = self._capacity.serve(self._requests.times[at:stop], np.sort(histories.order[computed]))
        if served < stop - at:
            histories = self._histories(at, at + served)
            computed = histories.find_computed()
        return histories.answer(computed if works else None, self._previous, has_default=self._policy.has_default)

    def _histories(self, at: int, stop: int) -> Histories:
        entities, times = self._requests
        part = Requests(entities[at:stop], times[at:stop])
        return Histories(part, self._memory, self._serving, self._limits, now=self._policy.features_now)


class Asked:
    """Tells which entities a run computes, from the requests before it."""

    def __init__(self, precomputed: Precomputed, entities: int, rows: int) -> None:
        self._precomputed, self._rows = precomputed, rows
        self._last = np.full(entities if precomputed.within_s is not None else 0, -1, np.int64)
        self._times = np.zeros(entities if precomputed.share is not None else 0, np.int32)
        self._nobody = True

    def count(self, entities: npt.NDArray[np.int32], times: Times) -> None:
        """Take in the next requests."""
        self._nobody = False
        if len(self._last):
            self._last[entities] = times  # the last one of an entity stays
        if len(self._times):
            np.add.at(self._times, entities, 1)

    def choose(self, instant: int) -> Bools | None:
        """Return the entities of a run that begins then; None for all, also while no request is known."""
        within_s, share = self._precomputed
        if self._nobody or (within_s is None and share is None):
            return None
        if within_s is not None:
            recent: Bools = self._last >= max(instant - milliseconds(within_s), 0)
            return recent
        hottest = min(round((share or 0.0) * self._rows), int(np.count_nonzero(self._times)))
        chosen = np.zeros(len(self._times), np.bool_)
        if hottest:
            # of equally hot entities, the one with the smaller number goes first
            rank = (self._times.astype(np.int64) << 32) - np.arange(len(self._times))
            chosen[np.argpartition(rank, -hottest)[-hottest:]] = True
        return chosen


class Served(NamedTuple):
    """How many of the next requests can be replayed at once, and whether the workers compute in them."""

    requests: int
    works: bool


class Capacity:
    """Limits the computations of a second; those above are refused. `per_s`: None for as many as are asked for.

    Workers that take longer for one than a second have a longer span in which they compute one. `at_once`: requests to
    try next: few while the workers are overloaded, for each overload cuts a part short.
    """

    def __init__(self, per_s: float | None) -> None:
        self._span_ms = 1000 if not per_s else max(1000, math.ceil(1000 / per_s))
        self._most = None if per_s is None else math.floor(round(per_s * self._span_ms / 1000, 6))
        self.at_once = _AT_ONCE
        self._span, self._used = -1, 0

    def serve(self, times: Times, computed: Indexes) -> Served:
        """Return how far the workers keep up. `computed`: the positions that need them, in order."""
        if self._most is None or (self._most and not len(computed)):
            return Served(len(times), works=True)
        if self._most == 0:
            return Served(len(times), works=False)
        spans = times[computed] // self._span_ms
        before = np.arange(len(spans)) - np.searchsorted(spans, spans)
        before[spans == self._span] += self._used
        over = np.flatnonzero(before >= self._most)
        first = int(computed[over[0]]) if len(over) else len(times)
        if first == 0:  # nothing more is computed in this span
            rest = int(np.searchsorted(times, (spans[0] + 1) * self._span_ms))
            self.at_once = max(2 * rest, _FEWEST_AT_ONCE)
            return Served(rest, works=False)
        kept = np.searchsorted(computed, first)
        if kept:
            self._span, self._used = int(spans[kept - 1]), int(before[kept - 1]) + 1
        self.at_once = min(2 * self.at_once, _AT_ONCE)
        return Served(first, works=True)
