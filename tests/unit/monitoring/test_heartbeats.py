"""Whether any real-time worker is there, as the API hears it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import structlog

from inference.errors import StoreUnavailable
from inference.monitoring.presence import API_BEAT_EVERY_S, Roster, WorkerBeat, send_heartbeats, watch_workers
from tests.support.virtual_time import virtual_time

READY = WorkerBeat(
    name="realtime@host", process="realtime", queues=("realtime",), host="host", pid=7, release=None,
    started_at=1000.0, ready=True, versions={},
)  # fmt: skip
LOADING = replace(READY, ready=False)


@virtual_time
async def test_only_a_ready_worker_counts_and_an_outage_tells_nothing() -> None:
    looks = [Roster((LOADING,), {}), None, Roster((LOADING, READY), {}), Roster((), {"realtime@host pid 7": 6.0})]
    told: list[bool] = []

    async def look() -> Roster:
        if not looks:
            raise asyncio.CancelledError
        seen = looks.pop(0)
        if seen is None:
            raise StoreUnavailable("gone")
        return seen

    with pytest.raises(asyncio.CancelledError):
        await watch_workers(look, told.append)
    assert told == [False, True, False]


@virtual_time
@pytest.mark.parametrize(
    ("task", "event"), [(watch_workers, "workers.look.failed"), (send_heartbeats, "heartbeat.failed")]
)
async def test_a_defect_is_told_once_by_its_event_and_the_next_goes_on(task: Any, event: str) -> None:
    calls = 0

    async def broken() -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise asyncio.CancelledError
        raise ValueError("nobody foresaw it")

    with structlog.testing.capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        await (task(broken, lambda present: None) if task is watch_workers else task(broken))
    assert [line["event"] for line in logs] == [event]


@virtual_time
async def test_an_api_process_goes_on_beating_through_an_outage() -> None:
    beats: list[float] = []

    async def beat() -> None:
        beats.append(asyncio.get_running_loop().time())
        if len(beats) == 1:
            raise StoreUnavailable("gone")
        if len(beats) == 3:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await send_heartbeats(beat)
    assert [round(at - beats[0], 6) for at in beats] == [0, API_BEAT_EVERY_S, 2 * API_BEAT_EVERY_S]
