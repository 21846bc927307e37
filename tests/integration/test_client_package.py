"""`import forecache` against a whole deployment: over HTTP, and as Celery tasks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pandas as pd
import pytest
from celery import Celery, chain, chord, group

import forecache
from forecache import AsyncClient, BadRequest, Client, Conflict, UnknownEntity, UnknownModel
from forecache.celery import connect, enqueue_predictions, predictions, start_run
from tests.support.examples import example_environment, run_in_example, serving_example
from tests.support.flights import ROWS, write_flights
from tests.support.stack import ROOT, Stack, end_tree
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

#: an application of somebody else's, whose task follows ours
SHOP = """
import os
from forecache.celery import connect
app = connect(os.environ["FORECACHE_BROKER_URL"], os.environ["FORECACHE_RESULT_URL"])
app.conf.task_default_queue = "shop"
@app.task(name="shop.total")
def total(results):
    results = results if isinstance(results, list) else [results]
    return sum(item["prediction"] for one in results for item in one["predictions"])
"""
LINKED = '[celery]\nlinked_tasks = { "shop.total" = "shop" }\n'


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("client")
    with Stack(folder, write_flights(folder) + LINKED) as running:
        running.start("gpu", "realtime", "maintenance", "api")
        running.wait_ready()
        assert running.cli("features", "load", "delay", "flights.parquet").returncode == 0
        assert running.cli("batch", "run", "delay", "--wait").returncode == 0
        yield running


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.url, timeout_s=20) as client:
        yield client


def test_a_prediction_is_three_lines_away(client: Client) -> None:
    answer = client.predict("F3")
    assert (answer.value, answer.outcome, answer.model) == (4.0, "hit_batch", "delay")
    assert answer.as_of is not None
    assert answer.as_of < datetime.now(UTC)


def test_refusals_are_exceptions_of_their_kind(client: Client) -> None:
    with pytest.raises(UnknownEntity) as unknown:
        client.predict("nobody")
    assert unknown.value.request_id
    with pytest.raises(UnknownModel, match="known: delay"):
        client.predict("F1", model="dely")
    with pytest.raises(BadRequest, match="max_staleness_hours"):
        client.predict("F1", max_staleness_hours=-1)


def test_overrides_and_instances_are_computed(client: Client) -> None:
    assert client.predict("F3", overrides={"a": 10.0}, timeout_ms=10_000).value == 11.0
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, 1.0]}, index=["x", "y"])
    answers = client.predict_many(instances=table, timeout_ms=10_000).raise_failed().to_pandas()
    assert answers["value"].to_dict() == {"x": 2.0, "y": 3.0}


def test_many_come_in_order_with_their_failures(client: Client) -> None:
    ids = [f"F{number % ROWS}" for number in range(2_500)] + ["nobody"]
    answers = client.predict_many(pd.Series(ids))
    assert answers.values == [float(number % ROWS + 1) for number in range(2_500)] + [None]
    assert [one.error.code for one in answers.failed] == ["unknown-entity"]


def test_a_job_is_enqueued_once_however_often_it_is_sent(client: Client) -> None:
    first = client.enqueue(["F1", "F2"], idempotency_key="tonight", priority="high")
    again = client.enqueue(["F1", "F2"], idempotency_key="tonight", priority="high")
    assert again.id == first.id
    assert [one.value for one in first] == [2.0, 3.0]
    assert client.job(first.id).state() == "done"


async def test_jobs_are_awaited(stack: Stack) -> None:
    async with AsyncClient(stack.url, timeout_s=20) as client:
        assert (await (await client.enqueue(["F1"], priority="low"))).values == [2.0]
        assert (await client.predict("F3")).value == 4.0


def test_features_are_stored_and_used(client: Client) -> None:
    update = client.put_features(77_001, {"a": 41.0, "b": 1.0})
    assert (update.entity_id, update.applied) == ("77001", True)
    assert client.predict(77_001, timeout_ms=10_000).value == 42.0
    old = client.put_features(77_001, {"a": 0.0, "b": 0.0}, event_time=datetime(2020, 1, 1, tzinfo=UTC))
    assert not old.applied
    with pytest.raises(BadRequest, match="colour"):
        client.put_features("F1", {"colour": 1.0})


def test_runs_and_hit_rate_are_told(client: Client) -> None:
    newest = client.runs(model="delay", limit=1)[0]
    assert client.run(newest.run_id).state == newest.state == "published"
    client.predict("F1")
    rate = client.hit_rate()
    assert rate.model == "delay"
    assert rate.rate is None or 0.0 <= rate.rate <= 1.0


def test_a_second_run_at_a_time_is_a_conflict(stack: Stack, client: Client) -> None:
    stack.stop("gpu", signal.SIGTERM)
    started = client.start_run(model="delay")
    with pytest.raises(Conflict, match=started.run_id):
        client.start_run(model="delay")
    stack.start("gpu")
    assert stack.wait_run(started.run_id)["state"] == "published"


@pytest.fixture
def app(stack: Stack) -> Celery:
    return connect(stack.settings.broker_url, stack.settings.redis_url, prefix=stack.settings.redis.prefix)


@pytest.mark.parametrize("priority", ["request", "high", "normal", "low"])
def test_a_celery_application_enqueues_predictions(app: Celery, priority: forecache.celery.Priority) -> None:
    result = enqueue_predictions(app, ["F1", "nobody"], model="delay", priority=priority).get(timeout=60)
    assert [item.get("prediction") for item in result["predictions"]] == [2.0, None]


def test_a_celery_application_enqueues_instances(app: Celery) -> None:
    table = pd.DataFrame({"a": [1.0], "b": [4.0]})
    [item] = enqueue_predictions(app, instances=table).get(timeout=60)["predictions"]
    assert item["prediction"] == 5.0


def test_an_application_without_the_prefix_is_told_before_it_waits_for_ever(stack: Stack) -> None:
    with pytest.raises(BadRequest, match=r"make it by forecache\.celery\.connect"):
        enqueue_predictions(Celery("shop", broker=stack.settings.broker_url), ["F1"])


def test_positional_arguments_are_refused_in_words_that_help(app: Celery) -> None:
    sent = app.send_task("forecache.predict_entities", args=[["F1"]], queue="forecache.realtime")
    with pytest.raises(Exception, match=r"takes no positional arguments: send kwargs=\{'entity_ids': \[\.\.\.\]\}"):
        sent.get(timeout=60)


def test_a_run_is_started_by_a_task(app: Celery) -> None:
    run = start_run(app, "delay").apply_async().get(timeout=60)
    assert run.get("model") == "delay" or run["error"]["code"] == "conflict"


@pytest.fixture
def shop(stack: Stack, app: Celery) -> Iterator[Celery]:
    """The worker of the other application, on its own queue."""
    (stack.folder / "shop.py").write_text(SHOP)
    environment = example_environment(stack) | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "client"), str(stack.folder)])
    }
    with (stack.folder / "shop.log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "celery", "-A", "shop", "worker", "-P", "solo", "-Q", "shop"],
            cwd=stack.folder, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield app
    finally:
        end_tree(worker)


def test_tasks_of_others_follow_predictions(shop: Celery) -> None:
    total = shop.signature("shop.total", queue="shop")
    linked = total.clone()
    linked.freeze()
    enqueue_predictions(shop, ["F1"], link=linked)
    assert shop.AsyncResult(linked.id).get(timeout=60) == 2.0
    assert chain(predictions(shop, ["F1", "F2"]), total, app=shop).apply_async().get(timeout=60) == 5.0
    header = [predictions(shop, [f"F{number}"]) for number in range(3)]
    assert chord(header, total, app=shop).apply_async().get(timeout=60) == 6.0
    assert len(group(header, app=shop).apply_async().get(timeout=60)) == 3


@pytest.mark.parametrize("page", ["README.md", "docs/client.md", "client/README.md"])
def test_the_lines_of_the_pages_work(stack: Stack, page: str) -> None:
    settings = stack.settings
    for lines in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        servers = f"broker={settings.broker_url!r}, backend={settings.redis_url!r}"
        code = re.sub(r'broker="[^"]+", backend="[^"]+"', servers, lines)
        code = code.replace("http://127.0.0.1:8000", stack.url).replace("FL-00000", "F")
        done = run_in_example(stack, code)
        assert done.returncode == 0, done.stderr


def test_a_fastapi_application_makes_reports_of_jobs(stack: Stack) -> None:
    with serving_example(stack, "uvicorn", "fastapi_jobs:app", "--port", "{port}", probe="/docs") as url:
        begun = httpx.post(f"{url}/reports", json=["F1", "F2"])
        assert begun.status_code == 202
        report = begun.json()["report"]
        wait_for(lambda: httpx.get(f"{url}/reports/{report}").json()["ready"], "the report")
        assert httpx.get(f"{url}/reports/{report}").json()["delays"] == {"F1": 2.0, "F2": 3.0}
        assert httpx.get(f"{url}/reports/nothing").status_code == 404
