"""Sends and reads millions of values over one connection, in pieces that leave Redis to others."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import hiredis
import redis

from inference.redis.pipes import Command, reply_error

_RECEIVE_BYTES = 1 << 18

#: a bulk writer holds up everybody else's commands for about so long, wherever they meet in Redis. The second is for
#: while requests come: a computed answer takes four trips to Redis, each of which may meet the pieces of every writer
PIECE_S, SHORT_PIECE_S = 0.0005, 0.0001
#: bytes of a piece: smaller ones cost more in calls of the system than Redis spends on them, which requests are worth
_SMALLEST_SHORT, _SMALLEST, _FIRST_PIECE, _LARGEST = 4 << 10, 16 << 10, 32 << 10, 1 << 20
_MOST_PIECES = 32


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
    `fastest_s`: the shortest time from sending a piece to its answer so far.
    `requests_come`: tells whether requests are answered now; is asked for each piece.
    """

    share: float = 1.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    piece_bytes: int = _FIRST_PIECE
    fastest_s: float = math.inf
    requests_come: Callable[[], bool] = lambda: False

    @property
    def rests(self) -> bool:
        """Whether the writer ever rests."""
        return self.share < 1

    @property
    def most_on_the_way(self) -> int:
        """How many pieces may be sent and unanswered at a time."""
        if self.rests:
            return 1
        # one that waits in a socket of Redis delays requests there; those of a distant one are longer on the way
        piece_s, least = (SHORT_PIECE_S, 1) if self.requests_come() else (PIECE_S, 2)
        if math.isinf(self.fastest_s):
            return least
        return round(min(max(self.fastest_s / piece_s, least), _MOST_PIECES))

    def rest(self, worked_s: float) -> None:
        """Rest for the time that the share requires after `worked_s` seconds of work."""
        self.sleep(worked_s * (1 / self.share - 1))

    def answered(self, took_s: float, on_the_way: int = 1) -> None:
        """Choose the size of the next piece by the seconds to an answer, for so many pieces that were on the way."""
        self.fastest_s = min(self.fastest_s, took_s)
        limit_s, smallest = (SHORT_PIECE_S, _SMALLEST_SHORT) if self.requests_come() else (PIECE_S, _SMALLEST)
        # small steps: a single time also holds what others asked of Redis and of the processor
        if took_s / on_the_way > limit_s:
            self.piece_bytes = max(self.piece_bytes * 3 // 4, smallest)
        else:
            self.piece_bytes = min(self.piece_bytes * 5 // 4, _LARGEST)


def send_in_bulk(pool: Any, pieces: Iterable[BulkCommands], pace: Pace) -> bytes:
    """Send pieces over one of the pool's connections and return the replies, each a `:number` and CR LF.

    For tens of thousands of commands: redis-py takes 2.6 µs to read one reply, and for a window of rows that adds up
    to the time of the model. At most `pace.most_on_the_way` pieces are unanswered at a time, since Redis reads all that
    a socket holds before it turns to another client.

    Raises:
        redis.RedisError: Redis did not answer, or answered a command with an error.
    """
    connection = pool.get_connection()
    try:
        connection.check_health()  # not between two pieces: the answer to one would be taken for that to its PING
        replies, received, due = bytearray(), 0, 0
        sent = deque[tuple[int, float, int]]()
        for piece in pieces:
            sent.append((piece.replies, pace.clock(), len(sent) + 1))
            connection.send_packed_command([piece.data], check_health=False)
            while len(sent) >= pace.most_on_the_way:
                lines, sent_at, on_the_way = sent.popleft()
                due += lines
                received += _receive(connection, due - received, replies)
                pace.answered(pace.clock() - sent_at, on_the_way)
                if pace.rests:
                    pace.rest(pace.clock() - sent_at)
        due += sum(lines for lines, _, _ in sent)
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
        connection.check_health()  # as in `send_in_bulk`
        for piece in pieces:
            packed = b"".join(part for command in piece for part in (hiredis.pack_command(command), echo))
            connection.send_packed_command([packed], check_health=False)
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
        data: bytes = connection._sock.recv(_RECEIVE_BYTES)
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
    raise reply_error(wrong.removeprefix(b"-").decode(errors="replace"))
