"""A whole deployment over RabbitMQ: results and predictions in Redis, messages through a real broker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from kombu import Connection, Queue

from tests.support.examples import run_example, run_in_example, working_example
from tests.support.flights import write_flights
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.stack import Stack
from tests.support.waiting import wait_for

#: RabbitMQ takes ten seconds to start on two cores, and TensorFlow as long
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(400)]


@dataclass
class Deployment:
    stack: Stack
    broker: RabbitMQServer

    def get(self, entity_id: str, **parameters: Any) -> httpx.Response:
        return httpx.get(f"{self.stack.url}/predict/{entity_id}", params=parameters, timeout=20)

    def computes(self) -> bool:
        """Whether a request that insists on computing is answered so."""
        answer = self.get("F1", max_staleness_hours=0)
        return answer.status_code == 200 and answer.json()["outcome"] == "computed"

    def run(self) -> dict[str, Any]:
        started = httpx.post(f"{self.stack.url}/runs").raise_for_status().json()
        return self.stack.wait_run(started["run_id"])


@pytest.fixture(scope="module")
def it(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("amqp")
    broker = RabbitMQServer(folder / "rabbitmq").start()
    try:
        with Stack(folder, write_flights(folder), broker_url=broker.url) as stack:
            stack.start("gpu", "realtime", "maintenance", "api")
            stack.wait_ready()
            assert stack.cli("features", "load", "delay", "flights.parquet").returncode == 0
            yield Deployment(stack, broker)
    finally:
        broker.stop()


def test_a_miss_is_computed_and_then_a_hit(it: Deployment) -> None:
    first, second = it.get("F7").json(), it.get("F7").json()
    assert (first["prediction"], first["outcome"]) == (8.0, "computed")
    assert (second["prediction"], second["outcome"]) == (8.0, "hit_realtime")


def test_a_run_from_the_command_is_published_and_serves_hits(it: Deployment) -> None:
    done = it.stack.cli("batch", "run", "delay", "--wait")
    assert done.returncode == 0, done.stderr
    assert (it.get("F50").json()["prediction"], it.get("F50").json()["outcome"]) == (51.0, "hit_batch")


def test_a_job_is_enqueued_and_done(it: Deployment) -> None:
    ids = [f"F{number % 100}" for number in range(600)]
    job = httpx.post(f"{it.stack.url}/predictions", json={"entity_ids": ids}).raise_for_status().json()
    done = httpx.get(f"{it.stack.url}{job['status_url']}", params={"wait_s": 30}, timeout=40).json()
    assert done["state"] == "done"
    assert [item["prediction"] for item in done["result"]["predictions"]] == [float(i[1:]) + 1 for i in ids]


def test_no_name_on_the_broker_is_left_for_another_application_to_take(it: Deployment) -> None:
    with Connection(it.broker.url) as connection:
        for name in ("batch", "realtime", "maintenance", "celery"):
            # declared with other arguments than ours: refused, were it ours
            queue = Queue(name, durable=False, auto_delete=True).bind(connection.default_channel)
            queue.declare()
            queue.delete()
    assert it.computes()


def test_a_request_goes_before_the_parts_of_a_job_that_came_first(it: Deployment) -> None:
    ids = [f"F{number % 100}" for number in range(100_000)]
    url = it.stack.url
    job = httpx.post(f"{url}/predictions", json={"entity_ids": ids}, timeout=60).raise_for_status().json()
    assert it.computes()
    assert httpx.get(f"{url}{job['status_url']}", timeout=20).json()["state"] in ("queued", "running")
    httpx.delete(f"{url}{job['status_url']}").raise_for_status()


def test_an_urgent_job_overtakes_one_that_came_first(it: Deployment) -> None:
    ids = [f"F{number % 100}" for number in range(100_000)]
    url = it.stack.url
    slow = httpx.post(f"{url}/predictions", json={"entity_ids": ids, "priority": "low"}, timeout=60).json()
    urgent = httpx.post(f"{url}/predictions", json={"entity_ids": ["F1"], "priority": "high"}).json()
    done = httpx.get(f"{url}{urgent['status_url']}", params={"wait_s": 30}, timeout=40).json()
    assert done["state"] == "done"
    assert httpx.get(f"{url}{slow['status_url']}", timeout=20).json()["state"] in ("queued", "running")
    httpx.delete(f"{url}{slow['status_url']}").raise_for_status()


def test_a_celery_application_gets_predictions_beside_its_own_tasks(it: Deployment) -> None:
    done = run_example(it.stack, "celery_shop.py", "F3", "nobody")
    assert json.loads(done.stdout) == {"F3": 4.0, "nobody": None}, done.stderr
    with working_example(it.stack, "celery_shop:shop"):
        code = "from celery_shop import latest_first as t; print(t.delay(['F3', 'F9', 'F1']).get(timeout=60))"
        ranked = run_in_example(it.stack, code)
    assert ranked.stdout.strip() == "['F9', 'F3', 'F1']", ranked.stderr


def test_a_sender_that_declares_the_queue_differently_is_told_so_at_once(it: Deployment) -> None:
    code = """
from celery_shop import forecache
forecache.conf.task_queue_max_priority = None
forecache.send_task("forecache.predict_entities", kwargs={"entity_ids": ["F1"]})
"""
    done = run_in_example(it.stack, code)
    assert done.returncode == 1
    assert "x-max-priority" in done.stderr.splitlines()[-1]
    assert it.computes()


@pytest.mark.parametrize("end", [RabbitMQServer.stop, RabbitMQServer.kill], ids=["stopped", "killed"])
def test_hits_outlive_the_broker_and_everything_works_again_when_it_is_back(it: Deployment, end: Any) -> None:
    assert it.run()["state"] == "published"
    end(it.broker)
    try:
        assert it.get("F50").json()["outcome"] == "hit_batch"
        missed = it.get("F51", max_staleness_hours=0, timeout_ms=300)
        assert (missed.status_code, missed.json()["outcome"]) == (200, "stale")
        opened = httpx.post(f"{it.stack.url}/runs", timeout=20).raise_for_status().json()
    finally:
        it.broker.start()
    assert it.stack.wait_run(opened["run_id"])["state"] == "published"
    wait_for(it.computes, "real time to work again", 60)
