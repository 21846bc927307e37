"""Work on runs gives way while requests come to its machine; the notes lie in a real Redis, the locks in real files."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from inference import host_locks
from inference import processors as processors_module
from inference.batch.yielding import (
    GPU_LOOK_EVERY_S,
    LONGEST_WAIT_S,
    MOST_WAITED,
    NEIGHBOURS_EVERY_S,
    Yielding,
)
from inference.gpus import lock_of_gpu
from inference.models.load_limits import LoadLimits, run_model_process
from inference.monitoring.counters import LOOK_EVERY_S, HitRecorder
from inference.monitoring.presence import API_PROCESSES, Presence, WorkerBeat
from inference.outcomes import Outcome
from inference.processors import OthersTime, Processors, usable_processors
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
            client, KEYS, ("realtime", "slow"),
            clock=lambda: self.now_s, sleep=self._sleep, leave_room=self.changes.append,
        )  # fmt: skip
        self.meanwhile: Iterator[Callable[[], object]] = iter(())

    def go_on(self, seconds: float = LOOK_EVERY_S) -> list[bool]:
        """Call the model once more, some time later; return what was changed by then."""
        self.now_s += seconds
        self._yielding.give_way()
        return self.changes

    def wait_for(self, device: str) -> float:
        """Give way before a call on a device; return the seconds of waiting."""
        came = self.now_s
        self._yielding.give_way(device)
        return self.now_s - came

    def _sleep(self, seconds: float) -> None:
        self.now_s += seconds
        next(self.meanwhile, lambda: None)()


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
    worker._yielding._requests._client = Client(port=1, retry=None)
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


@pytest.mark.skipif(len(usable_processors()) < 2, reason="there is one processor, or the system does not let it choose")
def test_a_child_in_the_background_keeps_off_one_processor_and_lets_others_go_first(processors: set[int]) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        Processors(processors).send_to_background(child.pid, last=True)
        assert os.sched_getaffinity(child.pid) == processors - {min(processors)}
        assert os.getpriority(os.PRIO_PROCESS, child.pid) > os.getpriority(os.PRIO_PROCESS, 0)
        assert os.sched_getscheduler(child.pid) == os.SCHED_IDLE
        child.communicate(b"\n")
    Processors(processors).send_to_background(child.pid, last=True)  # it has ended
    Processors({0, 1_000}).leave_room(True)  # these processors are not there any more
    assert os.sched_getaffinity(0) == processors


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell who starves")
def test_a_trial_that_gets_no_time_begins_again_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors_module, "STARVED_AFTER_S", 0.05)
    came_last: list[bool] = []
    with ExitStack() as others:
        for processor in usable_processors():
            busy = f"import os\nos.sched_setaffinity(0, {{{processor}}})\nwhile True: pass"
            process = others.enter_context(subprocess.Popen([sys.executable, "-c", busy]))
            others.callback(process.kill)

        def send_to_background(self: Processors, child: int, *, last: bool) -> None:
            came_last.append(last)
            send(self, child, last=last)
            if not last:
                others.close()

        send = Processors.send_to_background
        monkeypatch.setattr(Processors, "send_to_background", send_to_background)
        limits = LoadLimits(memory_bytes=1 << 30, timeout_s=60)
        said = run_model_process("timeit", "-n", "1", "-r", "1", "sum(range(10**7))", what="a model", limits=limits)
    assert came_last == [True, False]
    assert said.count("1 loop") == 1


@pytest.mark.parametrize(
    ("busy", "own", "share"),
    [(60.0, 50.0, 0.1), (60.0, 60.5, 0.0), (100.0, 0.0, 1.0)],
    ids=["others too", "this process alone", "others alone"],
)
def test_the_time_of_others_is_busy_time_without_that_of_this_process(busy: float, own: float, share: float) -> None:
    read = iter([(5.0, 3.0, 1.0), (105.0, 3.0 + busy, 1.0 + own)])
    assert OthersTime(read.__next__).share() == pytest.approx(share)


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell it")
def test_a_busy_process_takes_time() -> None:
    others = OthersTime()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
        # the kernel counts in ticks of 10 ms, and our own time more finely: the share may be 0 again a moment later
        while not (share := others.share()):
            pass
        child.kill()
    assert 0 < share <= 1


# --- a GPU that batch and real-time workers share ---

GPU = "NVIDIA H200"


@pytest.fixture
def gpu_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(host_locks, "FOLDER", tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    lock = lock_of_gpu(GPU)
    assert lock == host_locks.lock_file("gpu-1")
    return lock


def test_a_batch_worker_waits_until_no_request_is_computed_on_its_gpu(redis_client: Client, gpu_lock: Path) -> None:
    worker = Worker(redis_client)
    with ExitStack() as request, ExitStack() as next_request:
        request.enter_context(host_locks.holding(gpu_lock, shared=True))

        def another() -> None:
            request.close()
            next_request.enter_context(host_locks.holding(gpu_lock, shared=True))

        def pause() -> None:
            next_request.close()

        worker.meanwhile = iter((lambda: None, another, pause))
        # three looks find a request, and two nothing
        assert worker.wait_for(GPU) == pytest.approx(4 * GPU_LOOK_EVERY_S)
    assert worker.wait_for(GPU) == 0


@pytest.mark.parametrize("device", ["cpu-2", "remote engine:8501"])
def test_nobody_waits_for_a_gpu_elsewhere(redis_client: Client, gpu_lock: Path, device: str) -> None:
    worker = Worker(redis_client)
    with host_locks.holding(gpu_lock, shared=True):
        assert worker.wait_for(device) == 0
    with host_locks.holding(host_locks.lock_file("gpu-0"), shared=True):
        assert worker.wait_for(GPU) == 0


def test_under_any_load_a_run_keeps_most_of_a_gpu(redis_client: Client, gpu_lock: Path) -> None:
    worker, call_s = Worker(redis_client), 0.003
    with host_locks.holding(gpu_lock, shared=True):
        assert worker.wait_for(GPU) <= LONGEST_WAIT_S + GPU_LOOK_EVERY_S
        waited = 0.0
        for _ in range(1000):
            worker.now_s += call_s
            waited += worker.wait_for(GPU)
    assert 0.5 * MOST_WAITED < waited / (1000 * call_s) < 1.1 * MOST_WAITED
