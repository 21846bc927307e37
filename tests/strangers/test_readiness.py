"""When a deployment is ready: each model by itself, and all requests at once from then on."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.plain_models import Times, write_version
from tests.support.stack import Stack
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROWS = 300
TOML = """
[models.good]
path = "good"
features = "t.parquet"
allow_code = true
# a busy machine takes seconds for so many connections; what is looked at is whether any is turned away
realtime = { timeout_ms = 15000 }
[models.broken]
path = "broken"
features = "t.parquet"
allow_code = true
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("readiness")
    write_version(folder / "good", 1, Times(2.0))
    write_version(folder / "broken", 1, Times(2.0))
    (folder / "broken" / "1" / "model.pkl").write_bytes(b"no pickle")
    table = {"entity_id": [f"e{i}" for i in range(ROWS)], "x": pa.array(range(ROWS), pa.float32())}
    pq.write_table(pa.table(table), folder / "t.parquet")
    with Stack(folder, TOML) as stack:
        loaded = stack.cli("features", "load", "good", "t.parquet")
        assert loaded.returncode == 0, loaded.stderr
        stack.start("api")
        wait_for(lambda: answers(stack), "the API")
        yield stack


def answers(stack: Stack) -> bool:
    try:
        return httpx.get(f"{stack.url}/health/live").status_code == 200
    except httpx.TransportError:
        return False


def ready(stack: Stack, model: str | None = None) -> httpx.Response:
    return httpx.get(f"{stack.url}/health/ready", params={"model": model} if model else {})


async def predict_all(stack: Stack) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=ROWS)
    async with httpx.AsyncClient(base_url=stack.url, limits=limits, timeout=20) as client:
        return await asyncio.gather(*(client.get(f"/predict/e{i}?model=good") for i in range(ROWS)))


def test_a_broken_model_takes_no_other_away_and_all_requests_at_once_succeed(stack: Stack) -> None:
    before = ready(stack)
    assert before.status_code == 503
    assert "model 'good' has no version that a worker has activated yet" in before.json()["detail"]
    # the API has heard for a while that nobody is there
    httpx.get(f"{stack.url}/predict/e0?model=good")
    stack.start("realtime")
    stack.wait_ready()
    told = asyncio.run(predict_all(stack))
    assert {answer.status_code for answer in told} == {200}, [a.text for a in told if a.status_code != 200][:3]
    assert [answer.json()["prediction"] for answer in told] == [2.0 * i for i in range(ROWS)]

    body = ready(stack).json()
    assert (body["status"], body["models"]) == ("ready", {"good": 1})
    assert body["refused"]["broken"].startswith("cannot serve: version 1 was refused: ")
    assert str(stack.folder) not in body["refused"]["broken"]
    assert ready(stack, "good").json() == {"status": "ready", "models": {"good": 1}}
    refused = ready(stack, "broken")
    assert (refused.status_code, refused.json()["code"]) == (503, "model-unavailable")
    assert "version 1 was refused" in refused.json()["detail"]
    assert ready(stack, "nobody").status_code == 404
    assert httpx.get(f"{stack.url}/v2/health/ready").json() == {"live": True, "ready": True}


def test_a_broken_model_that_is_put_right_serves(stack: Stack) -> None:
    (stack.folder / "broken" / "1" / "model.pkl").write_bytes(pickle.dumps(Times(3.0)))
    done = stack.cli("models", "reload", "broken")
    assert done.returncode == 0, done.stderr
    assert ready(stack).json() == {"status": "ready", "models": {"good": 1, "broken": 1}}
    assert not Path(stack.folder / "api.log").read_text().count("Traceback")
