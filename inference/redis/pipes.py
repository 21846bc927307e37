"""Sends batches of commands over redis-py's connections, without redis-py's packing and parsing.

redis-py spends more time on a command and its reply than Redis does. Here hiredis packs and parses; redis-py only
connects (addresses, TLS, passwords, databases).
Only this module uses private parts of redis-py: a connection's socket and its stream's transport.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
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
_RECEIVE_BULK_BYTES = 1 << 18

#: the errors that callers distinguish, by the first word of a reply
_ERRORS: dict[str, type[redis.ResponseError]] = {
    "MOVED": MovedError,
    "ASK": AskError,
    "TRYAGAIN": TryAgainError,
    "CLUSTERDOWN": ClusterDownError,
    "MASTERDOWN": MasterDownError,
}

#: a bulk writer holds up everybody else's commands for about so long, wherever they meet in Redis
PIECE_S = 0.0005
#: bytes of a piece: smaller ones cost more in calls of the system than Redis spends on them
_SMALLEST_PIECE, _FIRST_PIECE, _LARGEST_PIECE = 16 << 10, 32 << 10, 1 << 20


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
        while True:
            connection, is_kept = await self._take()
            try:
                replies = await connection.exchange(commands, self._timeout_s)
            except BaseException as error:
                # late replies would answer the next batch
                await self._give_back(connection)
                if self._follows_primary and isinstance(error, redis.TimeoutError):
                    # the others lead to the same silent server; new ones ask the Sentinels
                    while self._idle:
                        await self._give_back(self._idle.pop())
                if is_kept and isinstance(error, redis.ConnectionError):
                    continue  # Redis restarted while the connection was idle
                raise
            if _is_from_replica(replies):
                await self._give_back(connection)
                if is_kept:
                    continue  # the primary's name, or its Sentinels, may lead to another server by now
                return replies
            self._idle.append(connection)
            return replies

    async def _take(self) -> tuple[_AsyncConnection, bool]:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection, True
            await self._give_back(connection)
        try:
            async with asyncio.timeout(self._timeout_s):
                return _AsyncConnection(await self._pool.get_connection()), False
        except TimeoutError as error:
            raise _too_late(self._timeout_s) from error

    async def _give_back(self, connection: _AsyncConnection) -> None:
        await connection.pooled.disconnect(nowait=True)
        await self._pool.release(connection.pooled)


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
        self._timer = loop.call_later(timeout_s, self._fail, _too_late(timeout_s))
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


def _too_late(timeout_s: float) -> redis.TimeoutError:
    return redis.TimeoutError(f"no answer within {timeout_s:g} s")


def _reply_parser() -> hiredis.Reader:
    return hiredis.Reader(replyError=_reply_error)


def _reply_error(text: str) -> redis.ResponseError:
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
    return any(isinstance(reply, redis.ResponseError) and is_demoted(reply) for reply in replies)


def without_errors(replies: list[Any]) -> list[Any]:
    """Return the replies, or raise the first error among them."""
    for reply in replies:
        if isinstance(reply, redis.ResponseError):
            raise reply
    return replies


@dataclass(frozen=True)
class BulkCommands:
    """Packed commands, each answered by one integer: their bytes, and the number of replies.

    `node`: the node of a cluster that gets them all, as `Client.nodes_of` numbers it.
    """

    data: bytes | memoryview
    replies: int
    node: int = 0


@dataclass
class Pace:
    """How a bulk writer leaves Redis to others. Several writers may share it.

    `piece_bytes`: the size of the next piece; it follows the time that Redis takes for one (`PIECE_S`).
    `share`: the share of time that the writer may keep Redis busy: 1 never rests, 0.5 rests as long as it writes.
    """

    share: float = 1.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    piece_bytes: int = _FIRST_PIECE

    @property
    def rests(self) -> bool:
        """Whether the writer ever rests."""
        return self.share < 1

    def rest(self, worked_s: float) -> None:
        """Rest for the time that the share requires after `worked_s` seconds of work."""
        self.sleep(worked_s * (1 / self.share - 1))

    def answered(self, took_s: float) -> None:
        """Choose the size of the next piece by the seconds that Redis took for the last one."""
        # small steps: a single time also holds what others asked of Redis and of the processor
        if took_s > PIECE_S:
            self.piece_bytes = max(self.piece_bytes * 3 // 4, _SMALLEST_PIECE)
        else:
            self.piece_bytes = min(self.piece_bytes * 5 // 4, _LARGEST_PIECE)


def send_in_bulk(pool: Any, pieces: Iterable[BulkCommands], pace: Pace) -> bytes:
    """Send pieces over one of the pool's connections and return the replies, each a `:number` and CR LF.

    For tens of thousands of commands: redis-py takes 2.6 µs to read one reply, and for a window of rows that adds up
    to the time of the model. Without rests, Redis works on one piece while the next one waits in its socket, and no
    third: Redis reads all that a socket holds before it turns to another client. With rests, the writer waits for
    each piece.

    Raises:
        redis.RedisError: Redis did not answer, or answered a command with an error.
    """
    connection = pool.get_connection()
    try:
        replies, received, due, before_at = bytearray(), 0, 0, 0.0
        for piece in pieces:
            sent_at = pace.clock()
            connection.send_packed_command([piece.data])
            if pace.rests:
                due += piece.replies
                received += _receive(connection, due - received, replies)
                pace.answered(pace.clock() - sent_at)
                pace.rest(pace.clock() - sent_at)
                continue
            if due:
                received += _receive(connection, due - received, replies)
                # Redis answered the piece before that one first
                pace.answered((pace.clock() - before_at) / 2)
            due, before_at = due + piece.replies, sent_at
        _receive(connection, due - received, replies)
    except BaseException:
        # late replies would answer the next user of this connection
        connection.disconnect()
        raise
    finally:
        pool.release(connection)
    _refuse_errors(replies, due)
    return bytes(replies)


@dataclass(frozen=True)
class SeparatedReplies:
    """The raw replies to one piece. `ends`: where the separator behind each of them starts."""

    data: bytes
    ends: list[int]


def read_in_bulk(pool: Any, pieces: Iterable[Sequence[Command]], separator: bytes) -> Generator[SeparatedReplies]:
    """Yield the raw replies to pieces of commands, over one of the pool's connections. Close it to give that back.

    For millions of values, which the caller finds by column: as objects they would take most of the time (0.25 µs
    each). An ECHO of `separator`, which nothing else may hold, follows each command. Redis works on one piece while
    the next one waits in its socket.

    Raises:
        redis.RedisError: Redis did not answer.
    """
    connection = pool.get_connection()
    echo = hiredis.pack_command(("ECHO", separator))  # type: ignore[arg-type]  # its types allow one kind of part only
    answer = b"$%d\r\n%b\r\n" % (len(separator), separator)
    buffer, sent = bytearray(), deque[int]()
    try:
        for piece in pieces:
            packed = b"".join(part for command in piece for part in (hiredis.pack_command(command), echo))
            connection.send_packed_command([packed])
            sent.append(len(piece))
            if len(sent) > 1:
                yield _take_replies(connection, buffer, sent.popleft(), answer)
        while sent:
            yield _take_replies(connection, buffer, sent.popleft(), answer)
    except BaseException:
        connection.disconnect()  # late replies would answer the next user of this connection
        raise
    finally:
        pool.release(connection)


def _take_replies(connection: Any, buffer: bytearray, count: int, separator: bytes) -> SeparatedReplies:
    """Receive until `buffer` holds so many separators, and take all before the end of the last one."""
    ends: list[int] = []
    at = 0
    while len(ends) < count:
        found = buffer.find(separator, at)
        if found >= 0:
            ends.append(found)
            at = found + len(separator)
        else:
            buffer += _received(connection)
    data = bytes(memoryview(buffer)[:at])
    del buffer[:at]
    return SeparatedReplies(data, ends)


def sum_of(replies: bytes) -> int:
    """Return the sum of integer replies."""
    return sum(map(int, replies.replace(b":", b"").split()))


def _receive(connection: Any, lines: int, replies: bytearray) -> int:
    """Append received bytes to `replies` until so many more lines have come; return how many came."""
    came = 0
    while came < lines:
        data = _received(connection)
        replies += data
        came += data.count(b"\n")
    return came


def _received(connection: Any) -> bytes:
    """Return the next bytes that Redis sends."""
    try:
        # redis-py has no public way to a connection's bytes, only to parsed replies
        data: bytes = connection._sock.recv(_RECEIVE_BULK_BYTES)
    except TimeoutError as error:
        raise redis.TimeoutError("Redis did not answer in time") from error
    except OSError as error:
        raise redis.ConnectionError(f"the connection to Redis broke: {error}") from error
    if not data:
        raise redis.ConnectionError("Redis closed the connection")
    return data


def _refuse_errors(replies: bytearray, due: int) -> None:
    if replies.count(b":") == due and not replies.translate(None, b":0123456789\r\n"):
        return
    wrong = next((line for line in bytes(replies).splitlines() if not line.startswith(b":")), b"too few replies")
    raise _reply_error(wrong.removeprefix(b"-").decode(errors="replace"))
