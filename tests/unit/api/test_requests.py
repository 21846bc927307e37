from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.api.requests import ClientWatch
from tests.support.virtual_time import virtual_time


class Client:
    """What `receive` tells of a client that hangs up at some instant."""

    def __init__(self, *, leaves_at: float) -> None:
        self.leaves_at = leaves_at
        self.asked = 0

    async def receive(self) -> dict[str, Any]:
        self.asked += 1
        if self.asked == 1:
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.sleep(self.leaves_at - asyncio.get_running_loop().time())
        return {"type": "http.disconnect"}


@virtual_time
async def test_work_for_a_client_that_hung_up_ends_at_once_and_what_follows_goes_on() -> None:
    ended = False
    with ClientWatch(Client(leaves_at=1).receive) as client:
        await asyncio.sleep(60)
        ended = True
    assert (client.gone, ended) == (True, False)
    assert asyncio.get_running_loop().time() == 1
    await asyncio.sleep(1)  # the cancellation was used up


@virtual_time
async def test_a_client_that_waits_gets_its_answer() -> None:
    with ClientWatch(Client(leaves_at=100).receive) as client:
        await asyncio.sleep(1)
    assert not client.gone
    await asyncio.sleep(200)


@virtual_time
async def test_a_stored_answer_costs_no_watching() -> None:
    it = Client(leaves_at=0)
    with ClientWatch(it.receive) as client:
        await asyncio.sleep(0.001)
    await asyncio.sleep(1)
    assert (it.asked, client.gone) == (0, False)


@virtual_time
async def test_a_server_that_shuts_down_still_cancels() -> None:
    async def work() -> None:
        with ClientWatch(Client(leaves_at=100).receive):
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
