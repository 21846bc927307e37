"""The API's own way to Redis: batches in order, errors that leave nothing behind, restarts that nobody notices."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import uvloop
from redis.asyncio import Connection

from inference.errors import StoreUnavailable
from inference.redis.clients import REQUEST, open_async_client
from inference.redis.pipes import AsyncPipe
from tests.support.redis_server import RedisServer


@pytest.fixture
async def pipe(redis_client: redis.Redis, redis_server: RedisServer) -> AsyncIterator[AsyncPipe]:
    async with redis.asyncio.Redis.from_url(redis_server.url(), retry=None) as client:
        yield AsyncPipe(client, timeout_s=30.0)


async def test_replies_come_in_the_order_of_their_commands(pipe: AsyncPipe) -> None:
    commands = [("SET", f"k{i}", "é" * i) for i in range(50)]
    assert await pipe.send(commands) == [b"OK"] * 50
    found = await pipe.send([("MGET", "k1", "k2", "none"), ("HMGET", "h", "a"), ("STRLEN", b"k3")])
    assert found == [["é".encode(), "éé".encode(), None], [None], 6]


async def test_batches_at_the_same_time_do_not_mix(pipe: AsyncPipe) -> None:
    batches = await asyncio.gather(*(pipe.send([("ECHO", i), ("ECHO", -i)]) for i in range(100)))
    assert batches == [[str(i).encode(), str(-i).encode()] for i in range(100)]


async def test_long_replies_are_gathered(pipe: AsyncPipe) -> None:
    large = b"x" * 3_000_000
    assert await pipe.send([("SET", "large", large), ("GET", "large"), ("ECHO", "after")]) == [b"OK", large, b"after"]


async def test_a_refused_command_is_an_error_and_the_connection_goes_on(pipe: AsyncPipe) -> None:
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        await pipe.send([("SET", "text", "1"), ("HGET", "text", "a"), ("ECHO", "late")])
    assert await pipe.send([("ECHO", "next")]) == [b"next"]


async def test_a_batch_that_is_given_up_answers_nobody_else(pipe: AsyncPipe, redis_client: redis.Redis) -> None:
    await pipe.send([("PING",)])
    waiting = asyncio.create_task(pipe.send([("BLPOP", "nothing", 0)]))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    redis_client.rpush("nothing", "late")
    assert await pipe.send([("ECHO", "mine")]) == [b"mine"]


async def test_a_connection_that_redis_closed_is_replaced_unnoticed(pipe: AsyncPipe, redis_client: redis.Redis) -> None:
    await asyncio.gather(*(pipe.send([("PING",)]) for _ in range(3)))
    redis_client.client_kill_filter(_type="normal", skipme=True)
    await asyncio.sleep(0.05)
    assert await pipe.send([("PING",)]) == [b"PONG"]


async def test_a_frozen_redis_is_a_timeout_and_then_everything_works_again(tmp_path: Path) -> None:
    server = RedisServer(tmp_path).start()
    try:
        async with redis.asyncio.Redis.from_url(server.url(), retry=None) as client:
            pipe = AsyncPipe(client, timeout_s=1.0)
            await pipe.send([("PING",)])
            pid = (await client.info("server"))["process_id"]
            os.kill(pid, signal.SIGSTOP)
            try:
                with pytest.raises(redis.TimeoutError, match="no answer within"):
                    await pipe.send([("PING",)])
            finally:
                os.kill(pid, signal.SIGCONT)
            assert await pipe.send([("ECHO", "again")]) == [b"again"]
    finally:
        server.stop()


async def test_no_redis_is_an_error(tmp_path: Path) -> None:
    server = RedisServer(tmp_path).start()
    async with redis.asyncio.Redis.from_url(server.url(), retry=None) as client:
        pipe = AsyncPipe(client, timeout_s=1.0)
        await pipe.send([("PING",)])
        server.stop()
        with pytest.raises((redis.ConnectionError, OSError)):
            await pipe.send([("PING",)])


@pytest.mark.parametrize("moment", ["connect", "on_connect_check_health"])
def test_a_connection_that_closes_before_its_first_use_is_an_outage(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """On uvloop, which the API runs on: there a closed connection raises what neither redis-py nor asyncio does."""
    goes_on = getattr(Connection, moment)

    async def lose(connection: Connection) -> None:
        if connection._writer is not None:
            connection._writer.transport.abort()
            await asyncio.sleep(0.01)

    async def connect_and_lose(connection: Connection, **options: Any) -> None:
        if moment == "on_connect_check_health":  # between the connection and its first words
            await lose(connection)
        await goes_on(connection, **options)
        await lose(connection)

    monkeypatch.setattr(Connection, moment, connect_and_lose)

    async def told() -> list[str]:
        async with open_async_client(redis_server.url(), REQUEST) as client:
            asked = (client.exchange([("PING",)]), client.get("k"), client.pipeline().get("k").execute())
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert [type(one) for one in found] == [StoreUnavailable] * 3
            return [str(one) for one in found]

    assert set(uvloop.run(told())) == {"Redis did not answer: Redis closed the connection"}


async def test_password_and_database_of_the_url_hold(redis_client: redis.Redis, redis_server: RedisServer) -> None:
    redis_client.config_set("requirepass", "hush")
    try:
        url = redis_server.url(3).replace("redis://", "redis://:hush@")
        async with redis.asyncio.Redis.from_url(url, retry=None) as client:
            await AsyncPipe(client, timeout_s=1.0).send([("SET", "only-here", "1")])
            assert await client.get("only-here") == b"1"
    finally:
        redis_client.config_set("requirepass", "")
