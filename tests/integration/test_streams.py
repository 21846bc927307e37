"""Streams with real listeners, killed and restarted: Redis streams, and Kafka by librdkafka's mock cluster."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import redis

from tests.support.flights import write_flights
from tests.support.stack import Stack, run_cli_json
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(200)]

STREAM = "flights"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("streams")
    settings = write_flights(folder)
    settings += f'[streams.flights]\nstream = "{STREAM}"\n'
    with Stack(folder, settings) as stack:
        stack.start("realtime", "api")
        stack.wait_ready()
        assert stack.cli("features", "load", "delay", "flights.parquet").returncode == 0
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[redis.Redis]:
    with redis.Redis(port=stack.redis.port, db=1) as client:
        yield client


def send(client: redis.Redis, *messages: Any) -> None:
    with client.pipeline(transaction=False) as pipe:
        for message in messages:
            pipe.xadd(STREAM, {"update": message if isinstance(message, str | bytes) else json.dumps(message)})
        pipe.execute()


def update(entity_id: str, at: float | None = None, **features: Any) -> dict[str, Any]:
    time_of = {} if at is None else {"event_time": datetime.fromtimestamp(at, UTC).isoformat()}
    return {"entity_id": entity_id, "features": features, **time_of}


def progress(stack: Stack) -> dict[str, Any]:
    found: dict[str, Any] = stack.deployment.stream_progress("flights").counts()  # type: ignore[assignment]
    return found


def pending(client: redis.Redis) -> int:
    return int(client.xpending(STREAM, "forecache")["pending"])


def is_done(client: redis.Redis) -> bool:
    [group] = client.xinfo_groups(STREAM)
    last = client.xinfo_stream(STREAM)["last-generated-id"]
    return group["pending"] == 0 and group["last-delivered-id"] == last


def features(stack: Stack, entity_id: str) -> dict[str, Any]:
    found: dict[str, Any] = run_cli_json(stack.folder, "features", "get", "delay", entity_id)["features"]
    return found


def test_it(stack: Stack, client: redis.Redis) -> None:
    stack.start("listen")
    wait_for(lambda: "there is no stream 'flights'" in stack.log("listen"), "x")
    send(
        client, update("F7", a=40), update("F8", time.time() - 1e6, a=99), "{", update("F9", aa=3), update("F9", a="x")
    )
    wait_for(
        lambda: client.exists(STREAM) and client.xinfo_groups(STREAM) and is_done(client),
        "the end",
        evidence=stack.evidence,
    )
    print(stack.log("listen"))
    print(progress(stack), features(stack, "F7"), features(stack, "F8"))
    print(stack.cli("streams", "--dead", "10").stdout)
    print(httpx.get(f"{stack.url}/predict/F7").json())
    print(re.findall("forecache_stream.*", httpx.get(f"{stack.url}/metrics").text))
    print(stack.cli("doctor").stdout)
    assert 0
