"""Creates, shows and cancels jobs, from an event loop."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from inference.clock import Clock
from inference.errors import (
    BadInput,
    BrokerUnavailable,
    ForecacheError,
    NotFound,
    Overloaded,
    WorkersUnavailable,
    quoted,
    reported_error,
)
from inference.logs import get_logger
from inference.monitoring.queues import JobPriority
from inference.redis.clients import AsyncClient
from inference.redis.keys import Keys
from inference.serving.answers import Answer, Computed, answer_computed, replies_from_result
from inference.serving.jobs import (
    JOB_KEEP_S,
    LISTED_S,
    MAX_JOB_BYTES,
    ROW_BYTES,
    JobRequest,
    JobState,
    PackedJob,
    error_to_json,
    job_keys,
)
from inference.stored_data import reading

log = get_logger(__name__)

PREDICT_JOB_PART = "forecache.predict_job_part"

#: seconds without a finished part after which the rest of a running job is sent again: a worker may have died with
#: some parts, which it takes from a Redis broker for good
LOST_AFTER_S = 100
#: seconds without a finished part after which a running job fails
STALLED_AFTER_S = 300
FIRST_POLL_S = 0.02
LONGEST_POLL_S = 0.5


class Enqueue(Protocol):
    """Sends messages without waiting for their results."""

    async def __call__(
        self,
        task: str,
        messages: Iterable[Mapping[str, Any]],
        *,
        model: str | None = None,
        priority: JobPriority = JobPriority.NORMAL,
    ) -> None:
        """Send the task once for each message, which holds its arguments. `model`: whose workers do it.

        Raises:
            BrokerUnavailable: the broker did not accept a message.
        """


@dataclass(frozen=True)
class JobView:
    """The current state of a job; `error` is set if it failed."""

    job_id: str
    state: JobState
    model: str
    priority: JobPriority
    parts: int
    changed_at: float
    error: ForecacheError | None


@dataclass(frozen=True)
class JobRow:
    """One row of a finished job: its id (None for an instance) and its answer or error."""

    entity_id: str | None
    answer: Answer | ForecacheError


class JobQueue:
    """The jobs of one deployment. Every method raises StoreUnavailable when Redis does not answer."""

    def __init__(self, client: AsyncClient, keys: Keys, enqueue: Enqueue, clock: Clock) -> None:
        self._client = client
        self._keys = keys
        self._enqueue = enqueue
        self._clock = clock
        self._quota = JobQuota(client, keys.job_bytes, clock)
        self._packing = asyncio.Lock()

    async def create(self, request: JobRequest, *, idempotency_key: str | None = None) -> str:
        """Record a job, send its parts to the workers, and return its id.

        `idempotency_key`: the client's own name for this request. If it comes again within an hour, the job that it has
        created is returned.

        Raises:
            BrokerUnavailable: its parts could not be sent; the job does not exist then.
            BadInput: the key was used for another request.
            Overloaded: the jobs of the last hour take up all the room for jobs.
        """
        job_id = uuid.uuid4().hex
        async with self._packing:
            packed = await asyncio.to_thread(request.packed)
        made = job_keys(self._keys, job_id)
        taken = packed.size + ROW_BYTES * len(request.rows)
        minute = await self._quota.take(taken)
        try:
            await self._record(job_id, request, packed, minute)
            if idempotency_key is not None:
                name = self._keys.idempotency(hashlib.sha256(idempotency_key.encode()).hexdigest())
                first = await self._first_under(name, job_id, packed.digest)
                if first != job_id:
                    await self._forget(request.model, job_id, made)
                    await self._quota.give_back(taken, minute)
                    return first
                made.append(name)
            await self._send(job_id, range(len(packed.parts)), request.model, request.priority)
        except (BrokerUnavailable, BadInput):
            await self._forget(request.model, job_id, made)
            await self._quota.give_back(taken, minute)
            raise
        return job_id

    async def _forget(self, model: str, job_id: str, made: list[str]) -> None:
        await self._client.delete(*made)
        await self._client.zrem(self._keys.jobs_of(model), job_id)

    async def _send(self, job_id: str, parts: Iterable[int], model: str, priority: JobPriority) -> None:
        messages = ({"job_id": job_id, "part": number} for number in parts)
        await self._enqueue(PREDICT_JOB_PART, messages, model=model, priority=priority)

    async def _first_under(self, named: str, job_id: str, digest: str) -> str:
        """Return the job of a key: this one, if the key is new."""
        mine = f"{job_id} {digest}"
        if await self._client.set(named, mine, nx=True, ex=JOB_KEEP_S):
            return job_id
        stored = cast("bytes | None", await self._client.get(named))
        first, _, before = (stored.decode() if stored else mine).partition(" ")
        if before != digest:
            raise BadInput("this Idempotency-Key was used for another request: use a new one", field="Idempotency-Key")
        return first

    async def show(self, job_id: str) -> JobView:
        """Return the job's current state.

        Raises:
            NotFound: there is no such job (any more).
        """
        view = await self._read(job_id)
        silent_s = self._clock() - view.changed_at if view.state is JobState.RUNNING else 0.0
        if LOST_AFTER_S < silent_s <= STALLED_AFTER_S:
            await self._send_again(view, int(silent_s // LOST_AFTER_S))
        elif silent_s > STALLED_AFTER_S:
            lost = WorkersUnavailable(f"no worker has finished a part for {STALLED_AFTER_S} s")
            await self._end(view, JobState.FAILED, error_to_json(lost), expected=f"{view.changed_at:.0f}")
            view = await self._read(job_id)
        return view

    async def _send_again(self, view: JobView, time: int) -> None:
        """Send the rest of a job again, for the `time`-th time. Of all processes that notice, only one does."""
        record, inputs, _ = job_keys(self._keys, view.job_id)
        claim = f"again:{view.changed_at:.0f}:{time}"
        if not await self._client.hsetnx(record, claim, "1"):
            return
        left = await cast(Awaitable[list[bytes]], self._client.hkeys(inputs))
        log.warning("job.sent_again", job_id=view.job_id, parts=len(left))
        try:
            await self._send(view.job_id, map(int, left), view.model, view.priority)
        except BrokerUnavailable:
            await self._client.hdel(record, claim)

    async def wait(self, job_id: str, wait_s: float) -> JobView:
        """Return the job once it is over, or its state after `wait_s`.

        Raises:
            NotFound: there is no such job (any more).
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        pause_s = FIRST_POLL_S
        view = await self.show(job_id)
        while not view.state.is_over and loop.time() < until:
            await asyncio.sleep(min(pause_s, until - loop.time()))
            pause_s = min(pause_s * 1.5, LONGEST_POLL_S)
            view = await self.show(job_id)
        return view

    async def cancel(self, job_id: str) -> JobView:
        """Cancel a job; one that is over stays as it is.

        Raises:
            NotFound: there is no such job (any more).
        """
        await self._end(await self._read(job_id), JobState.CANCELLED, "")
        return await self._read(job_id)

    async def rows(self, view: JobView) -> list[JobRow]:
        """Return a finished job's rows in the order of the request."""
        found = await cast(Awaitable[dict[bytes, bytes]], self._client.hgetall(self._keys.job_parts(view.job_id)))
        if len(found) != view.parts:
            raise NotFound(f"the result of job {quoted(view.job_id)} was forgotten")
        with reading(f"the result of job {quoted(view.job_id)}"):
            parts = [found[number] for number in sorted(found, key=int)]
        # a hundred thousand rows take half a second to rebuild: not on the event loop
        return await asyncio.to_thread(lambda: [row for part in parts for row in _rows_of(view.model, part)])

    async def _record(self, job_id: str, request: JobRequest, packed: PackedJob, minute: int) -> None:
        now = self._clock()
        record, inputs, _ = job_keys(self._keys, job_id)
        pipeline = self._client.pipeline(transaction=False)
        pipeline.hset(inputs, mapping={str(number): part for number, part in enumerate(packed.parts)})
        pipeline.hset(
            record,
            mapping={
                "state": JobState.QUEUED.value,
                "model": request.model,
                "kind": "instances" if request.entity_ids is None else "entities",
                "overrides": packed.overrides,
                "deadline": "" if request.timeout_s is None else repr(now + request.timeout_s),
                "priority": request.priority.value,
                "parts": len(packed.parts),
                "minute": minute,
                "changed_at": int(now),
                "error": "",
            },
        )
        for key in (record, inputs):
            pipeline.expire(key, JOB_KEEP_S)
        # so that an entity's rows are found when it is forgotten; a worker renews it with each part
        jobs = self._keys.jobs_of(request.model)
        pipeline.zadd(jobs, {job_id: now})
        pipeline.zremrangebyscore(jobs, "-inf", now - LISTED_S)
        pipeline.expire(jobs, LISTED_S)
        await pipeline.execute()

    async def _read(self, job_id: str) -> JobView:
        record = await cast(Awaitable[dict[bytes, bytes]], self._client.hgetall(self._keys.job(job_id)))
        if not record:
            raise NotFound(f"no job {quoted(job_id)}: it never existed, or was forgotten an hour after its last change")
        with reading(f"the record of job {quoted(job_id)}"):
            return JobView(
                job_id=job_id,
                state=JobState(record[b"state"].decode()),
                model=record[b"model"].decode(),
                priority=JobPriority(record.get(b"priority", b"normal").decode()),
                parts=int(record[b"parts"]),
                changed_at=float(record[b"changed_at"]),
                error=_stored_error(record[b"error"]),
            )

    async def _end(self, view: JobView, state: JobState, error: str, *, expected: str = "") -> None:
        touched = job_keys(self._keys, view.job_id)
        await self._client.run_script("end_job", touched, [state.value, error, expected])


def _stored_error(text: bytes) -> ForecacheError | None:
    return reported_error(json.loads(text)) if text else None


def _rows_of(model: str, part: bytes | str | None) -> list[JobRow]:
    with reading("the result of a job"):
        result = json.loads(part or "{}")
        items = result["predictions"]
        replies = replies_from_result(result, len(items))
        rows = []
        for item, reply in zip(items, replies, strict=True):
            entity_id = item.get("entity_id")
            answer = answer_computed(model, entity_id, reply) if isinstance(reply, Computed) else reply
            rows.append(JobRow(entity_id, answer))
        return rows


_MINUTE_S = 60


class JobQuota:
    """Counts the bytes of jobs, minute by minute, for all API processes together."""

    def __init__(self, client: AsyncClient, key: str, clock: Clock) -> None:
        self._client = client
        self._key = key
        self._clock = clock

    async def take(self, taken: int) -> int:
        """Take `taken` bytes for a new job, and return the minute that they are counted in.

        Raises:
            Overloaded: there is not enough room; `retry_after_s` says when the oldest jobs are forgotten.
        """
        minute = int(self._clock() // _MINUTE_S)
        pipeline = self._client.pipeline(transaction=False)
        pipeline.hincrby(self._key, str(minute), taken)
        pipeline.expire(self._key, JOB_KEEP_S + _MINUTE_S)
        pipeline.hgetall(self._key)
        counted = {int(begun): int(size) for begun, size in (await pipeline.execute())[-1].items()}
        forgotten = minute - JOB_KEEP_S // _MINUTE_S
        if over := [str(begun) for begun in counted if begun < forgotten]:
            await self._client.hdel(self._key, *over)
        kept = {begun: size for begun, size in counted.items() if begun >= forgotten and size > 0}
        if sum(kept.values()) > MAX_JOB_BYTES:
            await self.give_back(taken, minute)
            left_s = (min(kept) - forgotten + 1) * _MINUTE_S
            raise Overloaded("the jobs of the last hour take up all the room for jobs", retry_after_s=float(left_s))
        return minute

    async def give_back(self, taken: int, minute: int | None = None) -> None:
        """Give back the bytes of a job that was not created. `minute`: when they were counted; None for now."""
        counted_in = int(self._clock() // _MINUTE_S) if minute is None else minute
        await self._client.hincrby(self._key, str(counted_in), -taken)
