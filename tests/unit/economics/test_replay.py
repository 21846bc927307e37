"""The replay of a trace gives the answers that the product's own service gives, request by request."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.economics import histories, replay
from inference.economics.histories import OUTCOMES, Part
from inference.economics.policies import DEFAULTS, Policy, Precomputed, parse_policy
from inference.economics.replay import Replay, Speeds
from inference.economics.traces import Requests, Trace, draw_trace
from inference.errors import Overloaded
from inference.outcomes import Outcome
from inference.schema import DType, TensorSpec
from inference.serving.answers import Answer, FreshnessRules
from inference.serving.model_service import ModelService
from inference.settings import BatchSettings, ModelSettings, RealtimeSettings
from inference.store import Entry, Origin, Pointer
from inference.store.codec import codec_for, pack_overlay, schema_digest
from inference.store.reading import Fetched, decode_entries
from inference.store.records import Manifest

#: epoch seconds; all instants are whole eighths of seconds, which floats hold exactly
BEGIN = 1_700_000_000.0
FIELDS = (TensorSpec("y", DType.FLOAT32),)
SPEEDS = Speeds(rows_per_s=2.0, startup_s=0.5, worker_rps=1.0)
ENTITIES = 3


def trace_of(requests: Sequence[tuple[float, int]]) -> Trace:
    times = np.array([round((BEGIN + at) * 1000) for at, _ in requests], np.int64)
    return Trace(Requests(np.array([entity for _, entity in requests], np.int32), times), ENTITIES)


def packed(as_of: float) -> bytes:
    rows = codec_for(FIELDS).pack({"y": np.zeros(1, np.float32)}, np.array([as_of]))
    return bytes(rows.to_pylist()[0])


@dataclass
class Run:
    number: int
    started: float
    ended: float
    deadline: float
    members: frozenset[int]
    published: bool


@dataclass
class World:
    """Redis, its batch and its real-time workers, in memory, at the instant `now`. Gives the product what it reads."""

    policy: Policy
    now: float = BEGIN
    runs: list[Run] = field(default_factory=list)
    overlay: dict[int, tuple[bytes, float]] = field(default_factory=dict)
    asked: list[tuple[float, int]] = field(default_factory=list)
    computed: int = 0
    used: Counter[int] = field(default_factory=Counter)

    # --- runs ---

    def run_until(self, now: float, last: float) -> None:
        """Begin the runs that are due by then."""
        every = self.policy.schedule and float(self.policy.schedule.removesuffix("s"))
        while every:
            after = max(self.runs[-1].started, self.runs[-1].ended - 0.001) if self.runs else None
            slot = (math.floor((BEGIN + self.begins - self._takes(ENTITIES)) / every) if after is None
                    else math.floor(after / every) + 1) * every  # fmt: skip
            if slot > min(now, last):
                return
            members = self._members(slot)
            inside = sum(run.started >= BEGIN + self.begins for run in self.runs) + 1
            fails = slot >= BEGIN + self.begins and inside in self.policy.failed_runs
            ended = slot + self._takes(len(members))
            self.runs.append(Run(len(self.runs) + 1, slot, ended, slot + self.policy.keep_s, members, not fails))

    begins: float = 0.0

    def _takes(self, rows: int) -> float:
        return self.policy.run_s or SPEEDS.startup_s + rows / (SPEEDS.rows_per_s * self.policy.batch_workers)

    def _members(self, slot: float) -> frozenset[int]:
        before = [(at, entity) for at, entity in self.asked if at < slot]
        within_s, share = self.policy.precomputed
        if not before or (within_s is None and share is None):
            return frozenset(range(ENTITIES))
        if within_s is not None:
            return frozenset(entity for at, entity in before if slot - at <= within_s)
        times = Counter(entity for _, entity in before)
        return frozenset(sorted(times, key=lambda entity: (-times[entity], entity))[: round((share or 0) * ENTITIES)])

    def _published(self) -> list[Run]:
        return [run for run in self.runs if run.published and run.ended <= self.now]

    # --- the prediction table ---

    async def pointer(self) -> Pointer:
        numbers = [None, None, *(run.number for run in self._published())]
        return Pointer(current=numbers[-1], previous=numbers[-2], active_version=1)

    @property
    def has_previous(self) -> bool:
        return len(self._published()) > 1

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        run = next(reversed(self._published()), None)
        return self._entries(ids, run, [self._kept(int(each)) for each in ids])

    async def read_generation(self, ids: Sequence[str], number: int) -> list[Entry | None]:
        return self._entries(ids, self.runs[number - 1], ())

    def _kept(self, entity: int) -> bytes | None:
        entry, until = self.overlay.get(entity, (None, 0.0))
        return entry if self.now < until else None

    def _entries(self, ids: Sequence[str], run: Run | None, overlay: Sequence[bytes | None]) -> list[Entry | None]:
        is_there = run is not None and self.now < run.deadline
        manifest = None
        if run is not None and is_there:
            manifest = Manifest(run.number, FIELDS, 1, 1, "h", None, run.started, run.deadline, ENTITIES)
        rows = [packed(run.started) if run and is_there and int(each) in run.members else None for each in ids]
        schemas = {schema_digest(FIELDS): FIELDS}
        return decode_entries(Fetched(manifest, 1, rows, overlay, schemas, model="m", ids=ids))

    # --- the workers ---

    async def submit(self, task: str, kwargs: Mapping[str, Any], **_: float) -> dict[str, Any]:
        self.computed += 1
        second = math.floor(self.now)
        limit = self.policy.workers
        if limit is not None and self.used[second] >= limit * SPEEDS.worker_rps:
            raise Overloaded("too much to do")
        self.used[second] += 1
        (entity,) = kwargs["entity_ids"]
        published = self._published()
        as_of = self.now if self.policy.features_now or not published else published[-1].started
        [entry] = pack_overlay(FIELDS, [packed(min(as_of, self.now))], self.now, 1, Origin.REALTIME)
        self.overlay[int(entity)] = (entry, self.now + self.policy.realtime_keep_s)
        item = {"entity_id": entity, "prediction": 0.0, "as_of": as_of}
        return {"model": "m", "model_version": 1, "computed_at": self.now, "predictions": [item]}


async def walk(requests: Sequence[tuple[float, int]], policy: Policy, model: ModelSettings) -> tuple[list[str], int]:
    """Return each request's outcome, and how many computations were asked for."""
    world = World(policy, begins=requests[0][0])
    service = ModelService("m", model, world, world.submit, lambda: world.now)
    outcomes = []
    for at, entity in requests:
        world.run_until(BEGIN + at, BEGIN + requests[-1][0])
        world.now = BEGIN + at
        ids = [str(entity)]
        until = asyncio.get_running_loop().time() + 10
        [answer] = await service.complete(ids, await world.read(ids), until)
        for _ in range(12):  # what is computed behind an answer is done before the next request
            await asyncio.sleep(0)
        outcomes.append(answer.outcome if isinstance(answer, Answer) else Outcome.SHED)
        world.asked.append((BEGIN + at, entity))
    await service.close()
    return outcomes, world.computed


def replayed(requests: Sequence[tuple[float, int]], policy: Policy) -> tuple[list[str], int]:
    parts = list(Replay(trace_of(requests), policy, ENTITIES, SPEEDS))
    return [OUTCOMES[code] for part in parts for code in part.outcomes], sum(int(part.computes.sum()) for part in parts)


#: few, so that instants often meet the end of a duration exactly
durations = st.sampled_from([0.125, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0])


@st.composite
def models(draw: st.DrawFn) -> ModelSettings:
    batch = BatchSettings(
        ttl=draw(durations), keep=draw(durations), schedule=draw(st.sampled_from([None, "1s", "3s", "7s", "20s"])),
        feature_table=draw(st.booleans()),
    )  # fmt: skip
    realtime = RealtimeSettings(
        ttl=draw(durations), keep=draw(durations), min_recompute_interval=draw(durations),
        stale_while_revalidate=draw(st.none() | durations), default=draw(st.sampled_from([None, 0.0])),
        max_micro_batch=1,
    )  # fmt: skip
    return ModelSettings(path=Path("m"), batch=batch, realtime=realtime)


@st.composite
def policies(draw: st.DrawFn, model: ModelSettings) -> Policy:
    precomputed = st.one_of(
        st.just(Precomputed()),
        durations.map(lambda within_s: Precomputed(within_s=within_s)),
        st.sampled_from([0.34, 0.67, 1.0]).map(lambda share: Precomputed(share=share)),
    )
    return replace(
        Policy.of("p", model),
        precomputed=draw(precomputed),
        run_s=draw(st.sampled_from([None, 0.5, 5.0])),
        failed_runs=draw(st.frozensets(st.integers(1, 3), max_size=2)),
        workers=draw(st.sampled_from([None, None, 0, 1])),
        batch_workers=draw(st.sampled_from([1, 2])),
    )


gaps = st.sampled_from([0, 1, 4, 4, 8, 8, 8, 12, 40])
traces = st.lists(st.tuples(gaps, st.integers(0, ENTITIES - 1)), min_size=20, max_size=40).map(
    lambda steps: [
        (at / 8, entity) for at, (_, entity) in zip(np.cumsum([gap for gap, _ in steps]).tolist(), steps, strict=True)
    ]
)


def compare(data: st.DataObject) -> None:
    model = data.draw(models())
    policy, requests = data.draw(policies(model)), data.draw(traces)
    assert replayed(requests, policy) == asyncio.run(walk(requests, policy, model))


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_a_replay_is_the_walk_of_every_request_through_the_products_own_rules(data: st.DataObject) -> None:
    compare(data)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=4000, deadline=None)
def test_many_replays_are_walks_through_the_products_own_rules(data: st.DataObject) -> None:
    compare(data)


def test_a_request_that_no_worker_computes_gets_the_previous_generation() -> None:
    batch = BatchSettings(schedule="3s", ttl=60, keep=60)
    model = ModelSettings(path=Path("m"), batch=batch, realtime=RealtimeSettings(max_micro_batch=1))
    policy = replace(Policy.of("p", model), precomputed=Precomputed(within_s=2.0), run_s=0.5, workers=0)
    slot = 3 * math.ceil(BEGIN / 3) - BEGIN  # of the first run that knows who was asked for
    requests = [(slot - 2.5, 0), (slot - 1, 1), (slot + 1, 0), (slot + 1, 1), (slot + 5, 2)]
    outcomes, asked = replayed(requests, policy)
    assert outcomes == [Outcome.HIT_BATCH, Outcome.HIT_BATCH, Outcome.PREVIOUS, Outcome.HIT_BATCH, Outcome.SHED]
    assert (outcomes, asked) == asyncio.run(walk(requests, policy, model))


@pytest.mark.parametrize(
    "text", ["every=never realtime_ttl=20s", "every=7m ttl=5m run=2m share=0.3", "every=never workers=3", "every=10m"]
)
def test_the_size_of_the_parts_and_long_chains_change_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = draw_trace(exponent=1.2, entities=300, requests=20_000, span_s=3600)
    policy = parse_policy(text, replace(Policy.of("p", DEFAULTS), rules=FreshnessRules(600, 60, 5, 20)))

    def whole() -> Part:
        parts = list(Replay(trace, policy, 300, SPEEDS))
        return Part(*(np.concatenate(each) for each in zip(*parts, strict=True)))

    at_once = whole()
    assert len(np.unique(at_once.outcomes)) > 1
    monkeypatch.setattr(histories, "_ROUNDS", 2)
    monkeypatch.setattr(replay, "_AT_ONCE", 777)
    for ours, theirs in zip(whole(), at_once, strict=True):
        np.testing.assert_array_equal(ours, theirs)
