"""Computes anew what was just answered from an entry that is past its age limit (stale-while-revalidate, RFC 5861)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from inference.failures import Failures


class Revalidation:
    """Refreshes ids behind answers that were already given, each id once at a time.

    `compute` computes and keeps ids; what it returns is nobody's answer, and what fails is tried again by the next
    request for a stale entry.
    """

    def __init__(self, compute: Callable[[Sequence[str]], Awaitable[object]]) -> None:
        self._compute = compute
        self._under_way: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures = Failures(__name__, "revalidation")

    def start(self, entity_ids: Sequence[str]) -> None:
        """Begin with those of the ids that are not under way; returns at once."""
        new = [entity_id for entity_id in dict.fromkeys(entity_ids) if entity_id not in self._under_way]
        if new:
            self._under_way.update(new)
            task = asyncio.create_task(self._refresh(new))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _refresh(self, entity_ids: list[str]) -> None:
        try:
            with self._failures.kept_here():  # nobody waits for it, and the next request asks again
                await self._compute(entity_ids)
        finally:
            self._under_way.difference_update(entity_ids)
