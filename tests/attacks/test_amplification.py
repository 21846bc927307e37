"""What a client sends does not come back, or stay, many times over."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from app.api.application import create_app
from app.api.limits import MAX_BODY_BYTES
from app.api.problems import problem_of
from app.api.schemas import MAX_NAMES
from inference.errors import BadInput, FunctionFailed, ModelOutOfMemory, Overloaded, PredictionFailed
from inference.features.contract import FeatureContract
from inference.features.instances import rows_from_instances
from inference.protocols import tensors
from inference.redis.clients import AsyncClient, Client
from inference.redis.keys import Keys
from inference.serving import jobs as jobs_module
from inference.serving.job_queue import ROW_BYTES
from inference.serving.jobs import JobState
from tests.integration.test_api import KEYS as API_KEYS
from tests.integration.test_api import Deployment, fresh
from tests.integration.test_jobs import KEYS, Jobs, Scorer
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.integration

MARK = "k" * 4000
LONG = "k" * 1_000_000
#: a head ends somewhere, so a path is not as long as a body
IN_PATHS = [
    ("GET", f"/{MARK}"),
    ("GET", f"/predict/{MARK}"),
    ("GET", f"/predict/a?model={MARK}"),
    ("GET", f"/predict/a?explain={MARK}"),
    ("GET", f"/predict/a?timeout_ms={MARK}"),
    ("GET", f"/predictions/{MARK}"),
    ("DELETE", f"/predictions/{MARK}"),
    ("GET", f"/predictions/a?wait_s={MARK}"),
    ("GET", f"/hit-rate?model={MARK}"),
    ("GET", f"/runs?limit={MARK}"),
    ("GET", f"/v1/models/{MARK}"),
    ("GET", f"/v1/models/{MARK}/metadata"),
    ("GET", f"/v1/models/delay/labels/{MARK}"),
    ("GET", f"/v1/models/delay/versions/{'9' * 4000}"),
    ("GET", f"/v1/{MARK}"),
    ("POST", f"/v1/models/{MARK}:predict"),
    ("GET", f"/v2/models/{MARK}"),
    ("GET", f"/v2/models/{MARK}/ready"),
    ("GET", f"/v2/models/delay/versions/{MARK}"),
    ("GET", f"/v2/models/delay/versions/{'9' * 4000}"),
    ("GET", f"/v2/{MARK}"),
    ("PATCH", f"/features/{MARK}"),
]
IN_BODIES: list[tuple[str, str, Any]] = [
    ("POST", "/predict", {LONG: 1}),
    ("POST", "/predict", LONG),
    ("POST", "/predict", {"entity_ids": LONG}),
    ("POST", "/predict", {"entity_ids": ["a"], "model": LONG}),
    ("POST", "/predict", {"entity_ids": ["a"], "timeout_ms": LONG}),
    ("POST", "/predict", {"entity_ids": [LONG]}),
    ("POST", "/predict", {"entity_ids": [f"{MARK[:500]}\n"] * 1000}),
    ("POST", "/predict", {f"{MARK}{number}": 1 for number in range(1000)}),
    ("POST", "/predict", {"entity_ids": list(range(100_000))}),
    ("POST", "/predict", {"entity_ids": ["a"], "overrides": {f"k{number}": 1 for number in range(MAX_NAMES + 1)}}),
    ("POST", "/predictions", {"entity_ids": ["a"], "priority": LONG}),
    ("POST", "/predictions", {"entity_ids": ["a"], "model": LONG}),
    ("PUT", "/features/a", {"features": {"x": 1}, "event_time": LONG}),
    ("PUT", "/features/a", {LONG: 1}),
    ("PUT", "/features", {"items": [{LONG: 1, MARK: 2}] * 100}),
    ("PUT", "/features", {"items": [{"entity_id": "a", "features": {"x": 1}, "event_time": LONG}] * 10}),
    ("POST", "/runs", {LONG: 1}),
    ("POST", "/runs", {"model": LONG, "entities": [1] * 100_000}),
    ("POST", "/models/delay/rollback", {"generation": LONG}),
    ("POST", "/v1/models/delay:predict", {LONG: 1}),
    ("POST", "/v1/models/delay:predict", LONG),
    ("POST", "/v1/models/delay:predict", {"signature_name": LONG, "instances": [1]}),
    ("POST", "/v1/models/delay:predict", {"signature_name": [LONG], "instances": [1]}),
    ("POST", "/v1/models/delay:predict", {"instances": LONG}),
    ("POST", "/v1/models/delay:classify", {LONG: 1}),
    ("POST", "/v1/models/delay:classify", {"examples": [{LONG: None}]}),
    ("POST", "/v1/models/delay:classify", {"examples": [{LONG: [1, "a"]}]}),
    ("POST", "/v1/models/delay:regress", {"examples": {LONG: 1}}),
    ("POST", "/v2/models/delay/infer", {LONG: 1}),
    ("POST", "/v2/models/delay/infer", {"id": [LONG]}),
]


def longest_run(text: str) -> int:
    """The longest stretch of what was sent."""
    return max(len(one) for mark in "k9" for one in "".join(c if c == mark else " " for c in text).split(" "))


@pytest.mark.parametrize(("method", "path"), IN_PATHS)
async def test_a_path_is_quoted_by_its_start(http: httpx.AsyncClient, method: str, path: str) -> None:
    answer = await http.request(method, path)
    assert 400 <= answer.status_code < 500, answer.text[:300]
    assert longest_run(answer.text) <= 64
    assert len(answer.content) < 1500


@pytest.mark.parametrize(("method", "path", "sent"), IN_BODIES)
async def test_a_body_is_quoted_by_its_start(http: httpx.AsyncClient, method: str, path: str, sent: Any) -> None:
    answer = await http.request(method, path, json=sent)
    assert 400 <= answer.status_code < 500, answer.text[:300]
    assert longest_run(answer.text) <= 64
    assert len(answer.content) < 1500


async def test_a_header_is_quoted_by_its_start(http: httpx.AsyncClient) -> None:
    for name in ("content-type", "content-encoding", "x-request-id", "inference-header-content-length"):
        path = "/v2/models/delay/infer" if name.startswith("inference") else "/predict"
        answer = await http.post(path, content=b"{}", headers={name: MARK})
        assert answer.status_code < 500
        assert longest_run(answer.text + str(answer.headers)) <= 64


def test_a_name_is_quoted_by_its_start_in_every_row() -> None:
    contract = FeatureContract.from_json({"features": [{"name": "x", "dtype": "float32"}]})
    rows = rows_from_instances([{LONG: 1}] * 100, contract)
    told = json.dumps([[one.feature, one.reason] for one in rows.reasons])
    assert longest_run(told) <= 64
    assert len(told) < 100 * 300


def test_an_error_leaves_its_process_short_whatever_made_it() -> None:
    data = BadInput(LONG, field=LONG).to_json()
    assert len(json.dumps(data)) < 2500


@pytest.mark.parametrize("kind", [PredictionFailed, FunctionFailed, ModelOutOfMemory])
def test_what_a_model_says_of_its_input_stays_in_the_log(kind: type[PredictionFailed]) -> None:
    problem = problem_of(kind(f"no word {LONG} in the vocabulary"))
    assert problem["status"] == 500
    assert "kkk" not in problem["detail"]


async def test_overrides_go_with_each_message_so_all_of_them_together_are_bounded(
    http: httpx.AsyncClient, it: Deployment
) -> None:
    large = {"overrides": {"x": "t" * 100_000}}
    ids = [f"e{number}" for number in range(100_000)]
    refused = await http.post("/predictions", json={"entity_ids": ids, **large})
    assert (refused.status_code, refused.json()["field"]) == (400, "overrides")
    assert f"at most {MAX_BODY_BYTES // 391}" in refused.json()["detail"]
    assert it.sent == []
    assert it.client.hvals(API_KEYS.job_bytes) == []
    assert (await http.post("/predictions", json={"entity_ids": ids[:1000], **large})).status_code == 202


async def test_an_answer_is_bounded_by_its_bytes(
    http: httpx.AsyncClient, it: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    it.reader.entries["a"] = fresh(1.5)
    assert (await http.post("/predict", json={"entity_ids": ["a"] * 10})).status_code == 200
    monkeypatch.setattr("app.api.schemas.MAX_ANSWER_BYTES", 2000)
    answer = await http.post("/predict", json={"entity_ids": ["a"] * 10})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad-input")
    assert "at most 2000, ask for fewer rows" in answer.json()["detail"]


def test_outputs_are_bounded_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "MAX_ANSWER_BYTES", 100)
    tensors.check_outputs({"y": tensors.objects(["t" * 84])[:, None]})
    with pytest.raises(BadInput, match="the outputs of 2 rows take 101 bytes: at most 100, send fewer rows"):
        tensors.check_outputs({"y": tensors.objects(["t" * 85, ""])})


# --- what jobs take is counted as it is stored ---


class Wordy(Scorer):
    """Answers each row with so many bytes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def predict_entities(self, model: str, entity_ids: list[str], **how: Any) -> dict[str, Any]:
        items = [{"entity_id": one, "prediction": "w" * self.size, "as_of": 1.0} for one in entity_ids]
        return {"model": model, "model_version": 1, "computed_at": 2.0, "predictions": items}


@pytest.fixture
async def jobs(redis_client: Client, redis_server: RedisServer) -> Any:
    async with AsyncClient.from_url(redis_server.url()) as client:
        yield Jobs(redis_client, client)


def counted(jobs: Jobs) -> int:
    return sum(map(int, jobs.client.hvals(KEYS.job_bytes)))


def stored(jobs: Jobs) -> int:
    """Bytes of all inputs, overrides and results."""
    parts = [key for kind in ("inputs", "parts") for key in jobs.client.keys(f"t:j:*:{kind}")]
    values = [value for key in parts for value in jobs.client.hvals(key)]
    records = [key for key in jobs.client.keys("t:j:*") if key.count(b":") == 2]
    return sum(map(len, values)) + sum(len(jobs.client.hget(key, "overrides") or b"") for key in records)


async def test_what_a_job_takes_is_counted_as_it_is_stored(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = await jobs.create(300, overrides={"x": "o" * 5000})
    assert counted(jobs) == stored(jobs) + 300 * ROW_BYTES
    jobs_module.run_part(jobs.client, KEYS, Wordy(1000), job_id, 0)
    assert counted(jobs) == stored(jobs) + 44 * ROW_BYTES
    jobs_module.run_part(jobs.client, KEYS, Wordy(3), job_id, 1)
    jobs_module.run_part(jobs.client, KEYS, Wordy(3), job_id, 1)  # the same message once more
    assert counted(jobs) == stored(jobs)
    assert (await jobs.queue.show(job_id)).state is JobState.DONE


async def test_a_part_that_two_workers_finish_is_counted_once(jobs: Jobs) -> None:
    class Twice(Wordy):
        def predict_entities(self, model: str, entity_ids: list[str], **how: Any) -> dict[str, Any]:
            jobs_module.run_part(jobs.client, KEYS, Wordy(50), job_id, 0)  # another worker was quicker
            return super().predict_entities(model, entity_ids, **how)

    job_id = await jobs.create(300)
    jobs_module.run_part(jobs.client, KEYS, Twice(1000), job_id, 0)
    assert counted(jobs) == stored(jobs) + 44 * ROW_BYTES
    assert (await jobs.queue.show(job_id)).state is JobState.RUNNING


@pytest.mark.parametrize(("limit", "code"), [("MAX_JOB_BYTES", Overloaded), ("MAX_RESULT_BYTES", BadInput)])
async def test_results_that_find_no_room_end_their_job(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, limit: str, code: type[Exception]
) -> None:
    monkeypatch.setattr(jobs_module, limit, 20_000)
    job_id = await jobs.create(10)
    jobs_module.run_part(jobs.client, KEYS, Wordy(3000), job_id, 0)
    view = await jobs.queue.show(job_id)
    assert (view.state, type(view.error)) == (JobState.FAILED, code)
    assert "fewer rows" in str(view.error)
    assert stored(jobs) == 0
    assert not jobs.client.exists(Keys("t").job_parts(job_id))


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
async def test_what_is_the_same_for_everybody_is_rendered_once(it: Deployment, path: str) -> None:
    app = create_app(it.settings, open_process=it.open_process)

    async def body() -> bytes:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "headers": [(b"host", b"localhost")]}
        await app(scope, _nothing, send)
        content: bytes = sent[1]["body"]
        return content

    async with app.router.lifespan_context(app):
        first, *others = await asyncio.gather(*(body() for _ in range(20)))
    assert first
    assert all(other is first for other in others)


async def _nothing() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}
