"""When a deployment is ready: each model by itself, and all requests at once from then on."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.api.health import Readiness, readiness
from app.api.models import ModelCard
from app.api.process import ApiProcess
from inference.errors import ModelUnavailable
from inference.models import VersionRecord
from inference.monitoring.presence import Loading, Roster, WorkerBeat
from inference.settings import Settings
from inference.store import Pointer
from tests.support.plain_models import Times, write_version
from tests.support.stack import Stack
from tests.support.waiting import wait_for

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
    async with httpx.AsyncClient(base_url=stack.url, limits=limits, timeout=60) as client:
        return await asyncio.gather(*(client.get(f"/predict/e{i}?model=good") for i in range(ROWS)))


@pytest.mark.integration
@pytest.mark.slow
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


@pytest.mark.integration
@pytest.mark.slow
def test_a_broken_model_that_is_put_right_serves(stack: Stack) -> None:
    (stack.folder / "broken" / "1" / "model.pkl").write_bytes(pickle.dumps(Times(3.0)))
    done = stack.cli("models", "reload", "broken")
    assert done.returncode == 0, done.stderr
    assert ready(stack).json() == {"status": "ready", "models": {"good": 1, "broken": 1}}
    assert not Path(stack.folder / "api.log").read_text().count("Traceback")


# --- what is answered, without any process ---


@dataclass
class Known:
    """What the API knows of models `a` and `b`: active versions, records, and whether workers are ready."""

    active: dict[str, int | None]
    refused: dict[str, str] = field(default_factory=dict)
    workers: list[bool] = field(default_factory=list)
    loading: tuple[Loading, ...] = ()
    were_ready: set[str] = field(default_factory=set)

    def ask(self, *models: str) -> Readiness:
        async def in_thread(call: Callable[[], Any]) -> Any:
            return call()

        process = SimpleNamespace(
            settings=Settings.model_validate({"models": {name: {"path": "m"} for name in self.active}}),
            readers={name: SimpleNamespace(pointer=lambda name=name: self._pointer(name)) for name in self.active},
            cards=SimpleNamespace(of=self._card),
            deployment=SimpleNamespace(
                presence=SimpleNamespace(
                    roster=lambda _: Roster(tuple(_worker(one, self.loading) for one in self.workers), {})
                )
            ),
            in_thread=in_thread,
            were_ready=self.were_ready,
            drain=SimpleNamespace(require_none=lambda: None),
        )
        return asyncio.run(readiness(cast("ApiProcess", process), list(models or self.active)))

    async def _pointer(self, name: str) -> Pointer:
        return Pointer(active_version=self.active[name])

    async def _card(self, name: str) -> ModelCard:
        error = self.refused.get(name)
        records = {} if error is None else {7: VersionRecord.refused(7, error, inspected_at=0.0)}
        return ModelCard(self.active[name], records)


def _worker(is_ready: bool, loading: tuple[Loading, ...]) -> WorkerBeat:
    return WorkerBeat(
        name="w@h", process="realtime", queues=("realtime",), host="h", pid=7, release=None, started_at=0.0,
        ready=is_ready, versions={}, loading=loading,
    )  # fmt: skip


def test_every_model_that_can_serve_must_and_a_refused_one_is_named() -> None:
    found = Known({"a": 1, "b": None}, {"b": "opset 99"}).ask()
    assert (found.serving, found.refused) == ({"a": 1}, {"b": "cannot serve: version 7 was refused: opset 99"})
    with pytest.raises(ModelUnavailable, match="model 'b' has no version that a worker has activated yet"):
        Known({"a": 1, "b": None}).ask()


def test_a_model_that_is_alone_and_refused_is_not_ready() -> None:
    with pytest.raises(ModelUnavailable, match="model 'b' cannot serve: version 7 was refused: opset 99"):
        Known({"b": None}, {"b": "opset 99"}).ask()
    with pytest.raises(ModelUnavailable):
        Known({"a": 1, "b": None}, {"b": "opset 99"}).ask("b")


def test_a_model_whose_workers_still_load_is_awaited_once() -> None:
    known = Known({"a": 1}, workers=[False])
    with pytest.raises(ModelUnavailable, match="workers that are still loading"):
        known.ask()
    known.loading = (Loading("a", 2, 7.0), Loading("of another deployment", 1, 7.0))
    with pytest.raises(ModelUnavailable, match=r"loading version 2 of model 'a' for 7 s, of at most 600 s [^;]+$"):
        known.ask()
    known.active["a"] = None
    with pytest.raises(ModelUnavailable, match="activated yet: its workers are loading version 2 of model 'a' for 7 s"):
        known.ask()
    known.active["a"] = 1
    known.workers = [False, True]
    assert known.ask().serving == {"a": 1}
    known.workers, known.active = [False], {"a": None}
    assert known.ask().serving == {"a": None}, "readiness never goes back"


def test_without_any_worker_hits_are_served_and_without_any_model_nothing_is_missing() -> None:
    assert Known({"a": 1}).ask().serving == {"a": 1}
    assert Known({}).ask().is_ready
