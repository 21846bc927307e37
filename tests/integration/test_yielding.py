"""A batch worker leaves room while requests come to its machine; the notes lie in a real Redis."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from inference.batch.yielding import LOOK_EVERY_S, NEIGHBOURS_EVERY_S, Processors, Yielding, usable_processors
from inference.monitoring.counters import HitRecorder
from inference.monitoring.presence import API_PROCESSES, Presence, WorkerBeat
from inference.outcomes import Outcome
from inference.redis.clients import REQUEST, Client, open_async_client
from inference.redis.keys import Keys
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.integration

KEYS = Keys("t")
HERE = WorkerBeat(
    name="api", process="api", queues=(API_PROCESSES,), host=socket.gethostname(), pid=7, release=None,
    started_at=1000.0, ready=True, versions={},
)  # fmt: skip
ELSEWHERE = replace(HERE, host="another", pid=8)
REALTIME_HERE = replace(HERE, queues=("slow",), pid=9)


class Worker:
    """A batch worker between two model calls, with a clock of its own."""

    def __init__(self, client: Client) -> None:
        self.now_s = 0.0
        self.changes: list[bool] = []
        self._yielding = Yielding(
            client, KEYS, ("realtime", "slow"), clock=lambda: self.now_s, leave_room=self.changes.append
        )

    def go_on(self, seconds: float = LOOK_EVERY_S) -> list[bool]:
        """Call the model once more, some time later; return what was changed by then."""
        self.now_s += seconds
        self._yielding.between_calls()
        return self.changes


async def answer_a_request(server: RedisServer) -> None:
    async with open_async_client(server.url(), REQUEST) as client:
        recorder = HitRecorder(client, KEYS)
        recorder.record("delay", Outcome.HIT_BATCH)
        await recorder.flush()


@pytest.mark.parametrize(("neighbour", "leaves"), [(HERE, [True]), (REALTIME_HERE, [True]), (ELSEWHERE, [])])
async def test_room_is_left_for_requests_that_this_machine_answers(
    redis_client: Client, redis_server: RedisServer, neighbour: WorkerBeat, leaves: list[bool]
) -> None:
    Presence(redis_client, KEYS).beat(neighbour)
    worker = Worker(redis_client)
    assert worker.go_on() == []
    await answer_a_request(redis_server)
    assert worker.go_on(LOOK_EVERY_S / 2) == []  # the last look counts
    assert worker.go_on() == leaves
    assert worker.go_on() == leaves


async def test_the_room_is_taken_back_when_no_requests_come_or_redis_is_gone(
    redis_client: Client, redis_server: RedisServer
) -> None:
    Presence(redis_client, KEYS).beat(HERE)
    worker = Worker(redis_client)
    await answer_a_request(redis_server)
    assert 0 < redis_client.pttl(KEYS.requests) <= 2_000
    assert worker.go_on() == [True]
    redis_client.delete(KEYS.requests)
    assert worker.go_on() == [True, False]
    await answer_a_request(redis_server)
    assert worker.go_on() == [True, False, True]
    worker._yielding._client = Client(port=1, retry=None)
    assert worker.go_on() == [True, False, True, False]


async def test_an_api_process_that_moves_here_is_noticed(redis_client: Client, redis_server: RedisServer) -> None:
    worker = Worker(redis_client)
    await answer_a_request(redis_server)
    assert worker.go_on() == []
    Presence(redis_client, KEYS).beat(HERE)
    assert worker.go_on() == []
    assert worker.go_on(NEIGHBOURS_EVERY_S) == [True]


@pytest.fixture
def processors() -> Iterator[set[int]]:
    before = os.sched_getaffinity(0)
    yield before
    Processors(before).leave_room(False)


@pytest.mark.skipif(len(usable_processors()) < 2, reason="there is one processor, or the system does not let it choose")
def test_every_thread_keeps_off_one_processor_and_comes_back(processors: set[int]) -> None:
    ended, of_thread = threading.Event(), []
    thread = threading.Thread(target=ended.wait, args=(10,))
    thread.start()
    for leaves in (True, False):
        Processors(processors).leave_room(leaves)
        assert thread.native_id is not None
        of_thread.append((os.sched_getaffinity(thread.native_id), os.sched_getaffinity(0)))
    ended.set()
    thread.join()
    fewer = processors - {min(processors)}
    assert of_thread == [(fewer, fewer), (processors, processors)]
