"""The API on the connections of its real server, where a hit is answered without a task."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import httpx
import orjson
import pytest
import uvicorn

from app.api import create_app
from app.api.server import configure
from inference.settings import Settings
from tests.integration.test_api import KEYS, Deployment, assert_problem, fresh, it  # noqa: F401 - `it` is a fixture
from tests.support.serving_fakes import entry

pytestmark = pytest.mark.integration


@dataclass
class Served:
    """A server in this process; `raw` opens a plain connection to it."""

    server: uvicorn.Server
    port: int
    http: httpx.AsyncClient

    async def raw(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        return reader, writer


@asynccontextmanager
async def serving(it: Deployment, *, max_in_flight: int = 2, **api: Any) -> AsyncIterator[Served]:  # noqa: F811
    models = {"delay": {"path": "m", "realtime": {"timeout_ms": 30_000, "max_in_flight": max_in_flight}}}
    settings = Settings.model_validate({"models": models, "api": api})
    config = configure(settings.api, lambda: create_app(settings, open_process=it.open_process))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
                yield Served(server, port, http)
        finally:
            server.should_exit = True
            await running


def get(path: str, *lines: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"GET {path} HTTP/{version}", "Host: localhost", *lines, "", ""]).encode()


async def read_answer(reader: asyncio.StreamReader) -> tuple[bytes, dict[str, Any]]:
    """Return the head of the next answer on a connection, and its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return head, orjson.loads(await reader.readexactly(int(length.split(b":")[1])))


async def test_a_hit_takes_no_task_and_a_miss_goes_on_in_one(it: Deployment) -> None:  # noqa: F811
    it.reader.entries["a"] = fresh(1.5)
    it.reader.delay_s = it.workers.delay_s = 0.1
    async with serving(it) as served:
        asked = asyncio.create_task(served.http.get("/predict/a"))
        await until(lambda: len(it.reader.reads) == 1)
        assert served.server.server_state.tasks == set()
        hit = await asked
        asked = asyncio.create_task(served.http.get("/predict/b"))
        await until(lambda: len(it.workers.calls) == 1)
        assert len(served.server.server_state.tasks) == 1
        miss = await asked
    assert hit.headers["content-type"] == miss.headers["content-type"] == "application/json"
    assert (hit.json()["prediction"], hit.json()["outcome"]) == (1.5, "hit_batch")
    assert (miss.json()["prediction"], miss.json()["outcome"]) == (2.5, "computed")
    # what was found is handed on: nobody looks twice
    assert it.reader.reads == [["a"], ["b"]]


async def test_in_an_overload_hits_are_answered_and_misses_refused_until_there_is_room(it: Deployment) -> None:  # noqa: F811
    it.reader.entries.update(a=fresh(1.5), old=entry(0.5, as_of=1.0))
    it.workers.delay_s = 0.3
    async with serving(it, max_in_flight=1) as served:
        assert (await served.http.get("/predict/first")).json()["outcome"] == "computed"  # now the pace is known
        busy = asyncio.create_task(served.http.get("/predict/busy"))
        await until(lambda: len(it.workers.calls) == 2)
        before = served.server.server_state.tasks.copy()
        reader, writer = await served.raw(b"".join(map(get, ("/predict/b?timeout_ms=50", "/predict/a"))))
        (head, refused), (_, hit) = await read_answer(reader), await read_answer(reader)
        writer.write(get("/predict/old?timeout_ms=50"))
        _, stale = await read_answer(reader)
        assert (served.server.server_state.tasks, len(it.workers.calls)) == (before, 2)
        assert head.startswith(b"HTTP/1.1 503 ")
        assert {b"retry-after: 1", b"content-type: application/problem+json"} <= set(head.lower().split(b"\r\n"))
        assert (refused["code"], hit["prediction"], stale["outcome"]) == ("overloaded", 1.5, "stale")
        await busy
        writer.write(get("/predict/b?timeout_ms=2000"))
        assert (await read_answer(reader))[1]["outcome"] == "computed"
        writer.close()


async def test_problems_are_told_and_counted_as_everywhere(it: Deployment) -> None:  # noqa: F811
    it.reader.entries["a"] = fresh(1.5)
    async with serving(it) as served:
        assert_problem(await served.http.get("/predict/%FF"), 400, "bad-entity-id", "entity_id")
        assert_problem(await served.http.get("/predict/a?timeout_ms=0"), 400, "bad-input", "timeout_ms")
        assert_problem(await served.http.get("/predict/a?model=dleay"), 404, "unknown-model", "model")
        assert (await served.http.get("/predict/a?max_staleness_hours=1&other=1")).json()["cache_hit"] is True
        it.reader.down = True
        down = await served.http.get("/predict/a")
    assert_problem(down, 503, "store-unavailable")
    assert down.headers["retry-after"] == "1"
    await it.recorder.flush()
    counted = await it.asyncio_client.hgetall(KEYS.hit_totals("delay"))
    assert {field: int(count) for field, count in counted.items() if b":" not in field} == {b"hit_batch": 1, b"shed": 1}


async def test_a_key_is_asked_for_and_its_rate_counts_each_request_once(it: Deployment) -> None:  # noqa: F811
    it.reader.entries["a"] = fresh(1.5)
    keys = {"shop": {"hash": f"sha256:{sha256(b'sesame').hexdigest()}", "rate": "3/hour"}}
    async with serving(it, keys=keys) as served:
        assert_problem(await served.http.get("/predict/a"), 401, "unauthorized")
        codes = []
        for path in ("/predict/a", "/predict/b", "/predict/a", "/predict/a"):
            codes.append((await served.http.get(path, headers={"X-API-Key": "sesame"})).status_code)
    assert codes == [200, 200, 200, 429]


async def test_pipelined_requests_are_answered_in_order(it: Deployment) -> None:  # noqa: F811
    it.reader.entries.update({name: fresh(float(number)) for number, name in enumerate("abc")})
    async with serving(it) as served:
        reader, writer = await served.raw(
            get("/predict/c") + get("/predict/a") + get("/health/live") + get("/predict/b")
        )
        answers = [(await read_answer(reader))[1] for _ in range(4)]
        writer.close()
    assert [answer.get("prediction") for answer in answers] == [2.0, 0.0, None, 1.0]


@pytest.mark.parametrize(("version", "line"), [("1.0", "X-Y: z"), ("1.1", "Connection: close")])
async def test_a_client_that_wants_the_connection_closed_gets_that(
    it: Deployment,  # noqa: F811
    version: str,
    line: str,
) -> None:
    it.reader.entries["a"] = fresh(1.5)
    async with serving(it) as served:
        reader, writer = await served.raw(get("/predict/a", line, version=version))
        head, body = await read_answer(reader)
        assert (await reader.read(), body["prediction"]) == (b"", 1.5)
        assert b"connection: close" in head.lower()
        writer.close()


async def test_a_client_that_asks_before_it_sends_more_is_answered(it: Deployment) -> None:  # noqa: F811
    it.reader.entries["a"] = fresh(1.5)
    async with serving(it) as served:
        reader, writer = await served.raw(get("/predict/a", "Content-Length: 1", "Expect: 100-continue"))
        assert (await read_answer(reader))[1]["prediction"] == 1.5
        writer.close()


async def test_a_client_that_leaves_during_the_look_up_or_the_computing_costs_nothing_more(
    it: Deployment,  # noqa: F811
) -> None:
    it.reader.entries["a"] = fresh(1.5)
    it.reader.delay_s = 0.5  # the server hears of the end within the look-up, however busy the machine
    it.workers.delay_s = 0.2
    async with serving(it) as served:
        for path in ("/predict/a", "/predict/b"):
            reads = len(it.reader.reads)
            _, writer = await served.raw(get(path))
            await until(lambda reads=reads: len(it.reader.reads) > reads)
            writer.transport.abort()
        await asyncio.sleep(it.reader.delay_s + 0.1)
        assert (it.workers.calls, served.server.server_state.tasks) == ([], set())
        it.reader.delay_s = 0.05
        _, writer = await served.raw(get("/predict/c"))
        await until(lambda: len(it.workers.calls) == 1)
        writer.transport.abort()
        await until(lambda: not served.server.server_state.tasks)
        assert (await served.http.get("/predict/a")).status_code == 200


async def test_a_server_that_stops_answers_what_it_has_begun(it: Deployment) -> None:  # noqa: F811
    it.reader.entries["a"] = fresh(1.5)
    it.reader.delay_s = 0.2
    async with serving(it) as served:
        reader, writer = await served.raw(get("/predict/a"))
        await until(lambda: len(it.reader.reads) == 1)
        served.server.should_exit = True
        head, body = await read_answer(reader)
        assert (b"connection: close" in head.lower(), body["prediction"]) == (True, 1.5)
        assert await reader.read() == b""
        writer.close()


async def until(condition: Any) -> None:
    """Wait, on this event loop, until a condition holds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - neither uvicorn nor the fakes offer an event
            await asyncio.sleep(0.002)


async def test_a_request_that_nobody_has_read_when_the_service_stops_is_answered(it: Deployment) -> None:  # noqa: F811
    it.reader.entries["a"] = fresh(1.5)
    loop = asyncio.get_running_loop()
    async with serving(it) as served:
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.setblocking(False)
            await loop.sock_sendall(client, get("/predict/a"))
            assert b"connection: close" not in (await loop.sock_recv(client, 10_000)).lower()
            # no turn of the server's loop from here until it is told to stop
            client.send(get("/predict/a"))
            for connection in list(served.server.server_state.connections):
                connection.shutdown()
            assert b"connection: close" in (await loop.sock_recv(client, 10_000)).lower()
            assert await loop.sock_recv(client, 1) == b""
