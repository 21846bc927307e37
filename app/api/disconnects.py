"""Ends the work on a request whose client has hung up: what nobody reads need not be computed."""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.types import Receive

#: a stored answer is there long before that: only requests that wait for a worker are watched
WATCH_AFTER_S = 0.02


class ClientWatch:
    """Inside it the current task is cancelled when the client disconnects; `gone` says so afterwards.

    Enter it when the request's body has been read: until then `receive` is somebody else's.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watching: asyncio.Task[None] | None = None
        self.gone = False

    def __enter__(self) -> ClientWatch:
        self._working = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._begin)
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> bool:
        self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()
        # a server that shuts down cancels too: that one goes on
        return self.gone and isinstance(error, asyncio.CancelledError) and self._was_ours()

    def _begin(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self._working is not None:
            self._working.cancel()

    def _was_ours(self) -> bool:
        return self._working is not None and self._working.uncancel() == 0
