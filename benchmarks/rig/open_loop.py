"""An open-loop load: requests are due by the clock, whether those before were answered or not.

In Python, so that every single request can be told: when it was due, what came of it and how long that took. What a
server that is being killed does to its connections is part of that; nothing is repeated.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: requests under way at a time; more are not begun and count as lost
MOST_UNDER_WAY = 4096


@dataclass(frozen=True, slots=True)
class Called:
    """One request: when it was due (`time.monotonic`), how long it took, and its status, or 0 with why in `outcome`."""

    at: float
    took_s: float
    status: int
    outcome: str


class Callers:
    """Clients of one server that keep their connections. `path`: what the next request asks for.

    `look`: gets each answer, for benchmarks that check it.
    """

    def __init__(
        self,
        port: int,
        path: Callable[[], str],
        *,
        patience_s: float,
        look: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._port = port
        self._path = path
        self._patience_s = patience_s
        self._look = look
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self.called: list[Called] = []

    async def keep_rate(self, rate: float, seconds: float) -> None:
        """Send `rate` requests a second for so long, and wait for the last answers."""
        end = time.monotonic() + seconds
        await self.keep_rate_while(rate, lambda due: due < end)

    async def keep_rate_while(self, rate: float, goes_on: Callable[[float], bool]) -> None:
        """Send `rate` requests a second as long as the next one's time (`time.monotonic`) is within, and wait for the
        last answers.
        """
        began = time.monotonic()
        number = 0
        while goes_on(due := began + number / rate):
            await asyncio.sleep(max(due - time.monotonic(), 0))
            number += 1
            if len(self._under_way) >= MOST_UNDER_WAY:
                self.called.append(Called(due, 0.0, 0, "not sent: too many under way"))
                continue
            task = asyncio.create_task(self._call(due))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        await asyncio.gather(*self._under_way)

    async def go_on(self, callers: int, seconds: float) -> float:
        """Let so many callers ask without a pause; return the answers a second."""
        end = time.monotonic() + seconds
        before = len(self.called)

        async def one() -> None:
            while time.monotonic() < end:
                await self._call(time.monotonic())

        await asyncio.gather(*(one() for _ in range(callers)))
        return (len(self.called) - before) / seconds

    async def _call(self, due: float) -> None:
        try:
            async with asyncio.timeout(self._patience_s):
                status, outcome = await self._exchange()
        except TimeoutError:
            status, outcome = 0, "no answer"
        except (OSError, asyncio.IncompleteReadError) as error:
            status, outcome = 0, type(error).__name__
        self.called.append(Called(due, time.monotonic() - due, status, outcome))

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a connection; servers close those that are idle for seconds, which every client looks for."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def _exchange(self) -> tuple[int, str]:
        reader, writer = await self._connection()
        try:
            writer.write(f"GET {self._path()} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            body = await reader.readexactly(int(length.partition(b":")[2]))
        except BaseException:
            writer.close()
            raise
        if b"\r\nconnection: close" in head.lower():
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(head[9:12]), self._outcome(body)

    def _outcome(self, body: bytes) -> str:
        """Return what came of a request by its answer, which may be a page of a balancer."""
        try:
            told = json.loads(body)
        except ValueError:
            return "no answer of ours"
        if self._look is not None:
            self._look(told)
        return str(told.get("outcome") or told.get("code"))
