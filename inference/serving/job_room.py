"""How much of the cache Redis jobs may take: that of the last hour, since jobs are remembered for so long.

Redis refuses every write when it is full, a run's and a prediction's too. So jobs are refused long before.
"""

from __future__ import annotations

import redis.asyncio

from inference.clock import Clock
from inference.errors import Overloaded
from inference.serving.jobs import JOB_KEEP_S

#: of all jobs that were begun within an hour
MAX_JOB_BYTES = 1 << 30
#: what one row's result takes
ROW_BYTES = 100

_MINUTE_S = 60


class JobRoom:
    """Counts what jobs take, minute by minute, for all API processes together. Redis' own errors pass through."""

    def __init__(self, client: redis.asyncio.Redis, key: str, clock: Clock) -> None:
        self._client = client
        self._key = key
        self._clock = clock

    async def take(self, taken: int) -> None:
        """Take room, in bytes, for a new job.

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
            await self.give_back(taken)
            left_s = (min(kept) - forgotten + 1) * _MINUTE_S
            raise Overloaded("the jobs of the last hour take up all the room for jobs", retry_after_s=float(left_s))

    async def give_back(self, taken: int) -> None:
        """Give back what a job that does not exist has taken."""
        await self._client.hincrby(self._key, str(int(self._clock() // _MINUTE_S)), -taken)
