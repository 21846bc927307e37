"""Reading a table on an event loop, for the API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis

from inference.errors import StoreUnavailable
from inference.keys import TableKeys
from inference.store.async_pipe import AsyncPipe
from inference.store.plans import (
    Command,
    Plan,
    ReaderMemory,
    T,
    plan_pointer,
    plan_read,
    plan_read_generation,
)
from inference.store.records import Entry, Pointer


class AsyncTableReader:
    """Reads one table: one pipeline a look-up, however many ids it has.

    Every method raises StoreUnavailable when Redis does not answer: an outage is never a miss.
    """

    def __init__(self, pipe: AsyncPipe, keys: TableKeys) -> None:
        self._pipe = pipe
        self._keys = keys
        self._memory = ReaderMemory()

    async def pointer(self) -> Pointer:
        """See `Table.pointer`."""
        return await self._run(plan_pointer(self._keys))

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        """See `Table.read`."""
        return await self._run(plan_read(self._keys, self._memory, ids))

    async def read_generation(self, ids: Sequence[str], number: int) -> list[Entry | None]:
        """See `Table.read_generation`."""
        return await self._run(plan_read_generation(self._keys, self._memory, ids, number))

    async def _run(self, plan: Plan[T]) -> T:
        try:
            commands = next(plan)
            while True:
                commands = plan.send(await self._send(commands))
        except StopIteration as done:
            outcome: T = done.value
            return outcome

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        try:
            return await self._pipe.send(commands)
        except (redis.RedisError, OSError) as error:
            raise StoreUnavailable(f"{self._keys.base}: Redis did not answer: {error}") from error
