"""Real time from outside, over real processes: entities that fail, entities that kill, jobs, limits, clocks apart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import numpy as np
import pandas as pd
import pytest

from app.api.limits import MAX_BODY_BYTES
from inference.serving.job_queue import LOST_AFTER_S
from inference.serving.jobs import MAX_BEGUN
from tasks.celery_app import make_celery
from tasks.queues import Queues
from tests.support import mortal_worker, shifted_worker
from tests.support.models import write_features
from tests.support.plain_onnx import write_fussy
from tests.support.stack import Stack, run_cli
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

ROWS = 100
#: the model raises on it
RAISING = "E7"
#: kills the worker of `mortal_worker.py`
DEADLY = f"E{mortal_worker.DEADLY:.0f}"
TOML = """
[models.scores]
path = "model"
features = "scores.parquet"
[models.scores.realtime]
timeout_ms = 5000
ttl = "1s"
min_recompute_interval = "1s"
stale_while_revalidate = "1h"
"""


def right(entity_id: str) -> float:
    return pytest.approx(log(int(entity_id[1:]) + 1), rel=1e-5, abs=1e-6)  # type: ignore[no-any-return]


@dataclass
class Service:
    """The deployment as its clients see it: one may read, one may also enqueue."""

    stack: Stack
    reader: httpx.Client
    owner: httpx.Client

    def ask(self, entity_id: str, **parameters: Any) -> httpx.Response:
        """Have a prediction computed."""
        return self.reader.get(f"/predict/{entity_id}", params={"max_staleness_hours": 0, **parameters})

    def computes(self) -> bool:
        answer = self.ask("E1", timeout_ms=1000)
        return answer.status_code == 200 and answer.json()["outcome"] == "computed"

    def enqueue(self, ids: list[str], **headers: str) -> str:
        answer = self.owner.post("/predictions", json={"entity_ids": ids}, headers=headers)
        assert answer.status_code == 202, answer.text
        url: str = answer.headers["location"]
        return url

    def job(self, url: str, wait_s: float = 0) -> dict[str, Any]:
        return self.reader.get(url, params={"wait_s": wait_s}).json()  # type: ignore[no-any-return]

    def tasks_done(self) -> int:
        """How many micro-batches the worker has computed."""
        [reply] = make_celery(self.stack.settings).control.broadcast("stats", reply=True, limit=1, timeout=10)
        [stats] = reply.values()
        return int(stats["total"].get("forecache.predict_entities", 0))

    def use_worker(self, script: Path) -> None:
        """Start a worker in the place of the one that may run."""
        if "realtime" in self.stack.processes:
            self.stack.kill("realtime")
        self.stack.start("realtime", script=script)
        wait_for(self.computes, "a worker that computes", 40)


def new_key(folder: Path, name: str, *scopes: str) -> tuple[str, str]:
    """Return a new key and its table for the settings."""
    done = run_cli(folder, "keys", "new", name, *(f"--scope={scope}" for scope in scopes), "--json")
    made = json.loads(done.stdout)
    return made["key"], f'[api.keys.{name}]\nhash = "{made["hash"]}"\nscopes = {json.dumps(made["scopes"])}\n'


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("inputs")
    write_fussy(folder / "model" / "1")
    write_features(folder / "model", [{"name": name, "dtype": "float32"} for name in ("a", "b")])
    numbers = np.arange(float(ROWS))
    table = pd.DataFrame({"entity_id": [f"E{number:.0f}" for number in numbers], "a": numbers, "b": numbers + 1})
    table.loc[table["entity_id"] == RAISING, "a"] = -1.0
    table.to_parquet(folder / "scores.parquet")
    (reading, read), (owning, own) = new_key(folder, "reader", "read"), new_key(folder, "owner", "read", "enqueue")
    with Stack(folder, read + own + TOML) as stack:
        stack.start("realtime", "api")
        stack.wait_ready()
        assert stack.cli("features", "load", "scores", "scores.parquet").returncode == 0
        with (
            httpx.Client(base_url=stack.url, headers={"X-API-Key": reading}, timeout=60) as reader,
            httpx.Client(base_url=stack.url, headers={"X-API-Key": owning}, timeout=60) as owner,
        ):
            service = Service(stack, reader, owner)
            wait_for(service.computes, "the first computed prediction", 30)
            yield service


def test_an_entity_that_the_model_raises_on_fails_alone_in_its_micro_batch(service: Service) -> None:
    ids = [f"E{number}" for number in range(ROWS)]
    answer = service.reader.post("/predict", json={"entity_ids": ids, "max_staleness_hours": 0})
    items = answer.json()["predictions"]
    assert [item["entity_id"] for item in items] == ids
    assert [item["entity_id"] for item in items if "error" in item] == [RAISING]
    assert all(item["prediction"] == right(item["entity_id"]) for item in items if "error" not in item)
    failed = next(item["error"] for item in items if "error" in item)
    assert (failed["status"], failed["code"]) == (500, "prediction-failed")
    assert "negative" not in failed["detail"], "the model's own words are for the log"


def test_requests_that_share_a_micro_batch_with_a_raising_one_are_answered(service: Service) -> None:
    ids = [RAISING if number % 8 == 0 else f"E{20 + number}" for number in range(64)]
    with ThreadPoolExecutor(16) as pool:
        answers = dict(zip(ids, pool.map(service.ask, ids), strict=True))
    assert answers.pop(RAISING).status_code == 500
    assert {answer.status_code for answer in answers.values()} == {200}
    assert all(answer.json()["prediction"] == right(entity_id) for entity_id, answer in answers.items())


def test_a_late_task_is_dropped_and_leaves_nothing_behind(service: Service) -> None:
    worker = service.stack.processes["realtime"]
    wait_for(service.computes, "a computed prediction", 20)
    before = service.stack.deployment.predictions("scores").read(["E50"])
    worker.send_signal(signal.SIGSTOP)
    try:
        # it is answered while the worker is frozen
        late = service.ask("E50", timeout_ms=200)
        time.sleep(0.3)  # two processes' ideas of Redis' time differ by some milliseconds
    finally:
        worker.send_signal(signal.SIGCONT)
    assert (late.json().get("code") or late.json()["outcome"]) in ("deadline-exceeded", "stale")
    wait_for(service.computes, "answers to those who came after it", 20)
    assert service.stack.deployment.predictions("scores").read(["E50"]) == before


def test_a_stale_answer_is_given_to_all_at_once_and_computed_anew_behind_them_once(service: Service) -> None:
    first = service.ask("E30").json()
    time.sleep(1.2)  # past its ttl
    done = service.tasks_done()
    with ThreadPoolExecutor(8) as pool:
        answers = [answer.json() for answer in pool.map(lambda _: service.reader.get("/predict/E30"), range(8))]
    assert {answer["outcome"] for answer in answers} == {"stale"}
    # a late one may find what was computed behind the first: from the same old features, so it is stale too
    assert first["computed_at"] in {answer["computed_at"] for answer in answers}
    wait_for(lambda: service.reader.get("/predict/E30").json()["computed_at"] > first["computed_at"], "a new one", 5)
    assert service.tasks_done() - done == 1


def test_an_unknown_entity_costs_the_workers_one_task_however_often_it_is_asked_for(service: Service) -> None:
    wait_for(service.computes, "a computed prediction", 20)
    done = service.tasks_done()
    assert {service.reader.get("/predict/nobody").status_code for _ in range(20)} == {404}
    assert service.tasks_done() - done <= 2, "remembered for two seconds"


def test_instances_and_overrides_are_computed_and_leave_no_trace(service: Service) -> None:
    before = service.stack.deployment.predictions("scores").read(["E40"])
    rows = [{"a": 1.0, "b": 3.0}, {"a": -1.0, "b": 3.0}, {"a": 1.0}]
    answer = service.reader.post("/predict", json={"instances": rows}).json()["predictions"]
    assert answer[0]["prediction"] == pytest.approx(log(3.0), rel=1e-5)
    assert [item.get("error", {}).get("code") for item in answer] == [None, "prediction-failed", "bad-features"]
    body = {"entity_ids": ["E40"], "overrides": {"b": 5.0}}
    [item] = service.reader.post("/predict", json=body).json()["predictions"]
    assert item["prediction"] == pytest.approx(log(5.0), rel=1e-5)
    assert service.stack.deployment.predictions("scores").read(["E40"]) == before
    wrong = service.reader.post("/predict", json={"entity_ids": ["E40"], "overrides": {"nope": 5.0}}).json()
    assert wrong["predictions"][0]["error"]["status"] == 400


def test_a_key_may_do_what_its_scopes_say_and_no_more(service: Service) -> None:
    assert httpx.get(f"{service.stack.url}/predict/E1").status_code == 401
    assert httpx.get(f"{service.stack.url}/health/live").status_code == 200
    assert service.reader.post("/predictions", json={"entity_ids": ["E1"]}).status_code == 403
    assert service.owner.post("/runs", json={}).status_code == 403
    cors = service.reader.get("/predict/E1", headers={"Origin": "https://elsewhere.example"})
    assert not [name for name in cors.headers if name.startswith("access-control-")]


def test_a_body_over_the_limit_is_refused_while_it_arrives(service: Service) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"entity_ids": ["'
        for _ in range(MAX_BODY_BYTES // 2**20 + 1):
            yield b"x" * 2**20

    refused = service.reader.post("/predict", content=pieces(), headers={"content-type": "application/json"})
    assert (refused.status_code, refused.json()["code"]) == (413, "body-too-large")
    assert service.computes()


def test_a_job_is_computed_in_order_and_a_long_poll_hears_of_its_end(service: Service) -> None:
    ids = [f"E{number % ROWS}" for number in range(1000)]
    body = service.job(service.enqueue(ids), wait_s=30)
    assert body["state"] == "done"
    items = body["result"]["predictions"]
    assert [item["entity_id"] for item in items] == ids
    assert {item["entity_id"] for item in items if "error" in item} == {RAISING}
    assert all(item["prediction"] == right(item["entity_id"]) for item in items if "error" not in item)


def test_the_same_request_under_one_key_is_one_job(service: Service) -> None:
    with ThreadPoolExecutor(8) as pool:
        urls = list(pool.map(lambda _: service.enqueue(["E1", "E2"], **{"Idempotency-Key": "order-1"}), range(8)))
    assert len(set(urls)) == 1
    assert service.job(urls[0], wait_s=20)["state"] == "done"
    again = {"entity_ids": ["E3"]}
    assert service.owner.post("/predictions", json=again, headers={"Idempotency-Key": "order-1"}).status_code == 400


def test_a_cancelled_job_ends_at_once_and_what_is_left_of_it_is_not_computed(service: Service) -> None:
    wait_for(service.computes, "a computed prediction", 20)
    last = f"E{ROWS - 1}"
    before = service.stack.deployment.predictions("scores").read([last])
    url = service.enqueue([*(f"E{number % (ROWS - 1)}" for number in range(50_000)), last])
    assert service.owner.delete(url).status_code == 202
    assert service.job(url)["state"] == "cancelled"
    # its messages are dropped unread
    wait_for(lambda: waiting(service.stack) == 0, "the messages to be dropped", 20)
    wait_for(service.computes, "room for others", 20)
    assert service.job(url)["state"] == "cancelled"
    assert service.stack.deployment.predictions("scores").read([last]) == before


@pytest.mark.slow
def test_a_job_of_a_hundred_thousand_ids_is_done_while_requests_are_answered(service: Service) -> None:
    ids = [f"E{number % ROWS}" for number in range(100_000)]
    url = service.enqueue(ids)
    asked = [service.ask("E3") for _ in range(20)]
    assert {(answer.status_code, answer.json()["outcome"]) for answer in asked} == {(200, "computed")}
    body = wait_for(lambda: done if (done := service.job(url, 30))["state"] == "done" else None, "the job", 120)
    items = body["result"]["predictions"]
    assert [item["entity_id"] for item in items] == ids
    assert sum("error" in item for item in items) == len(ids) // ROWS
    assert service.owner.post("/predictions", json={"entity_ids": [*ids, "E1"]}).status_code == 400


def waiting(stack: Stack) -> int:
    """How many requests and parts of jobs wait on the broker."""
    return {state.queue: state.depth for state in Queues(stack.settings).read()}["realtime"]


def let_silence_pass(stack: Stack, url: str, silent_s: int) -> None:
    """Have a job's last sign of progress lie so far back."""
    deployment = stack.deployment
    seconds, _ = deployment.cache.time()
    deployment.cache.hset(deployment.keys.job(url.rpartition("/")[2]), "changed_at", str(seconds - silent_s))


def wait_dead(process: subprocess.Popen[bytes]) -> None:
    assert wait_for(lambda: process.poll() is not None, "the worker's death", 20)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_request_that_kills_its_worker_is_answered_otherwise_and_kills_no_second_one(service: Service) -> None:
    service.use_worker(Path(mortal_worker.__file__))
    answer = service.ask(DEADLY, timeout_ms=1000)
    assert (answer.json().get("code") or answer.json()["outcome"]) in ("deadline-exceeded", "stale")
    wait_dead(service.stack.processes["realtime"])
    service.use_worker(Path(mortal_worker.__file__))
    assert waiting(service.stack) == 0, "nobody is to be given it once more"
    for number in range(10):
        assert service.ask(f"E{20 + number}").json()["outcome"] == "computed"
    assert service.stack.processes["realtime"].poll() is None


@pytest.mark.slow
def test_a_part_of_a_job_that_kills_its_workers_fails_its_job_and_the_next_worker_lives(service: Service) -> None:
    service.use_worker(Path(mortal_worker.__file__))
    url = service.enqueue(["E1", DEADLY, "E2"])
    # a later second each time, since what is left of a job is sent again once for each sign of progress
    for silent_s in range(LOST_AFTER_S + MAX_BEGUN, LOST_AFTER_S, -1):
        wait_dead(service.stack.processes.pop("realtime"))
        service.stack.start("realtime", script=Path(mortal_worker.__file__))
        let_silence_pass(service.stack, url, silent_s)
        assert service.job(url)["state"] == "running"
    failed = service.job(url, wait_s=40)
    assert (failed["state"], failed["error"]["code"]) == ("failed", "prediction-failed")
    wait_for(service.computes, "computed predictions", 20)
    assert service.job(service.enqueue(["E1", "E2"]), wait_s=20)["state"] == "done"
    assert service.stack.processes["realtime"].poll() is None


@pytest.mark.slow
@pytest.mark.parametrize("ahead_s", [8, -8])
def test_a_worker_whose_clock_is_off_by_more_than_the_budget_computes(service: Service, ahead_s: int) -> None:
    with mock.patch.dict(os.environ, SHIFT_CLOCK_S=str(ahead_s)):
        service.use_worker(Path(shifted_worker.__file__))
    for number in range(20):
        began = time.time()
        answer = service.ask(f"E{20 + number}", timeout_ms=4000).json()
        assert answer.get("outcome") == "computed"
        # instants are those of Redis, not the worker's
        assert began - 4 < answer["timestamp"] < time.time() + 4
    assert service.reader.get("/predict/E20").json()["outcome"] in ("hit_realtime", "stale")
