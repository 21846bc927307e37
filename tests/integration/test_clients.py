"""What a client of Redis raises: an outage is an error of ours, and a defect of ours is none of Redis'."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from inference.errors import StoreUnavailable
from inference.redis.clients import REQUEST, Client, cause_of, open_async_client, open_client
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.integration

NO_VALUE: Any = object()


def of_pipeline(client: Client) -> None:
    with client.pipeline() as pipeline:
        pipeline.incr("text")
        pipeline.execute()


ASKED = {
    "a command": lambda client: client.incr("text"),
    "a pipeline": of_pipeline,
    "commands": lambda client: client.send([("INCR", "text")]),
    "raw commands": lambda client: client.exchange([("INCR", "text")]),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED.keys())
def test_a_refusal_is_an_error_of_ours_with_redis_words(redis_client: Client, ask: Any) -> None:
    redis_client.set("text", "x")
    with pytest.raises(StoreUnavailable, match=r"Redis refuses a command: .*not an integer") as caught:
        ask(redis_client)
    assert isinstance(cause_of(caught.value), redis.ResponseError)


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED.keys())
def test_silence_is_an_outage(ask: Any) -> None:
    with (
        open_client(f"redis://127.0.0.1:{free_port()}", REQUEST) as nobody,
        pytest.raises(StoreUnavailable, match="Redis did not answer"),
    ):
        ask(nobody)


def test_a_value_that_is_none_for_redis_is_a_defect_of_ours_and_no_outage(redis_client: Client) -> None:
    with pytest.raises(redis.DataError):
        redis_client.set("key", NO_VALUE)
    with redis_client.pipeline() as pipeline:
        pipeline.set("key", NO_VALUE)
        with pytest.raises(redis.DataError):
            pipeline.execute()


async def test_the_asyncio_client_raises_the_same(redis_client: Client, redis_server: RedisServer) -> None:
    redis_client.set("text", "x")
    async with open_async_client(redis_server.url(), REQUEST) as client:
        for ask in (lambda: client.incr("text"), lambda: client.exchange([("INCR", "text")])):
            with pytest.raises(StoreUnavailable, match="Redis refuses a command"):
                await ask()
        pipeline = client.pipeline().incr("text")
        with pytest.raises(StoreUnavailable, match="Redis refuses a command"):
            await pipeline.execute()
        with pytest.raises(redis.DataError):
            await client.set("key", NO_VALUE)
    async with open_async_client(f"redis://127.0.0.1:{free_port()}", REQUEST) as nobody:
        for ask in (
            lambda: nobody.get("a"),
            lambda: nobody.exchange([("GET", "a")]),
            nobody.pipeline().get("a").execute,
        ):
            with pytest.raises(StoreUnavailable, match="Redis did not answer"):
                await ask()
