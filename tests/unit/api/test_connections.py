"""The server's connections over transports to nowhere: parsing in steps, and the end of a connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextvars import copy_context
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from app.api.access import AccessControl
from app.api.bounded_connections import STEP_BYTES
from app.api.connections import Connection
from app.api.drain import Drain
from app.api.hot_path import predict_one
from app.api.limits import ConnectionLimit, RequestMemory
from app.api.requests import begin_request
from app.api.server import configure
from inference.errors import Overloaded
from inference.logs import requests_behind
from inference.settings import ApiSettings

REQUEST = b"GET /%d HTTP/1.1\r\n\r\n"
#: what a transport reads at once
READ_BYTES = 64 * 1024


class Application:
    """Answers each request with its own path, in a turn of its own."""

    connection_limit, memory, drain = ConnectionLimit(10, 10), RequestMemory(), Drain(0)
    shown_under, headers_of_longer_answers = "", frozenset[bytes]()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await asyncio.sleep(0)
        body = scope["path"].encode() + b";"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


class Client(asyncio.Transport):
    """Takes every answer at once."""

    def __init__(self) -> None:
        super().__init__()
        self.is_paused = False
        self.taken = b""
        self.writes = 0

    def write(self, data: Any) -> None:
        self.taken += bytes(data)
        self.writes += 1

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


def connect(client: Client, application: Application) -> Connection:
    config = uvicorn.Config(application, http=Connection, ws="none", log_config=None)
    config.load()
    config.loaded_app = config.app
    connection = Connection(config, ServerState(), {}, asyncio.get_running_loop())
    connection.connection_made(client)
    return connection


async def test_of_requests_that_are_sent_together_few_wait_at_a_time_and_all_are_answered_in_order() -> None:
    client = Client()
    connection = connect(client, Application())
    count, waiting = 5_000, 0
    sent = b"".join(REQUEST % number for number in range(count))
    with_body = b"POST /last HTTP/1.1\r\nContent-Length: 5\r\n\r\nab"
    pieces = [sent[at : at + READ_BYTES] for at in range(0, len(sent), READ_BYTES)] + [with_body, b"cde"]

    for piece in pieces:
        while client.is_paused:
            await asyncio.sleep(0)
            waiting = max(waiting, len(connection.pipeline))
        connection.data_received(piece)
    while b"/last;" not in client.taken:  # noqa: ASYNC110 - the answers come by turns of the loop
        await asyncio.sleep(0)
    connection.connection_lost(None)

    assert waiting <= STEP_BYTES // len(REQUEST % 0) + 1
    told = [line.partition(b";")[0] for line in client.taken.split(b"\r\n\r\n")[1:]]
    assert told == [b"/%d" % number for number in range(count)] + [b"/last"]


class Service:
    """Has no answer stored, and computes one. `at_once`: the answer if there is no need to compute."""

    at_once: list[Any] | None = None

    def __init__(self) -> None:
        self.context = copy_context()

    def look_up(self, _model: None, entity_ids: tuple[str], tell: Callable[[], None], **_: None) -> tuple[str]:
        # like a look-up that many requests share: they are told of its end in one context
        asyncio.get_running_loop().call_soon(tell, context=self.context)
        return entity_ids

    def hits(self, _: tuple[str]) -> None: ...

    def answers_at_once(self, _: tuple[str]) -> list[Any] | None:
        return self.at_once

    async def complete(self, entity_ids: tuple[str]) -> list[Any]:
        await asyncio.sleep(0)
        return [SimpleNamespace(to_json_text=lambda: b'{"of":"%b"}' % entity_ids[0].encode())]


class Predicting(Application):
    """Answers on the hot path."""

    def __init__(self) -> None:
        self.access = AccessControl(ApiSettings())
        self.process = SimpleNamespace(service=Service())
        self.tasks = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.tasks += 1
        service: Any = self.process.service
        await predict_one(service, self.access, scope, receive, send, begin_request(scope))


@pytest.mark.parametrize("is_slow", [False, True])
async def test_a_computed_answer_is_one_write_unless_its_client_is_slow(is_slow: bool) -> None:
    client = Client()
    connection = connect(client, Predicting())
    for number in range(2):
        if is_slow:
            connection.pause_writing()
        connection.data_received(b"GET /predict/e%d HTTP/1.1\r\n\r\n" % number)
        for _ in range(20):
            await asyncio.sleep(0)
        if is_slow:
            assert client.writes == 2 * number, "nothing is written to a client that takes nothing"
            connection.resume_writing()
            for _ in range(20):
                await asyncio.sleep(0)
    connection.connection_lost(None)

    heads, bodies = client.taken.split(b"\r\n\r\n")[:-1], client.taken.count(b"\r\n\r\n{")
    assert [b'{"of":"e%d"}' % number in client.taken for number in range(2)] == [True, True]
    assert (bodies, all(b"content-length: 11" in head for head in heads)) == (2, True)
    assert client.writes == (4 if is_slow else 2)


async def test_a_refusal_takes_no_task_and_one_write_and_the_connection_goes_on() -> None:
    client, application = Client(), Predicting()
    connection = connect(client, application)
    service = application.process.service
    service.at_once = [Overloaded("too many wait", retry_after_s=2.5)]
    for path in (b"/predict/a", b"/predict/b", b"/predict/a?timeout_ms=0"):
        connection.data_received(b"GET %b HTTP/1.1\r\n\r\n" % path)
        for _ in range(5):
            await asyncio.sleep(0)
    assert (application.tasks, client.writes) == (0, 3)
    service.at_once = None
    connection.data_received(b"GET /predict/c HTTP/1.1\r\n\r\n")
    for _ in range(20):
        await asyncio.sleep(0)
    connection.connection_lost(None)

    first, second, third, fourth = client.taken.split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in (first, second, third, fourth)] == [b"503", b"503", b"400", b"200"]
    head, _, body = first.partition(b"\r\n\r\n")
    told = json.loads(body)
    assert (told["code"], told["status"], told["detail"]) == ("overloaded", 503, "too many wait")
    lines = head.lower().split(b"\r\n")
    assert {
        b"content-type: application/problem+json",
        b"content-length: %d" % len(body),
        b"retry-after: 3",
        b"x-request-id: %b" % told["request_id"].encode(),
        b"x-frame-options: deny",
    } <= set(lines)
    assert json.loads(second.partition(b"\r\n\r\n")[2])["request_id"] != told["request_id"]
    assert service.context.run(requests_behind) == ()


async def test_a_client_that_left_during_the_look_up_gets_no_refusal() -> None:
    client, application = Client(), Predicting()
    connection = connect(client, application)
    application.process.service.at_once = [Overloaded("too many wait")]
    connection.data_received(b"GET /predict/a HTTP/1.1\r\n\r\n")
    connection.connection_lost(None)
    for _ in range(5):
        await asyncio.sleep(0)
    assert (application.tasks, client.writes) == (0, 0)


class Transport(asyncio.Transport):
    """Keeps what is written; nobody takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_lost = False

    def write(self, data: Any) -> None:
        assert not self.is_lost, "written to a connection that is lost"
        self.written += data

    def is_closing(self) -> bool:
        return self.is_lost

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0


class SlowApplication:
    """Answers once its client has hung up, or says something more."""

    shown_under = ""

    def __init__(self) -> None:
        self.connection_limit, self.memory, self.drain = ConnectionLimit(10, 10), RequestMemory(), Drain(0)
        self.heard: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        self.heard.append((await receive())["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def test_the_request_that_is_being_answered_hears_of_it_though_others_wait_behind_it() -> None:
    application: Any = SlowApplication()
    config = configure(ApiSettings(), lambda: application)
    config.load()
    state, transport = ServerState(), Transport()
    connection = Connection(config, state, {}, asyncio.get_running_loop())
    connection.connection_made(transport)
    connection.data_received(b"GET /runs HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
    await asyncio.sleep(0)
    transport.is_lost = True
    connection.connection_lost(ConnectionAbortedError())
    await asyncio.gather(*state.tasks)
    assert application.heard == ["http.disconnect"]
    assert transport.written == b""
