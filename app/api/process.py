"""Opens and closes the parts of one API process: service, readers, jobs, heartbeats, threads for blocking calls."""

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
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Path, Query, Request
from pydantic import WithJsonSchema

from app.api.drain import Drain
from app.api.models import ModelCard, ModelCards
from app.api.requests import check_utf8
from app.api.schemas import ENTITY_ID_SCHEMA
from inference.deployment import Deployment
from inference.errors import StoreUnavailable
from inference.monitoring.counters import HitRecorder
from inference.monitoring.presence import (
    API_GONE_AFTER_S,
    API_PROCESSES,
    Presence,
    WorkerBeat,
    send_heartbeats,
    watch_workers,
)
from inference.protocols.tensors import packed_rows
from inference.redis.clients import REQUEST
from inference.redis.clock import RedisClock
from inference.redis.keys import TableKind
from inference.redis.replication import Replication
from inference.serving import PredictionService
from inference.serving.answers import failed_by_version
from inference.serving.job_queue import Enqueue, JobQueue
from inference.serving.model_service import TableReader
from inference.serving.worker_client import Submit
from inference.settings import Settings
from inference.settings.sentinel_urls import is_sentinel
from inference.settings.server_urls import is_cluster
from inference.stored_data import installed_release
from tasks.broker import CeleryBroker
from tasks.dispatch import open_dispatcher

#: threads for blocking calls; predictions never need one
BLOCKING_THREADS = 4
#: nobody waits longer for a blocking call; its thread ends by the timeout of its own socket
BLOCKING_TIMEOUT_S = 5.0

T = TypeVar("T")


@dataclass
class ApiProcess:
    """What routes work with: the parts that belong to this event loop, and the deployment, whose calls block."""

    deployment: Deployment
    service: PredictionService
    readers: Mapping[str, TableReader]
    jobs: JobQueue
    enqueue: Enqueue
    #: None: the cache Redis has no Sentinels, so nobody promises that it has replicas
    replication: Replication | None = None
    #: inputs and outputs of models
    cards: ModelCards = field(init=False)
    #: models that were ready once: they stay ready
    were_ready: set[str] = field(default_factory=set)
    drain: Drain = field(default_factory=lambda: Drain(0))
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
        """Return the result of a blocking call.

        Raises:
            StoreUnavailable: the call took longer than 5 s.
        """
        try:
            async with asyncio.timeout(BLOCKING_TIMEOUT_S):
                # in the request's context, so that log lines carry the request's id
                in_context = partial(copy_context().run, call)
                return await asyncio.get_running_loop().run_in_executor(self._threads, in_context)
        except TimeoutError as error:
            raise StoreUnavailable("the cache Redis does not answer") from error

    async def held_versions(self, model: str, card: ModelCard) -> set[int]:
        """Return the versions of a model that live real-time workers hold.

        Raises:
            StoreUnavailable: Redis did not answer in time.
        """
        queue = self.settings.realtime_queue(model)
        roster = await self.in_thread(lambda: self.deployment.presence.roster(queue))
        held = {version for worker in roster.alive if worker.ready for version in worker.versions.get(model, ())}
        # workers say every few seconds only which versions they hold; one may have activated a version since
        return held | {card.active} if held and card.active is not None else held

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


#: opens a process for settings
OpenProcess = Callable[[Settings], AbstractAsyncContextManager[ApiProcess]]


@asynccontextmanager
async def open_process(settings: Settings) -> AsyncIterator[ApiProcess]:
    """Open the process with Redis and the broker. Neither has to be up yet."""
    clock = RedisClock()
    itself = _itself()
    with Deployment(settings, REQUEST, CeleryBroker) as deployment:
        presence = Presence(deployment.cache, deployment.keys, gone_after_s=API_GONE_AFTER_S)
        async with deployment.async_cache() as client, open_dispatcher(settings) as dispatcher:
            recorder = HitRecorder(client, deployment.keys, clock.now, models=settings.models)
            readers = {name: deployment.reader(client, TableKind.PREDICTIONS, name) for name in settings.models}
            submit = _counting(dispatcher, recorder)
            service = PredictionService(settings, readers.__getitem__, submit, recorder, clock.now)
            jobs = JobQueue(client, deployment.keys, dispatcher.enqueue, clock.now)
            replicated = is_sentinel(settings.cache_url) or is_cluster(settings.cache_url)
            replication = Replication(client, deployment.keys.replicated) if replicated else None
            process = ApiProcess(deployment, service, readers, jobs, dispatcher.enqueue, replication)

            async def beat() -> None:
                now = replace(itself, breakers=service.breaker_states())
                await process.in_thread(lambda: presence.beat(now))

            with suppress(StoreUnavailable):  # so that the first requests find a connection, and Redis' time
                await clock.measure(client)
            background = [
                asyncio.create_task(recorder.run()),
                asyncio.create_task(clock.follow(client)),
                *(
                    asyncio.create_task(
                        watch_workers(
                            partial(process.in_thread, partial(presence.roster, queue)),
                            partial(service.workers_heard, settings.models_of([queue])),
                        )
                    )
                    for queue in settings.realtime_queues
                ),
                asyncio.create_task(send_heartbeats(beat)),
            ]
            try:
                yield process
            finally:
                await service.close()
                for task in background:
                    task.cancel()
                await asyncio.gather(*background, return_exceptions=True)
                with suppress(StoreUnavailable):  # the others notice within seconds
                    await process.in_thread(lambda: presence.leave(itself))
                process.close()


def _itself() -> WorkerBeat:
    """Return this process's heartbeat, for the dashboard and Prometheus."""
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
    """Return `submit` that also counts the sizes of micro-batches, and how each model version fared with them."""

    async def counted(task: str, kwargs: Mapping[str, Any], *, deadline: float, timeout_s: float) -> dict[str, Any]:
        if not kwargs.get("predict", True):
            return await submit(task, kwargs, deadline=deadline, timeout_s=timeout_s)
        model, entity_ids = kwargs["model"], kwargs.get("entity_ids")
        rows = [len(entity_ids or kwargs.get("instances") or ())]
        if not rows[0]:
            rows = [packed_rows(call["inputs"]) for call in (kwargs, *kwargs.get("more", ()))]
        recorder.record_micro_batch(model, sum(rows))
        sent = time.perf_counter()
        result = await submit(task, kwargs, deadline=deadline, timeout_s=timeout_s)
        brought = not entity_ids or bool(kwargs.get("overrides"))
        recorder.record_versions(model, failed_by_version(result, rows, brought=brought), time.perf_counter() - sent)
        return result

    return counted


async def _process_of(request: Request) -> ApiProcess:
    """Return the process that serves a request; async, because FastAPI would start a thread for a plain function."""
    process: ApiProcess = request.app.process
    return process


#: type of a route's parameter: the process that serves the request
Process = Annotated[ApiProcess, Depends(_process_of)]


async def _model_of(
    process: Process, model: Annotated[str | None, Query(description="may be left out when one is configured")] = None
) -> str:
    return process.settings.model(model)[0]


async def _entity_of(entity_id: Annotated[str, Path(), WithJsonSchema(ENTITY_ID_SCHEMA)], request: Request) -> str:
    check_utf8(request.scope)
    return entity_id


#: type of a route's parameter: the model that the query names, or the only one
NamedModel = Annotated[str, Depends(_model_of)]
#: type of a route's parameter: the entity id at the end of the path
NamedEntity = Annotated[str, Depends(_entity_of)]
