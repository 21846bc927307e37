"""Builds all parts of a deployment from its settings, for every process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
from threading import RLock
from typing import Any, Generic, Protocol, TypeVar

from inference.batch import Runs
from inference.batch.ledger import Ledger
from inference.economics.advice import CostReport, cost_report
from inference.economics.measured import Measured, measure
from inference.economics.prices import read_prices
from inference.economics.promises import Promises
from inference.errors import BrokerUnavailable
from inference.features import FeatureContract, FeatureWriter
from inference.features.fallbacks import FallbackChain, open_fallback
from inference.forgetting import Forgetting
from inference.models import ModelHost, ModelRegistry
from inference.monitoring.counters import FALLBACKS, HitRecorder, MinuteCounts, RecorderThread, RequestsNote
from inference.monitoring.parity import Parity
from inference.monitoring.presence import Presence
from inference.monitoring.queues import QueueState
from inference.monitoring.statistics import HitWindows
from inference.redis.bulk import Pace
from inference.redis.clients import REQUEST, AsyncClient, Client, Patience, open_async_client, open_client
from inference.redis.keys import Keys, TableKind
from inference.serving.answer_sample import AnswerSample
from inference.serving.scorer import RealtimeScorer, TensorScorer
from inference.settings import Settings
from inference.store import AsyncTableReader, Table
from inference.streams.progress import StreamProgress


class Broker(Protocol):
    """Sends work to the workers. Methods raise BrokerUnavailable if the broker refuses or does not answer."""

    def send_chunks(self, run_id: str, numbers: Sequence[int]) -> None:
        """Put chunks of a run on the batch queue; if the broker takes only some, the reconciler sends the rest."""

    def start_driver(self, run_id: str) -> None:
        """Start a Spark or Ray driver for a run unless one is alive; the reconciler asks again until one is."""

    def compare_run(self, run_id: str, options: Mapping[str, Any]) -> None:
        """Let the maintenance worker compare a run with what serves. `options`: of `DiffOptions.to_json`."""

    def compute_later(self, model: str, entity_ids: Sequence[str]) -> None:
        """Have a model's workers compute entities when no request or job waits; do nothing if some wait already."""

    def poke(self) -> None:
        """Ask the maintenance worker to look at the runs now; by itself it looks every few seconds."""

    def hurry(self) -> None:
        """Call `poke`, but log an error once instead of raising it."""

    def queue_states(self) -> Sequence[QueueState]:
        """Return the state of each queue, at most a second old."""

    def close(self) -> None:
        """Close the connections."""


#: the release's price table, read once
_prices = cache(read_prices)


def no_broker(_: Settings) -> Broker:
    """Refuse to open a broker, for a process that works with Redis alone.

    Raises:
        BrokerUnavailable: always.
    """
    raise BrokerUnavailable("this process has no broker")


T = TypeVar("T")


class BuiltOnce(Generic[T]):
    """Builds a part of a deployment once, even if several threads ask for it at the same time."""

    def __init__(self, build: Callable[[Any], T]) -> None:
        self.__doc__ = build.__doc__
        self._build = build

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, deployment: Deployment, owner: type) -> T:
        """Build the part and store it as an attribute, which later reads find directly."""
        with deployment.building:
            attributes = vars(deployment)
            if self._name not in attributes:
                attributes[self._name] = self._build(deployment)
            part: T = attributes[self._name]
            return part


class Deployment:
    """Holds the parts of one deployment in one process. Builds each part once, on first use.

    Nothing connects before it is used; leaving the context closes all connections. `patience`: how long the client
    of the cache Redis waits. `open_broker`: opens the broker, for the first part that sends messages.
    """

    def __init__(
        self, settings: Settings, patience: Patience, open_broker: Callable[[Settings], Broker] = no_broker
    ) -> None:
        self.settings = settings
        self.keys = Keys(settings.redis.key_prefix)
        self._patience = patience
        self._open_broker = open_broker
        self._opened = ExitStack()
        self.building = RLock()
        self.table = cache(self._table)
        self.fallback = cache(self._fallback)

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections that were opened."""
        self._opened.close()

    @BuiltOnce
    def cache(self) -> Client:
        """Client of the Redis that holds predictions and features; answers are bytes."""
        client = open_client(self.settings.cache_url, self._patience, tag=self.keys.prefix)
        self._opened.callback(client.close)
        return client

    def async_cache(self) -> AsyncClient:
        """Return a new asyncio client of the cache Redis, with a request's patience; the caller closes it."""
        return open_async_client(self.settings.cache_url, REQUEST, tag=self.keys.prefix)

    @BuiltOnce
    def broker(self) -> Broker:
        """Sends work to the workers."""
        broker = self._open_broker(self.settings)
        self._opened.callback(broker.close)
        return broker

    def predictions(self, model: str) -> Table:
        """Return a model's prediction table."""
        return self.table(TableKind.PREDICTIONS, model)

    def features(self, model: str) -> Table:
        """Return the table of a model's stored features, which may be another model's."""
        return self.table(TableKind.FEATURES, self.settings.features_owner(model))

    def reader(self, client: AsyncClient, kind: TableKind, model: str) -> AsyncTableReader:
        """Return the asyncio reader of one table."""
        return AsyncTableReader(client, self.keys.table(kind, model))

    @BuiltOnce
    def forgetting(self) -> Forgetting:
        """Forgets entities on request."""
        return Forgetting(self.settings, self.cache, self.keys, self.registry, self.table)

    def feature_writer(self, model: str, contract: FeatureContract) -> FeatureWriter:
        """Return a writer of single entities' features. Unlike a run, it never pauses between writes.

        `model`: the owner of the features; `contract`: its own.
        """

        def table(kind: TableKind, name: str) -> Table:
            return Table(self.cache, self.keys.table(kind, name), kind=kind, model=name)

        own, *sharing = (table(TableKind.PREDICTIONS, one) for one in self.settings.sharing_features(model))
        keep_s = self.settings.models[model].batch.keep
        return FeatureWriter(table(TableKind.FEATURES, model), own, contract, keep_s=keep_s, sharing=sharing)

    def stream_progress(self, name: str) -> StreamProgress:
        """Return the progress of a stream of the settings."""
        return StreamProgress(self.cache, self.keys, name)

    @BuiltOnce
    def registry(self) -> ModelRegistry:
        """Model records and which version is active."""
        return ModelRegistry(self.cache, self.keys)

    @BuiltOnce
    def host(self) -> ModelHost:
        """Loaded models, for workers only."""
        return ModelHost(self.settings, self.registry)

    @BuiltOnce
    def runs(self) -> Runs:
        """Runs of all models.

        Raises:
            BrokerUnavailable: this process has no broker.
        """
        return Runs(
            self.settings,
            self.cache,
            self.keys,
            self.registry,
            lambda: self.host,
            self.table,
            self.broker.send_chunks,
            self.broker.hurry,
            start_driver=self.broker.start_driver,
        )

    @BuiltOnce
    def ledger(self) -> Ledger:
        """The records of runs."""
        return Ledger(self.cache, self.keys)

    @BuiltOnce
    def scorer(self) -> RealtimeScorer:
        """Computes predictions on demand, for workers only."""
        sample = AnswerSample(self.settings, self.cache, self.keys)
        return RealtimeScorer(self.settings, self.host, self.predictions, self.features, self.fallback, sample)

    @BuiltOnce
    def tensor_scorer(self) -> TensorScorer:
        """Computes a model's own tensors, for workers only."""
        return TensorScorer(self.settings, self.host, self.scorer.in_time)

    @BuiltOnce
    def parity(self) -> Parity:
        """Computes samples of answers again, for workers only."""
        return Parity(self.settings, self.cache, self.keys, lambda: self.host, self.table, self.fallback)

    @BuiltOnce
    def hits(self) -> HitWindows:
        """How requests were answered, by the minute."""
        return HitWindows(self.cache, self.keys, self.cache.now)

    def measured(self, model: str) -> Measured:
        """Return a model's measurements for the estimate of its costs.

        Raises:
            UnknownModel: it is not configured.
            StoreUnavailable: Redis does not answer.
        """
        _, of_model = self.settings.model(model)
        return measure(self.cache, self.keys, model, of_model, self.hits)

    def cost_report(self, model: str) -> CostReport:
        """Return a model's costs and the advice, from its measurements and the release's prices.

        Raises:
            UnknownModel: it is not configured.
            StoreUnavailable: Redis does not answer.
        """
        return cost_report(model, self.settings.model(model)[1], self.measured(model), _prices())

    @BuiltOnce
    def promises(self) -> Promises:
        """What the advice promised for each day, and what came."""
        return Promises(self.cache, self.keys, self.hits)

    @BuiltOnce
    def minute_counts(self) -> MinuteCounts:
        """Counts workers' results by the minute."""
        return MinuteCounts(self.cache, self.keys, self.cache.now)

    @BuiltOnce
    def requests_note(self) -> RequestsNote:
        """Tells whether requests come, for work in the background."""
        return RequestsNote(self.cache, self.keys)

    @BuiltOnce
    def recorder(self) -> HitRecorder:
        """Logs accesses, for processes without an event loop: a thread flushes it."""
        thread = RecorderThread(self.async_cache(), self.keys, self.settings.models)
        self._opened.callback(thread.stop)
        return thread.recorder

    @BuiltOnce
    def presence(self) -> Presence:
        """Tells which workers serve each queue."""
        return Presence(self.cache, self.keys)

    def _fallback(self, model: str) -> FallbackChain | None:
        """Return a model's chain of fallbacks for features that its table lacks, or None. Counts their answers."""
        count = partial(self.minute_counts.add, model, FALLBACKS)
        chain = open_fallback(self.settings.models[model], self.settings.root, count)
        if chain is not None:
            self._opened.callback(chain.close)
        return chain

    def _table(self, kind: TableKind, model: str) -> Table:
        of_model = self.settings.models.get(model)
        pace = Pace(of_model.batch.write_share, requests_come=self.requests_note.is_there) if of_model else None
        return Table(self.cache, self.keys.table(kind, model), kind=kind, model=model, pace=pace)
