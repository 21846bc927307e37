"""Sends batches of commands over redis-py's connections, without redis-py's packing and parsing.

redis-py spends more time on a command and its reply than Redis does. Here hiredis packs and parses; redis-py only
connects (addresses, TLS, passwords, databases).
Only this module and `bulk` use private parts of redis-py: a connection's socket and its stream's transport.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import hiredis
import redis
import redis.asyncio
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    TryAgainError,
)

Command = tuple[Any, ...]

_RECEIVE_BYTES = 1 << 16

#: the errors that callers distinguish, by the first word of a reply
_ERRORS: dict[str, type[redis.ResponseError]] = {
    "MOVED": MovedError,
    "ASK": AskError,
    "TRYAGAIN": TryAgainError,
    "CLUSTERDOWN": ClusterDownError,
    "MASTERDOWN": MasterDownError,
    "LOADING": MasterDownError,  # a node that started again does not answer yet, and another one may
}


class Pipe:
    """Sends batches for blocking callers, each batch over its own connection. Threads may share it.

    It takes connections from the client's pool and keeps them; closing the client closes them.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool: Any = client.connection_pool
        self._follows_primary = hasattr(self._pool, "master_address")
        self._idle: list[_BlockingConnection] = []

    def send(self, commands: Sequence[Command]) -> list[Any]:
        """Return the replies in order, text as bytes.

        Only for commands that may run twice: sends them again if a kept connection turns out to be closed.

        Raises:
            redis.RedisError, OSError: Redis did not answer in time, or answered a command with an error.
        """
        return without_errors(self.end(self.begin(commands)))

    def begin(self, commands: Sequence[Command]) -> Exchange:
        """Send a batch. `end` waits for its replies, so batches to several nodes are answered at the same time."""
        while True:
            try:
                connection, is_kept = self._idle.pop(), True
            except IndexError:
                connection, is_kept = _BlockingConnection(self._pool.get_connection()), False
            try:
                connection.send(commands)
            except BaseException as error:
                if not self._may_repeat(connection, error, is_kept):
                    raise
            else:
                return Exchange(connection, commands, is_kept)

    def end(self, sent: Exchange) -> list[Any]:
        """Return the replies to a batch in order, with errors among them; raise as `send` if it got no answer."""
        while True:
            try:
                replies = sent.connection.receive(len(sent.commands))
            except BaseException as error:
                if not self._may_repeat(sent.connection, error, sent.is_kept):
                    raise
                sent = self.begin(sent.commands)
                continue
            if not _is_from_replica(replies):
                self._idle.append(sent.connection)
                return replies
            self._give_back(sent.connection)
            if not sent.is_kept:
                return replies
            # the primary's name, or its Sentinels, may lead to another server by now
            sent = self.begin(sent.commands)

    def _may_repeat(self, connection: _BlockingConnection, error: BaseException, is_kept: bool) -> bool:
        # late replies would answer the next batch
        self._give_back(connection)
        if self._follows_primary and isinstance(error, redis.TimeoutError):
            # the others lead to the same silent server; new ones ask the Sentinels
            while self._idle:
                self._give_back(self._idle.pop())
        # Redis restarted while the connection was idle
        return is_kept and isinstance(error, redis.ConnectionError)

    def _give_back(self, connection: _BlockingConnection) -> None:
        connection.pooled.disconnect()
        self._pool.release(connection.pooled)


class _BlockingConnection:
    """One connected socket; `pooled` is the pool's object for it."""

    def __init__(self, pooled: Any) -> None:
        self.pooled = pooled
        # redis-py has no public way to a connection's bytes, only to parsed replies
        self._socket = pooled._sock
        self._parser = _reply_parser()

    def send(self, commands: Sequence[Command]) -> None:
        try:
            self._socket.sendall(b"".join(map(hiredis.pack_command, commands)))
        except TimeoutError as error:
            raise redis.TimeoutError("Redis did not answer in time") from error
        except OSError as error:
            raise redis.ConnectionError(f"the connection to Redis broke: {error}") from error

    def receive(self, count: int) -> list[Any]:
        try:
            return self._receive(count)
        except TimeoutError as error:
            raise redis.TimeoutError("Redis did not answer in time") from error
        except OSError as error:
            raise redis.ConnectionError(f"the connection to Redis broke: {error}") from error

    def _receive(self, count: int) -> list[Any]:
        replies: list[Any] = []
        while len(replies) < count:
            data = self._socket.recv(_RECEIVE_BYTES)
            if not data:
                raise redis.ConnectionError("Redis closed the connection")
            self._parser.feed(data)
            while (reply := self._parser.gets()) is not False:
                if not isinstance(reply, hiredis.PushNotification):
                    replies.append(reply)
        return replies


@dataclass(frozen=True, slots=True)
class Exchange:
    """A batch that was sent. `is_kept`: over a connection that was open before."""

    connection: _BlockingConnection
    commands: Sequence[Command]
    is_kept: bool


class AsyncPipe:
    """Sends batches on an event loop, each batch over its own connection, so that none waits.

    It takes connections from the client's pool and keeps them; closing the client closes them.
    """

    def __init__(self, client: redis.asyncio.Redis, *, timeout_s: float) -> None:
        self._pool: Any = client.connection_pool
        self._timeout_s = timeout_s
        self._follows_primary = hasattr(self._pool, "master_address")
        self._idle: list[_AsyncConnection] = []

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """Return the replies in order, text as bytes.

        Only for commands that may run twice: sends them again if a kept connection turns out to be closed.

        Raises:
            redis.RedisError, OSError: Redis did not answer in time, or answered a command with an error.
        """
        return without_errors(await self.ask(commands))

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Return the replies as `send` does, with errors among them."""
        return await self.end(self.begin(commands) or await self._begin_anew(commands))

    def begin(self, commands: Sequence[Command]) -> AsyncExchange | None:
        """Send a batch over a connection that is open, so that batches to several nodes need no tasks; None if none is.

        `end` waits for the replies, and must be awaited.
        """
        if not self._idle or not self._idle[-1].is_open:
            return None
        return AsyncExchange(self._idle.pop(), commands, self._timeout_s, is_kept=True)

    async def end(self, sent: AsyncExchange) -> list[Any]:
        """Return the replies to a batch in order, with errors among them; raise as `send` if it got no answer."""
        while True:
            try:
                replies = await sent.answer
            except BaseException as error:
                await self.give_up(sent)
                if self._follows_primary and isinstance(error, redis.TimeoutError):
                    # the others lead to the same silent server; new ones ask the Sentinels
                    while self._idle:
                        await self._give_back(self._idle.pop())
                if not (sent.is_kept and isinstance(error, redis.ConnectionError)):
                    raise
                # otherwise Redis restarted while the connection was idle
            else:
                if not _is_from_replica(replies):
                    self._idle.append(sent.connection)
                    return replies
                await self.give_up(sent)
                if not sent.is_kept:
                    return replies
                # otherwise the primary's name, or its Sentinels, may lead to another server by now
            sent = await self._begin_anew(sent.commands)

    async def give_up(self, sent: AsyncExchange) -> None:
        """Close the connection of a batch whose replies nobody wants: late ones would answer the next batch."""
        sent.answer.cancel()
        await self._give_back(sent.connection)

    async def _begin_anew(self, commands: Sequence[Command]) -> AsyncExchange:
        connection, is_kept = await self._take()
        return AsyncExchange(connection, commands, self._timeout_s, is_kept=is_kept)

    async def _take(self) -> tuple[_AsyncConnection, bool]:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection, True
            await self._give_back(connection)
        return await self._connect(), False

    async def _connect(self) -> _AsyncConnection:
        try:
            async with asyncio.timeout(self._timeout_s):
                with closed_connections():
                    pooled = await self._pool.get_connection()
        except TimeoutError as error:
            raise _too_late(self._timeout_s) from error
        # a server that dies may close a connection before its first use; uvloop's are of no use then
        if pooled._writer is None or pooled._writer.is_closing():
            await self._release(pooled)
            raise redis.ConnectionError("Redis closed the connection")
        return _AsyncConnection(pooled)

    async def _give_back(self, connection: _AsyncConnection) -> None:
        await self._release(connection.pooled)

    async def _release(self, pooled: Any) -> None:
        await pooled.disconnect(nowait=True)
        await self._pool.release(pooled)


class _AsyncConnection(asyncio.Protocol):
    """One connected socket, taken over from `pooled`, the pool's object for it.

    A stream would cost one more turn of the event loop and twice the work for each batch.
    """

    def __init__(self, pooled: Any) -> None:
        self.pooled = pooled
        # redis-py has no public way to a connection's transport, only to parsed replies
        self._transport: asyncio.Transport = pooled._writer.transport
        self._stream = self._transport.get_protocol()
        self._parser = _reply_parser()
        self._replies: list[Any] = []
        self._expected = 0
        self._answer: asyncio.Future[list[Any]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        """Whether the connection is still open."""
        return not self._transport.is_closing()

    def exchange(self, commands: Sequence[Command], timeout_s: float) -> asyncio.Future[list[Any]]:
        """Send a batch and return a future of its replies. Send the next batch only after they have come."""
        loop = asyncio.get_running_loop()
        self._replies, self._expected = [], len(commands)
        self._answer = loop.create_future()
        self._timer = loop.call_later(timeout_s, self._fail_late, timeout_s)
        self._transport.write(b"".join(map(hiredis.pack_command, commands)))
        return self._answer

    def data_received(self, data: bytes) -> None:
        """Collect replies from Redis. The last one ends the exchange."""
        try:
            self._parser.feed(data)
            while (reply := self._parser.gets()) is not False:
                if not isinstance(reply, hiredis.PushNotification):
                    self._replies.append(reply)
        except hiredis.HiredisError as error:
            self._fail(redis.ConnectionError(f"Redis sent an invalid reply: {error}"))
            self._transport.close()
            return
        if len(self._replies) >= self._expected:
            answer = self._over()
            if answer is not None:
                answer.set_result(self._replies)

    def connection_lost(self, error: Exception | None) -> None:
        """End the exchange with an error, and tell redis-py, which may be waiting too."""
        self._fail(redis.ConnectionError("Redis closed the connection"))
        self._stream.connection_lost(error)

    def _fail_late(self, timeout_s: float) -> None:
        self._fail(_too_late(timeout_s))

    def _fail(self, error: Exception) -> None:
        answer = self._over()
        if answer is not None:
            answer.set_exception(error)

    def _over(self) -> asyncio.Future[list[Any]] | None:
        """End the exchange and return its future; None if nobody waits for it any more."""
        answer, self._answer = self._answer, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return None if answer is None or answer.done() else answer


class AsyncExchange:
    """A batch that was sent. `is_kept`: over a connection that was open before."""

    __slots__ = ("answer", "commands", "connection", "is_kept")

    def __init__(
        self, connection: _AsyncConnection, commands: Sequence[Command], timeout_s: float, *, is_kept: bool
    ) -> None:
        self.connection = connection
        self.commands = commands
        self.is_kept = is_kept
        self.answer = connection.exchange(commands, timeout_s)


@contextmanager
def closed_connections() -> Iterator[None]:
    """Raise uvloop's error for a connection that the server closed as redis-py raises that of asyncio's loop."""
    try:
        yield
    except RuntimeError as error:
        if "the handler is closed" not in str(error):
            raise
        raise redis.ConnectionError("Redis closed the connection") from error


def _too_late(timeout_s: float) -> redis.TimeoutError:
    return redis.TimeoutError(f"no answer within {timeout_s:g} s")


def _reply_parser() -> hiredis.Reader:
    return hiredis.Reader(replyError=reply_error)


def reply_error(text: str) -> redis.ResponseError:
    """Return the error that a reply's text tells."""
    if text.startswith("NOSCRIPT"):
        return NoScriptError(text)
    word, _, rest = text.partition(" ")
    return _ERRORS[word](rest) if word in _ERRORS else redis.ResponseError(text)


def is_demoted(error: BaseException) -> bool:
    """Tell whether a server answers that it is a replica: it was the primary, and another one is by now."""
    # redis-py leaves the code out of the text; in a script's error on Redis 6 it is in the middle
    return isinstance(error, ReadOnlyError) or (
        isinstance(error, redis.ResponseError) and "READONLY You can't write" in str(error)
    )


def _is_from_replica(replies: list[Any]) -> bool:
    return has_errors(replies) and any(
        isinstance(reply, redis.ResponseError) and is_demoted(reply) for reply in replies
    )


def without_errors(replies: list[Any]) -> list[Any]:
    """Return the replies, or raise the first error among them."""
    if has_errors(replies):
        raise next(reply for reply in replies if isinstance(reply, redis.ResponseError))
    return replies


def has_errors(replies: Sequence[Any]) -> bool:
    """Return whether there is an error among replies, which have few types: a look-up asks for dozens of them."""
    return any(issubclass(kind, redis.ResponseError) for kind in set(map(type, replies)))
