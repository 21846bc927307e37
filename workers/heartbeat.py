"""Says that this worker process is alive, from a thread of its own: a pool may be busy for minutes."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import redis
from celery import Celery
from celery.signals import worker_init, worker_ready, worker_shutdown

from inference.errors import StoreUnavailable
from inference.gpus import gpu_use
from inference.logs import get_logger
from inference.presence import BEAT_EVERY_S, GONE_AFTER_S, Presence, WorkerBeat
from inference.release import installed_release
from inference.services import Services
from inference.settings import Settings

#: a beat that takes longer is lost; the next one comes soon
_SOCKET_TIMEOUT_S = 2.0

log = get_logger(__name__)

#: model → versions in memory
Versions = Callable[[], Mapping[str, tuple[int, ...]]]


class Heartbeat:
    """Beats every few seconds until it is stopped, through outages too, of which it tells once."""

    def __init__(
        self, presence: Presence, worker: WorkerBeat, versions: Versions, *, every_s: float = BEAT_EVERY_S
    ) -> None:
        self._presence = presence
        self._worker = worker
        self._versions = versions
        self._every_s = every_s
        self._stopped = threading.Event()
        self._heard = True
        self._thread = threading.Thread(target=self._keep, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def become_ready(self) -> None:
        """Say from now on that the worker takes tasks."""
        self._worker = replace(self._worker, ready=True)
        self.beat()

    def stop(self) -> None:
        """End the thread and say that the worker left."""
        self._stopped.set()
        self._thread.join(2 * _SOCKET_TIMEOUT_S)  # a beat under way must not come after the farewell
        try:
            self._presence.leave(self._worker)
        except StoreUnavailable as error:
            log.warning("heartbeat.lost", error=error.message)

    def beat(self) -> None:
        """Beat once; a lost beat is logged when the one before it was heard."""
        try:
            self._presence.beat(replace(self._worker, versions=dict(self._versions()), gpus=gpu_use()))
        except StoreUnavailable as error:
            if self._heard:
                log.warning("heartbeat.lost", error=error.message)
            self._heard = False
        else:
            self._heard = True

    def _keep(self) -> None:
        self.beat()
        while not self._stopped.wait(self._every_s):
            self.beat()


def beat_while_running(
    services: Callable[[], Services],
    *,
    process: str,
    versions: Versions,
    every_s: float = BEAT_EVERY_S,
    gone_after_s: int = GONE_AFTER_S,
) -> None:
    """Have the worker that starts in this process beat from before its models are loaded until it ends.

    `gone_after_s`: after how long a silence others take it for gone.
    """
    beating: list[Heartbeat] = []

    def begin(sender: Any, **_: Any) -> None:
        own = services()
        worker = _describe(sender, process)
        presence = Presence(_client(own.settings), own.keys, gone_after_s=gone_after_s)
        beating.append(Heartbeat(presence, worker, versions, every_s=every_s))
        beating[0].start()

    def tell_ready(**_: Any) -> None:
        beating[0].become_ready()

    def end(**_: Any) -> None:
        beating[0].stop()

    # weak=False: nothing else holds these functions
    worker_init.connect(begin, weak=False)
    worker_ready.connect(tell_ready, weak=False)
    worker_shutdown.connect(end, weak=False)


def served_queues(application: Celery) -> tuple[str, ...]:
    """Return the queues that a worker of this application takes from, as `-Q` and routes call them."""
    # on the broker their names carry the deployment's prefix, as our key does already
    return tuple(queue.alias or queue.name for queue in application.amqp.queues.consume_from.values())


def _describe(worker: Any, process: str) -> WorkerBeat:
    """Return what a Celery worker, about to load its models, is."""
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


def _client(settings: Settings) -> redis.Redis:
    return redis.Redis.from_url(
        settings.cache_url, socket_timeout=_SOCKET_TIMEOUT_S, socket_connect_timeout=_SOCKET_TIMEOUT_S, retry=None
    )
