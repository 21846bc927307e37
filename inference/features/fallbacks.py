"""A model's fallbacks: they know features that the feature table lacks.

Each fallback answers for the entities that the ones before it did not know, in a thread and within its timeout. Workers
cache the answers for a moment.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from cachetools import TTLCache

from inference.errors import FeaturesUnavailable, SourceError
from inference.features.columns import column_values, type_problem
from inference.features.fallback_sources import FallbackSource, FunctionSource, Known, SqlSource, describe_failure
from inference.features.feature import Feature
from inference.features.gathering import Found
from inference.features.groups import FeatureGroup
from inference.features.key_columns import check_event_time_column, event_times
from inference.features.rows import blank
from inference.logs import get_logger
from inference.schema import Block
from inference.settings import FallbackSettings, ModelSettings, SqlFallback

log = get_logger(__name__)

#: a fallback that failed gets no question for so long: each request would wait for it in vain
REST_S = 1.0


@dataclass(frozen=True)
class FallbackAnswer:
    """An answer of a fallback: `rows` by id, None for an unknown entity. `cached`: the ids from its cache."""

    rows: Mapping[str, Mapping[str, Any] | None]
    cached: frozenset[str]


class GuardedSource:
    """Calls one source in a thread, within its timeout, and caches its answers. Several threads may share it."""

    def __init__(self, settings: FallbackSettings, source: FallbackSource) -> None:
        self.name = settings.name
        self._source = source
        self._timeout_s = settings.timeout
        self._threads = ThreadPoolExecutor(settings.pool, thread_name_prefix=f"fallback-{settings.name}")
        # a call goes on after its timeout, and keeps its place until it ends
        self._places = threading.BoundedSemaphore(settings.pool)
        self._cache: TTLCache[str, Mapping[str, Any] | None] = TTLCache(settings.cache_entities, settings.cache)
        self._lock = threading.Lock()
        self._rests_until = 0.0

    def prepare(self) -> None:
        """Have the source import and connect in a thread. Logs an error; the first question tries again."""
        self._threads.submit(self._source.prepare).add_done_callback(self._log_failed_start)

    def ask(self, entity_ids: Sequence[str]) -> FallbackAnswer:
        """Return the source's rows of the entities.

        Raises:
            FeaturesUnavailable: it failed or took too long, now or a moment ago, or all its calls are under way.
        """
        with self._lock:
            known = {entity_id: self._cache[entity_id] for entity_id in entity_ids if entity_id in self._cache}
        left = [entity_id for entity_id in entity_ids if entity_id not in known]
        cached = frozenset(known)
        if left:
            fetched = self._fetch(left)
            new = {entity_id: fetched.get(entity_id) for entity_id in left}
            with self._lock:
                self._cache.update(new)
            known |= new
        return FallbackAnswer(known, cached)

    def close(self) -> None:
        """Let go of its threads and connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._source.close()

    def _fetch(self, entity_ids: list[str]) -> Known:
        if time.monotonic() < self._rests_until:
            raise FeaturesUnavailable(f"the fallback {self.name!r} failed a moment ago")
        if not self._places.acquire(blocking=False):
            raise self._failed("busy: all its calls are on their way")
        try:
            future = self._threads.submit(self._source.fetch, entity_ids)
        except BaseException:
            self._places.release()
            raise
        future.add_done_callback(self._free_place)
        try:
            return future.result(self._timeout_s)
        except FutureTimeoutError as error:
            # the source may raise the same class
            why = f"it took over {self._timeout_s:g} s" if not future.done() else describe_failure(error)
            raise self._failed(why) from error
        except Exception as error:  # a driver or a user's function may raise anything
            raise self._failed(describe_failure(error)) from error

    def _log_failed_start(self, prepared: Future[None]) -> None:
        if not prepared.cancelled() and (error := prepared.exception()):
            log.warning("fallback.not_ready", fallback=self.name, error=describe_failure(error))

    def _free_place(self, _: Future[Known]) -> None:
        self._places.release()

    def _failed(self, why: str) -> FeaturesUnavailable:
        self._rests_until = time.monotonic() + REST_S
        log.warning("fallback.failed", fallback=self.name, error=why)
        return FeaturesUnavailable(f"the fallback {self.name!r} failed: {why}")


class FallbackOutcome(StrEnum):
    """The outcome of one fallback for one entity."""

    #: the fallback knew its features
    FOUND = "found"
    #: the fallback does not know it
    NOT_FOUND = "not_found"
    #: one of the two above, from the cache
    CACHED = "cached"
    #: the fallback did not answer, or not in time
    FAILED = "failed"
    #: the fallback knew features that do not fit the contract
    INVALID = "invalid"


#: takes "NAME:OUTCOME" → entities
Count = Callable[[Mapping[str, int]], None]


def open_fallback(model: ModelSettings, root: Path, count: Count) -> FallbackChain | None:
    """Return a model's fallbacks; None if it has none. They import and connect in `prepare`, or when first asked."""
    if not model.fallbacks:
        return None
    sources = [GuardedSource(one, _source(one, model.entity_column, root)) for one in model.fallbacks]
    return FallbackChain(sources, event_time_column=model.event_time_column, count=count)


def _source(settings: FallbackSettings, entity_column: str, root: Path) -> FallbackSource:
    if isinstance(settings, SqlFallback):
        return SqlSource(settings, entity_column)
    return FunctionSource(settings.function, entity_column, root)


class FallbackChain:
    """Asks one fallback after the other. Goes on if one fails; that one may know the entities that are not found.

    `event_time_column`: the column of their answers with the time of a row; without it, values are of now.
    """

    name = "fallbacks"

    def __init__(self, sources: Sequence[GuardedSource], *, event_time_column: str | None, count: Count) -> None:
        self._sources = sources
        self._event_time_column = event_time_column
        self._count = count

    def prepare(self) -> None:
        """Have all fallbacks import and connect in the background, so that no request waits for it."""
        for source in self._sources:
            source.prepare()

    def find(self, entity_ids: Sequence[str], group: FeatureGroup, features: Sequence[Feature]) -> Found:  # noqa: ARG002
        """See `Fallback.find`."""
        answer = _Answer(entity_ids, features)
        counts: Counter[str] = Counter()
        for source in self._sources:
            left = answer.unknown()
            if not len(left):
                break
            try:
                self._ask(source, answer, left, counts)
            except FeaturesUnavailable as error:
                answer.outage = error.message
                counts[f"{source.name}:{FallbackOutcome.FAILED}"] += len(left)
        if counts:
            self._count(counts)
        return answer.found()

    def close(self) -> None:
        """Let go of all threads and connections."""
        for source in self._sources:
            source.close()

    def _ask(self, source: GuardedSource, answer: _Answer, left: npt.NDArray[np.intp], counts: Counter[str]) -> None:
        reply = source.ask([answer.entity_ids[row] for row in left])
        known = np.array([reply.rows[answer.entity_ids[row]] is not None for row in left], np.bool_)
        rows = left[known]
        try:
            fits = answer.take(
                rows, [reply.rows[answer.entity_ids[row]] or {} for row in rows], self._event_time_column
            )
        except (SourceError, pa.ArrowException, OverflowError) as error:
            log.warning("fallback.invalid", fallback=source.name, error=str(error))
            fits = np.zeros(len(rows), np.bool_)
        answer.source[rows[fits]] = f"fallback:{source.name}"
        cached = sum(answer.entity_ids[row] in reply.cached for row in left)
        for outcome, number in (
            (FallbackOutcome.CACHED, cached),
            (FallbackOutcome.INVALID, int((~fits).sum())),
            (FallbackOutcome.FOUND, sum(answer.entity_ids[row] not in reply.cached for row in rows[fits])),
            (FallbackOutcome.NOT_FOUND, sum(answer.entity_ids[row] not in reply.cached for row in left[~known])),
        ):
            if number:
                counts[f"{source.name}:{outcome}"] += number


class _Answer:
    """The features that are known so far, a row for each entity of the question."""

    def __init__(self, entity_ids: Sequence[str], features: Sequence[Feature]) -> None:
        count = len(entity_ids)
        self.entity_ids = entity_ids
        self.features = features
        self.outage: str | None = None
        self.source = np.full(count, "", object)
        self._block: Block = {feature.name: blank(feature, count) for feature in features}
        self._missing = {feature.name: np.zeros(count, np.bool_) for feature in features}
        self._as_of = np.full(count, np.nan)

    def unknown(self) -> npt.NDArray[np.intp]:
        """Return the positions of the entities that no fallback knew so far."""
        return np.flatnonzero(self.source == "")

    def take(
        self, rows: npt.NDArray[np.intp], reply: Sequence[Mapping[str, Any]], event_time_column: str | None
    ) -> npt.NDArray[np.bool_]:
        """Take rows of a fallback; return which of them fit the contract.

        Raises:
            SourceError: a column's type does not fit its feature.
        """
        fits = np.full(len(rows), True)
        if not len(rows):
            return fits
        self._as_of[rows] = np.nan
        for feature in self.features:
            column = pa.array([row.get(feature.name) for row in reply], from_pandas=True)
            problem = type_problem(feature, column.type)
            if problem:
                raise SourceError(f"column {feature.name!r} {problem}", field=feature.name)
            values, missing, misfit = column_values(column, feature)
            self._block[feature.name][rows] = values
            self._missing[feature.name][rows] = missing
            fits &= ~misfit
        if event_time_column is not None and any(event_time_column in row for row in reply):
            times = pa.array([row.get(event_time_column) for row in reply], from_pandas=True)
            check_event_time_column(event_time_column, times.type)
            self._as_of[rows] = event_times(times)
        return fits

    def found(self) -> Found:
        """Return the answer of the whole chain."""
        return Found(
            found=self.source != "",
            block=self._block,
            as_of=self._as_of,
            source=self.source.tolist(),
            missing=self._missing,
            outage=self.outage,
        )
