from __future__ import annotations

import asyncio

import pytest
import redis

from inference.redis.clock import RedisClock
from tests.support.virtual_time import virtual_time


class FakeRedis:
    """Says the time; `down` as often as told."""

    def __init__(self, time_s: float, outages: int = 0) -> None:
        self.time_s = time_s
        self.outages = outages

    async def time(self) -> tuple[int, int]:
        if self.outages:
            self.outages -= 1
            raise redis.ConnectionError("gone")
        return int(self.time_s), 500_000


def test_until_it_is_measured_a_clock_is_the_hosts_own() -> None:
    assert RedisClock(lambda: 1000.0).now() == 1000.0


def test_the_offset_is_taken_half_way_between_asking_and_hearing() -> None:
    clock = RedisClock(lambda: 1000.0)
    clock.learn(1002.5, sent_at=1000.0, received_at=1001.0)
    assert clock.now() == pytest.approx(1002.0)


@virtual_time
async def test_an_outage_keeps_the_last_offset_and_measuring_goes_on() -> None:
    server = FakeRedis(1007, outages=2)
    clock = RedisClock(lambda: 1000.0)
    following = asyncio.create_task(clock.follow(server, every_s=5))  # type: ignore[arg-type]
    await asyncio.sleep(6)
    assert clock.now() == 1000.0
    await asyncio.sleep(6)
    assert clock.now() == 1007.5
    following.cancel()
