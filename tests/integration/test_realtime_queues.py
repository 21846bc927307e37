"""A queue for one model alone: real workers, of which one is slow."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from inference.monitoring.presence import Presence
from inference.redis.clients import Client
from tests.support.models import write_sum_model
from tests.support.plain_models import write_slow_sum_model
from tests.support.stack import Stack
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]

#: of one call of the slow model
SLOW_S = 0.6
MODELS = """
[models.fast]
path = "fast"
[models.slow]
path = "slow"
allow_code = true
[models.slow.realtime]
queue = "own"
max_in_flight = 1
max_micro_batch = 1
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("queues")
    write_sum_model(folder / "fast", ["x"])
    write_slow_sum_model(folder / "slow", ["x"], seconds=SLOW_S)
    with Stack(folder, MODELS) as stack:
        stack.start("realtime", "realtime-own", "api")
        stack.wait_ready()
        yield stack


async def compute(client: httpx.AsyncClient, model: str, timeout_ms: int) -> tuple[Any, float]:
    """Have one instance computed; return the answer and how long it took."""
    began = time.monotonic()
    body = {"model": model, "instances": [{"x": 2.0}], "timeout_ms": timeout_ms}
    answer = (await client.post("/predict", json=body)).raise_for_status().json()["predictions"][0]
    return answer, time.monotonic() - began


@pytest.mark.slow
async def test_a_slow_model_with_its_own_queue_does_not_starve_a_fast_one(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.url, timeout=30) as client:
        job = await client.post("/predictions", json={"model": "slow", "instances": [{"x": 3.0}]})
        slow = [asyncio.create_task(compute(client, "slow", 20_000)) for _ in range(6)]
        await asyncio.sleep(0.2)
        fast = [await compute(client, "fast", 20_000) for _ in range(10)]
        assert not all(one.done() for one in slow), "the slow ones were still at it"
        assert {answer.get("outcome") for answer, _ in fast} == {"computed"}
        answers = await asyncio.gather(*slow)
        assert {answer.get("outcome") for answer, _ in answers} == {"computed"}
        assert max(took_s for _, took_s in answers) > 3 * SLOW_S, "one after the other, by one worker"
        done = (await client.get(job.json()["status_url"], params={"wait_s": 20})).json()
    assert (done["state"], done["result"]["predictions"][0]["prediction"]) == ("done", 3.0)


def test_a_worker_loads_the_models_of_its_queue_only(stack: Stack) -> None:
    deployment = stack.deployment
    presence = Presence(deployment.cache, deployment.keys)
    held = {queue: [dict(one.versions) for one in presence.roster(queue).alive] for queue in ("realtime", "own")}
    assert held == {"realtime": [{"fast": (1,)}], "own": [{"slow": (1,)}]}


def test_what_flower_hears_of_a_task_comes_soon_after_it(stack: Stack) -> None:
    with Client.from_url(stack.redis.url(0)) as client, client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.psubscribe("*.events/task.*")
        heard.get_message(timeout=1)
        httpx.post(f"{stack.url}/predict", json={"model": "fast", "instances": [{"x": 1.0}]}).raise_for_status()
        message = wait_for(lambda: heard.get_message(timeout=0.2), "events", 5)
    told = json.loads(base64.b64decode(json.loads(message["data"])["body"]))
    assert [one["type"] for one in told] == ["task-received", "task-started", "task-succeeded"]


def test_when_the_workers_of_one_queue_are_gone_the_other_model_is_computed_on(stack: Stack) -> None:
    stack.kill("realtime-own")

    def code() -> str:
        body = {"model": "slow", "instances": [{"x": 1.0}], "timeout_ms": 300}
        return str(httpx.post(f"{stack.url}/predict", json=body).json()["predictions"][0]["error"]["code"])

    wait_for(lambda: code() == "workers-unavailable", "the breaker of the slow model", 30)
    answer = httpx.post(f"{stack.url}/predict", json={"model": "fast", "instances": [{"x": 1.0}], "timeout_ms": 1000})
    assert answer.json()["predictions"][0]["outcome"] == "computed"
