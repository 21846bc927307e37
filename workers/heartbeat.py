"""Tells Redis that this worker process is alive, and whether it takes tasks.

A thread sends the heartbeat, since a task may keep the solo pool's loop busy for minutes. If that loop stands still for
`DEAF_AFTER_S` without a task, the worker is deaf: it takes nothing from the broker.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from celery import Celery
from celery.signals import worker_init, worker_ready, worker_shutdown

from inference.deployment import Deployment
from inference.errors import StoreUnavailable
from inference.gpus import gpu_use
from inference.logs import get_logger
from inference.monitoring.presence import BEAT_EVERY_S, GONE_AFTER_S, Loading, Presence, WorkerBeat
from inference.redis.clients import Patience, open_client
from inference.stored_data import installed_release
from workers.startup import ends_on_error

#: a beat that takes longer is lost; the next one follows soon
_SOCKET_TIMEOUT_S = 2.0

#: longer than a restart of the broker, and than a loop waits for a slow broker
DEAF_AFTER_S = 10.0

log = get_logger(__name__)

#: model → versions in memory
Versions = Callable[[], Mapping[str, tuple[int, ...]]]
#: the versions that are being loaded: model, version, for how many seconds
LoadsNow = Callable[[], Iterable[tuple[str, int, float]]]


class Heartbeat:
    """Beats every few seconds until it is stopped. Goes on through an outage, and logs it once.

    `silent_s` returns for how many seconds the loop of the consumer has stood still.
    """

    def __init__(
        self,
        presence: Presence,
        worker: WorkerBeat,
        versions: Versions,
        silent_s: Callable[[], float] = lambda: 0.0,
        *,
        loading: LoadsNow = tuple,
        every_s: float = BEAT_EVERY_S,
    ) -> None:
        self._presence = presence
        self._worker = worker
        self._versions = versions
        self._silent_s = silent_s
        self._loading = loading
        self._every_s = every_s
        self._stopped = threading.Event()
        self._arrived = True
        self._deaf = False
        self._thread = threading.Thread(target=self._keep, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def become_ready(self) -> None:
        """Tell from now on that the worker takes tasks."""
        self._worker = replace(self._worker, ready=True)
        self.beat()

    def stop(self, *, leave: bool = True) -> None:
        """End the thread. `leave`: tell that the worker left, so that nobody misses it."""
        self._stopped.set()
        self._thread.join(2 * _SOCKET_TIMEOUT_S)  # no beat may come after the farewell
        if not leave:
            return
        try:
            self._presence.leave(self._worker)
        except StoreUnavailable as error:
            log.warning("heartbeat.lost", error=error.message)

    def beat(self) -> None:
        """Beat once. Logs a lost beat if the one before it arrived."""
        try:
            self._presence.beat(self._now())
        except StoreUnavailable as error:
            if self._arrived:
                log.warning("heartbeat.lost", error=error.message)
            self._arrived = False
        except Exception:  # without this thread nobody knows of the worker
            if self._arrived:
                log.exception("heartbeat.lost")
            self._arrived = False
        else:
            self._arrived = True

    def _now(self) -> WorkerBeat:
        """Return the beat of this moment."""
        silent_s = self._silent_s() if self._worker.ready else 0.0
        deaf = silent_s > DEAF_AFTER_S
        if deaf is not self._deaf:
            log.warning("worker.deaf" if deaf else "worker.hears_again", silent_s=round(silent_s, 1))
            self._deaf = deaf
        ready = self._worker.ready and not deaf
        loading = tuple(Loading(model, version, round(seconds, 1)) for model, version, seconds in self._loading())
        return replace(
            self._worker, ready=ready, deaf=deaf, versions=dict(self._versions()), gpus=gpu_use(), loading=loading
        )

    def _keep(self) -> None:
        self.beat()
        while not self._stopped.wait(self._every_s):
            self.beat()


def beat_while_running(
    deployment: Deployment,
    *,
    process: str,
    loads_models: bool,
    every_s: float = BEAT_EVERY_S,
    gone_after_s: int = GONE_AFTER_S,
) -> None:
    """Have the worker of this process beat from before it loads its models until it ends.

    `loads_models`: the beats tell the versions that it holds and loads. `gone_after_s`: the silence after which other
    processes take the worker for gone.
    """
    beating: list[Heartbeat] = []

    def begin(sender: Any, **_: Any) -> None:
        worker = _describe(sender, process)
        patience, tag = Patience(_SOCKET_TIMEOUT_S), deployment.keys.prefix
        client = open_client(deployment.settings.cache_url, patience, tag=tag)
        presence = Presence(client, deployment.keys, gone_after_s=gone_after_s)
        versions: Versions = deployment.host.versions if loads_models else dict
        loading: LoadsNow = deployment.host.loading if loads_models else tuple
        silent_s = partial(_silent_s, sender)
        beating.append(Heartbeat(presence, worker, versions, silent_s, loading=loading, every_s=every_s))
        beating[0].start()

    def tell_ready(**_: Any) -> None:
        for heartbeat in beating:
            heartbeat.become_ready()

    def end(sender: Any, **_: Any) -> None:
        for heartbeat in beating:
            # a worker that ends by an error says no farewell: others must miss it
            heartbeat.stop(leave=not sender.exitcode)

    # weak=False: nothing else holds these functions
    worker_init.connect(ends_on_error(begin), weak=False)
    worker_ready.connect(tell_ready, weak=False)
    worker_shutdown.connect(end, weak=False)


def served_queues(application: Celery) -> tuple[str, ...]:
    """Return the queues that a worker of this application takes tasks from, by their names in `-Q` and in routes."""
    # on the broker, a name starts with the deployment's prefix; our key has the prefix already
    return tuple(queue.alias or queue.name for queue in application.amqp.queues.consume_from.values())


def _silent_s(worker: Any) -> float:
    """Return for how many seconds the loop of a Celery worker has stood still."""
    # Celery creates the consumer after the models are loaded
    consumer = getattr(worker, "consumer", None)
    return float(consumer.silent_s()) if consumer is not None else 0.0


def _describe(worker: Any, process: str) -> WorkerBeat:
    """Return the first beat of a Celery worker that is about to load its models."""
    return WorkerBeat(
        name=worker.hostname,
        process=process,
        queues=served_queues(worker.app),
        host=socket.gethostname(),
        pid=os.getpid(),
        release=installed_release(),
        started_at=time.time(),
        ready=False,
        versions={},
    )
