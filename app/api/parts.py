"""What one API process is made of, opened and closed with its event loop."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from fastapi import Request

from app.api.cards import ModelCards
from inference.deployment import Deployment
from inference.errors import StoreUnavailable
from inference.monitoring.counters import HitRecorder
from inference.monitoring.presence import (
    API_PROCESSES,
    GONE_AFTER_S,
    Presence,
    WorkerBeat,
    send_heartbeats,
    watch_workers,
)
from inference.protocols.tensors import packed_rows
from inference.redis.clients import REQUEST
from inference.redis.clock import RedisClock
from inference.redis.keys import TableKind
from inference.serving import PredictionService
from inference.serving.job_queue import Enqueue, JobQueue
from inference.serving.model_service import TableReader
from inference.serving.worker_client import Submit
from inference.settings import Settings
from inference.stored_data import installed_release
from tasks.broker import CeleryBroker
from tasks.dispatch import open_dispatcher

#: threads for calls that block; they are never on the way of a prediction
BLOCKING_THREADS = 4
#: a blocking call that takes longer is given up; its thread ends by its own socket timeout
BLOCKING_TIMEOUT_S = 5.0

T = TypeVar("T")


@dataclass
class Parts:
    """The parts that routes work with: those of this event loop, and the deployment, whose calls block."""

    deployment: Deployment
    service: PredictionService
    readers: Mapping[str, TableReader]
    jobs: JobQueue
    enqueue: Enqueue
    #: what models take and give
    cards: ModelCards = field(init=False)
    #: models that were ready once: readiness never goes back on them
    were_ready: set[str] = field(default_factory=set)
    _threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(BLOCKING_THREADS, thread_name_prefix="api-blocking")
    )

    def __post_init__(self) -> None:
        versions_of = self.deployment.registry.versions
        self.cards = ModelCards(self.readers, lambda model: self.in_thread(lambda: versions_of(model)))

    @property
    def settings(self) -> Settings:
        """The deployment's settings."""
        return self.deployment.settings

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Return what a blocking call returns.

        Raises:
            StoreUnavailable: it took longer than 5 s.
        """
        try:
            async with asyncio.timeout(BLOCKING_TIMEOUT_S):
                # its lines in the log belong to the request that waits for it
                in_context = partial(copy_context().run, call)
                return await asyncio.get_running_loop().run_in_executor(self._threads, in_context)
        except TimeoutError as error:
            raise StoreUnavailable("the cache Redis does not answer") from error

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


#: opens the parts for the settings
OpenParts = Callable[[Settings], AbstractAsyncContextManager[Parts]]


@asynccontextmanager
async def open_parts(settings: Settings) -> AsyncIterator[Parts]:
    """Yield the parts over real Redis and a real broker, neither of which need be up yet."""
    clock = RedisClock()
    itself = _itself()
    with Deployment(settings, REQUEST, CeleryBroker) as deployment:
        presence = Presence(deployment.cache, deployment.keys, gone_after_s=GONE_AFTER_S)
        async with deployment.async_cache() as client, open_dispatcher(settings) as dispatcher:
            recorder = HitRecorder(client, deployment.keys)
            readers = {name: deployment.reader(client, TableKind.PREDICTIONS, name) for name in settings.models}
            submit = _counting(dispatcher, recorder)
            service = PredictionService(settings, readers.__getitem__, submit, recorder, clock.now)
            jobs = JobQueue(client, deployment.keys, dispatcher.enqueue, clock.now)
            parts = Parts(deployment, service, readers, jobs, dispatcher.enqueue)

            async def beat() -> None:
                now = replace(itself, breakers=service.breaker_states())
                await parts.in_thread(lambda: presence.beat(now))

            background = [
                asyncio.create_task(recorder.run()),
                asyncio.create_task(clock.follow(client)),
                *(
                    asyncio.create_task(
                        watch_workers(
                            partial(parts.in_thread, partial(presence.roster, queue)),
                            partial(service.workers_heard, settings.models_of([queue])),
                        )
                    )
                    for queue in settings.realtime_queues
                ),
                asyncio.create_task(send_heartbeats(beat)),
            ]
            try:
                yield parts
            finally:
                await service.close()
                for task in background:
                    task.cancel()
                await asyncio.gather(*background, return_exceptions=True)
                with suppress(StoreUnavailable):  # whoever looks finds out within seconds
                    await parts.in_thread(lambda: presence.leave(itself))
                parts.close()


def _itself() -> WorkerBeat:
    """Return what this process tells of itself to the dashboard and to Prometheus."""
    host = socket.gethostname()
    return WorkerBeat(
        name=f"api@{host}",
        process="api",
        queues=(API_PROCESSES,),
        host=host,
        pid=os.getpid(),
        release=installed_release(),
        started_at=time.time(),
        ready=True,
        versions={},
    )


def _counting(submit: Submit, recorder: HitRecorder) -> Submit:
    """Return `submit` with the sizes of its micro-batches counted."""

    async def counted(task: str, kwargs: Mapping[str, Any], *, deadline: float, timeout_s: float) -> dict[str, Any]:
        rows = kwargs.get("entity_ids") or kwargs.get("instances") or ()
        if kwargs.get("predict", True):
            recorder.record_micro_batch(kwargs["model"], len(rows) or packed_rows(kwargs["inputs"]))
        return await submit(task, kwargs, deadline=deadline, timeout_s=timeout_s)

    return counted


async def parts_of(request: Request) -> Parts:
    """Return the parts of the application that serves this request; async, or FastAPI takes a thread for it."""
    parts: Parts = request.app.state.parts
    return parts
