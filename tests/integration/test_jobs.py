"""Jobs by themselves: how long they are remembered, when their parts are sent again, how much room they take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import pytest
import pytest_asyncio
import structlog

from inference.errors import (
    BadInput,
    BrokerUnavailable,
    Defect,
    NotFound,
    Overloaded,
    PredictionFailed,
    StoreUnavailable,
)
from inference.monitoring.queues import JobPriority
from inference.redis.clients import AsyncClient, Client
from inference.redis.keys import Keys
from inference.serving.job_queue import LOST_AFTER_S, PREDICT_JOB_PART, ROW_BYTES, STALLED_AFTER_S, JobQueue, JobQuota
from inference.serving.jobs import JOB_KEEP_S, MAX_BEGUN, PART_ROWS, JobRequest, JobState, job_keys, run_part
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.integration

KEYS = Keys("t")


class Scorer:
    """Answers with the arguments that it got."""

    def predict_entities(self, model: str, entity_ids: list[str], **how: Any) -> dict[str, Any]:
        items = [{"entity_id": one, "prediction": [model, how], "as_of": 1.0} for one in entity_ids]
        return {"model": model, "model_version": 1, "computed_at": 2.0, "predictions": items}

    def predict_instances(self, model: str, instances: list[Any], **how: Any) -> dict[str, Any]:
        items = [{"entity_id": None, "prediction": [model, one, how], "as_of": 1.0} for one in instances]
        return {"model": model, "model_version": 1, "computed_at": 2.0, "predictions": items}


class Jobs:
    """A queue of jobs whose messages are kept, over a clock that a test sets."""

    def __init__(self, client: Client, asyncio_client: AsyncClient) -> None:
        self.client = client
        self.now = float(client.time()[0])
        self.sent: list[int] = []
        self.how: list[tuple[Any, ...]] = []
        self.is_down = False
        self.queue = JobQueue(asyncio_client, KEYS, self._enqueue, lambda: self.now)

    async def _enqueue(
        self, task: str, messages: Iterable[Mapping[str, Any]], *, model: str | None = None,
        priority: JobPriority = JobPriority.NORMAL,
    ) -> None:  # fmt: skip
        if self.is_down:
            raise BrokerUnavailable("gone")
        assert task == PREDICT_JOB_PART
        self.sent += [message["part"] for message in messages]
        self.how.append((model, priority))

    async def create(self, rows: int = 1, key: str | None = None, **how: Any) -> str:
        request = JobRequest("delay", entity_ids=[f"e{n}" for n in range(rows)], **how)
        return await self.queue.create(request, idempotency_key=key)

    def work(self, job_id: str, part: int) -> None:
        run_part(self.client, KEYS, Scorer(), job_id, part)

    def ttls(self, job_id: str) -> list[int]:
        """Seconds that the record, the inputs and the parts are kept for; -2 for what is not there."""
        return [self.client.ttl(key) for key in job_keys(KEYS, job_id)]

    def stand_still(self, job_id: str, silent_s: float) -> None:
        self.now = float(self.client.hget(KEYS.job(job_id), "changed_at") or 0) + silent_s


@pytest_asyncio.fixture
async def jobs(redis_client: Client, redis_server: RedisServer) -> AsyncIterator[Jobs]:
    async with AsyncClient.from_url(redis_server.url()) as client:
        yield Jobs(redis_client, client)


async def test_each_part_is_sent_once_and_computed_with_what_the_request_said(jobs: Jobs) -> None:
    job_id = await jobs.create(2 * PART_ROWS + 1, overrides={"x": 1}, timeout_s=60, priority=JobPriority.HIGH)
    assert (jobs.sent, jobs.how) == ([0, 1, 2], [("delay", JobPriority.HIGH)])
    assert (await jobs.queue.show(job_id)).state is JobState.QUEUED
    for part in (2, 0, 1):
        jobs.work(job_id, part)
    view = await jobs.queue.show(job_id)
    assert (view.state, view.parts, view.model, view.priority) == (JobState.DONE, 3, "delay", JobPriority.HIGH)
    rows = await jobs.queue.rows(view)
    assert [row.entity_id for row in rows] == [f"e{n}" for n in range(2 * PART_ROWS + 1)]
    assert getattr(rows[0].answer, "prediction", None) == [
        "delay", {"overrides": {"x": 1}, "deadline": jobs.now + 60},
    ]  # fmt: skip


@pytest.mark.parametrize(("rows", "parts"), [(PART_ROWS - 1, 1), (PART_ROWS, 1), (PART_ROWS + 1, 2)])
async def test_a_part_is_as_large_as_it_may_be(jobs: Jobs, rows: int, parts: int) -> None:
    await jobs.create(rows)
    assert jobs.sent == list(range(parts))


async def test_instances_go_to_the_worker_as_they_came(jobs: Jobs) -> None:
    job_id = await jobs.queue.create(JobRequest("delay", instances=[[1, 2], {"x": 3}]))
    jobs.work(job_id, 0)
    rows = await jobs.queue.rows(await jobs.queue.show(job_id))
    assert [row.entity_id for row in rows] == [None, None]
    assert [getattr(row.answer, "prediction", None) for row in rows] == [
        ["delay", [1, 2], {"deadline": None}], ["delay", {"x": 3}, {"deadline": None}],
    ]  # fmt: skip


async def test_a_part_begins_again_once_redis_is_back(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.serving.jobs.OUTAGE_PAUSE_S", 0.0)
    job_id = await jobs.create()
    outages = [StoreUnavailable("gone"), StoreUnavailable("gone")]

    class Failing(Scorer):
        def predict_entities(self, model: str, entity_ids: list[Any], **how: Any) -> dict[str, Any]:
            if outages:
                raise outages.pop()
            return super().predict_entities(model, entity_ids, **how)

    run_part(jobs.client, KEYS, Failing(), job_id, 0)

    assert (await jobs.queue.show(job_id)).state is JobState.DONE


# --- how long what is kept ---


async def test_whoever_writes_of_a_job_gives_it_an_hour(jobs: Jobs) -> None:
    job_id = await jobs.create(PART_ROWS + 1, key="k")
    record, inputs, parts = job_keys(KEYS, job_id)
    assert [0 < ttl <= JOB_KEEP_S for ttl in jobs.ttls(job_id)] == [True, True, False]
    [named] = jobs.client.keys("t:i:*")
    assert 0 < jobs.client.ttl(named) <= JOB_KEEP_S
    assert 0 < jobs.client.ttl(KEYS.job_bytes) <= JOB_KEEP_S + 60
    for key in (record, inputs):
        jobs.client.expire(key, 7)
    jobs.work(job_id, 0)
    assert all(JOB_KEEP_S - 60 < ttl <= JOB_KEEP_S for ttl in jobs.ttls(job_id))
    for key in (record, inputs, parts):
        jobs.client.expire(key, 7)
    jobs.work(job_id, 1)
    assert [JOB_KEEP_S - 60 < ttl <= JOB_KEEP_S for ttl in jobs.ttls(job_id)] == [True, False, True]
    assert not jobs.client.exists(inputs)


async def test_of_a_cancelled_job_only_its_record_stays_and_still_expires(jobs: Jobs) -> None:
    job_id = await jobs.create(PART_ROWS + 1)
    jobs.work(job_id, 0)
    assert (await jobs.queue.cancel(job_id)).state is JobState.CANCELLED
    assert [0 < ttl <= JOB_KEEP_S for ttl in jobs.ttls(job_id)] == [True, False, False]
    jobs.work(job_id, 1)
    assert (await jobs.queue.cancel(job_id)).state is JobState.CANCELLED
    assert not jobs.client.exists(KEYS.job_parts(job_id), KEYS.job_inputs(job_id))


async def test_a_job_that_is_over_stays_as_it_is(jobs: Jobs) -> None:
    job_id = await jobs.create()
    jobs.work(job_id, 0)
    assert (await jobs.queue.cancel(job_id)).state is JobState.DONE
    jobs.work(job_id, 0)  # its message came twice
    assert len(await jobs.queue.rows(await jobs.queue.show(job_id))) == 1


async def test_a_job_that_was_forgotten_is_not_found_and_takes_no_part(jobs: Jobs) -> None:
    job_id = await jobs.create()
    jobs.client.flushall()
    jobs.work(job_id, 0)
    assert jobs.client.keys() == []
    with pytest.raises(NotFound, match="never existed, or was forgotten"):
        await jobs.queue.show(job_id)
    other = await jobs.create()
    jobs.work(other, 0)
    view = await jobs.queue.show(other)
    jobs.client.delete(KEYS.job_parts(other))
    with pytest.raises(NotFound, match="was forgotten"):
        await jobs.queue.rows(view)


# --- what was lost ---


async def test_a_part_that_ends_its_workers_fails_the_job_at_the_fourth_try(jobs: Jobs) -> None:
    class Deadly(Scorer):
        def predict_entities(self, *_: Any, **__: Any) -> dict[str, Any]:
            raise KeyboardInterrupt  # passes through every handler, as the end of a process does

    job_id = await jobs.create(PART_ROWS + 1)
    for _ in range(MAX_BEGUN):
        with pytest.raises(KeyboardInterrupt):
            run_part(jobs.client, KEYS, Deadly(), job_id, 0)
    jobs.work(job_id, 1)  # each part is counted for itself
    assert (await jobs.queue.show(job_id)).state is JobState.RUNNING
    with structlog.testing.capture_logs() as logs:
        run_part(jobs.client, KEYS, Deadly(), job_id, 0)
    assert "part 0 was begun 3 times" in logs[0]["error"]
    view = await jobs.queue.show(job_id)
    assert (view.state, type(view.error)) == (JobState.FAILED, PredictionFailed)


@pytest.mark.parametrize(
    ("silent_s", "sent", "state"),
    [
        (LOST_AFTER_S, [], JobState.RUNNING),
        (LOST_AFTER_S + 1, [1, 2], JobState.RUNNING),
        (STALLED_AFTER_S, [1, 2], JobState.RUNNING),
        (STALLED_AFTER_S + 1, [], JobState.FAILED),
    ],
)
async def test_what_is_left_of_a_silent_job_is_sent_again_until_it_is_given_up(
    jobs: Jobs, silent_s: float, sent: list[int], state: JobState
) -> None:
    job_id = await jobs.create(3 * PART_ROWS)
    jobs.work(job_id, 0)
    jobs.sent.clear()
    jobs.stand_still(job_id, silent_s)
    views = [await jobs.queue.show(job_id) for _ in range(2)]
    assert (sorted(jobs.sent), [view.state for view in views]) == (sent, [state] * 2)


async def test_what_is_left_is_sent_again_each_time_that_so_long_has_passed(jobs: Jobs) -> None:
    job_id = await jobs.create(2 * PART_ROWS)
    jobs.work(job_id, 1)
    jobs.sent.clear()
    for silent_s, sent in ((LOST_AFTER_S * 2 - 1, [0]), (LOST_AFTER_S * 2, [0, 0]), (LOST_AFTER_S * 2 + 50, [0, 0])):
        jobs.stand_still(job_id, silent_s)
        await jobs.queue.show(job_id)
        assert jobs.sent == sent


async def test_a_job_that_waits_for_its_first_worker_is_not_lost(jobs: Jobs) -> None:
    job_id = await jobs.create()
    jobs.sent.clear()
    jobs.stand_still(job_id, STALLED_AFTER_S * 10)
    assert (await jobs.queue.show(job_id)).state is JobState.QUEUED
    assert jobs.sent == []


async def test_a_job_that_moved_on_meanwhile_is_not_given_up(jobs: Jobs) -> None:
    job_id = await jobs.create(2 * PART_ROWS)
    jobs.work(job_id, 0)
    jobs.stand_still(job_id, STALLED_AFTER_S + 1)
    view = await jobs.queue._read(job_id)
    jobs.client.hincrby(KEYS.job(job_id), "changed_at", 5)  # another part came in
    await jobs.queue._end(view, JobState.FAILED, "", expected=f"{view.changed_at:.0f}")
    assert (await jobs.queue._read(job_id)).state is JobState.RUNNING


# --- keys and room ---


async def test_a_job_that_could_not_be_sent_leaves_nothing_and_takes_no_room(jobs: Jobs) -> None:
    jobs.is_down = True
    with pytest.raises(BrokerUnavailable):
        await jobs.create(key="k")
    assert jobs.client.keys("t:[ij]:*") == []
    assert sum(map(int, jobs.client.hvals(KEYS.job_bytes))) == 0


async def test_one_key_is_one_job_takes_the_room_of_one_and_names_one_request(jobs: Jobs) -> None:
    made = await asyncio.gather(*(jobs.create(2, key="k") for _ in range(4)))
    assert len(set(made)) == 1
    assert jobs.sent == [0]
    assert sum(map(int, jobs.client.hvals(KEYS.job_bytes))) == len('["e0", "e1"]') + 2 * ROW_BYTES
    assert await jobs.create(2, key="other") not in made
    for other in (
        jobs.create(3, key="k"),
        jobs.create(2, key="k", timeout_s=1),
        jobs.create(2, key="k", overrides={"x": 1}),
    ):
        with pytest.raises(BadInput, match="used for another request"):
            await other
    assert len(jobs.client.keys("t:j:*:inputs")) == 2


async def test_room_is_counted_by_the_minute_for_an_hour(
    redis_client: Client, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.serving.job_queue.MAX_JOB_BYTES", 100)
    now = [60.0 * 1000]
    async with AsyncClient.from_url(redis_server.url()) as client:
        room = JobQuota(client, KEYS.job_bytes, lambda: now[0])
        await room.take(60)
        now[0] += 60
        await room.take(40)  # exactly all there is
        with pytest.raises(Overloaded) as refused:
            await room.take(1)
        assert refused.value.retry_after_s == 60 * 60
        now[0] += 59 * 60
        with pytest.raises(Overloaded) as refused:
            await room.take(1)
        assert refused.value.retry_after_s == 60
        now[0] += 60
        await room.take(60)  # the first job is forgotten
        with pytest.raises(Overloaded) as refused:
            await room.take(1)
        assert refused.value.retry_after_s == 60
        await room.give_back(60)
        await room.take(60)
    assert {int(minute): int(taken) for minute, taken in redis_client.hgetall(KEYS.job_bytes).items()} == {
        1001: 40, 1060: 0, 1061: 60,
    }  # fmt: skip
    assert JOB_KEEP_S < redis_client.ttl(KEYS.job_bytes) <= JOB_KEEP_S + 60


async def test_room_is_given_back_in_the_minute_that_it_was_counted_in(
    redis_client: Client, redis_server: RedisServer
) -> None:
    now = [60.0 * 1000]
    async with AsyncClient.from_url(redis_server.url()) as client:
        room = JobQuota(client, KEYS.job_bytes, lambda: now[0])
        minute = await room.take(60)
        now[0] += 60
        await room.take(40)
        await room.give_back(50, minute)
        await room.give_back(30)
    assert {int(minute): int(taken) for minute, taken in redis_client.hgetall(KEYS.job_bytes).items()} == {
        1000: 10, 1001: 10,
    }  # fmt: skip


async def test_an_outage_is_named_in_every_call() -> None:
    async with AsyncClient(port=free_port(), retry=None) as nowhere:
        queue = JobQueue(nowhere, KEYS, Jobs._enqueue, lambda: 0.0)  # type: ignore[arg-type]
        for call in (
            queue.create(JobRequest("m", entity_ids=["a"])),
            queue.show("j"),
            queue.cancel("j"),
            queue.wait("j", 1),
        ):
            with pytest.raises(StoreUnavailable):
                await call


@pytest.mark.parametrize("wait_s", [0.0, 0.05])
async def test_a_long_poll_ends_when_its_time_is_up(jobs: Jobs, wait_s: float) -> None:
    job_id = await jobs.create()
    assert (await jobs.queue.wait(job_id, wait_s)).state is JobState.QUEUED
    jobs.work(job_id, 0)
    assert (await jobs.queue.wait(job_id, 60)).state is JobState.DONE


async def test_a_defect_of_a_worker_fails_the_job_and_is_raised_where_its_log_is(jobs: Jobs) -> None:
    class Broken(Scorer):
        def predict_entities(self, *_: Any, **__: Any) -> dict[str, Any]:
            raise ZeroDivisionError

    job_id = await jobs.create()
    with pytest.raises(ZeroDivisionError):
        run_part(jobs.client, KEYS, Broken(), job_id, 0)
    view = await jobs.queue.show(job_id)
    assert (view.state, view.error and view.error.code) == (JobState.FAILED, Defect.code)
    assert "log says why" in str(view.error)


async def test_a_job_of_a_release_without_priorities_is_a_normal_one(jobs: Jobs) -> None:
    job_id = await jobs.create(priority=JobPriority.LOW)
    assert (await jobs.queue.show(job_id)).priority is JobPriority.LOW
    jobs.client.hdel(KEYS.job(job_id), "priority")
    assert (await jobs.queue.show(job_id)).priority is JobPriority.NORMAL
