"""Whether any real-time worker is there, as the API hears it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from inference.errors import StoreUnavailable
from inference.presence import Roster, WorkerBeat
from inference.serving.attendance import follow_attendance
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
        await follow_attendance(look, told.append)
    assert told == [False, True, False]
