"""What one API process is made of, opened and closed with its event loop."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import redis
from fastapi import Request

from app.api.cards import ModelCards
from inference.batch import Runs, RunView
from inference.errors import StoreUnavailable
from inference.features import FeatureContract, FeatureWriter
from inference.hits import HitRecorder, HitWindows
from inference.keys import Keys, TableKind
from inference.models import ModelRegistry, VersionRecord
from inference.presence import API_PROCESSES, Presence, Roster, WorkerBeat
from inference.protocols.tensors import packed_rows
from inference.queues import QueueState
from inference.release import installed_release
from inference.services import REQUEST_SOCKET_TIMEOUT_S, Services
from inference.serving import PredictionService
from inference.serving.attendance import GONE_AFTER_S, follow_attendance, keep_beating
from inference.serving.deadlines import RedisClock
from inference.serving.job_queue import Enqueue, JobQueue
from inference.serving.lookups import TableReader
from inference.serving.worker_client import Submit
from inference.settings import Settings
from inference.store import AsyncPipe, Manifest, RedisTable
from tasks.dispatch import open_dispatcher
from tasks.queues import Queues
from tasks.runs import runs

#: threads for calls that block; they are never on the way of a prediction
BLOCKING_THREADS = 4
#: a blocking call that takes longer is given up; its thread ends by its own socket timeout
BLOCKING_TIMEOUT_S = 5.0

T = TypeVar("T")


@dataclass(frozen=True)
class Monitoring:
    """What `/metrics` reads beside the hit windows. The calls block, and raise StoreUnavailable.

    `newest_run` and `serving` take a model and return None where there is none; `queues` raises BrokerUnavailable;
    `roster` takes a queue, or API_PROCESSES.
    """

    newest_run: Callable[[str], RunView | None]
    serving: Callable[[str], Manifest | None]
    queues: Callable[[], Sequence[QueueState]]
    roster: Callable[[str], Roster]
    queue_names: Sequence[str] = Settings().queues


@dataclass
class Parts:
    """The parts that routes work with."""

    settings: Settings
    service: PredictionService
    readers: Mapping[str, TableReader]
    jobs: JobQueue
    hits: HitWindows
    runs: Callable[[], Runs]
    enqueue: Enqueue
    monitoring: Monitoring
    #: changes single features of a model, whose contract it is given; the writer's calls block
    feature_writer: Callable[[str, FeatureContract], FeatureWriter]
    #: a model's version records; the call blocks
    records: Callable[[str], Mapping[int, VersionRecord]]
    #: what models take and give
    cards: ModelCards = field(init=False)
    #: models that were ready once: readiness never goes back on them
    were_ready: set[str] = field(default_factory=set)
    _threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(BLOCKING_THREADS, thread_name_prefix="api-blocking")
    )

    def __post_init__(self) -> None:
        self.cards = ModelCards(self.readers, lambda model: self.in_thread(lambda: self.records(model)))

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
    services = Services(settings)
    client = services.async_cache()
    blocking = redis.Redis.from_url(
        settings.cache_url,
        socket_timeout=REQUEST_SOCKET_TIMEOUT_S,
        socket_connect_timeout=REQUEST_SOCKET_TIMEOUT_S,
        retry=None,
    )
    clock = RedisClock()
    recorder = HitRecorder(client, services.keys)
    pipe = AsyncPipe(client, timeout_s=REQUEST_SOCKET_TIMEOUT_S)
    presence = Presence(blocking, services.keys, gone_after_s=GONE_AFTER_S)
    itself = _itself()
    readers = {name: services.reader(pipe, TableKind.PREDICTIONS, name) for name in settings.models}
    async with open_dispatcher(settings) as dispatcher:
        service = PredictionService(settings, readers.__getitem__, _counting(dispatcher, recorder), recorder, clock.now)
        parts = Parts(
            settings=settings,
            service=service,
            readers=readers,
            jobs=JobQueue(client, services.keys, dispatcher.enqueue, clock.now),
            hits=HitWindows(blocking, services.keys),
            runs=runs,
            enqueue=dispatcher.enqueue,
            monitoring=_monitoring(settings, blocking, presence),
            feature_writer=partial(services.feature_writer, client=blocking),
            records=ModelRegistry(blocking, services.keys).versions,
        )

        async def beat() -> None:
            now = replace(itself, breakers=service.breaker_states())
            await parts.in_thread(lambda: presence.beat(now))

        background = [
            asyncio.create_task(recorder.run()),
            asyncio.create_task(clock.follow(client)),
            *(
                asyncio.create_task(
                    follow_attendance(
                        partial(parts.in_thread, partial(presence.roster, queue)),
                        partial(service.workers_heard, settings.models_of([queue])),
                    )
                )
                for queue in settings.realtime_queues
            ),
        ]
        background.append(asyncio.create_task(keep_beating(beat)))
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
            blocking.close()
            await client.aclose()


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


def _monitoring(settings: Settings, client: redis.Redis, presence: Presence) -> Monitoring:
    keys = Keys(settings.redis.prefix)

    def serving(model: str) -> Manifest | None:
        kind = TableKind.PREDICTIONS
        table = RedisTable(client, keys.table(kind, model), kind=kind, model=model)
        current = table.pointer().current
        return None if current is None else table.manifest(current)

    return Monitoring(
        newest_run=lambda model: next(iter(runs().list(model, limit=1)), None),
        serving=serving,
        queues=Queues(settings).read,
        roster=presence.roster,
        queue_names=settings.queues,
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
