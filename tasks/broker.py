"""Sends the messages of runs to the broker, and reads how full the queues are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kombu.pools import ProducerPool

from inference.failures import Failures
from inference.logs import message_headers
from inference.monitoring.queues import JobPriority, QueueState
from inference.settings import Settings
from tasks.celery_app import broker_errors
from tasks.dispatch.sender import CONFIRMED, make_sending_app, priorities
from tasks.queues import Queues

failures = Failures(__name__, "broker")

#: a late wake-up is useless: the reconciler looks every few seconds anyway
_POKE_EXPIRES_S = 60
#: entities that are computed later: no more than so many messages wait, none for longer than so many seconds
_MOST_LATER, _LATER_EXPIRES_S = 16, 60
_OPTIONS = {"ignore_result": True, **CONFIRMED}


class CeleryBroker:
    """The `Broker` (`inference.deployment`) of every process. Nothing connects before it is used."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lowest = priorities(settings).jobs[JobPriority.LOW]
        self._application = make_sending_app(settings)
        # all applications of a broker share Celery's own pool, so none of them may close it
        limit = self._application.conf.broker_pool_limit
        self._connections = self._application.connection_for_write().Pool(limit)
        self._producers = ProducerPool(self._connections, limit)
        self._queues = Queues(settings)

    def send_chunks(self, run_id: str, numbers: Sequence[int]) -> None:
        """See `Broker.send_chunks`."""
        self._send(f"a chunk of run {run_id}", "forecache.score_chunk", [(run_id, number) for number in numbers])

    def start_driver(self, run_id: str) -> None:
        """See `Broker.start_driver`."""
        self._send(f"a message of run {run_id}", "forecache.drive_run", [(run_id,)], expires=_POKE_EXPIRES_S)

    def compare_run(self, run_id: str, options: Mapping[str, Any]) -> None:
        """See `Broker.compare_run`."""
        self._send(f"a message of run {run_id}", "forecache.compare_run", [(run_id, options)])

    def compute_later(self, model: str, entity_ids: Sequence[str]) -> None:
        """See `Broker.compute_later`."""
        queue = self._settings.realtime_queue(model)
        if any(state.queue == queue and state.depth >= _MOST_LATER for state in self.queue_states()):
            return
        arguments = {"model": model, "entity_ids": list(entity_ids)}
        # with the time of sending, so that the worker counts it as no access of a client's
        options = {"queue": queue, "priority": self._lowest, "headers": message_headers(), "expires": _LATER_EXPIRES_S}
        with broker_errors("a message"), self._producers.acquire(block=True) as producer:
            self._application.send_task(
                "forecache.predict_entities", kwargs=arguments, producer=producer, **_OPTIONS, **options
            )

    def poke(self) -> None:
        """See `Broker.poke`."""
        self._send("a message", "forecache.reconcile", [()], expires=_POKE_EXPIRES_S)

    def hurry(self) -> None:
        """See `Broker.hurry`."""
        with failures.kept_here("hurry"):
            self.poke()

    def queue_states(self) -> list[QueueState]:
        """See `Broker.queue_states`."""
        return self._queues.read()

    def close(self) -> None:
        """Close the connections."""
        self._connections.force_close_all()
        self._application.close()
        self._queues.close()

    def _send(self, what: str, task: str, messages: Iterable[tuple[Any, ...]], **options: int) -> None:
        with broker_errors(what), self._producers.acquire(block=True) as producer:
            for arguments in messages:
                self._application.send_task(task, args=arguments, producer=producer, **_OPTIONS, **options)
