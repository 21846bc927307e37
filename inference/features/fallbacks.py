"""A model's fallbacks: where features come from that the feature table lacks.

Each fallback is asked in turn for the entities that those before it did not know: in a thread, within its timeout.
Answers are cached for a moment.
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

#: one that failed is left alone for so long: each request would wait for it in vain
REST_S = 1.0


@dataclass(frozen=True)
class FallbackAnswer:
    """What a fallback says of entities: `rows` by id, None for those that it does not know; `cached`: said before."""

    rows: Mapping[str, Mapping[str, Any] | None]
    cached: frozenset[str]


class GuardedSource:
    """One fallback of a chain. Threads may share it."""

    def __init__(self, settings: FallbackSettings, source: FallbackSource) -> None:
        self.name = settings.name
        self._source = source
        self._timeout_s = settings.timeout
        self._threads = ThreadPoolExecutor(settings.pool, thread_name_prefix=f"fallback-{settings.name}")
        # a call whose time is up goes on, and keeps its place until it ends
        self._room = threading.BoundedSemaphore(settings.pool)
        self._cache: TTLCache[str, Mapping[str, Any] | None] = TTLCache(settings.cache_entities, settings.cache)
        self._lock = threading.Lock()
        self._rests_until = 0.0

    def prepare(self) -> None:
        """Have it import and connect, in a thread of its own; what fails is said, and tried again when it is asked."""
        self._threads.submit(self._source.prepare).add_done_callback(self._note)

    def ask(self, entity_ids: Sequence[str]) -> FallbackAnswer:
        """Return what is known of the entities.

        Raises:
            FeaturesUnavailable: it failed, took too long, is busy with calls that do, or did so a moment ago.
        """
        with self._lock:
            known = {entity_id: self._cache[entity_id] for entity_id in entity_ids if entity_id in self._cache}
        left = [entity_id for entity_id in entity_ids if entity_id not in known]
        cached = frozenset(known)
        if left:
            fetched = self._fetch(left)
            told = {entity_id: fetched.get(entity_id) for entity_id in left}
            with self._lock:
                self._cache.update(told)
            known |= told
        return FallbackAnswer(known, cached)

    def close(self) -> None:
        """Let go of its threads and connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._source.close()

    def _fetch(self, entity_ids: list[str]) -> Known:
        if time.monotonic() < self._rests_until:
            raise FeaturesUnavailable(f"the fallback {self.name!r} failed a moment ago")
        if not self._room.acquire(blocking=False):
            raise self._failed("busy: all its calls are on their way")
        try:
            future = self._threads.submit(self._source.fetch, entity_ids)
        except BaseException:
            self._room.release()
            raise
        future.add_done_callback(self._leave)
        try:
            return future.result(self._timeout_s)
        except FutureTimeoutError as error:
            # the source may raise the same
            why = f"it took over {self._timeout_s:g} s" if not future.done() else describe_failure(error)
            raise self._failed(why) from error
        except Exception as error:  # a driver or a user's function may raise anything
            raise self._failed(describe_failure(error)) from error

    def _note(self, prepared: Future[None]) -> None:
        if not prepared.cancelled() and (error := prepared.exception()):
            log.warning("fallback.not_ready", fallback=self.name, error=describe_failure(error))

    def _leave(self, _: Future[Known]) -> None:
        self._room.release()

    def _failed(self, why: str) -> FeaturesUnavailable:
        self._rests_until = time.monotonic() + REST_S
        log.warning("fallback.failed", fallback=self.name, error=why)
        return FeaturesUnavailable(f"the fallback {self.name!r} failed: {why}")


class FallbackOutcome(StrEnum):
    """What a fallback had to say of one entity."""

    #: it knew its features
    FOUND = "found"
    #: it does not know it
    NOT_FOUND = "not_found"
    #: one of the two above, said a moment ago and remembered
    CACHED = "cached"
    #: it did not answer, or not in time
    FAILED = "failed"
    #: it knew features that do not fit the contract
    INVALID = "invalid"


#: takes "NAME:OUTCOME" → entities
Count = Callable[[Mapping[str, int]], None]


def open_fallback(model: ModelSettings, root: Path, count: Count) -> FallbackChain | None:
    """Return a model's fallbacks, or None when it has none. None imports or connects before it is prepared or asked."""
    if not model.fallbacks:
        return None
    sources = [GuardedSource(one, _source(one, model.entity_column, root)) for one in model.fallbacks]
    return FallbackChain(sources, event_time_column=model.event_time_column, count=count)


def _source(settings: FallbackSettings, entity_column: str, root: Path) -> FallbackSource:
    if isinstance(settings, SqlFallback):
        return SqlSource(settings, entity_column)
    return FunctionSource(settings.function, entity_column, root)


class FallbackChain:
    """Asks one fallback after the other. One that fails is passed over, and what then is not found may be known to it.

    `event_time_column`: of what they return, if it is there; without one, values are of now.
    """

    name = "fallbacks"

    def __init__(self, sources: Sequence[GuardedSource], *, event_time_column: str | None, count: Count) -> None:
        self._sources = sources
        self._event_time_column = event_time_column
        self._count = count

    def prepare(self) -> None:
        """Have all of them import and connect meanwhile, so that no request waits for it."""
        for source in self._sources:
            source.prepare()

    def find(self, entity_ids: Sequence[str], group: FeatureGroup, features: Sequence[Feature]) -> Found:  # noqa: ARG002
        """See `Fallback.find`."""
        answer = _Rows(entity_ids, features)
        counts: Counter[str] = Counter()
        for source in self._sources:
            left = answer.left()
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

    def _ask(self, source: GuardedSource, answer: _Rows, left: npt.NDArray[np.intp], counts: Counter[str]) -> None:
        told = source.ask([answer.entity_ids[row] for row in left])
        known = np.array([told.rows[answer.entity_ids[row]] is not None for row in left], np.bool_)
        rows = left[known]
        try:
            fits = answer.take(rows, [told.rows[answer.entity_ids[row]] or {} for row in rows], self._event_time_column)
        except (SourceError, pa.ArrowException) as error:
            log.warning("fallback.invalid", fallback=source.name, error=str(error))
            fits = np.zeros(len(rows), np.bool_)
        answer.source[rows[fits]] = f"fallback:{source.name}"
        cached = sum(answer.entity_ids[row] in told.cached for row in left)
        for outcome, number in (
            (FallbackOutcome.CACHED, cached),
            (FallbackOutcome.INVALID, int((~fits).sum())),
            (FallbackOutcome.FOUND, sum(answer.entity_ids[row] not in told.cached for row in rows[fits])),
            (FallbackOutcome.NOT_FOUND, sum(answer.entity_ids[row] not in told.cached for row in left[~known])),
        ):
            if number:
                counts[f"{source.name}:{outcome}"] += number


class _Rows:
    """What is known so far of the entities asked for."""

    def __init__(self, entity_ids: Sequence[str], features: Sequence[Feature]) -> None:
        count = len(entity_ids)
        self.entity_ids = entity_ids
        self.features = features
        self.outage: str | None = None
        self.source = np.full(count, "", object)
        self._block: Block = {feature.name: blank(feature, count) for feature in features}
        self._missing = {feature.name: np.zeros(count, np.bool_) for feature in features}
        self._as_of = np.full(count, np.nan)

    def left(self) -> npt.NDArray[np.intp]:
        """Return the positions that nobody knew so far."""
        return np.flatnonzero(self.source == "")

    def take(
        self, rows: npt.NDArray[np.intp], told: Sequence[Mapping[str, Any]], event_time_column: str | None
    ) -> npt.NDArray[np.bool_]:
        """Take values over; return which rows fit the contract.

        Raises:
            SourceError: a column's type does not fit its feature.
        """
        fits = np.full(len(rows), True)
        if not len(rows):
            return fits
        self._as_of[rows] = np.nan
        for feature in self.features:
            column = pa.array([row.get(feature.name) for row in told], from_pandas=True)
            problem = type_problem(feature, column.type)
            if problem:
                raise SourceError(f"column {feature.name!r} {problem}", field=feature.name)
            values, missing, misfit = column_values(column, feature)
            self._block[feature.name][rows] = values
            self._missing[feature.name][rows] = missing
            fits &= ~misfit
        if event_time_column is not None and any(event_time_column in row for row in told):
            times = pa.array([row.get(event_time_column) for row in told], from_pandas=True)
            check_event_time_column(event_time_column, times.type)
            self._as_of[rows] = event_times(times)
        return fits

    def found(self) -> Found:
        """Return what is known in the end."""
        return Found(
            found=self.source != "",
            block=self._block,
            as_of=self._as_of,
            source=self.source.tolist(),
            missing=self._missing,
            outage=self.outage,
        )
