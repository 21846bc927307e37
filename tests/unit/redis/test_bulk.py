"""Rests between writes, and replies that are read as bytes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from inference.redis.bulk import PIECE_S, BulkCommands, Pace, send_in_bulk, sum_of


class Time:
    """A clock that rests move on, and nothing else."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.rests: list[float] = []

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.now_s += seconds


@pytest.mark.parametrize(("share", "rest_s"), [(0.5, 2.0), (0.25, 6.0), (1.0, 0.0)])
def test_a_writer_rests_as_long_as_its_share_asks(share: float, rest_s: float) -> None:
    time = Time()
    Pace(share, time.clock, time.sleep).rest(2.0)
    assert time.rests == [pytest.approx(rest_s)]


class Server:
    """Answers each three bytes that it receives with the next of its replies; then closes."""

    def __init__(self, *replies: bytes) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(5)
        self._replies = replies
        self.received: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        connection.settimeout(5)
        with connection:
            for reply in self._replies:
                self.received.append(connection.recv(3, socket.MSG_WAITALL))
                self._work()
                connection.sendall(reply)

    def _work(self) -> None:
        """What goes on between a piece and its reply."""

    def pool(self, **kwargs: Any) -> redis.ConnectionPool:
        port = self._socket.getsockname()[1]
        own = {"protocol": 2, "driver_info": None, "retry": None}
        return redis.ConnectionPool(host="127.0.0.1", port=port, **{**own, **kwargs})


PIECES = [BulkCommands(b"one", 2), BulkCommands(b"two", 1)]


def test_replies_come_back_in_order_however_they_are_cut() -> None:
    with Server(b":1\r\n:2", b"0\r\n:300\r\n") as server:
        replies = send_in_bulk(server.pool(), PIECES, Pace())
    assert (replies, sum_of(replies)) == (b":1\r\n:20\r\n:300\r\n", 321)


def test_with_rests_each_piece_is_answered_before_the_next_is_sent() -> None:
    time = Time()
    with Server(b":1\r\n:2\r\n", b":3\r\n") as server:
        send_in_bulk(server.pool(), PIECES, Pace(0.5, time.clock, time.sleep))
    assert server.received == [b"one", b"two"]
    assert len(time.rests) == 2


class PiecesByTheClock(Server):
    """Answers each piece, here of three bytes, and moves the clock on by the time that it takes Redis."""

    def __init__(self, time: Time, takes_s: float, pieces: int) -> None:
        super().__init__(*[b":1\r\n"] * pieces)
        self._time, self._takes_s = time, takes_s

    def _work(self) -> None:
        self._time.now_s += self._takes_s


@pytest.mark.parametrize(("takes_s", "grows"), [(PIECE_S / 5, True), (PIECE_S * 5, False)])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_pieces_follow_the_time_that_redis_takes_for_one(takes_s: float, grows: bool, share: float) -> None:
    time = Time()
    pace = Pace(share, time.clock, time.sleep)
    before = pace.piece_bytes
    with PiecesByTheClock(time, takes_s, pieces=12) as server:
        send_in_bulk(server.pool(), [BulkCommands(b"one", 1)] * 12, pace)
    assert (pace.piece_bytes > before, pace.piece_bytes < before) == (grows, not grows)


def test_pieces_are_shorter_while_requests_come() -> None:
    come: list[bool] = []
    pace, sizes = Pace(requests_come=lambda: bool(come)), []
    for come[:] in ([True], [], [True]):
        for _ in range(100):
            # a megabyte takes Redis 25 ms
            pace.answered(pace.piece_bytes * 25e-9)
        sizes.append(pace.piece_bytes)
    assert sizes[0] * 3 < sizes[1]
    assert sizes[2] * 3 < sizes[1]


@pytest.mark.parametrize(
    ("come", "way_s", "most"),
    [(True, 0.0001, 1), (True, 0.001, 10), (True, 0.5, 32), (False, 0.0001, 2), (False, 0.005, 10), (False, 0.5, 32)],
)
def test_so_many_pieces_are_on_the_way_that_a_distant_redis_has_work(come: bool, way_s: float, most: int) -> None:
    pace = Pace(requests_come=lambda: come)
    assert pace.most_on_the_way == (1 if come else 2), "nothing is known yet"
    for took_s in (way_s * 3, way_s, way_s * 2):
        pace.answered(took_s, on_the_way=2)
    assert pace.most_on_the_way == most


def test_while_requests_come_a_piece_for_a_near_redis_is_answered_before_the_next_is_sent() -> None:
    time, come, received = Time(), [True], []
    pace = Pace(1.0, time.clock, time.sleep, fastest_s=0.0, requests_come=lambda: bool(come))

    def pieces(server: Server) -> Iterator[BulkCommands]:
        for number in range(6):
            received.append(len(server.received))
            come[:] = [True] if number < 3 else []
            yield BulkCommands(b"one", 1)

    with Server(*[b":1\r\n"] * 6) as server:
        assert sum_of(send_in_bulk(server.pool(), pieces(server), pace)) == 6
    assert received[:4] == [0, 1, 2, 3]
    assert time.rests == []


@pytest.mark.parametrize("took_s", [0.0, 1.0])
def test_the_size_of_pieces_has_bounds(took_s: float) -> None:
    pace = Pace()
    for _ in range(100):
        pace.answered(took_s)
    assert 10_000 < pace.piece_bytes <= 1 << 20


def test_no_third_piece_is_sent_before_the_first_is_answered() -> None:
    asked_for: list[bool] = []
    answers = threading.Event()

    class Late(Server):
        def _serve(self) -> None:
            connection, _ = self._socket.accept()
            connection.settimeout(5)
            with connection:
                self.received += [connection.recv(3), connection.recv(3)]
                answers.set()
                connection.sendall(b":1\r\n:1\r\n")
                self.received.append(connection.recv(3))
                connection.sendall(b":1\r\n")

    def pieces() -> Iterator[BulkCommands]:
        for _ in range(3):
            asked_for.append(answers.is_set())
            yield BulkCommands(b"one", 1)

    with Late() as server:
        send_in_bulk(server.pool(), pieces(), Pace())
    assert asked_for == [False, False, True]


@pytest.mark.parametrize(
    ("replies", "error", "message"),
    [
        ((b":1\r\n-OOM command not allowed\r\n:3\r\n", b""), redis.ResponseError, "OOM command not allowed"),
        ((b":1\r\n",), redis.ConnectionError, "closed the connection"),
    ],
    ids=["an error among the replies", "a connection that closes"],
)
def test_what_redis_did_not_take_is_an_error(replies: tuple[bytes, ...], error: type[Exception], message: str) -> None:
    with Server(*replies) as server, pytest.raises(error, match=message):
        send_in_bulk(server.pool(), PIECES[:1] if len(replies) == 1 else PIECES, Pace())


def test_a_silent_redis_is_a_timeout_and_its_late_replies_reach_nobody() -> None:
    released = threading.Event()

    class Silent(Server):
        def _serve(self) -> None:
            connection, _ = self._socket.accept()
            with connection:
                released.wait(5)

    with Silent() as server:
        pool = server.pool(socket_timeout=0.05)
        with pytest.raises(redis.TimeoutError, match="did not answer in time"):
            send_in_bulk(pool, PIECES, Pace())
        released.set()
        assert pool._available_connections[0]._sock is None  # closed: the next user gets a new one
