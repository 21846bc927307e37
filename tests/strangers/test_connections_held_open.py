"""Clients that keep a connection, close half of it, or send so slowly that they hold it for nothing."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from app.api import bounded_connections, limits
from inference.settings import ApiSettings
from tests.integration.test_api import Deployment, fresh
from tests.integration.test_api_connections import get, read_answer, serving, until

pytestmark = pytest.mark.integration


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Late is after a moment, which the server looks for all the time."""
    monkeypatch.setattr(bounded_connections, "CHECK_EVERY_S", 0.01)
    monkeypatch.setattr(limits, "HEAD_TIMEOUT_S", 0.1)
    monkeypatch.setattr(limits, "BODY_TIMEOUT_S", 0.1)


async def read_all(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(10):
        return await reader.read()


async def test_a_client_that_says_nothing_is_hung_up_on(it: Deployment, soon: None) -> None:
    async with serving(it) as served:
        reader, writer = await served.raw(b"")
        assert await read_all(reader) == b""
        writer.close()


@pytest.mark.parametrize(
    "start", [b"GET /", b"GET /predict/a HTTP/1.1\r\n", b"GET /predict/a HTTP/1.1\r\nHost: localhost\r\nX-A: b"]
)
@pytest.mark.parametrize("before", [False, True], ids=["first", "second"])
async def test_a_head_that_does_not_end_is_a_408(
    it: Deployment,
    soon: None,
    start: bytes,
    before: bool,
) -> None:
    it.reader.entries["a"] = fresh(1.5)
    async with serving(it) as served:
        reader, writer = await served.raw(get("/predict/a") if before else b"")
        if before:
            await read_answer(reader)
        dripping = asyncio.create_task(drip(writer, start + b"x" * 1000))
        head, problem = await read_answer(reader)
        assert (head[:12], problem["code"]) == (b"HTTP/1.1 408", "request-timeout")
        dripping.cancel()
        writer.close()


async def drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    for byte in data:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("path", "framing", "body"),
    [
        ("/predict", "Content-Length: 4000", b"{"),
        ("/predictions", "Transfer-Encoding: chunked", b"1\r\n{\r\n"),
        ("/v1/models/delay:predict", "Content-Length: 4000", b""),
        ("/v2/models/delay/infer", "Content-Encoding: gzip\r\nContent-Length: 4000", b"\x1f\x8b"),
    ],
)
async def test_a_body_that_does_not_come_is_a_408(
    it: Deployment, soon: None, path: str, framing: str, body: bytes
) -> None:
    request = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{framing}\r\n\r\n".encode()
    async with serving(it) as served:
        reader, writer = await served.raw(request + body)
        head, problem = await read_answer(reader)
        assert head.startswith(b"HTTP/1.1 408")
        assert "took too long" in str(problem)
        assert await read_all(reader) == b""
        await until(lambda: not served.server.server_state.tasks)
        writer.close()


async def test_a_large_body_may_take_as_long_as_its_bytes_do(
    it: Deployment, monkeypatch: pytest.MonkeyPatch, soon: None
) -> None:
    monkeypatch.setattr(limits, "BODY_BYTES_PER_S", 100)
    it.reader.entries["a"] = fresh(1.5)
    body = b'{"entity_ids": ["a"]}' + b" " * 200
    async with serving(it) as served:
        head = (
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        reader, writer = await served.raw(head % len(body))
        for start in range(0, len(body), 20):  # takes twice what a body of no bytes may
            writer.write(body[start : start + 20])
            await asyncio.sleep(0.02)
        assert (await read_answer(reader))[1]["predictions"][0]["prediction"] == 1.5
        writer.close()


async def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(it: Deployment) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 8388609\r\n"
    async with serving(it) as served:
        reader, writer = await served.raw(head + b"Expect: 100-continue\r\n\r\n")
        head, problem = await read_answer(reader)
        assert (head[:12], problem["code"]) == (b"HTTP/1.1 413", "body-too-large")
        writer.close()


async def test_a_body_that_stops_half_way_is_cut_off_however_much_has_come(
    it: Deployment, monkeypatch: pytest.MonkeyPatch, soon: None
) -> None:
    monkeypatch.setattr(limits, "PAUSE_S", 0.1)
    monkeypatch.setattr(limits, "BODY_BYTES_PER_S", 1)  # what has come would allow for days
    head = (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 300000\r\n\r\n"
    )
    async with serving(it) as served:
        reader, writer = await served.raw(head + b"Content-Length: 300000\r\n\r\n")
        await asyncio.sleep(0.05)  # the server has begun to wait for it
        writer.write(b" " * 200_000)
        head, _ = await read_answer(reader)
        assert head.startswith(b"HTTP/1.1 408")
        assert await read_all(reader) == b""
        writer.close()


@pytest.mark.parametrize("reason", ["time", "room"])
async def test_a_client_that_does_not_take_its_answers_is_cut_off(
    it: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    monkeypatch.setattr(bounded_connections, "CHECK_EVERY_S", 0.01)
    monkeypatch.setattr(limits, "PAUSE_S", 0.3 if reason == "time" else 60)
    async with serving(it) as served:
        if reason == "room":
            monkeypatch.setattr(served.server.config.loaded_app.memory, "_limit", 10_000)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", served.port))
            # more than the system's buffers take
            ask = get("/openapi.json") * 200
            sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(client, ask))
            await until(lambda: served.server.server_state.connections)
            await until(lambda: not served.server.server_state.connections)
            sending.cancel()
        await until(lambda: not served.server.server_state.tasks)
        assert (await served.http.get("/health/live")).status_code == 200
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


async def test_what_was_asked_before_a_refused_request_is_answered(
    it: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_connections, "CHECK_EVERY_S", 0.01)
    monkeypatch.setattr(limits, "FAREWELL_S", 0.05)
    it.reader.delay_s = 0.5
    it.reader.entries["a"] = fresh(1.5)
    async with serving(it) as served:
        reader, writer = await served.raw(get("/predict/a") + b"\0\0\0")
        assert (await read_answer(reader))[1]["prediction"] == 1.5
        assert await read_all(reader) == b""
        writer.close()


async def test_a_client_that_was_refused_may_send_the_rest_for_a_moment_and_no_longer(
    it: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_connections, "CHECK_EVERY_S", 0.01)
    monkeypatch.setattr(limits, "FAREWELL_S", 0.2)
    async with serving(it) as served:
        reader, writer = await served.raw(b"GET /" + b"a" * 200_000)
        head, _ = await read_answer(reader)
        assert head.startswith(b"HTTP/1.1 414")
        await until(lambda: not served.server.server_state.connections)
        writer.close()


async def test_a_client_that_leaves_while_several_of_its_requests_wait_costs_no_error(
    it: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    it.reader.delay_s = 0.05
    it.reader.entries["a"] = fresh(1.5)
    it.workers.delay_s = 0.1
    async with serving(it) as served:
        for paths in (("/predict/a", "/predict/a"), ("/predict/b", "/predict/a"), ("/health/ready", "/predict/b")):
            reads = len(it.reader.reads)
            _, writer = await served.raw(b"".join(map(get, paths)))
            await until(lambda reads=reads: len(it.reader.reads) > reads)
            writer.transport.abort()
            await until(lambda: not served.server.server_state.connections and not served.server.server_state.tasks)
        await asyncio.sleep(0.2)
        assert (await served.http.get("/predict/a")).status_code == 200
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


async def test_a_client_that_waits_for_an_answer_is_not_late(it: Deployment, soon: None) -> None:
    it.reader.delay_s = 0.4
    it.reader.entries["a"] = fresh(1.5)
    async with serving(it) as served:
        # nobody reads the body of the last one, so its rest is not waited for
        for request in (
            get("/predict/a"),
            get("/predict/a", "Content-Length: 2") + b"xx",
            get("/predict/a", "Content-Length: 4") + b"xx",
        ):
            reader, writer = await served.raw(request)
            assert (await read_answer(reader))[1]["prediction"] == 1.5
            writer.close()


async def test_an_idle_connection_is_kept_as_long_as_the_setting_says(
    it: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_connections, "CHECK_EVERY_S", 0.01)
    it.reader.entries["a"] = fresh(1.5)
    async with serving(it, keep_alive="300ms") as served:
        reader, writer = await served.raw(get("/predict/a"))
        await read_answer(reader)
        answered = asyncio.get_running_loop().time()
        assert await read_all(reader) == b""  # in silence: a 408 would be taken for the next answer
        assert asyncio.get_running_loop().time() - answered >= 0.3
        writer.close()
    assert ApiSettings().keep_alive > 60  # nginx' and AWS's default for what they keep


@pytest.mark.parametrize("path", ["/predict/a", "/predict/b", "/health/live"], ids=["hit", "miss", "constant"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_client_that_closes_its_sending_half_gets_its_answer(
    it: Deployment,
    path: str,
    version: str,
) -> None:
    it.reader.entries["a"] = fresh(1.5)
    it.reader.delay_s = it.workers.delay_s = 0.1
    async with serving(it) as served:
        reader, writer = await served.raw(get(path, version=version))
        writer.write_eof()
        answer = await read_all(reader)
        assert b" 200 OK\r\n" in answer
        assert answer.endswith(b"}")
        writer.close()


async def test_all_of_what_was_asked_before_the_half_was_closed_is_answered(it: Deployment) -> None:
    it.reader.entries["a"] = fresh(1.5)
    it.reader.delay_s = 0.05
    body = b'{"entity_ids": ["a"]}'
    post = (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    )
    async with serving(it) as served:
        reader, writer = await served.raw(get("/predict/a") + get("/predict/a") + post % (len(body), body))
        writer.write_eof()
        assert (await read_all(reader)).count(b'"prediction":1.5') == 3
        writer.close()


async def test_work_for_a_client_that_went_for_good_ends(it: Deployment) -> None:
    it.workers.delay_s = 25  # within the model's budget
    async with serving(it) as served:
        _, writer = await served.raw(get("/predict/b"))
        await until(lambda: len(it.workers.calls) == 1)
        writer.close()
        await until(lambda: not served.server.server_state.tasks)


async def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing_behind(
    it: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(it) as served:
        for path in ("/predict", "/v2/models/delay/infer"):
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99"
            _, writer = await served.raw(f"{head}\r\n\r\n{{".encode())
            await until(lambda: served.server.server_state.tasks)
            writer.close()
            await until(lambda: not served.server.server_state.tasks)
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("path", ["/predict/a", "/predict/b", "/health/live"])
async def test_http_1_0_keeps_the_connection_if_it_asks_to(it: Deployment, path: str) -> None:
    it.reader.entries["a"] = fresh(1.5)
    async with serving(it) as served:
        reader, writer = await served.raw(b"")
        for _ in range(3):
            writer.write(get(path, "Connection: Keep-Alive", version="1.0"))
            head, _ = await read_answer(reader)
            assert b"connection: keep-alive" in head.lower()
            assert b"connection: close" not in head.lower()
        writer.write(get(path, version="1.0"))
        head, _ = await read_answer(reader)
        assert b"connection: close" in head.lower()
        assert await read_all(reader) == b""
        writer.close()
