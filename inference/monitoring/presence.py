"""Tracks which workers are alive: each sends a heartbeat every few seconds, even while its pool is busy.

Celery's own ping does not suffice: a solo worker does not answer it while a task runs. Ages are
measured by Redis' clock, so hosts' clocks do not matter.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import FiniteFloat

from inference.errors import StoreUnavailable, Unreadable
from inference.failures import Failures
from inference.gpus import GpuUse
from inference.logs import get_logger
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.stored_data import record_from_json

failures = Failures(__name__, "presence.read")

BEAT_EVERY_S = 4.0
#: a worker without a beat for this long counts as gone; three beats may be lost
GONE_AFTER_S = 15
#: how long the name of a worker that is gone is remembered
REMEMBERED_S = 3600
#: the list of API processes, as a queue is the list of its workers; no queue can have this name
API_PROCESSES = "@api"
#: the list of listeners to streams
LISTENERS = "@listen"


def identity_of(name: str, pid: int) -> str:
    """Return the name that distinguishes a worker from all others."""
    return f"{name} pid {pid}"


@dataclass(frozen=True)
class Loading:
    """A version that a worker is loading or trying, and the seconds since it began."""

    model: str
    version: int
    seconds: FiniteFloat

    def told(self, most_s: float) -> str:
        """Return a phrase about it for a sentence. `most_s`: the limit of `[workers] load_timeout`."""
        return (
            f"version {self.version} of model {self.model!r} for {self.seconds:.0f} s, of at most {most_s:g} s "
            "(load_timeout under [workers])"
        )


@dataclass(frozen=True, kw_only=True)
class WorkerBeat:
    """The state of a worker or an API process, in its own report.

    `name` is Celery's node name, which several may share by mistake.

    `versions`: model → the versions it holds in memory. `loading`: those that it loads or tries now.
    `ready`: its models are loaded and it takes tasks. `deaf`: they are loaded, but it takes no tasks: the loop that
    consumes from the broker stands still. `started_at`: epoch seconds of its own host's clock. `release`: of
    Forecache; None if it runs from its sources. `gpus`: the GPUs that it may use; empty if they are unknown.
    `breakers`: of an API process, model → the state of its breaker (`inference.serving.worker_client`).
    """

    name: str
    process: str
    queues: tuple[str, ...]
    host: str
    pid: int
    release: str | None
    started_at: FiniteFloat
    ready: bool
    versions: Mapping[str, tuple[int, ...]]
    gpus: tuple[GpuUse, ...] = ()
    breakers: Mapping[str, str] = field(default_factory=dict)
    deaf: bool = False
    loading: tuple[Loading, ...] = ()

    @property
    def identity(self) -> str:
        """The name that distinguishes it from all others."""
        return identity_of(self.name, self.pid)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, text: bytes | str) -> WorkerBeat:
        """Rebuild from the JSON of `to_json`. Ignores fields of newer releases.

        Raises:
            Unreadable: it is not a heartbeat.
        """
        return record_from_json(cls, text, "a heartbeat")


@dataclass(frozen=True)
class Roster:
    """The workers of one queue: `alive`, and `gone` with the seconds since their last beat."""

    alive: tuple[WorkerBeat, ...]
    gone: Mapping[str, float]


class Presence:
    """Writes and reads the workers' heartbeats. Methods raise StoreUnavailable when Redis does not answer."""

    def __init__(self, client: Client, keys: Keys, *, gone_after_s: int = GONE_AFTER_S) -> None:
        self._client: Any = client  # redis-py types every answer as any possible one
        self._keys = keys
        self._gone_after_s = gone_after_s

    def beat(self, worker: WorkerBeat) -> None:
        """Record that a worker is alive."""
        touched = [self._keys.worker(worker.identity), *map(self._keys.queue_workers, worker.queues)]
        arguments = [json.dumps(worker.to_json()), self._gone_after_s, worker.identity, REMEMBERED_S]
        self._client.run_script("beat", touched, arguments)

    def leave(self, worker: WorkerBeat) -> None:
        """Remove a worker that ended on request, so that it does not count as gone."""
        with self._client.pipeline(transaction=False) as pipe:
            pipe.delete(self._keys.worker(worker.identity))
            for queue in worker.queues:
                pipe.zrem(self._keys.queue_workers(queue), worker.identity)
            pipe.execute()

    def roster(self, queue: str) -> Roster:
        """Return the workers that serve a queue, and those that vanished within the last hour."""
        now = self._client.now()
        heard = self._client.zrange(self._keys.queue_workers(queue), 0, -1, withscores=True)
        ages = {identity.decode(errors="replace"): max(now - at, 0.0) for identity, at in heard}
        texts = self._client.mget(map(self._keys.worker, ages)) if ages else []
        alive = tuple(beat for text in texts if text is not None and (beat := _readable(text)) is not None)
        return Roster(alive, {name: ages[name] for name in ages.keys() - {worker.identity for worker in alive}})


def _readable(text: bytes) -> WorkerBeat | None:
    """Return a heartbeat; None if it is unreadable. Its worker then counts as gone, and the others stay visible."""
    try:
        return WorkerBeat.from_json(text)
    except Unreadable as error:
        failures.tell(error)
        return None


log = get_logger(__name__)

#: seconds between two looks (three small reads of Redis), and while no worker is ready, so that a new one is used
#: at once
LOOK_EVERY_S, LOOK_WHILE_ABSENT_EVERY_S = 1.0, 0.1
#: seconds between two beats of an API process, and the silence after which it counts as gone
API_BEAT_EVERY_S, API_GONE_AFTER_S = 2.0, 10


async def watch_workers(
    look: Callable[[], Awaitable[Roster]], tell: Callable[[bool], None], *, every_s: float = LOOK_EVERY_S
) -> None:
    """Look repeatedly until cancelled, and tell whether a worker is ready. Tells nothing in an outage."""
    failures = Failures(__name__, "workers.look")
    while True:
        present = True
        with failures.kept_here():
            try:
                roster = await look()
            except StoreUnavailable as error:
                log.debug("workers.unknown", error=error.message)
            else:
                present = any(worker.ready for worker in roster.alive)
                tell(present)
        await asyncio.sleep(every_s if present else min(every_s, LOOK_WHILE_ABSENT_EVERY_S))


async def send_heartbeats(beat: Callable[[], Awaitable[None]], *, every_s: float = API_BEAT_EVERY_S) -> None:
    """Call `beat` repeatedly until cancelled. The next beat makes up for one that an outage loses."""
    failures = Failures(__name__, "heartbeat")
    while True:
        with failures.kept_here():
            try:
                await beat()
            except StoreUnavailable as error:
                log.debug("heartbeat.lost", error=error.message)
        await asyncio.sleep(every_s)
