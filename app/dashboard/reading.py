"""Blocking calls of the pages: in threads, within a time, and shared by those who ask for the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import Executor
from typing import Any, TypeVar

from inference.errors import StoreUnavailable

#: a page asks again after 2 s, so an answer later than this is worth less than the word that it is late
READ_TIMEOUT_S = 3.0
#: an action may wait for the reconciler to let go of a model
ACT_TIMEOUT_S = 10.0

T = TypeVar("T")


class SharedReads:
    """Runs blocking reads in threads, one at a time for each key: pages that ask meanwhile share its answer."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._running: dict[Hashable, asyncio.Future[Any]] = {}

    async def read(self, key: Hashable, call: Callable[[], T]) -> T:
        """Return what `call` returns, or what the same read that is under way does.

        Raises:
            StoreUnavailable: there is no answer within 3 seconds (the read itself goes on).
            ForecacheError: whatever the call raises.
        """
        running: asyncio.Future[T] | None = self._running.get(key)
        if running is None:
            running = asyncio.get_running_loop().run_in_executor(self._executor, call)
            self._running[key] = running
            running.add_done_callback(lambda done: self._forget(key, done))
        return await _within(READ_TIMEOUT_S, running)

    async def act(self, call: Callable[[], T]) -> T:
        """Return what `call` returns; nobody shares it.

        Raises:
            StoreUnavailable: there is no answer within 10 seconds (the call itself goes on).
            ForecacheError: whatever the call raises.
        """
        return await _within(ACT_TIMEOUT_S, asyncio.get_running_loop().run_in_executor(self._executor, call))

    def _forget(self, key: Hashable, done: asyncio.Future[Any]) -> None:
        self._running.pop(key, None)
        if not done.cancelled():
            done.exception()  # nobody may be left to hear of it


async def _within(timeout_s: float, running: asyncio.Future[T]) -> T:
    try:
        # shielded: a page that is closed must not take the answer from the others
        return await asyncio.wait_for(asyncio.shield(running), timeout_s)
    except TimeoutError as error:
        raise StoreUnavailable(f"Redis or the broker did not answer within {timeout_s:.0f} s") from error
