"""Hits whose headers are those of the hit before them: the connection does not parse these again."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.api.access import AccessControl
from app.api.bounded_connections import CHECK_EVERY_S
from app.api.connections import Connection
from app.api.drain import Drain
from app.api.hot_path import predict_one
from app.api.limits import ConnectionLimit, RequestMemory
from app.api.requests import begin_request
from app.api.server import configure
from inference.serving import PredictionService
from inference.settings import ApiKey, ApiSettings, Settings
from tests.support.serving_fakes import FakeReader, FakeRecorder, FakeWorkers, entry
from tests.support.virtual_time import virtual_time

API = ApiSettings(keep_alive=5)
HEADERS = b"Host: localhost\r\nAccept: */*\r\n\r\n"
NOW = 1010.0


class Application:
    """Serves predictions: `a` to `c` are stored, a worker computes all others as 2.5."""

    shown_under, headers_of_longer_answers = "", frozenset({b"x-request-id"})

    def __init__(self, api: ApiSettings) -> None:
        self.connection_limit, self.memory, self.drain = ConnectionLimit(10, 10), RequestMemory(), Drain(0)
        self.access = AccessControl(api)
        self.reader = FakeReader({"a": entry(1.0), "b": entry(2.0), "c": entry(3.0)})
        model = {"path": Path("m"), "batch": {"ttl": "100s"}, "realtime": {"timeout_ms": 5_000}}
        settings = Settings.model_validate({"models": {"m": model}})
        self.workers = FakeWorkers()
        self.service = PredictionService(settings, lambda _: self.reader, self.workers, FakeRecorder(), lambda: NOW)
        self.process = SimpleNamespace(service=self.service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await predict_one(self.service, self.access, scope, receive, send, begin_request(scope))


class Client(asyncio.Transport):
    """A connection to the application, in memory."""

    def __init__(self, api: ApiSettings = API) -> None:
        super().__init__()
        self.taken, self.is_closed = b"", False
        application: Any = Application(api)
        self.reader, self.workers = application.reader, application.workers
        config = configure(api, lambda: application)
        config.load()
        self.connection = Connection(config, ServerState(), {}, asyncio.get_running_loop())
        self.connection.connection_made(self)

    async def send(self, *pieces: bytes) -> list[tuple[str, float]]:
        """Send pieces of bytes, and return the ids and predictions of all answers to them."""
        for piece in pieces:
            self.connection.data_received(piece)
        await asyncio.sleep(0.2)
        taken, self.taken = self.taken, b""
        bodies = [part[part.index(b"{") :] for part in taken.split(b"HTTP/1.1 ")[1:]]
        return [(body["entity_id"], body["prediction"]) for body in map(orjson.loads, bodies)]

    def write(self, data: Any) -> None:
        self.taken += bytes(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def get(entity_id: str, headers: bytes = HEADERS) -> bytes:
    return b"GET /predict/%b HTTP/1.1\r\n%b" % (entity_id.encode(), headers)


async def asked_before() -> Client:
    """Return a client whose last requests were hits with the same headers."""
    client = Client()
    for _ in range(3):
        assert await client.send(get("a")) == [("a", 1.0)]
    return client


@virtual_time
async def test_each_is_answered_for_its_own_id_with_what_is_stored_now() -> None:
    client = await asked_before()
    assert await client.send(get("b")) == [("b", 2.0)]
    assert await client.send(get("new")) == [("new", 2.5)]
    client.reader.entries["b"] = entry(7.0)
    assert [await client.send(get(each)) for each in "bcb"] == [[("b", 7.0)], [("c", 3.0)], [("b", 7.0)]]


@virtual_time
async def test_those_that_come_before_the_answer_are_answered_in_order() -> None:
    client = await asked_before()
    assert await client.send(get("b"), get("new"), get("c"), get("a")) == [
        ("b", 2.0), ("new", 2.5), ("c", 3.0), ("a", 1.0),
    ]  # fmt: skip
    for first in (get("b"), get("a"), get("b")):
        assert (await client.send(first + get("c")))[1:] == [("c", 3.0)]


@virtual_time
async def test_one_that_comes_while_an_earlier_one_is_computed_is_answered_after_it() -> None:
    client = await asked_before()
    client.reader.delay_s, client.workers.delay_s = 0.1, 0.5
    client.connection.data_received(get("b"))
    client.connection.data_received(get("new"))
    await asyncio.sleep(0.15)  # the first is answered
    client.connection.data_received(get("c"))
    await asyncio.sleep(1)
    assert await client.send() == [("b", 2.0), ("new", 2.5), ("c", 3.0)]


@virtual_time
async def test_other_headers_count_at_once() -> None:
    client = await asked_before()
    client.connection.data_received(get("b", HEADERS.replace(b"localhost", b"evilhosts")))
    await asyncio.sleep(0.2)
    assert client.taken.startswith(b"HTTP/1.1 403 ")
    client.taken = b""
    client.connection.data_received(get("b", b"Host: localhost\r\nConnection: close\r\n\r\n"))
    await asyncio.sleep(0.2)
    assert b"connection: close\r\n" in client.taken
    assert client.is_closed


@virtual_time
async def test_a_query_counts_for_its_own_request() -> None:
    client = await asked_before()
    client.reader.entries["old"] = entry(4.0, as_of=NOW - 500)
    for _ in range(2):
        assert await client.send(get("old?max_staleness_hours=1")) == [("old", 4.0)]
    assert await client.send(get("a?max_staleness_hours=1")) == [("a", 1.0)]
    assert await client.send(get("a?max_staleness_hours=0")) == [("a", 2.5)]
    assert await client.send(get("old?max_staleness_hours=1")) == [("old", 4.0)]
    assert await client.send(get("old")) == [("old", 2.5)]


@virtual_time
async def test_bytes_that_look_like_one_within_a_head_are_a_header() -> None:
    client = await asked_before()
    assert await client.send(b"GET /predict/b HTTP/1.1\r\nX: ", get("c"), get("a")) == [("b", 2.0), ("a", 1.0)]
    assert await client.send(get("b"), b"GET /predict/c HTTP/1.1\r\nX: ") == [("b", 2.0)]
    assert await client.send(get("a")) == [("c", 3.0)]


@virtual_time
async def test_a_key_counts_for_its_own_request_however_that_was_cut_into_pieces() -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    client = Client(ApiSettings(keys={"one": ApiKey(hash=f"sha256:{digest}")}))
    with_key = get("a", b"X-API-Key: secret\r\n\r\n")
    assert [await client.send(with_key) for _ in range(2)] == [[("a", 1.0)]] * 2
    without_key = get("a", b"\r\n")
    assert await client.send(b"GET /predict/b HTTP/1.1\r\nX-API-Key: secret\r\nX: ", without_key) == [("b", 2.0)]
    client.connection.data_received(without_key)
    await asyncio.sleep(0.2)
    assert client.taken.startswith(b"HTTP/1.1 401 ")


@virtual_time
async def test_bytes_that_look_like_one_within_a_body_are_a_body() -> None:
    client = await asked_before()
    size = len(get("b", b"Host: localhost\r\nContent-Length: 99\r\n\r\n"))
    with_body = get("b", b"Host: localhost\r\nContent-Length: %d\r\n\r\n" % size)
    assert await client.send(with_body) == [("b", 2.0)]
    assert await client.send(with_body) == []
    assert await client.send(get("c")) == [("c", 3.0)]


@virtual_time
async def test_a_client_that_goes_on_asking_is_not_idle() -> None:
    client = await asked_before()
    for _ in range(12):
        await asyncio.sleep(CHECK_EVERY_S - 0.2)
        assert await client.send(get("b")) == [("b", 2.0)]
    assert not client.is_closed
    await asyncio.sleep(API.keep_alive + 2 * CHECK_EVERY_S)
    assert client.is_closed
