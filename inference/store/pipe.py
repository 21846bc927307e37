"""Commands by the batch over a blocking caller's own connections to Redis.

A real-time task makes a few round trips, and redis-py spends more Python on each command and reply than Redis does.
Here hiredis packs and parses, and only connecting (addresses, TLS, passwords, databases) is redis-py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import hiredis
import redis

Command = tuple[Any, ...]

_RECEIVE_BYTES = 1 << 16

_pipes: WeakKeyDictionary[Any, Pipe] = WeakKeyDictionary()


def pipe_of(client: redis.Redis) -> Pipe:
    """Return the one pipe of a client's pool, since what a pipe keeps open nobody else may use."""
    return _pipes.setdefault(client.connection_pool, Pipe(client))


class Pipe:
    """Sends batches, each over a connection that it has to itself meanwhile. Threads may share it.

    Connections come from the client's pool and are kept; closing the client closes them.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool: Any = client.connection_pool
        self._idle: list[_BlockingConnection] = []

    def send(self, commands: Sequence[Command]) -> list[Any]:
        """Return the replies in order, text as bytes. Nothing is repeated after an error.

        Raises:
            redis.RedisError: Redis did not answer in time, or answered a command with an error. ConnectionError also
                when a kept connection has been closed meanwhile.
        """
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = _BlockingConnection(self._pool.get_connection())
        try:
            replies = connection.exchange(commands)
        except BaseException:
            # replies still to come would answer the next batch
            connection.pooled.disconnect()
            self._pool.release(connection.pooled)
            raise
        self._idle.append(connection)
        for reply in replies:
            if isinstance(reply, redis.ResponseError):
                raise reply
        return replies


class _BlockingConnection:
    """One connected socket; `pooled` is the pool's name for it."""

    def __init__(self, pooled: Any) -> None:
        self.pooled = pooled
        # redis-py has no public way to a connection's bytes, only to parsed replies
        self._socket = pooled._sock
        self._parser = hiredis.Reader(replyError=redis.ResponseError)

    def exchange(self, commands: Sequence[Command]) -> list[Any]:
        try:
            self._socket.sendall(b"".join(map(hiredis.pack_command, commands)))
            return self._receive(len(commands))
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
