"""Commands by the ten thousand over one connection: sent as whole buffers, their replies read as bytes.

redis-py takes 2.6 µs to read one reply, which for a window's tens of thousands is as much as the model takes.
Only for commands that are answered by an integer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import redis

from inference.store.wire import Commands

_RECEIVE_BYTES = 1 << 18


@dataclass(frozen=True)
class Pace:
    """How much of the time a writer may keep Redis busy: 1 writes flat out, 0.5 rests as long as it wrote."""

    share: float = 1.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    @property
    def rests(self) -> bool:
        """Whether there are rests at all."""
        return self.share < 1

    def rest(self, worked_s: float) -> None:
        """Rest as the share asks after so many seconds of work."""
        self.sleep(worked_s * (1 / self.share - 1))


def send_in_bulk(pool: Any, pieces: Iterable[Commands], pace: Pace) -> bytes:
    """Send pieces over one of the pool's connections and return the replies, a `:number` and CR LF each.

    Without rests, Redis works on one piece while the next is sent; with them, each piece is waited for.

    Raises:
        redis.RedisError: Redis did not answer, or answered a command with an error.
    """
    connection = pool.get_connection()
    try:
        replies, due = bytearray(), 0
        for piece in pieces:
            started = pace.clock()
            connection.send_packed_command([piece.data])
            due += piece.replies
            if pace.rests:
                _receive(connection, due, replies)
                pace.rest(pace.clock() - started)
        _receive(connection, due, replies)
    except BaseException:
        # replies still to come would answer the next user of this connection
        connection.disconnect()
        raise
    finally:
        pool.release(connection)
    _refuse_errors(replies, due)
    return bytes(replies)


def sum_of(replies: bytes) -> int:
    """Return the sum of integer replies."""
    return sum(map(int, replies.replace(b":", b"").split()))


def _receive(connection: Any, lines: int, replies: bytearray) -> None:
    """Append what comes until there are so many lines in all."""
    # redis-py has no public way to a connection's bytes, only to parsed replies
    socket, missing = connection._sock, lines - replies.count(b"\n")
    try:
        while missing > 0:
            data = socket.recv(_RECEIVE_BYTES)
            if not data:
                raise redis.ConnectionError("Redis closed the connection")
            replies += data
            missing -= data.count(b"\n")
    except TimeoutError as error:
        raise redis.TimeoutError("Redis did not answer in time") from error
    except OSError as error:
        raise redis.ConnectionError(f"the connection to Redis broke: {error}") from error


def _refuse_errors(replies: bytearray, due: int) -> None:
    if replies.count(b":") == due and not replies.translate(None, b":0123456789\r\n"):
        return
    wrong = next((line for line in bytes(replies).splitlines() if not line.startswith(b":")), b"too few replies")
    raise redis.ResponseError(wrong.removeprefix(b"-").decode(errors="replace"))
