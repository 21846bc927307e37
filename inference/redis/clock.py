"""Gives all machines the same time: epoch seconds by the clock of the cache Redis.

Hosts' clocks differ: with 150 ms of skew and a budget of 100 ms, every task would arrive late. So messages hold
deadlines in Redis time, and each process measures the offset of its own clock.
"""

from __future__ import annotations

import asyncio

from inference.clock import Clock, system_clock
from inference.errors import StoreUnavailable
from inference.failures import Failures
from inference.logs import get_logger
from inference.redis.clients import AsyncClient

log = get_logger(__name__)

#: seconds between two measurements; clocks drift by microseconds in that time
MEASURE_EVERY_S = 5.0


class RedisClock:
    """This host's clock, corrected to Redis' clock. Uncorrected until the first measurement."""

    def __init__(self, clock: Clock = system_clock) -> None:
        self._clock = clock
        self.offset_s = 0.0

    def now(self) -> float:
        """Return epoch seconds in Redis time."""
        return self._clock() + self.offset_s

    def learn(self, redis_time: float, *, sent_at: float, received_at: float) -> None:
        """Correct the clock: Redis read `redis_time` between the instants `sent_at` and `received_at` of this host."""
        self.offset_s = redis_time - (sent_at + received_at) / 2

    async def measure(self, client: AsyncClient) -> None:
        """Ask Redis for its time once.

        Raises:
            StoreUnavailable: it did not answer.
        """
        sent_at = self._clock()
        seconds, microseconds = await client.time()
        self.learn(seconds + microseconds / 1e6, sent_at=sent_at, received_at=self._clock())

    async def follow(self, client: AsyncClient, *, every_s: float = MEASURE_EVERY_S) -> None:
        """Measure repeatedly until cancelled. In an outage the last offset stays in use."""
        failures = Failures(__name__, "clock")
        while True:
            with failures.kept_here():
                try:
                    await self.measure(client)
                except StoreUnavailable as error:
                    log.debug("clock.not_measured", error=error.message)
            await asyncio.sleep(every_s)
