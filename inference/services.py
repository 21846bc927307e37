"""Builds everything in `inference` from the settings, once per process and on first use."""

from __future__ import annotations

from functools import cache, cached_property, partial

import redis
import redis.asyncio

from inference.features import FeatureContract, FeatureWriter
from inference.features.fallbacks import FallbackChain, open_fallback
from inference.hits import FALLBACKS, MinuteCounts
from inference.keys import Keys, TableKind
from inference.models import ModelHost, ModelRegistry
from inference.settings import Settings
from inference.store import AsyncPipe, AsyncTableReader, Pace, RedisTable

#: a worker may wait for a busy Redis; a request may not
WORKER_SOCKET_TIMEOUT_S = 10.0
REQUEST_SOCKET_TIMEOUT_S = 1.0


class Services:
    """The parts of one process, each built when it is first asked for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.keys = Keys(settings.redis.prefix)
        self.table = cache(self._table)
        self.fallback = cache(self._fallback)

    @cached_property
    def cache(self) -> redis.Redis:
        """Client of the Redis that holds predictions and features; answers are bytes."""
        return redis.Redis.from_url(
            self.settings.cache_url, socket_timeout=WORKER_SOCKET_TIMEOUT_S, health_check_interval=30
        )

    @cached_property
    def registry(self) -> ModelRegistry:
        """Model records and which version is active."""
        return ModelRegistry(self.cache, self.keys)

    @cached_property
    def host(self) -> ModelHost:
        """Loaded models; only workers may ask for it."""
        return ModelHost(self.settings, self.registry)

    def predictions(self, model: str) -> RedisTable:
        """Return a model's prediction table."""
        return self.table(TableKind.PREDICTIONS, model)

    def features(self, model: str) -> RedisTable:
        """Return a model's feature table."""
        return self.table(TableKind.FEATURES, model)

    def feature_writer(
        self, model: str, contract: FeatureContract, *, client: redis.Redis | None = None
    ) -> FeatureWriter:
        """Return what changes single entities' features of a model; `client` None: the process's own."""
        tables = {
            kind: RedisTable(client or self.cache, self.keys.table(kind, model), kind=kind, model=model)
            for kind in TableKind
        }
        keep_s = self.settings.models[model].batch.keep
        return FeatureWriter(tables[TableKind.FEATURES], tables[TableKind.PREDICTIONS], contract, keep_s=keep_s)

    def async_cache(self) -> redis.asyncio.Redis:
        """Return a new asyncio client of the cache Redis: short timeout, no retries."""
        return redis.asyncio.Redis.from_url(
            self.settings.cache_url,
            socket_timeout=REQUEST_SOCKET_TIMEOUT_S,
            socket_connect_timeout=REQUEST_SOCKET_TIMEOUT_S,
            retry=None,
        )

    def reader(self, pipe: AsyncPipe, kind: TableKind, model: str) -> AsyncTableReader:
        """Return the asyncio reader of one table."""
        return AsyncTableReader(pipe, self.keys.table(kind, model))

    def _fallback(self, model: str) -> FallbackChain | None:
        """Return what is asked for the features that a model's table lacks, counted by the minute."""
        counts = MinuteCounts(self.cache, self.keys)
        of_model = self.settings.models[model]
        return open_fallback(of_model, self.settings.root, partial(counts.add, model, FALLBACKS))

    def _table(self, kind: TableKind, model: str) -> RedisTable:
        of_model = self.settings.models.get(model)
        pace = Pace(of_model.batch.write_share) if of_model else None
        return RedisTable(self.cache, self.keys.table(kind, model), kind=kind, model=model, pace=pace)
