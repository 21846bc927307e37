"""Counts what jobs take in the cache Redis: those of the last hour, since jobs are remembered for so long.

A new job takes the bytes that are stored of it and a guess for its results; a worker that stores a result puts its
bytes in the place of the guess (`_FINISH_PART` in `jobs.py`).

Redis refuses every write when it is full, a run's and a prediction's too. So jobs are refused long before.
"""

from __future__ import annotations

from inference.clock import Clock
from inference.errors import Overloaded
from inference.redis.clients import AsyncClient

#: how long an untouched job is remembered, in seconds
JOB_KEEP_S = 3600
#: of all jobs that were begun within an hour
MAX_JOB_BYTES = 1 << 30
#: what is counted for a row's result until it is there
ROW_BYTES = 100

_MINUTE_S = 60


class JobQuota:
    """Counts what jobs take, minute by minute, for all API processes together. Redis' own errors pass through."""

    def __init__(self, client: AsyncClient, key: str, clock: Clock) -> None:
        self._client = client
        self._key = key
        self._clock = clock

    async def take(self, taken: int) -> int:
        """Take room, in bytes, for a new job, and return the minute that it is counted in.

        Raises:
            Overloaded: there is not so much left; it says when the oldest jobs are forgotten.
        """
        minute = int(self._clock() // _MINUTE_S)
        pipeline = self._client.pipeline(transaction=False)
        pipeline.hincrby(self._key, str(minute), taken)
        pipeline.expire(self._key, JOB_KEEP_S + _MINUTE_S)
        pipeline.hgetall(self._key)
        counted = {int(begun): int(size) for begun, size in (await pipeline.execute())[-1].items()}
        forgotten = minute - JOB_KEEP_S // _MINUTE_S
        if over := [str(begun) for begun in counted if begun < forgotten]:
            await self._client.hdel(self._key, *over)
        kept = {begun: size for begun, size in counted.items() if begun >= forgotten and size > 0}
        if sum(kept.values()) > MAX_JOB_BYTES:
            await self.give_back(taken, minute)
            left_s = (min(kept) - forgotten + 1) * _MINUTE_S
            raise Overloaded("the jobs of the last hour take up all the room for jobs", retry_after_s=float(left_s))
        return minute

    async def give_back(self, taken: int, minute: int | None = None) -> None:
        """Give back what a job that does not exist has taken, in the minute that it was counted in; None for now."""
        counted_in = int(self._clock() // _MINUTE_S) if minute is None else minute
        await self._client.hincrby(self._key, str(counted_in), -taken)
