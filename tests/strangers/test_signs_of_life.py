"""What workers and beat say: deaf is not ready, an error is no farewell, a slot that the broker refused is not lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
import structlog
from celery.utils.dispatch import Signal

import beat_schedule
import workers.heartbeat
from app.cli.doctor.findings import Status
from app.cli.doctor.workers import check_workers
from inference.errors import SettingsError
from inference.monitoring.presence import Presence, Roster, WorkerBeat
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.settings import MAINTENANCE_QUEUE, BatchSettings, ModelSettings, RedisSettings, Settings
from tests.support.redis_server import RedisServer
from tests.support.stack import child_environment, run_worker
from workers.consumer import RealtimeConsumer, TaskConsumer
from workers.heartbeat import DEAF_AFTER_S, Heartbeat
from workers.startup import ends_on_error

WORKER = WorkerBeat(
    name="realtime@host", process="realtime", queues=("realtime",), host="host", pid=7, release=None,
    started_at=1000.0, ready=False, versions={},
)  # fmt: skip


class Beats:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[WorkerBeat] = []
        self.left = 0

    def beat(self, worker: WorkerBeat) -> None:
        self.told.append(worker)

    def leave(self, worker: WorkerBeat) -> None:
        self.left += 1


def consumer_of(cls: type[TaskConsumer], receive: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[TaskConsumer, Any]:
    """Return a consumer that is not connected, and what it does with a message: `receive`."""
    monkeypatch.setattr("celery.worker.consumer.Consumer.__init__", lambda *_, **__: None)
    monkeypatch.setattr("celery.worker.consumer.Consumer.create_task_handler", lambda *_, **__: receive)
    monkeypatch.setattr("workers.consumer.problem_of", lambda *_: None)
    consumer = cls()
    consumer.app = SimpleNamespace(deployment=SimpleNamespace(settings=Settings()))
    return consumer, consumer.create_task_handler()


@pytest.mark.parametrize("cls", [TaskConsumer, RealtimeConsumer])
def test_a_loop_that_stands_still_is_silent_unless_a_task_keeps_it_busy(
    cls: type[TaskConsumer], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("workers.consumer.time", SimpleNamespace(monotonic=lambda: now[0]))
    during: list[float] = []

    def work_for_an_hour(_: Any) -> None:
        now[0] += 3600
        during.append(consumer.silent_s())

    consumer, on_message = consumer_of(cls, work_for_an_hour, monkeypatch)
    now[0] += 30
    assert consumer.silent_s() == 30
    on_message(None)
    assert during == [0.0]
    assert consumer.silent_s() == 0.0  # the loop has just got the turn again
    now[0] += 11
    assert consumer.silent_s() == 11
    hub = SimpleNamespace(call_repeatedly=lambda _, call: call())
    monkeypatch.setattr("celery.worker.consumer.Consumer.register_with_event_loop", lambda *_: None)
    consumer.register_with_event_loop(hub)
    assert consumer.silent_s() == 0.0


def test_a_task_that_raises_leaves_the_loop_neither_busy_nor_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> None:
        raise redis.ReadOnlyError

    consumer, on_message = consumer_of(TaskConsumer, fail, monkeypatch)
    with pytest.raises(redis.ReadOnlyError):
        on_message(None)
    assert consumer.silent_s() < 5
    assert consumer._is_busy is False


def test_a_worker_is_ready_while_its_loop_turns_and_deaf_when_it_has_long_stood_still() -> None:
    beats, silent = Beats(), [0.0]
    heartbeat = Heartbeat(beats, WORKER, dict, lambda: silent[0])  # type: ignore[arg-type]
    silent[0] = 100.0
    heartbeat.beat()  # its models are loading: there is no loop yet
    silent[0] = 0.0
    heartbeat.become_ready()
    with structlog.testing.capture_logs() as logs:
        for silent[0] in (DEAF_AFTER_S - 1, DEAF_AFTER_S + 1, 50.0, 0.5):
            heartbeat.beat()
    assert [(one.ready, one.deaf) for one in beats.told] == [
        (False, False), (True, False), (True, False), (False, True), (False, True), (True, False)
    ]  # fmt: skip
    assert [line["event"] for line in logs] == ["worker.deaf", "worker.hears_again"]


def test_doctor_never_calls_a_deaf_worker_ready() -> None:
    deaf = WorkerBeat(**{**WORKER.to_json(), "deaf": True, "queues": ("realtime",)})
    (found,) = check_workers(Settings(), {"realtime": Roster((deaf,), {})}, {})
    assert found.status is Status.ERROR
    assert "takes nothing from the broker" in found.detail


def test_a_sign_of_life_of_another_release_can_be_read() -> None:
    data = WORKER.to_json()
    assert WorkerBeat.from_json(json.dumps({**data, "of_a_newer_release": 1})) == WORKER
    del data["deaf"]
    assert WorkerBeat.from_json(json.dumps(data)).deaf is False


@pytest.mark.parametrize(("exitcode", "remembered"), [(None, False), (0, False), (1, True), (-9, True)])
def test_only_a_worker_that_was_told_to_end_says_farewell(
    redis_client: Client, monkeypatch: pytest.MonkeyPatch, exitcode: int | None, remembered: bool
) -> None:
    where = redis_client.connection_pool.connection_kwargs
    url = f"redis://{where['host']}:{where['port']}/0"
    settings = Settings(redis=RedisSettings.model_validate({"cache_url": url}))
    handlers = {name: _Signal() for name in ("worker_init", "worker_ready", "worker_shutdown")}
    for name, signal in handlers.items():
        monkeypatch.setattr(workers.heartbeat, name, signal)
    workers.heartbeat.beat_while_running(
        SimpleNamespace(settings=settings, keys=Keys("t")),  # type: ignore[arg-type]
        process="realtime",
        loads_models=False,
    )
    monkeypatch.setattr(workers.heartbeat, "served_queues", lambda _: ("realtime",))
    worker = SimpleNamespace(hostname="realtime@h", app=None, exitcode=exitcode)
    handlers["worker_init"].send(worker)
    handlers["worker_ready"].send(worker)
    handlers["worker_shutdown"].send(worker)
    roster = Presence(redis_client, Keys("t")).roster("realtime")
    known = [*(one.identity for one in roster.alive), *roster.gone]
    assert bool(known) is remembered


class _Signal:
    """A signal of Celery's of which one test alone hears."""

    def connect(self, handler: Any, **_: Any) -> None:
        self._handler = handler

    def send(self, sender: Any) -> None:
        self._handler(sender=sender)


@pytest.mark.parametrize("error", [RuntimeError("x"), MemoryError(), KeyError("m"), SettingsError("no such thing")])
def test_a_worker_whose_start_fails_ends_with_1_where_celery_would_go_on_without_models(error: Exception) -> None:
    def load(**_: Any) -> None:
        raise error

    signal = Signal(name="start", providing_args={"sender"})
    signal.connect(ends_on_error(load), weak=False)
    with structlog.testing.capture_logs() as logs, pytest.raises(SystemExit) as ended:
        signal.send(sender=None)
    assert ended.value.code == 1
    assert [line["event"] for line in logs] == ["worker.cannot_start"]


def test_a_beat_that_fails_for_any_reason_is_told_once_and_the_next_ones_go_out() -> None:
    beats, broken = Beats(), [True]

    def versions() -> dict[str, tuple[int, ...]]:
        if broken[0]:
            raise RuntimeError("something that nobody foresaw")
        return {}

    heartbeat = Heartbeat(beats, WORKER, versions)  # type: ignore[arg-type]
    with structlog.testing.capture_logs() as logs:
        for broken[0] in (True, True, False):
            heartbeat.beat()
    assert [line["event"] for line in logs] == ["heartbeat.lost"]
    assert len(beats.told) == 1


class FlakyBeat(beat_schedule.PatientScheduler):
    """A scheduler whose broker takes messages only sometimes."""

    takes = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.sent: list[str] = []
        super().__init__(*arguments, **options)

    @property
    def producer(self) -> None:
        return None

    def apply_async(self, entry: Any, *_: Any, **__: Any) -> None:
        if not self.takes:
            raise redis.ReadOnlyError("READONLY")
        self.sent.append(entry.name)


def test_a_slot_whose_message_the_broker_refuses_is_sent_when_it_takes_it_and_once() -> None:
    model = ModelSettings(path=Path("m"), batch=BatchSettings(schedule="0 3 * * *"))
    application = beat_schedule.make_beat(Settings(models={"a": model, "b": model}))
    with structlog.testing.capture_logs() as logs:
        beat = FlakyBeat(application)
        for _ in range(6):
            assert beat.tick() <= 5  # looks again soon, whatever was refused
        assert beat.sent == []
        beat.takes = True
        for _ in range(6):
            beat.tick()
    assert sorted(beat.sent) == ["run a", "run b"]
    assert [line["event"] for line in logs].count("schedule.not_sent") == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["maintenance", "-Q", "nowhere"], "nowhere"),
        (["maintenance", "--no-such-option"], "--no-such-option"),
        (["nobody"], "usage:"),
    ],
)
def test_a_worker_that_cannot_start_says_so_without_a_traceback(
    tmp_path: Path, arguments: list[str], told: str
) -> None:
    done = run_worker(tmp_path, *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broker_that_cannot_be_used_ends_a_worker_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "forecache.toml").write_text('[celery]\nbroker_url = "sentinel://h:26379"\n')
    done = run_worker(tmp_path, "maintenance")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "redis+sentinel://" in done.stderr


BREAK = """
import sys
from workers.__main__ import main
from workers.consumer import TaskConsumer

def broken(self):
    raise RuntimeError("something that nobody foresaw")

TaskConsumer.on_ready = broken
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.integration
def test_a_worker_that_ends_by_an_error_exits_with_1_and_is_remembered_as_gone(
    tmp_path: Path, redis_server: RedisServer, redis_client: Client
) -> None:
    (tmp_path / "forecache.toml").write_text(
        f'[redis]\nurl = "{redis_server.url(0)}"\ncache_url = "{redis_server.url(1)}"\n'
    )
    (tmp_path / "broken.py").write_text(BREAK)
    done = subprocess.run(
        [sys.executable, "-P", "broken.py", "maintenance"],
        cwd=tmp_path, env=child_environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("something that nobody foresaw") >= 1
    with Client.from_url(redis_server.url(1)) as cache:
        roster = Presence(cache, Keys("forecache")).roster(MAINTENANCE_QUEUE)
    assert len([*roster.alive, *roster.gone]) == 1
    assert not any(one.ready for one in roster.alive)
