"""What Flower takes before it asks for the password, and how many connections: a real dashboard process."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import flower as flower_package
import httpx
import psutil
import pytest

from app.dashboard.server import MAX_BODY_BYTES, MAX_CONNECTIONS, MAX_HEAD_BYTES, MAX_STRANGERS_BODY_BYTES
from tests.support.attacked_api import MIB, has_ended, pour
from tests.support.dashboard import DashboardProcess
from tests.support.redis_server import RedisServer
from tests.support.waiting import LONG_S, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MORE = MAX_CONNECTIONS + 60
ASK = b"GET /healthcheck HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.fixture(scope="module")
def flower(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DashboardProcess]:
    process = DashboardProcess(tmp_path_factory.mktemp("doors"), redis_server.url(1))
    process.start().wait_ready()
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture
def opened(flower: DashboardProcess) -> Iterator[list[socket.socket]]:
    clients: list[socket.socket] = []
    yield clients
    for client in clients:
        client.close()


def connect(flower: DashboardProcess, opened: list[socket.socket], *, receive_buffer: int | None = None):
    client = socket.socket()
    opened.append(client)
    if receive_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(LONG_S)
    client.connect(("127.0.0.1", flower.port))
    return client


def memory_mib(flower: DashboardProcess) -> float:
    assert flower.process
    return psutil.Process(flower.process.pid).memory_info().rss / MIB


def assert_serves(flower: DashboardProcess) -> None:
    assert flower.get("/runs").status_code == 200


def test_bodies_without_the_password_are_not_taken(flower, opened) -> None:
    before = memory_mib(flower)
    for length in (50 * MIB, 100 * MIB - 1):
        client = connect(flower, opened)
        head = f"POST /runs/actions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n".encode()
        assert pour(client, head, b"x" * 65536, length) < length
    client = connect(flower, opened)
    chunked = b"POST /runs/actions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert pour(client, chunked, b"10000\r\n" + b"x" * 65536 + b"\r\n", 50 * MIB) < 50 * MIB
    assert_serves(flower)
    assert memory_mib(flower) - before < 20


def test_how_large_a_body_may_be_depends_on_the_password(flower) -> None:
    def ask(size: int, auth: tuple[str, str] | None) -> int:
        with suppress(httpx.TransportError):  # hung up on while it sends
            return httpx.post(f"{flower.url}/runs/actions", content=b"x" * size, auth=auth).status_code
        return 400

    page = httpx.get(f"{flower.url}/runs", auth=flower.auth)
    assert page.status_code == 200
    assert ask(MAX_STRANGERS_BODY_BYTES, None) in (401, 403)
    assert ask(MAX_STRANGERS_BODY_BYTES + 1, None) == 400
    assert ask(MAX_STRANGERS_BODY_BYTES + 1, ("forecache", "wrong")) == 400
    # the button's own words: what came is no button's JSON, or brought no token
    assert ask(MAX_BODY_BYTES, flower.auth) == 403
    assert ask(MAX_BODY_BYTES + 1, flower.auth) == 400


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nx: "], ids=["path", "header"])
def test_a_head_that_does_not_end_is_hung_up_on(flower, opened, start) -> None:
    before = memory_mib(flower)
    client = connect(flower, opened)
    assert pour(client, start, b"a" * MAX_HEAD_BYTES) < 16 * MIB
    wait_for(lambda: has_ended(client), "the end of the connection")
    assert_serves(flower)
    assert memory_mib(flower) - before < 10


@pytest.mark.parametrize(
    "start",
    [b"", b"GET / HTTP/1.1\r\nX: ", b"POST / HTTP/1.1\r\nContent-Length: 99\r\n\r\n{", ASK],
    ids=["silent", "in a head", "in a body", "kept alive"],
)
def test_clients_that_hold_connections_for_nothing_make_way(flower, opened, start) -> None:
    for _ in range(MORE):
        client = connect(flower, opened)
        with suppress(ConnectionError):  # refused at once, in a burst that is quicker than Flower
            client.sendall(start)
    assert_serves(flower)
    wait_for(lambda: sum(map(has_ended, opened)) > MORE - MAX_CONNECTIONS, "the end of those that were too many")


def test_clients_that_do_not_take_their_answers_make_way(flower, opened) -> None:
    static = Path(flower_package.__file__).parent / "static"
    largest = max((static / "js").glob("*.js"), key=lambda file: file.stat().st_size)
    ask = f"GET /static/js/{largest.name} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    for _ in range(MORE):
        client = connect(flower, opened, receive_buffer=2048)
        with suppress(ConnectionError):
            client.sendall(ask * 40)
    # for as long as it is busy with all of them it may say 503
    wait_for(lambda: flower.get("/runs").status_code == 200, "a free place")
