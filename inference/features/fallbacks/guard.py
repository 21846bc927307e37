"""Guards a fallback's source: calls it in a thread, within its timeout, and caches its answers for a moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any

from cachetools import TTLCache

from inference.errors import FeaturesUnavailable
from inference.features.fallbacks.source import FallbackSource, Known, describe_failure
from inference.logs import get_logger
from inference.settings import FallbackSettings

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
