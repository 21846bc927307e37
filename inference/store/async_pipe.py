"""Commands by the batch over an event loop's own connections to Redis.

Reading is on the way of every request, and redis-py spends microseconds of Python on each command and each reply.
Here hiredis packs and parses, and only connecting (addresses, TLS, passwords, databases) is redis-py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import hiredis
import redis
import redis.asyncio

Command = tuple[Any, ...]

_RECEIVE_BYTES = 1 << 16


class AsyncPipe:
    """Sends batches, each over a connection that it has to itself meanwhile, so that none waits for another.

    Connections come from the client's pool and are kept; closing the client closes them.
    """

    def __init__(self, client: redis.asyncio.Redis, *, timeout_s: float) -> None:
        self._pool: Any = client.connection_pool
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """Return the replies in order, text as bytes. Nothing is repeated after an error.

        Raises:
            redis.RedisError, OSError: Redis did not answer in time, or answered a command with an error.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                replies = await self._exchange(commands)
        except TimeoutError as error:
            raise redis.TimeoutError(f"no answer within {self._timeout_s:g} s") from error
        for reply in replies:
            if isinstance(reply, redis.ResponseError):
                raise reply
        return replies

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        connection = await self._take()
        try:
            replies = await connection.exchange(commands)
        except BaseException:
            # replies still to come would answer the next batch
            await self._give_back(connection)
            raise
        self._idle.append(connection)
        return replies

    async def _take(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            await self._give_back(connection)
        return _Connection(await self._pool.get_connection())

    async def _give_back(self, connection: _Connection) -> None:
        await connection.pooled.disconnect(nowait=True)
        await self._pool.release(connection.pooled)


class _Connection:
    """One connected socket; `pooled` is the pool's name for it."""

    def __init__(self, pooled: Any) -> None:
        self.pooled = pooled
        # redis-py has no public way to a connection's streams, only to parsed replies
        self._receive: asyncio.StreamReader = pooled._reader
        self._send: asyncio.StreamWriter = pooled._writer
        self._parser = hiredis.Reader(replyError=redis.ResponseError)

    @property
    def is_open(self) -> bool:
        """Whether nobody has closed it since it was last used."""
        return not (self._receive.at_eof() or self._send.is_closing())

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        self._send.write(b"".join(map(hiredis.pack_command, commands)))
        await self._send.drain()
        replies: list[Any] = []
        while len(replies) < len(commands):
            data = await self._receive.read(_RECEIVE_BYTES)
            if not data:
                raise redis.ConnectionError("Redis closed the connection")
            self._parser.feed(data)
            while (reply := self._parser.gets()) is not False:
                if not isinstance(reply, hiredis.PushNotification):
                    replies.append(reply)
        return replies
