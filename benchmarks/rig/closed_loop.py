"""Closed loops over gRPC and HTTP/1.1 from one event loop: each connection sends when it has its answer."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import grpc

from rig.cpu import cpu_s

#: sends one request and waits for its answer; False if the server had no room for it
Call = Callable[[], Awaitable[bool]]
#: opens a connection
Connect = Callable[[], Any]


@dataclass(frozen=True)
class ClosedLoop:
    """What came of a load. `cpu_us`: CPU time of the server's process for each answer. `refused`: share of requests."""

    rps: float
    p50_ms: float
    cpu_us: float
    refused: float = 0.0


async def load(connect: Connect, connections: int, seconds: float, server: int) -> ClosedLoop:
    """Load a server, whose process id is `server`."""
    loop, took_s, refused = asyncio.get_running_loop(), list[float](), 0
    before, started = cpu_s(server), loop.time()

    async def work() -> None:
        nonlocal refused
        async with connect() as call:
            while loop.time() < started + seconds:
                sent = loop.time()
                if await call():
                    took_s.append(loop.time() - sent)
                else:
                    refused += 1

    await asyncio.gather(*(work() for _ in range(connections)))
    passed_s, used_s = loop.time() - started, cpu_s(server) - before
    answered = len(took_s)
    return ClosedLoop(
        answered / passed_s, statistics.median(took_s) * 1e3, used_s / answered * 1e6, refused / (answered + refused)
    )


def over_grpc(address: str, method: str, message: bytes, check: Callable[[bytes], None]) -> Connect:
    """Return what opens a channel of its own for each caller. `check` raises if an answer is wrong."""

    @asynccontextmanager
    async def connect() -> Any:
        async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            send = channel.unary_unary(method)

            async def call() -> bool:
                try:
                    check(await send(message))
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    return False
                return True

            yield call

    return connect


def over_http(url: str, body: bytes, headers: dict[str, str], check: Callable[[bytes], None]) -> Connect:
    """Return what opens a connection of HTTP/1.1. `check` raises if a body is wrong."""
    parts = urlsplit(url)
    lines = {"Host": parts.netloc, "Content-Length": str(len(body)), **headers}
    head = f"POST {parts.path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    request = head.encode() + b"\r\n" + body

    @asynccontextmanager
    async def connect() -> Any:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 22)

        async def call() -> bool:
            writer.write(request)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            has_room = not answer.startswith(b"http/1.1 503 ")
            length = int(answer.partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            if has_room:
                check(body)
            return has_room

        with _closed(writer):
            yield call

    return connect


@contextmanager
def _closed(writer: asyncio.StreamWriter) -> Iterator[None]:
    try:
        yield
    finally:
        writer.close()
