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
        connection = await self._take()
        try:
            replies = await connection.exchange(commands, self._timeout_s)
        except BaseException:
            # replies still to come would answer the next batch
            await self._give_back(connection)
            raise
        self._idle.append(connection)
        for reply in replies:
            if isinstance(reply, redis.ResponseError):
                raise reply
        return replies

    async def _take(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            await self._give_back(connection)
        try:
            async with asyncio.timeout(self._timeout_s):
                return _Connection(await self._pool.get_connection())
        except TimeoutError as error:
            raise _too_late(self._timeout_s) from error

    async def _give_back(self, connection: _Connection) -> None:
        await connection.pooled.disconnect(nowait=True)
        await self._pool.release(connection.pooled)


class _Connection(asyncio.Protocol):
    """One connected socket, which it takes over from `pooled`, the pool's name for it.

    A stream would cost a turn of the event loop and twice the work for each batch.
    """

    def __init__(self, pooled: Any) -> None:
        self.pooled = pooled
        # redis-py has no public way to a connection's transport, only to parsed replies
        self._transport: asyncio.Transport = pooled._writer.transport
        self._stream = self._transport.get_protocol()
        self._parser = hiredis.Reader(replyError=redis.ResponseError)
        self._replies: list[Any] = []
        self._expected = 0
        self._answer: asyncio.Future[list[Any]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        """Whether nobody has closed it since it was last used."""
        return not self._transport.is_closing()

    def exchange(self, commands: Sequence[Command], timeout_s: float) -> asyncio.Future[list[Any]]:
        """Send a batch and return its replies to come; the next one only when they have."""
        loop = asyncio.get_running_loop()
        self._replies, self._expected = [], len(commands)
        self._answer = loop.create_future()
        self._timer = loop.call_later(timeout_s, self._fail, _too_late(timeout_s))
        self._transport.write(b"".join(map(hiredis.pack_command, commands)))
        return self._answer

    def data_received(self, data: bytes) -> None:
        """Take what Redis sent."""
        try:
            self._parser.feed(data)
            while (reply := self._parser.gets()) is not False:
                if not isinstance(reply, hiredis.PushNotification):
                    self._replies.append(reply)
        except hiredis.HiredisError as error:
            self._fail(redis.ConnectionError(f"Redis sent what is no reply: {error}"))
            self._transport.close()
            return
        if len(self._replies) >= self._expected:
            answer = self._over()
            if answer is not None:
                answer.set_result(self._replies)

    def connection_lost(self, error: Exception | None) -> None:
        """Take note that it is closed; redis-py may be waiting for that too."""
        self._fail(redis.ConnectionError("Redis closed the connection"))
        self._stream.connection_lost(error)

    def _fail(self, error: Exception) -> None:
        answer = self._over()
        if answer is not None:
            answer.set_exception(error)

    def _over(self) -> asyncio.Future[list[Any]] | None:
        """End the exchange and return whom to tell; None when nobody waits any more."""
        answer, self._answer = self._answer, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return None if answer is None or answer.done() else answer


def _too_late(timeout_s: float) -> redis.TimeoutError:
    return redis.TimeoutError(f"no answer within {timeout_s:g} s")
