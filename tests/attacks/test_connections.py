"""More connections than a process has descriptors for, and bodies for which there is no room: real API processes."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from typing import get_args

import pytest

from app.api.bounded_connections import CHECK_EVERY_S
from app.api.limits import MAX_BODY_BYTES, MAX_HELD_BYTES
from tests.support.attacked_api import (
    BODY,
    MIB,
    AttackedApi,
    Kind,
    attacked_api,
    has_ended,
    post,
    pour,
    read_status,
    wait_until_ended,
)
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow]

DESCRIPTORS = 700
PLACES = 100
MORE = 160
HIT = b"GET /predict/a HTTP/1.1\r\nHost: localhost\r\n\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module", params=get_args(Kind))
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttackedApi]:
    folder = tmp_path_factory.mktemp("connections")
    with attacked_api(folder, request.param, descriptors=DESCRIPTORS, max_connections=PLACES) as api:
        yield api


@pytest.fixture
def api(running: AttackedApi) -> Iterator[AttackedApi]:
    yield running
    running.close_all()
    # nothing of an attack is left for the next one
    wait_for(lambda: running.descriptors() < PLACES + 32, "the end of the connections")


@pytest.mark.parametrize(
    "start",
    [b"", b"GET /predict/a HTTP/1.1\r\nX: ", post(b"{", 5000), LIVE],
    ids=["silent", "in a head", "in a body", "kept alive"],
)
def test_clients_that_hold_connections_for_nothing_make_way(api: AttackedApi, start: bytes) -> None:
    held, count = [], len(api.processes)  # which share their clients as it comes, each with its own places
    for _ in range(MORE * count):
        client = api.connect()
        client.sendall(start)
        held.append(client)
    api.assert_serves()
    assert api.descriptors() < PLACES + 64
    wait_for(lambda: sum(map(has_ended, held)) > (MORE - PLACES) * count, "the end of those that were too many")
    assert not has_ended(held[-1])  # the oldest have gone
    assert 1 <= api.log().count("api.full") <= count  # not a line for each


def test_those_who_never_asked_for_anything_go_before_those_who_did(api: AttackedApi) -> None:
    regular = api.connect()
    regular.sendall(HIT)
    assert read_status(regular) == 200
    time.sleep(2 * CHECK_EVERY_S)  # idle for longer than the others by what the server knows
    for _ in range(MORE * len(api.processes)):
        api.connect()
    api.assert_serves()
    regular.sendall(HIT)
    assert read_status(regular) == 200


def test_while_everybody_waits_for_an_answer_newcomers_get_503_and_probes_are_served(api: AttackedApi) -> None:
    job = api.request("POST", "/predictions", json={"entity_ids": ["a"]}).json()["task_id"]
    waiting = []

    def ask(request: bytes) -> int:
        client = api.connect()
        client.sendall(request)
        status = read_status(client)
        client.close()
        return status

    def is_full() -> bool:
        client = api.connect()
        client.sendall(f"GET /predictions/{job}?wait_s=60 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        waiting.append(client)
        return len(waiting) >= PLACES * len(api.processes) and ask(HIT) == 503

    while not is_full():
        assert len(waiting) < 5 * PLACES * len(api.processes)
    assert ask(LIVE) == 200
    assert ask(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n") == 200
    # who leaves makes place
    api.close_all()
    api.request("DELETE", f"/predictions/{job}")
    wait_for(lambda: ask(HIT) == 200, "a free place")


def test_bodies_that_are_held_back_leave_room_for_those_that_come(api: AttackedApi) -> None:
    before, processes = api.memory_mib(), len(api.processes)
    count = (MAX_HELD_BYTES // MAX_BODY_BYTES + 8) * processes
    held = [api.connect() for _ in range(count)]
    for client in held:
        pour(client, post(b"", MAX_BODY_BYTES), b" " * (MAX_BODY_BYTES - 1000), 1)
    body = BODY + b" " * (MAX_BODY_BYTES // 2)
    answer = api.request("POST", "/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    api.assert_serves()
    assert api.memory_mib() - before < 2 * MAX_HELD_BYTES / MIB * processes
    # the oldest was told why
    assert processes > 1 or read_status(held[0]) == 503
    # the newest kept its place, though on a busy machine the time for its body may be over by now
    assert not select.select([held[-1]], [], [], 0)[0] or read_status(held[-1]) == 408


def test_what_nobody_reads_of_a_body_is_not_taken_for_ever(api: AttackedApi) -> None:
    client = api.connect()
    head = b"POST /health/live HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    most = 64 * MAX_BODY_BYTES
    assert pour(client, head, b"10000\r\n" + b"b" * 65536 + b"\r\n", most) < most
    wait_until_ended(client)
