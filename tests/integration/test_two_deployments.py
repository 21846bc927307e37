"""Two settings files in one process: each door of a deployment works on its own deployment, and on no other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tasks.maintenance  # noqa: F401 - its tasks are asked for by name
from app.api import create_app
from inference.deployment import Deployment
from inference.redis.clients import WORKER, Client
from inference.redis.keys import Keys, TableKind
from inference.schema import DType, TensorSpec
from inference.settings import MAINTENANCE_QUEUE, Settings, load_settings
from inference.store import Table
from tasks.broker import CeleryBroker
from tasks.celery_app import make_worker_app
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration

#: deployment → the prediction of its entity `a`
ANSWERS = {"shop": 2.5, "bank": 7.0}


@pytest.fixture
def settings(tmp_path: Path, redis_client: Client, redis_server: RedisServer) -> dict[str, Settings]:
    """Both settings, from files in folders of their own; neither is the folder that this process works in."""
    found = {}
    for number, (name, value) in enumerate(ANSWERS.items()):
        folder = tmp_path / name
        folder.mkdir()
        pq.write_table(pa.table({"entity_id": ["a"], "x": [1.0]}), folder / "t.parquet")
        (folder / "forecache.toml").write_text(
            f'[redis]\nprefix = "{name}"\n'
            f'url = "{redis_server.url(2 * number)}"\ncache_url = "{redis_server.url(2 * number + 1)}"\n'
            f'[models.{name}-model]\npath = "m"\nfeatures = "t.parquet"\n'
            # a busy machine may take long
            f"realtime = {{ timeout_ms = 30_000 }}\n"
        )
        found[name] = load_settings(folder / "forecache.toml")
        publish(found[name], f"{name}-model", value)
    return found


def publish(settings: Settings, model: str, value: float) -> None:
    with Client.from_url(settings.cache_url) as client:
        keys = Keys(settings.redis.prefix).table(TableKind.PREDICTIONS, model)
        table = Table(client, keys, kind=TableKind.PREDICTIONS, model=model)
        fields = [TensorSpec("prediction", DType.FLOAT32)]
        new = table.generations.begin(fields, rows_expected=1, model_version=1, contract_hash="c", keep_s=1000)
        table.generations.write(
            new, pa.array(["a"]), {"prediction": np.array([value], np.float32)}, np.array([table.now()])
        )
        table.generations.publish(new.number)
        table.versions.activate(1)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
    ):
        yield client


async def test_predict_and_runs_of_two_applications_know_their_own_deployment(settings: dict[str, Settings]) -> None:
    async with serving(settings["shop"]) as shop, serving(settings["bank"]) as bank:
        found = {"shop": await shop.get("/predict/a"), "bank": await bank.get("/predict/a")}
        assert {name: answer.json().get("prediction") for name, answer in found.items()} == ANSWERS, found["shop"].text
        started = await bank.post("/runs")
        assert started.status_code == 202, started.text
        assert started.json()["model"] == "bank-model"
        listed = {"shop": await shop.get("/runs"), "bank": await bank.get("/runs")}
        assert {name: len(answer.json()["runs"]) for name, answer in listed.items()} == {"shop": 0, "bank": 1}
        assert (await shop.get(f"/runs/{started.json()['run_id']}")).status_code == 404
        told = {"shop": (await shop.get("/metrics")).text, "bank": (await bank.get("/metrics")).text}
        assert 'forecache_last_run_state{model="bank-model",state="queued"} 1.0' in told["bank"]
        assert "forecache_last_run_state{" not in told["shop"]


@pytest.fixture
def deployments(settings: dict[str, Settings]) -> Iterator[dict[str, Deployment]]:
    with ExitStack() as opened:
        yield {name: opened.enter_context(Deployment(each, WORKER, CeleryBroker)) for name, each in settings.items()}


def runs_of(deployments: dict[str, Deployment]) -> dict[str, list[str]]:
    return {name: [run.model for run in each.runs.list(None)] for name, each in deployments.items()}


def waiting(deployments: dict[str, Deployment]) -> dict[str, int]:
    """Deployment → messages that wait for its maintenance worker."""
    states = {name: each.broker.queue_states() for name, each in deployments.items()}
    return {name: next(one.depth for one in each if one.queue == MAINTENANCE_QUEUE) for name, each in states.items()}


def test_pages_and_buttons_of_two_dashboards_know_their_own_deployment(deployments: dict[str, Deployment]) -> None:
    from app.dashboard.actions import Action
    from app.dashboard.figures import Choice
    from app.dashboard.server import act_on, readers_of

    started = act_on(deployments["bank"], Action("start", model="bank-model"))
    told = {name: readers_of(each)["runs"](Choice()) for name, each in deployments.items()}
    assert told["shop"]["runs"] == []
    assert [run["run_id"] for run in told["bank"]["runs"]] == [started["run_id"]]
    assert waiting(deployments) == {"shop": 0, "bank": 1}
    assert {name: each["serving"]["generation"] for name, each in told.items()} == {"shop": 1, "bank": 1}


def test_tasks_of_two_applications_know_their_own_deployment(deployments: dict[str, Deployment]) -> None:
    applications = {name: make_worker_app(each) for name, each in deployments.items()}
    for name, application in applications.items():
        assert application.tasks["forecache.start_run"]()["model"] == f"{name}-model"
    assert runs_of(deployments) == {"shop": ["shop-model"], "bank": ["bank-model"]}
    assert waiting(deployments) == {"shop": 1, "bank": 1}
    [run] = deployments["bank"].runs.list(None)
    applications["shop"].tasks["forecache.prepare_run"](run.run_id)
    assert deployments["bank"].runs.show(run.run_id).error is None
    applications["bank"].tasks["forecache.prepare_run"](run.run_id)
    assert "model" in str(deployments["bank"].runs.show(run.run_id).error)


def test_leaving_a_deployment_closes_its_connections(redis_client: Client, settings: dict[str, Settings]) -> None:
    def connections() -> set[str]:
        return {client["id"] for client in redis_client.client_list()}

    before = connections()  # earlier tests may have left some to the collector
    with Deployment(settings["shop"], WORKER, CeleryBroker) as deployment:
        deployment.runs.list(None)
        deployment.broker.queue_states()
        deployment.broker.poke()
        assert len(connections() - before) > 2
    wait_for(lambda: connections() <= before, "the end of the deployment's connections", 5)
