"""Flower's memory and metrics stay bounded while workers and tasks come and go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from uuid import uuid4

import prometheus_client
import pytest
from celery import Celery
from flower.app import Flower

from app.dashboard.access import Credentials
from app.dashboard.flower_app import build_flower, forget_workers
from inference.deployment import Deployment
from inference.redis.clients import WORKER
from inference.settings import Settings
from inference.settings.processes import DashboardSettings


@pytest.fixture(scope="module")
def flower() -> Iterator[Flower]:
    dashboard = {"max_tasks": 50, "max_workers": 8, "forget_workers_after": "10m"}
    settings = Settings.model_validate({"models": {"m": {"path": "m"}}, "dashboard": dashboard})
    application = Celery("test", broker="memory://", set_as_current=False)
    built = build_flower(Deployment(settings, WORKER), application, Credentials("me", "secret"))
    yield built
    built.executor.shutdown()


def hear(flower: Flower, kind: str, worker: str, *, ago_s: float = 0.0, **more: object) -> None:
    """Hand Flower an event as a worker sends it."""
    at = time.time() - ago_s
    event = {"type": kind, "hostname": worker, "timestamp": at, "local_received": at, "clock": 1, "utcoffset": 0}
    flower.events.state.event({**event, "pid": 1, "freq": 2.0, **more})


def series(prefix: str) -> int:
    lines = prometheus_client.generate_latest().decode().splitlines()
    return sum(f'worker="{prefix}' in line for line in lines)


def test_a_worker_that_is_gone_leaves_the_metrics_and_one_that_lives_stays(flower: Flower) -> None:
    for n in range(5):
        hear(flower, "worker-heartbeat", f"pod-{n}", ago_s=3600)
        hear(flower, "task-received", f"pod-{n}", ago_s=3600, uuid=str(uuid4()), name="forecache.predict_entities")
    hear(flower, "worker-heartbeat", "pause-1", ago_s=300)  # silent, but not for long enough
    hear(flower, "worker-heartbeat", "live-1")
    assert series("pod-")
    flower.purge_offline_worker_metrics()
    assert series("pod-") == 0
    assert series("pause-")
    assert series("live-")


def test_tasks_and_workers_in_memory_are_bounded(flower: Flower) -> None:
    for n in range(200):
        hear(flower, "worker-heartbeat", f"bound-{n}")
        hear(flower, "task-received", f"bound-{n}", uuid=str(uuid4()), name="forecache.predict_entities")
    state = flower.events.state
    assert (len(state.tasks), len(state.workers)) == (50, 8)
    assert len(state.counter) > 8
    forget_workers(flower)
    assert (len(state.counter), len(state.tasks_by_worker)) == (8, 8)
    alive = {name for name, _ in state.workers.items()}
    lines = prometheus_client.generate_latest().decode().splitlines()
    assert {line.split('worker="')[1].split('"')[0] for line in lines if 'worker="bound-' in line} <= alive


def test_the_defaults_are_ours_and_not_flowers(flower: Flower) -> None:
    ours = DashboardSettings()
    assert (ours.max_tasks, ours.max_workers, ours.forget_workers_after) == (10_000, 1_000, 3600.0)
    assert flower.options.purge_offline_workers == 600
