"""Counts outcomes, latencies and ages in memory, and adds them to Redis once a second, with the access log."""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from inference.clock import Clock, system_clock
from inference.errors import StoreUnavailable
from inference.failures import Failures
from inference.logs import get_logger
from inference.monitoring.access_log import AccessLog
from inference.outcomes import Outcome
from inference.redis.clients import AsyncClient, Client
from inference.redis.keys import Keys
from inference.settings import ModelSettings

T = TypeVar("T")

log = get_logger(__name__)

FLUSH_EVERY_S = 1.0
#: most accesses of a model that wait for the next flush; a process drops further ones
MOST_ASKED = 50_000
#: how long work in the background believes that requests come; longer than the time between two flushes
REQUESTS_SEEN_MS = 2_000
#: seconds between its looks
LOOK_EVERY_S = 0.1
#: longer than the longest window that is read, a week
KEEP_S = 8 * 24 * 3600


@dataclass(frozen=True)
class Scale:
    """The buckets of one quantity; `name` is the prefix of their fields in Redis.

    Bucket N holds values up to `first * factor**N`; the last one holds all larger values. Redis keeps their sum
    as a whole number of `sum_unit`, coarse enough for 63 bits.
    """

    name: str
    first: float
    factor: float
    size: int
    sum_unit: float = 1.0
    bounds: tuple[float, ...] = dataclasses.field(init=False)
    fields: tuple[str, ...] = dataclasses.field(init=False)
    sum_field: str = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bounds", tuple(self.first * self.factor**n for n in range(self.size - 1)))
        object.__setattr__(self, "fields", tuple(f"{self.name}:{n}" for n in range(self.size)))
        object.__setattr__(self, "sum_field", f"{self.name}:sum")

    def add(self, counts: MutableMapping[str, float], value: float, times: int = 1) -> None:
        """Count a value in its bucket and add it to the sum. A negative value (clocks differ) adds nothing."""
        counts[self.fields[bisect_left(self.bounds, value)]] += times
        if value > 0:
            counts[self.sum_field] += times * value / self.sum_unit

    def add_each(self, counts: MutableMapping[str, float], values: npt.NDArray[np.float64]) -> None:
        """Call `add` for each value."""
        buckets = np.bincount(np.searchsorted(self.bounds, values), minlength=self.size)
        for number in np.flatnonzero(buckets).tolist():
            counts[self.fields[number]] += int(buckets[number])
        counts[self.sum_field] += float(np.maximum(values, 0).sum()) / self.sum_unit

    def field_of(self, value: float) -> str:
        """Return the field that counts a value."""
        return self.fields[bisect_left(self.bounds, value)]

    def histogram(self, counts: Mapping[str, int]) -> Histogram:
        """Return this scale's histogram from summed fields."""
        return Histogram(
            self,
            tuple(counts.get(name, 0) for name in self.fields),
            counts.get(self.sum_field, 0) * self.sum_unit,
        )


#: seconds that requests took if the store answered them alone, 0.25 ms to 14 s in steps of 19 %
HIT_LATENCY = Scale("hit_s", 0.00025, 2**0.25, 64, sum_unit=1e-6)
#: seconds that all other requests took
MISS_LATENCY = Scale("miss_s", 0.00025, 2**0.25, 64, sum_unit=1e-6)
#: seconds between an answer's `as_of` and the answer, 1 s to 24 days
AGE = Scale("age_s", 1.0, 2**0.5, 43)
#: entities or instances in one task message of the real-time queue
MICRO_BATCH = Scale("rows", 1.0, 2.0, 14)
#: prefix of the fields that count what real-time workers did with a model version; VERSION:failed (rows), and the
#: buckets of `version_latency` follow
CALLS = "calls"


@lru_cache(maxsize=256)
def version_latency(version: int) -> Scale:
    """Return the seconds from a task of real-time workers until its answer, 1 ms to 16 s, if they called a version."""
    return Scale(f"{CALLS}:{version}", 0.001, 2.0, 16, sum_unit=1e-6)


@dataclass(frozen=True)
class Histogram:
    """Counts by bucket of a scale. `sum`: of all values, except those that older releases counted."""

    scale: Scale
    counts: tuple[int, ...]
    sum: float

    @property
    def total(self) -> int:
        """All values counted."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """Return the quantile at `share` (0 to 1), exact to one bucket's width; None without values."""
        rank, below = share * self.total, 0
        for number, count in enumerate(self.counts):
            if count and below + count >= rank:
                return self._within(number, (rank - below) / count)
            below += count
        return None

    def _within(self, number: int, part: float) -> float:
        bounds = self.scale.bounds
        upper = bounds[min(number, len(bounds) - 1)]
        if number in (0, len(bounds)):
            return upper
        return float(bounds[number - 1] * (upper / bounds[number - 1]) ** part)


class HitRecorder:
    """Counts in the memory of one process; `flush` adds the counts to Redis. `models`: their settings, for the log."""

    def __init__(
        self,
        client: AsyncClient,
        keys: Keys,
        clock: Clock = system_clock,
        models: Mapping[str, ModelSettings] | None = None,
    ) -> None:
        self._client = client
        self._keys = keys
        self._clock = clock
        self._counts = _empty_counts()
        #: model → (version, outcome) → count: these are added to `_counts` only when they are flushed
        self._of_versions: defaultdict[str, defaultdict[tuple[int, str], int]] = defaultdict(lambda: defaultdict(int))
        self._asked: defaultdict[str, list[str]] = defaultdict(list)
        self._not_logged = 0
        self._accesses = AccessLog(client, keys, models, clock)

    def record(
        self,
        model: str,
        outcome: Outcome,
        count: int = 1,
        *,
        age_s: float | None = None,
        version: int | None = None,
    ) -> None:
        """Add `count` to an outcome. `age_s`: age of the features behind the answer; None for a default.

        `version`: the model version that computed the answer; None if none did.
        """
        counts = self._counts[model]
        # `value` is a property, which is slower, and every request comes here
        if version is None:
            counts[outcome._value_] += count
        else:
            self._of_versions[model][version, outcome._value_] += count
        if age_s is not None:
            AGE.add(counts, age_s, count)

    def record_each(self, model: str, outcome: Outcome, ages_s: npt.NDArray[np.float64]) -> None:
        """Add an outcome for each age, in seconds."""
        counts = self._counts[model]
        counts[outcome.value] += len(ages_s)
        AGE.add_each(counts, ages_s)

    def record_asked(self, model: str, entity_ids: Sequence[str]) -> None:
        """Remember the entities that were answered; `flush` logs them. Another thread may call this."""
        asked = self._asked[model]
        if len(asked) < MOST_ASKED:
            asked.extend(entity_ids)
        else:
            self._not_logged += len(entity_ids)

    def record_latency(self, model: str, took_s: float, *, hit: bool) -> None:
        """Count one request's duration; `hit`: the store answered all of it, and fresh."""
        (HIT_LATENCY if hit else MISS_LATENCY).add(self._counts[model], took_s)

    def record_micro_batch(self, model: str, rows: int) -> None:
        """Count one message to the real-time workers."""
        MICRO_BATCH.add(self._counts[model], rows)

    def record_versions(self, model: str, failed: Mapping[int, int], took_s: float) -> None:
        """Count one task of real-time workers. `failed`: of each version that they called, the rows that failed."""
        counts = self._counts[model]
        for version, rows in failed.items():
            version_latency(version).add(counts, took_s)
            if rows:
                counts[f"{CALLS}:{version}:failed"] += rows

    def record_tensors(
        self, model: str, version: int, took_s: float, *, rows: int, calls: int, spent: Mapping[str, int]
    ) -> None:
        """Count one request for tensors. `calls`: of the model, 0 if it failed. `version`: 0 for the active one.

        `spent`: microseconds by the names of `TensorRequests`.
        """
        counts, field = self._counts[model], f"{TENSORS}:{version}:"
        counts[field + ("requests" if calls else "failed")] += 1
        counts[field + ("us" if calls else "failed_us")] += took_s * 1e6
        if calls:
            counts[field + "rows"] += rows
            counts[field + "calls"] += calls
            for name, us in spent.items():
                counts[field + name] += us

    async def flush(self) -> None:
        """Add the counts to the current minute and to the totals in Redis, and the entities to the access log.

        If Redis does not answer, drops the counts and logs the loss: Redis may have added them, and
        counting twice would be worse.
        """
        await self._flush_counts()
        await self._accesses.write({model: _take(ids) for model, ids in list(self._asked.items())})
        if self._not_logged:
            log.warning("hits.entities_dropped", count=self._not_logged, error="more came than one process logs")
            self._not_logged = 0

    async def _flush_counts(self) -> None:
        by_model = self._take_whole()
        if not by_model:
            return
        minute = int(self._clock() // 60)
        pipeline = self._client.pipeline(transaction=False)
        for model, counts in by_model.items():
            for field, count in counts.items():
                pipeline.hincrby(self._keys.hits(model, minute), field, count)
                pipeline.hincrby(self._keys.hit_totals(model), field, count)
                if field.startswith(TENSORS) and field.endswith(":requests"):
                    last = f"{field.removesuffix('requests')}last_ms"
                    pipeline.hset(self._keys.hit_totals(model), last, int(self._clock() * 1000))
            pipeline.expire(self._keys.hits(model, minute), KEEP_S)
        # see `RequestsNote`
        pipeline.set(self._keys.requests, 1, px=REQUESTS_SEEN_MS)
        try:
            await pipeline.execute()
        except StoreUnavailable as error:
            outcomes = set(Outcome)
            lost = sum(n for counts in by_model.values() for field, n in counts.items() if field in outcomes)
            log.warning("hits.dropped", count=lost, error=error.message)

    def _take_whole(self) -> dict[str, dict[str, int]]:
        """Take the counts out of memory as whole numbers. A sum's fraction stays for the next time."""
        for model, of_model in self._of_versions.items():
            for (version, outcome), answers in of_model.items():
                self._counts[model][outcome] += answers
                self._counts[model][f"{VERSIONS}:{version}:{outcome}"] += answers
            of_model.clear()
        counted, self._counts = self._counts, _empty_counts()
        whole: dict[str, dict[str, int]] = {}
        for model, counts in counted.items():
            for field, count in counts.items():
                if int(count):
                    whole.setdefault(model, {})[field] = int(count)
                if count % 1:
                    self._counts[model][field] = count % 1
        return whole

    async def run(self, *, every_s: float = FLUSH_EVERY_S) -> None:
        """Flush repeatedly; when cancelled, flush the rest and end."""
        failures = Failures(__name__, "hits")
        try:
            while True:
                await asyncio.sleep(every_s)
                with failures.kept_here():
                    await self.flush()
        finally:
            await self.flush()


def _empty_counts() -> defaultdict[str, defaultdict[str, float]]:
    """Return empty counts: model → field → count, or sum with its fraction."""
    return defaultdict(lambda: defaultdict(int))


def _take(ids: list[str]) -> list[str]:
    """Take all ids out of a list, to which another thread may append meanwhile."""
    taken = ids[:]
    del ids[: len(taken)]
    return taken


class _PoollessLoop(asyncio.SelectorEventLoop):
    """Makes blocking calls itself: it has one task, and at a process's exit pools of threads are gone."""

    def run_in_executor(  # type: ignore[override]  # the base class's types are narrower
        self,
        executor: object,  # noqa: ARG002 - there is none
        func: Callable[..., T],
        *args: Any,
    ) -> asyncio.Future[T]:
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - whoever awaits it gets it
            done.set_exception(error)
        return done


class RecorderThread:
    """Has a recorder, and flushes it once a second: for a process without an event loop of its own."""

    def __init__(
        self,
        client: AsyncClient,
        keys: Keys,
        models: Mapping[str, ModelSettings],
        fill: Callable[[HitRecorder], None] = lambda _: None,
    ) -> None:
        """`client`: used in the thread only, which closes it. `fill`: called before each flush, in the thread."""
        self._client = client
        self._fill = fill
        self.recorder = HitRecorder(client, keys, models=models)
        self._loop = _PoollessLoop()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Flush the rest and end the thread. May be called again."""
        atexit.unregister(self.stop)
        if self._thread.is_alive():
            with suppress(RuntimeError):  # the loop was closed just now
                self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(2 * FLUSH_EVERY_S)

    def _run(self) -> None:
        self._loop.run_until_complete(self._keep())
        self._loop.close()

    async def _keep(self) -> None:
        failures = Failures(__name__, "hits")
        async with self._client:
            is_last = False
            while not is_last:
                is_last = await self._is_stopped_within(FLUSH_EVERY_S)
                with failures.kept_here():
                    self._fill(self.recorder)
                    await self.recorder.flush()

    async def _is_stopped_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            return await asyncio.wait_for(self._stopped.wait(), seconds)
        return False


#: prefix of the fields that count fallbacks' answers; NAME:OUTCOME follows
FALLBACKS = "fallback"
#: prefix of the fields that count the answers of a model version; VERSION:OUTCOME follows
VERSIONS = "version"
#: prefix of the fields that count parity results; PATH:RESULT follows
PARITY = "parity"
#: prefix of the fields that count requests for tensors; VERSION:NAME follows
TENSORS = "tensors"


@dataclass(frozen=True)
class TensorRequests:
    """The requests for tensors that one version got, ever. `last_ms`: when it last computed one, epoch milliseconds.

    `queue_us`: what workers did not work on them; `input_us`, `infer_us`, `output_us`: workers' time for reading the
    inputs, for the model, and for packing the outputs.
    """

    requests: int = 0
    us: int = 0
    rows: int = 0
    calls: int = 0
    failed: int = 0
    failed_us: int = 0
    last_ms: int = 0
    queue_us: int = 0
    input_us: int = 0
    infer_us: int = 0
    output_us: int = 0

    @classmethod
    def of(cls, totals: Mapping[str, int]) -> dict[int, TensorRequests]:
        """Return version → requests; version 0: requests for the active version, whichever it was, that failed."""
        known = {one.name for one in dataclasses.fields(cls)}
        found: defaultdict[int, dict[str, int]] = defaultdict(dict)
        for (version, name), count in counts_of_kind(totals, TENSORS).items():
            if version.isdecimal() and name in known:
                found[int(version)][name] = count
        return {version: cls(**counts) for version, counts in found.items()}


class ParityResult(StrEnum):
    """The result of computing one answer again."""

    #: the same vector, and the same answer except for rounding
    AGREED = "agreed"
    #: the same vector, and a different answer: a defect
    DISAGREED = "disagreed"
    #: a different vector, or none any more: the answers cannot be compared
    DRIFTED = "drifted"


class MinuteCounts:
    """Adds counts to the current minute. Synchronous, for work that blocks anyway."""

    def __init__(self, client: Client, keys: Keys, clock: Clock = system_clock) -> None:
        self._client: Any = client
        self._keys = keys
        self._clock = clock

    def add(self, model: str, kind: str, counts: Mapping[str, int]) -> None:
        """Add counts of a kind. If Redis does not answer, drops them and logs the loss."""
        pipeline = self._client.pipeline(transaction=False)
        try:
            minute = self._keys.hits(model, int(self._clock() // 60))
            for name, count in counts.items():
                for key in (minute, self._keys.hit_totals(model)):
                    pipeline.hincrby(key, f"{kind}:{name}", count)
            pipeline.expire(minute, KEEP_S)
            pipeline.execute()
        except StoreUnavailable as error:
            log.warning("counts.dropped", kind=kind, error=error.message)


def counts_of_kind(fields: Mapping[str, int], kind: str) -> dict[tuple[str, str], int]:
    """Return a kind's counts from summed fields, by (name, outcome)."""
    found = {}
    for field, count in fields.items():
        start, _, rest = field.partition(":")
        name, separator, outcome = rest.rpartition(":")
        if start == kind and separator:
            found[name, outcome] = count
    return found


class RequestsNote:
    """Tells work in the background whether API processes, on any machine, answer requests now.

    Looks at most once in `LOOK_EVERY_S`, so it may be asked before each step. If Redis does not answer, no requests
    come: nothing waits for them. Several threads may share it.
    """

    def __init__(self, client: Client, keys: Keys, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._note = keys.requests
        self._clock = clock
        self._look_at = clock()
        self._is_there = False

    def is_there(self) -> bool:
        """Tell whether a request was answered in the last two seconds."""
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + LOOK_EVERY_S
            try:
                self._is_there = bool(self._client.exchange([("EXISTS", self._note)])[0])
            except StoreUnavailable:
                self._is_there = False
        return self._is_there
