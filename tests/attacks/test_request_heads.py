"""Heads, trailers and framing without end, and requests by the thousand on one connection: real API processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from app.api.limits import MAX_HEAD_BYTES, MAX_HEADERS
from tests.support.attacked_api import BODY, MIB, AttackedApi, attacked_api, post, pour, read_status, wait_until_ended
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow]

HIT = b"GET /predict/a HTTP/1.1\r\nHost: [::]\r\n"
CHUNKED = (
    b"POST /predict HTTP/1.1\r\nHost: [::]\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)
ENDLESS = {
    "path": (b"GET /", b"a" * 65536, 414),
    "query": (b"GET /predict/a?", b"a" * 65536, 414),
    "blank lines": (b"\r\n", b"\r\n" * 16384, 431),
    "headers": (HIT, b"a1: b\r\n" * 9000, 431),
    "header name": (HIT, b"a" * 65536, 431),
    "header value": (HIT + b"x: ", b"a" * 65536, 431),
    "trailers": (CHUNKED + b"1\r\n{\r\n0\r\n", b"a1: b\r\n" * 9000, 431),
    "trailer": (CHUNKED + b"1\r\n{\r\n0\r\nx: ", b"b" * 65536, 431),
    "chunk extension": (CHUNKED + b"1;", b"b" * 65536, 431),
}


@pytest.fixture(scope="module", params=["one process", "a Unix socket"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttackedApi]:
    with attacked_api(tmp_path_factory.mktemp("heads"), request.param) as api:
        yield api


@pytest.fixture
def api(running: AttackedApi) -> Iterator[AttackedApi]:
    yield running
    running.close_all()


@pytest.mark.parametrize("is_second", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("what", ENDLESS)
def test_what_does_not_end_is_refused_before_it_costs_anything(api: AttackedApi, what: str, is_second: bool) -> None:
    start, piece, status = ENDLESS[what]
    before = api.memory_mib()
    client = api.connect()
    if is_second:
        client.sendall(HIT + b"\r\n")
        assert read_status(client) == 200
    sent = pour(client, start, piece)
    assert sent < 16 * MIB  # hung up on
    assert read_status(client) == status
    api.assert_serves()
    assert api.memory_mib() - before < 10


def test_a_large_head_within_the_limit_is_served_however_it_is_cut(api: AttackedApi) -> None:
    head = HIT + b"X: " + b"x" * (MAX_HEAD_BYTES - 100) + b"\r\n\r\n"
    for step in (len(head), 5000, 17):
        client = api.connect()
        for start in range(0, len(head), step):
            client.sendall(head[start : start + step])
        assert read_status(client) == 200


@pytest.mark.parametrize("head", [
    HIT + b"X: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
    HIT + b"a: b\r\n" * (MAX_HEADERS + 10) + b"\r\n",
], ids=["bytes", "lines"])  # fmt: skip
def test_a_head_over_the_limit_is_refused_however_it_is_cut(api: AttackedApi, head: bytes) -> None:
    for step in (len(head), 5000, 171):
        client = api.connect()
        for start in range(0, len(head), step):
            client.sendall(head[start : start + step])
        assert read_status(client) == 431
        client.close()


def test_a_url_over_the_limit_is_a_414_in_one_piece_too(api: AttackedApi) -> None:
    client = api.connect()
    client.sendall(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n")
    assert read_status(client) == 414


def test_a_body_before_a_large_head_does_not_count_for_it(api: AttackedApi) -> None:
    client = api.connect()
    large = post(BODY + b" " * (2 * MAX_HEAD_BYTES))
    client.sendall(large + large + HIT + b"X: " + b"x" * (MAX_HEAD_BYTES // 2) + b"\r\n\r\n")
    assert [read_status(client) for _ in range(3)] == [200, 200, 200]


def test_thousands_of_requests_at_once_are_answered_one_after_the_other(api: AttackedApi) -> None:
    # on a busy machine the store may be too slow for one of them: ask them all again
    assert any(answers_of_many(api).count(b'"prediction":2.5') == 1500 for _ in range(3))


def answers_of_many(api: AttackedApi) -> bytes:
    client = api.connect()
    client.settimeout(60)
    client.sendall((HIT + b"\r\n") * 1500 + b"GET /health/live HTTP/1.1\r\nHost: [::]\r\nConnection: close\r\n\r\n")
    answers = b""
    while piece := client.recv(65536):
        answers += piece
    assert answers.endswith(b'{"status":"live"}')
    return answers


def test_floods_of_requests_leave_room_for_those_of_others(api: AttackedApi) -> None:
    before = api.memory_mib()
    flood = b"GET /predict/a HTTP/1.1\r\n\r\n" * 40_000
    clients = [api.connect() for _ in range(20)]
    for client in clients:
        client.setblocking(False)
        with suppress(BlockingIOError):
            client.send(flood)
    # one that comes at the very moment may be told that the store does not answer, if the machine is busy
    wait_for(lambda: api.request("GET", "/predict/a").status_code == 200, "a hit beside the flood")
    assert api.memory_mib() - before < 60  # each of them had taken ten and more


def test_a_client_that_asks_for_what_is_no_http_after_a_request_has_its_answer(api: AttackedApi) -> None:
    client = api.connect()
    client.sendall(HIT + b"\r\n\0\0\0")
    assert read_status(client) == 200
    wait_until_ended(client)
