from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio

import inference.deployment
from app.api import create_app
from app.api.limits import MAX_BODY_BYTES
from app.api.process import ApiProcess
from app.api.server import serve
from app.http import listen
from inference.batch import DiffOptions, RunDiff, RunState
from inference.clock import system_clock
from inference.errors import BrokerUnavailable, Conflict, ModelUnavailable, NotFound, SettingsError, SourceError
from inference.features import Feature, FeatureContract
from inference.models import ModelRegistry, VersionRecord
from inference.monitoring.counters import HitRecorder
from inference.monitoring.queues import JobPriority
from inference.outcomes import Outcome
from inference.redis.clients import REQUEST, AsyncClient, Client
from inference.redis.keys import Keys
from inference.schema import DType, Signature, TensorSpec
from inference.serving import PredictionService
from inference.serving.job_queue import LOST_AFTER_S, STALLED_AFTER_S, JobQueue
from inference.serving.jobs import MAX_BEGUN, run_part
from inference.settings import ApiSettings, Settings
from tests.support.redis_server import RedisServer
from tests.support.serving_fakes import FakeReader, FakeWorkers, entry

pytestmark = pytest.mark.integration

KEYS = Keys("test")
PROBLEM = "application/problem+json"


class FakeScorer:
    """The worker's side of jobs: twice the number that an id spells."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.overrides: Any = None

    def predict_entities(
        self, model: str, entity_ids: list[str], *, overrides: Any = None, deadline: float | None = None
    ) -> dict[str, Any]:
        if self.error:
            raise self.error
        self.overrides = overrides
        items = [{"entity_id": i, "prediction": 2.0 * float(i), "as_of": 1.0} for i in entity_ids]
        return {"model": model, "model_version": 1, "computed_at": 2.0, "predictions": items}

    def predict_instances(self, model: str, instances: list[Any], *, deadline: float | None = None) -> dict[str, Any]:
        problem = {"code": "bad-features", "message": "feature 'x' is missing", "field": "x"}
        items = [{"error": problem} for _ in instances]
        return {"model": model, "model_version": 1, "computed_at": 2.0, "predictions": items}


class FakeRun:
    run_id, state, created_at = "r1", RunState.QUEUED, 0.0
    rows_total, rows_done, rows_quarantined, rows_outside = None, 0, 0, 0
    shadow = False

    def to_json(self) -> dict[str, Any]:
        return {"run_id": self.run_id, "state": "queued", "source": f"{Path.cwd()}/data/t.parquet"}


class FakeRuns:
    """Knows run r1 and is busy for a second one."""

    def __init__(self) -> None:
        self.started: list[tuple[Any, ...]] = []
        self.source_changed = False
        self.source_is_gone = False
        self.diff: RunDiff | None = None

    def request(self, model: str | None, *, trigger: Any, source: str | None = None, **_: Any) -> FakeRun:
        if self.started:
            raise Conflict("run r1 of model 'delay' is in progress")
        self.started.append((model, trigger.value, source))
        return FakeRun()

    def list(self, model: str | None, limit: int) -> list[FakeRun]:
        return [FakeRun()]

    def show(self, run_id: str) -> FakeRun:
        if run_id != "r1":
            raise NotFound(f"no run {run_id!r}")
        return FakeRun()

    cancel = details = show

    def kept_diff(self, run_id: str) -> RunDiff | None:
        self.show(run_id)
        return self.diff

    def check_diff(self, run_id: str, options: DiffOptions) -> FakeRun:
        if options.segment == "nosuch":
            raise SourceError(f"{Path.cwd()}/data/t.parquet has no column 'nosuch'", field="nosuch")
        return self.show(run_id)

    def resume(self, run_id: str) -> FakeRun:
        if self.source_is_gone:
            raise SourceError(f"source {Path.cwd()}/data/t.parquet does not exist")
        if self.source_changed:
            raise Conflict(f"run {run_id} cannot go on: {Path.cwd()}/a.pq and /srv/data/b.pq were replaced")
        return FakeRun()

    def publish(self, run_id: str, *, force: bool, by: str) -> FakeRun:
        if not force:
            raise Conflict("--force overrides the gates")
        assert by == "api"
        return FakeRun()

    def rollback(self, model: str | None, *, generation: int | None = None) -> FakeRun:
        raise Conflict("there is no generation to go back to")


@dataclass
class Deployment:
    """The HTTP service over a fake table and fake workers; counters and jobs are in a real Redis."""

    client: Client
    asyncio_client: AsyncClient
    reader: FakeReader = field(default_factory=FakeReader)
    workers: FakeWorkers = field(default_factory=FakeWorkers)
    scorer: FakeScorer = field(default_factory=FakeScorer)
    runs: FakeRuns = field(default_factory=FakeRuns)
    sent: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    priorities: list[JobPriority] = field(default_factory=list)
    broker_is_down: bool = False
    settings: Settings = field(
        default_factory=lambda: Settings.model_validate(
            {"models": {"delay": {"path": "m", "features": "/srv/data/*.pq", "realtime": {"timeout_ms": 30_000}}}}
        )
    )

    async def enqueue(
        self,
        task: str,
        messages: Iterable[Mapping[str, Any]],
        *,
        model: str | None = None,
        priority: JobPriority = JobPriority.NORMAL,
    ) -> None:
        self.priorities.append(priority)
        if self.broker_is_down:
            raise BrokerUnavailable("the broker does not answer")
        self.sent += [(task, dict(kwargs)) for kwargs in messages]

    def work(self) -> None:
        """Do what a worker would do with the parts of jobs sent so far."""
        for _, kwargs in self.sent:
            run_part(self.client, KEYS, self.scorer, kwargs["job_id"], kwargs["part"])
        self.sent.clear()

    @asynccontextmanager
    async def open_process(self, settings: Settings) -> AsyncIterator[ApiProcess]:
        self.recorder = HitRecorder(self.asyncio_client, KEYS)
        service = PredictionService(settings, lambda _: self.reader, self.workers, self.recorder, system_clock)
        self.deployment = inference.deployment.Deployment(settings, REQUEST)
        # what is built from the client and the keys is real
        vars(self.deployment).update(
            cache=self.client, keys=KEYS, runs=self.runs, broker=SimpleNamespace(queue_states=list)
        )
        process = ApiProcess(
            deployment=self.deployment,
            service=service,
            readers=dict.fromkeys(settings.models, self.reader),
            jobs=JobQueue(self.asyncio_client, KEYS, self.enqueue, system_clock),
            enqueue=self.enqueue,
        )
        yield process
        process.close()


@pytest_asyncio.fixture
async def it(redis_client: Client, redis_server: RedisServer) -> AsyncIterator[Deployment]:
    async with AsyncClient.from_url(redis_server.url()) as client:
        yield Deployment(redis_client, client)


@pytest_asyncio.fixture
async def http(it: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(it.settings, open_process=it.open_process)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield client


def fresh(value: Any) -> Any:
    return entry(value, as_of=system_clock())


def assert_problem(response: httpx.Response, status: int, code: str, field: str | None = None) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    body = response.json()
    assert (body["status"], body["code"], body.get("field")) == (status, code, field)
    assert body["title"]
    assert body["detail"]
    assert body["type"] == f"urn:forecache:problem:{code}"


@pytest.mark.parametrize(
    "entity_id",
    ["a b", "a/b", "/a//b/", 'it\'s "quoted"', "50%2Foff", "🚀", "?x=1#y", "%", "..", "a" * 512, "predict/a"],
)
async def test_any_legal_id_is_served_as_it_is(it: Deployment, http: httpx.AsyncClient, entity_id: str) -> None:
    it.reader.entries[entity_id] = fresh(1.5)
    path = quote(entity_id, safe="").replace(".", "%2E")
    response = await http.get(f"/predict/{path}")
    assert response.status_code == 200, response.text
    assert response.json()["entity_id"] == entity_id
    assert response.json()["outcome"] == "hit_batch"
    many = (await http.post("/predict", json={"entity_ids": [entity_id]})).json()["predictions"]
    assert [item["entity_id"] for item in many] == [entity_id]


@pytest.mark.parametrize("path", ["", "%0A", "a%00b", "%C2%85", "a" * 513, quote("é" * 257), "%FF"])
async def test_an_illegal_id_is_a_400_that_names_the_field(http: httpx.AsyncClient, path: str) -> None:
    assert_problem(await http.get(f"/predict/{path}"), 400, "bad-entity-id", "entity_id")


async def test_hit_miss_and_unknown_are_counted_and_answered_each_in_its_way(
    it: Deployment, http: httpx.AsyncClient
) -> None:
    it.reader.entries["a"] = fresh(1.5)
    hit, miss = await http.get("/predict/a"), await http.get("/predict/b?timeout_ms=20000&model=delay")
    assert (hit.json()["prediction"], hit.json()["cache_hit"]) == (1.5, True)
    assert (miss.json()["prediction"], miss.json()["source"]) == (2.5, "realtime")
    await it.recorder.flush()
    body = (await http.get("/hit-rate?window_s=60")).json()
    assert (body["model"], body["window_s"], body["total"], body["hit_rate"]) == ("delay", 60, 2, 0.5)
    assert set(body["outcomes"]) == {outcome.value for outcome in Outcome}
    metrics = (await http.get("/metrics")).text
    assert 'forecache_hit_ratio{model="delay"} 0.5' in metrics
    assert 'forecache_workers{queue="realtime",state="ready"} 0.0' in metrics
    assert 'forecache_predictions_total{model="delay",outcome="computed"} 1.0' in metrics


async def test_an_outage_of_the_store_is_a_503_that_says_when_to_come_back(
    it: Deployment, http: httpx.AsyncClient
) -> None:
    it.reader.down = True
    response = await http.get("/predict/a")
    assert_problem(response, 503, "store-unavailable")
    assert response.headers["retry-after"] == "1"
    items = (await http.post("/predict", json={"entity_ids": ["a"]})).json()["predictions"]
    assert items[0]["entity_id"] == "a"
    assert items[0]["error"]["status"] == 503


@pytest.mark.parametrize("path", ["/predict/known", "/predict/%20", "/hit-rate", "/no-such-page"])
async def test_a_request_keeps_the_name_that_its_client_gave_it(
    it: Deployment, http: httpx.AsyncClient, path: str
) -> None:
    it.reader.entries["known"] = fresh(1.0)
    answer = await http.get(path, headers={"X-Request-ID": "checkout-7"})
    assert answer.headers.get_list("x-request-id") == ["checkout-7"]
    if answer.status_code >= 400:
        assert answer.json()["request_id"] == "checkout-7"


async def test_a_request_without_a_sane_name_gets_one_where_somebody_may_ask_for_it(
    it: Deployment, http: httpx.AsyncClient
) -> None:
    it.reader.entries["known"] = fresh(1.0)
    assert "x-request-id" not in (await http.get("/predict/known")).headers
    made = set()
    for name in ("", "a b", "<script>", "x" * 129):
        answer = await http.get("/predict/" + "x" * 600, headers={"X-Request-ID": name} if name else {})
        assert answer.json()["request_id"] == answer.headers["x-request-id"] != name
        made.add(answer.headers["x-request-id"])
    assert len(made) == 4


PROTOCOL_CALLS = [
    ("/v1/models/delay/versions/1:predict", {"instances": [1]}),
    ("/v2/models/delay/versions/1/infer", {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}),
]


@pytest.mark.parametrize(("path", "body"), PROTOCOL_CALLS, ids=["v1", "v2"])
async def test_outages_are_told_by_the_serving_protocols_in_their_form(
    it: Deployment, http: httpx.AsyncClient, path: str, body: Any
) -> None:
    signature = Signature((TensorSpec("x", DType.FLOAT32),), (TensorSpec("y", DType.FLOAT32),))
    contract = FeatureContract((Feature("x", DType.FLOAT32),))
    record = VersionRecord(
        version=1, state="ready", signature=signature, contract=contract, fingerprint="f", inspected_at=0.0
    )
    ModelRegistry(it.client, KEYS).put("delay", record)
    it.reader.down = True
    no_store = await http.post(path, json=body)
    it.reader.down, it.workers.error = False, BrokerUnavailable("amqp://secret@host refused")
    no_broker = await http.post(path, json=body)
    it.workers.error = NotFound("version 1 is not held")
    not_held = await http.post(path, json=body)
    it.workers.error = RuntimeError("a defect")
    defect = await http.post(path, json=body)
    assert (no_store.status_code, no_store.json()) == (503, {"error": "the cache Redis does not answer"})
    assert (no_broker.status_code, no_broker.json()) == (503, {"error": "the broker does not answer"})
    assert no_store.headers["retry-after"] == no_broker.headers["retry-after"] == "1"
    assert not_held.status_code == 404
    assert not_held.json()["error"] in (
        "Servable not found for request: Specific(delay, 1)",
        "Request for unknown model: 'delay' version 1 is not found",
    )
    assert (defect.status_code, list(defect.json())) == (500, ["error"])
    assert "defect" not in defect.text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"entity_ids": []}, "entity_ids"),
        ({"entity_ids": ["a"] * 1001}, "entity_ids"),
        ({"entity_ids": ["ok", ""]}, "entity_ids.1"),
        ({"entity_ids": [7]}, "entity_ids.0"),
        ({"instances": [{}] * 1001}, "instances"),
        ({"entity_ids": ["a"], "timeout_ms": 0}, "timeout_ms"),
        ({"entity_ids": ["a"], "max_staleness_hours": -1}, "max_staleness_hours"),
        ({"entity_ids": ["a"], "max_staleness_hours": False}, "max_staleness_hours"),
        ({"entity_ids": ["a"], "timeout_ms": "100"}, "timeout_ms"),
        ({"entity_ids": ["a"], "max_stalenes_hours": 1}, "max_stalenes_hours"),
        ({}, "body"),
        ({"entity_ids": ["a"], "instances": [1]}, "body"),
    ],
)
async def test_a_malformed_body_is_a_400_that_names_the_field(
    http: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    response = await http.post("/predict", json=body)
    code = "bad-entity-id" if field == "entity_ids.1" else "bad-input"
    assert_problem(response, 400, code, field)


async def test_every_other_error_is_a_problem_too(it: Deployment, http: httpx.AsyncClient) -> None:
    json_type = {"content-type": "application/json"}
    assert_problem(await http.get("/nowhere"), 404, "not-found")
    assert_problem(await http.put("/predict"), 405, "method-not-allowed")
    assert (await http.put("/runs")).headers["allow"] == "GET, POST"
    assert_problem(await http.post("/predict", content=b"{", headers=json_type), 400, "bad-input", "body")
    assert_problem(await http.get("/predict/a?model=dleay"), 404, "unknown-model", "model")
    assert_problem(await http.get("/predict/a?timeout_ms=x"), 400, "bad-input", "timeout_ms")
    assert_problem(await http.get("/predict/a?max_staleness_hours=nan"), 400, "bad-input", "max_staleness_hours")
    big = b'{"entity_ids": ["' + b"a" * MAX_BODY_BYTES + b'"]}'
    assert_problem(await http.post("/predict", content=big, headers=json_type), 413, "body-too-large")
    lone = b'{"entity_ids": ["\\ud800"]}'
    assert (await http.post("/predict", content=lone, headers=json_type)).status_code == 400
    it.reader.outage = "Error 111 connecting to 10.0.0.7:6379"
    it.reader.down = True
    assert "10.0.0.7" not in (await http.get("/predict/a")).text
    it.deployment.runs = None  # type: ignore[assignment]
    response = await http.get("/runs")
    assert_problem(response, 500, "internal")
    assert "NoneType" not in response.text


async def test_a_job_goes_from_queued_to_done_and_keeps_the_order(it: Deployment, http: httpx.AsyncClient) -> None:
    ids = [str(number) for number in range(600)]
    accepted = await http.post("/predictions", json={"entity_ids": ids, "overrides": {"x": 1}})
    assert accepted.status_code == 202
    url = accepted.headers["location"]
    assert accepted.json() == {"task_id": url.rpartition("/")[2], "status_url": url}
    assert [kwargs["part"] for _, kwargs in it.sent] == [0, 1, 2]
    assert (await http.get(url)).json()["state"] == "queued"
    first, *rest = it.sent
    it.sent[:] = [first]
    it.work()
    assert (await http.get(url)).json()["state"] == "running"
    it.sent[:] = [first, *rest]  # the first part once more: it may run twice
    it.work()
    body = (await http.get(url)).json()
    assert body["state"] == "done"
    assert [item["prediction"] for item in body["result"]["predictions"]] == [2.0 * n for n in range(600)]
    assert body["result"]["predictions"][5]["entity_id"] == "5"
    assert it.scorer.overrides == {"x": 1}
    assert 0 < it.client.ttl(KEYS.job_parts(body["task_id"])) <= 3600


async def test_a_long_poll_returns_as_soon_as_the_job_is_over(it: Deployment, http: httpx.AsyncClient) -> None:
    url = (await http.post("/predictions", json={"instances": [{"x": 1}]})).headers["location"]
    assert (await http.get(f"{url}?wait_s=0.1")).json()["state"] == "queued"
    polling = asyncio.create_task(http.get(f"{url}?wait_s=30"))
    await asyncio.sleep(0.1)
    await asyncio.to_thread(it.work)
    body = (await asyncio.wait_for(polling, 5)).json()
    assert body["result"]["predictions"][0]["error"]["field"] == "x"


@pytest.mark.parametrize(
    ("asked", "sent"), [({}, "normal"), ({"priority": "high"}, "high"), ({"priority": "low"}, "low")]
)
async def test_a_job_is_sent_with_the_priority_that_was_asked_for(
    it: Deployment, http: httpx.AsyncClient, asked: dict[str, str], sent: str
) -> None:
    assert (await http.post("/predictions", json={"entity_ids": ["1"], **asked})).status_code == 202
    assert [priority.value for priority in it.priorities] == [sent]


async def test_a_priority_that_does_not_exist_is_refused(http: httpx.AsyncClient) -> None:
    response = await http.post("/predictions", json={"entity_ids": ["1"], "priority": "urgent"})
    assert response.status_code == 400
    assert response.json()["field"] == "priority"


async def test_a_cancelled_job_is_not_computed_and_stays_cancelled(it: Deployment, http: httpx.AsyncClient) -> None:
    url = (await http.post("/predictions", json={"entity_ids": ["1"]})).headers["location"]
    response = await http.delete(url)
    assert (response.status_code, response.json()["state"]) == (202, "cancelled")
    it.work()
    assert (await http.get(url)).json()["state"] == "cancelled"
    assert it.client.exists(KEYS.job_parts(url.rpartition("/")[2])) == 0


async def test_a_job_whose_part_ends_every_worker_fails_instead_of_ending_more(
    it: Deployment, http: httpx.AsyncClient
) -> None:
    url = (await http.post("/predictions", json={"entity_ids": ["1"]})).headers["location"]
    sent = list(it.sent)
    it.scorer.error = KeyboardInterrupt()  # passes through every handler, as the end of a process does
    for _ in range(MAX_BEGUN):
        with pytest.raises(KeyboardInterrupt):
            it.work()
        it.sent = list(sent)
        assert (await http.get(url)).json()["state"] == "running"
    it.work()
    job = (await http.get(url)).json()
    assert (job["state"], job["error"]["code"]) == ("failed", "prediction-failed")


async def test_parts_that_went_down_with_a_worker_are_sent_again_now_and_then_until_the_job_is_given_up(
    it: Deployment, http: httpx.AsyncClient
) -> None:
    url = (await http.post("/predictions", json={"entity_ids": [str(n) for n in range(600)]})).headers["location"]
    it.sent = it.sent[:1]
    it.work()  # the first part; the other two are lost

    async def after(silent_s: float) -> list[int]:
        """What is sent when the job has stood still for so long, though two clients ask."""
        record = KEYS.job(url.rpartition("/")[2])
        it.client.hset(record, "changed_at", int(began - silent_s))
        states = [(await http.get(url)).json()["state"] for _ in range(2)]
        assert states == ["running"] * 2
        parts = sorted(kwargs["part"] for _, kwargs in it.sent)
        it.sent.clear()
        return parts

    began = system_clock()
    assert await after(LOST_AFTER_S - 20) == []
    assert await after(LOST_AFTER_S + 20) == [1, 2]
    it.broker_is_down = True
    assert await after(2 * LOST_AFTER_S + 20) == []
    it.broker_is_down = False
    assert await after(2 * LOST_AFTER_S + 20) == [1, 2]
    job = KEYS.job(url.rpartition("/")[2])
    it.client.hset(job, "changed_at", int(began - STALLED_AFTER_S - 20))
    assert (await http.get(url)).json()["error"]["code"] == "workers-unavailable"


async def test_a_job_asked_for_again_under_its_key_is_the_same_job(it: Deployment, http: httpx.AsyncClient) -> None:
    async def enqueue(ids: list[str], key: str) -> httpx.Response:
        return await http.post("/predictions", json={"entity_ids": ids}, headers={"Idempotency-Key": key})

    asked = await asyncio.gather(*(enqueue(["1", "2"], "order-7") for _ in range(5)))
    [job_id] = {answer.json()["task_id"] for answer in asked}
    assert len(it.sent) == 1
    assert (await http.get(f"/predictions/{job_id}")).json()["state"] == "queued"
    assert (await enqueue(["1", "2"], "order-8")).json()["task_id"] != job_id
    assert_problem(await enqueue(["3"], "order-7"), 400, "bad-input", "Idempotency-Key")


async def test_a_key_whose_job_could_not_be_sent_is_free_again(it: Deployment, http: httpx.AsyncClient) -> None:
    async def enqueue() -> httpx.Response:
        return await http.post("/predictions", json={"entity_ids": ["1"]}, headers={"Idempotency-Key": "k"})

    it.broker_is_down = True
    assert_problem(await enqueue(), 503, "broker-unavailable")
    it.broker_is_down = False
    made = await enqueue()
    assert (await http.get(made.json()["status_url"])).json()["state"] == "queued"
    assert len(it.sent) == 1


async def test_jobs_never_fill_the_redis_that_serves_predictions(
    it: Deployment, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def enqueue(key: str | None = None) -> httpx.Response:
        headers = {"Idempotency-Key": key} if key else {}
        return await http.post("/predictions", json={"entity_ids": ["1"] * 100}, headers=headers)

    monkeypatch.setattr("inference.serving.job_queue.MAX_JOB_BYTES", 25_000)  # room for two
    assert [(await enqueue("first")).status_code for _ in range(5)] == [202] * 5, "one job, and room for one"
    it.broker_is_down = True
    assert (await enqueue()).status_code == 503
    it.broker_is_down = False
    assert (await enqueue()).status_code == 202
    refused = await enqueue()
    assert_problem(refused, 503, "overloaded")
    assert 3500 < int(refused.headers["retry-after"]) <= 3700
    an_hour_ago = int(system_clock() // 60) - 61
    held = sum(map(int, it.client.hvals(KEYS.job_bytes)))
    it.client.delete(KEYS.job_bytes)
    it.client.hset(KEYS.job_bytes, str(an_hour_ago), held)
    assert (await enqueue()).status_code == 202, "they are forgotten by now"
    assert 0 < it.client.ttl(KEYS.job_bytes) <= 3660


async def test_a_job_whose_part_fails_says_why(it: Deployment, http: httpx.AsyncClient) -> None:
    url = (await http.post("/predictions", json={"entity_ids": ["1"]})).headers["location"]
    it.scorer.error = ModelUnavailable("model 'delay' has no active version")
    it.work()
    body = (await http.get(url)).json()
    assert (body["state"], body["error"]["code"]) == ("failed", "model-unavailable")


async def test_an_unknown_job_is_a_404_and_without_a_broker_there_is_none(
    it: Deployment, http: httpx.AsyncClient
) -> None:
    assert_problem(await http.get("/predictions/nope"), 404, "not-found")
    assert_problem(await http.delete("/predictions/nope"), 404, "not-found")
    assert_problem(
        await http.post("/predictions", json={"entity_ids": ["a", ""]}), 400, "bad-entity-id", "entity_ids.1"
    )
    it.broker_is_down = True
    assert_problem(await http.post("/predictions", json={"entity_ids": ["1"]}), 503, "broker-unavailable")
    assert it.client.keys("test:j:*") == []


async def test_a_body_that_is_not_sent_as_json_is_told_how_to_be(http: httpx.AsyncClient) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    refused = await http.post("/predict", content=b'{"entity_ids": ["1"]}', headers=form)
    assert (refused.status_code, refused.json()["field"]) == (415, "body")
    assert "send JSON as application/json, not as application/x-www-form-urlencoded" in refused.json()["detail"]


async def test_a_run_of_the_only_model_needs_no_body(it: Deployment, http: httpx.AsyncClient) -> None:
    assert (await http.post("/runs")).status_code == 202
    assert it.runs.started == [(None, "api", None)]


async def test_runs_are_started_shown_and_stopped(it: Deployment, http: httpx.AsyncClient) -> None:
    started = await http.post("/runs", json={"model": "delay"})
    assert (started.status_code, started.headers["location"]) == (202, "/runs/r1")
    assert it.runs.started == [("delay", "api", None)]
    assert it.sent == [("forecache.prepare_run", {"run_id": "r1"})]
    assert_problem(await http.post("/runs", json={}), 409, "conflict")
    assert (await http.get("/runs")).json()["runs"][0]["run_id"] == "r1"
    assert_problem(await http.get("/runs/nope"), 404, "not-found")
    assert [(await http.post(f"/runs/r1/{verb}")).status_code for verb in ("cancel", "resume")] == [202, 202]
    it.broker_is_down = True
    assert (await http.post("/runs/r1/resume")).status_code == 202, "the reconciler finds it by itself"


async def test_publishing_past_the_gates_asks_for_force_and_paths_start_at_the_deployment(
    http: httpx.AsyncClient,
) -> None:
    assert_problem(await http.post("/runs/r1/publish", json={}), 409, "conflict")
    forced = await http.post("/runs/r1/publish", json={"force": True})
    assert (forced.status_code, forced.json()["source"]) == (202, "data/t.parquet")
    assert (await http.get("/runs/r1")).json()["source"] == "data/t.parquet"
    assert_problem(await http.post("/models/delay/rollback", json={"generation": "x"}), 400, "bad-input", "generation")


async def test_a_comparison_is_left_to_the_maintenance_worker_and_shown_once_it_is_kept(
    it: Deployment, http: httpx.AsyncClient
) -> None:
    assert_problem(await http.get("/runs/r1/diff"), 404, "not-found", "run_id")
    accepted = await http.post("/runs/r1/diff", json={"threshold": 0.5, "segment": "city"})
    assert (accepted.status_code, accepted.headers["location"]) == (202, "/runs/r1/diff")
    [(task, arguments)] = it.sent
    assert (task, arguments["run_id"]) == ("forecache.compare_run", "r1")
    assert DiffOptions.from_json(arguments["options"]) == DiffOptions(threshold=0.5, segment="city")
    it.runs.diff = RunDiff(
        run_id="r1", model="delay", made_at="2026-01-31T03:00:00Z", generation=2, model_version=1, against_generation=1,
        against_version=1, against_run=None, rows_both=3, rows_new=1, rows_gone=0, options=DiffOptions(), outputs=[],
        notes=[f"{Path.cwd()}/data/t.parquet was replaced"],
    )  # fmt: skip
    shown = (await http.get("/runs/r1/diff")).raise_for_status().json()
    assert (shown["rows_both"], shown["notes"]) == (3, ["data/t.parquet was replaced"])


async def test_what_cannot_be_compared_is_refused_at_once(it: Deployment, http: httpx.AsyncClient) -> None:
    refused = await http.post("/runs/r1/diff", json={"segment": "nosuch"})
    assert_problem(refused, 400, "bad-source", "nosuch")
    assert refused.json()["detail"] == "data/t.parquet has no column 'nosuch'"
    assert_problem(await http.post("/runs/nope/diff"), 404, "not-found")
    for body in ({"top": 0}, {"tolerance": -1}, {"threshold": "high"}, {"more": 1}):
        assert (await http.post("/runs/r1/diff", json=body)).status_code == 400
    assert it.sent == []
    it.broker_is_down = True
    assert (await http.post("/runs/r1/diff")).status_code == 503


async def test_errors_of_runs_name_no_folder_of_the_server(it: Deployment, http: httpx.AsyncClient) -> None:
    it.runs.source_changed = True
    refused = await http.post("/runs/r1/resume")
    assert_problem(refused, 409, "conflict")
    assert refused.json()["detail"] == "run r1 cannot go on: a.pq and data/b.pq were replaced"


async def test_a_run_whose_source_is_gone_is_refused_with_400_which_the_document_tells(
    it: Deployment, http: httpx.AsyncClient
) -> None:
    it.runs.source_is_gone = True
    refused = await http.post("/runs/r1/resume")
    assert_problem(refused, 400, "bad-source")
    assert refused.json()["detail"] == "source data/t.parquet does not exist"
    document = (await http.get("/openapi.json")).json()
    assert "400" in document["paths"]["/runs/{run_id}/resume"]["post"]["responses"]


async def test_ready_waits_for_every_model_once_and_then_only_for_the_store(
    it: Deployment, http: httpx.AsyncClient
) -> None:
    it.reader.active_version = None
    assert (await http.get("/health/live")).status_code == 200
    assert_problem(await http.get("/health/ready"), 503, "model-unavailable")
    it.reader.active_version = 4
    assert (await http.get("/health/ready")).json() == {"status": "ready", "models": {"delay": 4}}
    it.reader.active_version = None
    assert (await http.get("/health/ready")).status_code == 200
    it.reader.down = True
    assert_problem(await http.get("/health/ready"), 503, "store-unavailable")


async def test_the_openapi_document_names_our_problems_and_no_422(http: httpx.AsyncClient) -> None:
    text = (await http.get("/openapi.json")).text
    document = json.loads(text)
    assert "422" not in text
    assert document["components"]["schemas"]["Problem"]["properties"]["code"]
    assert set(document["paths"]) >= {"/predict/{entity_id}", "/predict", "/predictions/{task_id}", "/runs"}


def test_a_taken_port_and_an_open_address_are_one_clear_line_each() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"port {port} .*\[api\] port"):
            listen(ApiSettings(port=port))
    with pytest.raises(SettingsError, match="allow_remote"):
        listen(ApiSettings(host="0.0.0.0"))
    # a socket that somebody else has opened too
    with socket.create_server(("0.0.0.0", 0)) as opened, pytest.raises(SettingsError, match="the socket's address"):
        serve(Settings(), os.dup(opened.fileno()))
