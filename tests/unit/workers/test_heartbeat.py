"""The heartbeat of a worker process."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import structlog

from inference.errors import StoreUnavailable
from inference.monitoring.presence import Loading, WorkerBeat
from inference.settings import Settings
from tasks.celery_app import make_celery
from workers.heartbeat import Heartbeat, served_queues

WORKER = WorkerBeat(
    name="realtime@host", process="realtime", queues=("realtime",), host="host", pid=7, release="1.0",
    started_at=1000.0, ready=False, versions={},
)  # fmt: skip


class FakePresence:
    """Keeps what it is told. `down`: every call fails."""

    def __init__(self) -> None:
        self.beats: list[WorkerBeat] = []
        self.left: list[WorkerBeat] = []
        self.down = False
        self.heard = threading.Event()

    def beat(self, worker: WorkerBeat) -> None:
        if self.down:
            raise StoreUnavailable("gone")
        self.beats.append(worker)
        if len(self.beats) == 3:
            self.heard.set()

    def leave(self, worker: WorkerBeat) -> None:
        if self.down:
            raise StoreUnavailable("gone")
        self.left.append(worker)


@pytest.fixture
def presence() -> Any:
    return FakePresence()


def test_it_beats_again_and_again_and_says_farewell(presence: Any) -> None:
    heartbeat = Heartbeat(presence, WORKER, dict, every_s=0.001)
    heartbeat.start()
    assert presence.heard.wait(5)
    heartbeat.stop()
    told = len(presence.beats)
    assert presence.left == [WORKER]
    assert len(presence.beats) == told


def test_each_beat_says_what_is_in_memory_now_and_from_when_on_it_is_ready(presence: Any) -> None:
    held: dict[str, tuple[int, ...]] = {}
    heartbeat = Heartbeat(presence, WORKER, lambda: held)
    heartbeat.beat()
    held["delay"] = (1,)
    heartbeat.become_ready()
    assert [(beat.ready, beat.versions) for beat in presence.beats] == [(False, {}), (True, {"delay": (1,)})]


def test_each_beat_says_what_is_being_loaded_and_another_process_reads_it(presence: Any) -> None:
    heartbeat = Heartbeat(presence, WORKER, dict, loading=lambda: [("delay", 2, 1.234)])
    heartbeat.beat()
    [beat] = presence.beats
    assert beat.loading == (Loading("delay", 2, 1.2),)
    assert WorkerBeat.from_json(json.dumps(beat.to_json())) == beat


def test_an_outage_is_told_once_and_the_next_one_again(presence: Any) -> None:
    heartbeat = Heartbeat(presence, WORKER, dict)
    with structlog.testing.capture_logs() as logs:
        for down in (True, True, False, True):
            presence.down = down
            heartbeat.beat()
    assert [line["event"] for line in logs] == ["heartbeat.lost", "heartbeat.lost"]


def test_queues_are_named_as_the_worker_was_told_and_not_as_on_the_broker() -> None:
    application = make_celery(Settings())
    application.amqp.queues.select(["realtime", "batch"])
    assert sorted(served_queues(application)) == ["batch", "realtime"]
