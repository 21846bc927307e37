"""Each alert in a real deployment: quiet, then provoked, then ended by what its runbook says."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from celery import Celery

from inference.monitoring.queues import SENT_AT_HEADER
from inference.redis.clients import Client
from inference.redis.keys import TableKind
from tasks.celery_app import make_celery
from tests.integration.test_parity import spoil_the_sample
from tests.support.flights import write_flights
from tests.support.promql import Scrapes, rules
from tests.support.redis_server import RedisServer
from tests.support.stack import Stack
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

MODEL = "delay"
FRESH = {"max_staleness_hours": "0"}
DAY_S = 24 * 3600.0
ALERTS = rules()
_PROVOKED: set[str] = set()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("broker"), appendonly=True)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, broker: RedisServer) -> Iterator[Stack]:
    """All processes, a published run, and loaded features; no alert fires."""
    folder = tmp_path_factory.mktemp("alerts")
    toml = write_flights(folder) + '[models.delay.parity]\nevery = "1h"\n'
    with Stack(folder, toml, broker_url=broker.url()) as stack:
        stack.start("gpu", "realtime", "maintenance", "api")
        stack.wait_ready()
        assert stack.cli("batch", "run", MODEL, "--wait").returncode == 0
        assert stack.cli("features", "load", MODEL, "flights.parquet").returncode == 0
        # entities that no run has scored
        new = [{"entity_id": f"X{number}", "features": {"a": 1, "b": 1}} for number in range(10)]
        assert httpx.put(f"{stack.url}/features", json={"items": new}).status_code == 200
        for alert in ALERTS:
            becomes(stack, alert, fires=False)
        yield stack


def metrics(stack: Stack) -> str | None:
    try:
        answer = httpx.get(f"{stack.url}/metrics", timeout=10)
    except httpx.TransportError:
        return None
    return answer.text if answer.status_code == 200 else None


def becomes(
    stack: Stack,
    alert: str,
    *,
    fires: bool,
    before: Scrapes | None = None,
    meanwhile: Callable[[], object] = lambda: None,
) -> None:
    """Wait until a rule selects something, or nothing.

    `before`: earlier scrapes that it looks at too; `meanwhile`: what goes on between two looks.
    """
    earlier = list((before or Scrapes()).taken)

    def holds() -> bool:
        meanwhile()
        scrapes = Scrapes(list(earlier))
        scrapes.add(time.time(), metrics(stack))
        return bool(scrapes.value(ALERTS[alert], scrapes.taken[-1][0])) is fires

    wait_for(holds, f"{alert} {'fires' if fires else 'is quiet'}", 60)
    if fires:
        _PROVOKED.add(alert)


def scraped(stack: Stack, age_s: float) -> Scrapes:
    """The figures of now, as if they had been scraped some time ago."""
    scrapes = Scrapes()
    scrapes.add(time.time() - age_s, metrics(stack))
    return scrapes


def run(stack: Stack) -> str:
    """Start a run, and return its last state."""
    started = httpx.post(f"{stack.url}/runs").raise_for_status().json()
    return str(stack.wait_run(started["run_id"])["state"])


def rewrite_generation(stack: Stack, **changes: Any) -> None:
    """Have the served generation's manifest say something else."""
    keys = stack.deployment.keys.table(TableKind.PREDICTIONS, MODEL)
    with Client.from_url(stack.settings.cache_url) as client:
        key = keys.generation(int(client.hget(keys.pointer, "current") or 0))
        manifest = json.loads(client.hget(key, "manifest") or b"")
        client.hset(key, "manifest", json.dumps({**manifest, **changes}))


def ask(stack: Stack, entity: str, **parameters: str) -> httpx.Response:
    return httpx.get(f"{stack.url}/predict/{entity}", params=parameters, timeout=30)


def test_down(stack: Stack) -> None:
    stack.stop("api", signal.SIGTERM)
    becomes(stack, "ForecacheDown", fires=True)
    stack.start("api")
    becomes(stack, "ForecacheDown", fires=False)


def test_broker_down(stack: Stack, broker: RedisServer) -> None:
    broker.stop()
    becomes(stack, "ForecacheBrokerDown", fires=True)
    assert ask(stack, "F1").json()["outcome"] == "hit_batch"
    broker.start()
    becomes(stack, "ForecacheBrokerDown", fires=False)
    wait_for(lambda: ask(stack, "F1", **FRESH).json().get("outcome") == "computed", "a computed answer", 30)


def test_no_worker_and_requests_that_are_shed(stack: Stack) -> None:
    stack.stop("realtime", signal.SIGTERM)
    becomes(stack, "ForecacheNoWorker", fires=True)
    assert "realtime" in stack.cli("doctor").stdout
    before = scraped(stack, 60)
    for number in range(10):
        assert ask(stack, f"X{number}").status_code == 503
    becomes(stack, "ForecacheRequestsShed", fires=True, before=before)
    stack.start("realtime")
    becomes(stack, "ForecacheNoWorker", fires=False)
    wait_for(lambda: ask(stack, "F1", **FRESH).json().get("outcome") == "computed", "a computed answer", 30)
    after = scraped(stack, 60)
    assert ask(stack, "F2", **FRESH).json()["outcome"] == "computed"
    becomes(stack, "ForecacheRequestsShed", fires=False, before=after)


def test_requests_wait(stack: Stack) -> None:
    worker = stack.processes["realtime"].pid
    os.kill(worker, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(4) as callers:
            for number in range(4):
                callers.submit(ask, stack, f"F{number}", timeout_ms="25000", **FRESH)
            becomes(stack, "ForecacheRequestsWait", fires=True)
            stack.start("realtime-2")
            becomes(stack, "ForecacheRequestsWait", fires=False)
    finally:
        os.kill(worker, signal.SIGCONT)
    stack.stop("realtime-2", signal.SIGTERM)


def test_chunks_wait(stack: Stack) -> None:
    stack.stop("gpu", signal.SIGTERM)
    started = httpx.post(f"{stack.url}/runs").raise_for_status().json()["run_id"]
    wait_for(lambda: make_older(stack, make_celery(stack.settings), 3600), "a chunk that waits", 30)
    becomes(stack, "ForecacheChunksWait", fires=True)
    stack.start("gpu")
    becomes(stack, "ForecacheChunksWait", fires=False)
    assert stack.wait_run(started)["state"] == "published"


def make_older(stack: Stack, application: Celery, by_s: float) -> bool:
    """Have the chunk that waits longest look as if it had waited for longer."""
    key = application.conf.broker_transport_options["global_keyprefix"] + "forecache.batch"
    with Client.from_url(stack.settings.broker_url) as client:
        raw = client.lindex(key, -1)
        if raw is None:
            return False
        message = json.loads(raw)
        message["headers"][SENT_AT_HEADER] = time.time() - by_s
        client.lset(key, -1, json.dumps(message))
    return True


def test_run_failed(stack: Stack) -> None:
    table = stack.folder / "flights.parquet"
    table.rename(table.with_suffix(".away"))
    assert run(stack) == "failed"
    becomes(stack, "ForecacheRunFailed", fires=True)
    table.with_suffix(".away").rename(table)
    assert run(stack) == "published"
    becomes(stack, "ForecacheRunFailed", fires=False)


@pytest.mark.parametrize(
    ("alert", "field", "moved_s"),
    [("ForecacheRunLate", "created_at", -27 * 3600.0), ("ForecacheGenerationExpires", "deadline", 23 * 3600.0)],
)
def test_a_generation_that_is_old(stack: Stack, alert: str, field: str, moved_s: float) -> None:
    rewrite_generation(stack, **{field: time.time() + moved_s})
    becomes(stack, alert, fires=True)
    assert run(stack) == "published"
    becomes(stack, alert, fires=False)


def test_hit_rate_dropped(stack: Stack) -> None:
    def requests(**parameters: str) -> None:
        for number in range(50):
            ask(stack, f"F{number}", **parameters)

    def is_high() -> bool:
        requests()
        now = scraped(stack, 0)
        return bool(now.value("forecache_hit_ratio > 0.9", now.taken[0][0]))

    wait_for(is_high, "a hit rate to fall from", 60)  # the tests before this one computed much
    yesterday = scraped(stack, DAY_S)
    becomes(stack, "ForecacheHitRateDropped", fires=True, before=yesterday, meanwhile=lambda: requests(**FRESH))
    # that client has stopped
    becomes(stack, "ForecacheHitRateDropped", fires=False, before=yesterday, meanwhile=requests)


def test_batch_and_realtime_disagree(stack: Stack) -> None:
    application = make_celery(stack.settings)
    application.send_task("forecache.check_parity", kwargs={"model": MODEL}, queue="batch")
    wait_for(lambda: "parity.checked" in stack.log("gpu"), "a check", 30)
    before = scraped(stack, 60)
    spoil_the_sample(stack)
    application.send_task("forecache.check_parity", kwargs={"model": MODEL}, queue="batch")
    becomes(stack, "ForecacheBatchAndRealtimeDisagree", fires=True, before=before)


def test_no_alert_was_left_out() -> None:
    assert set(ALERTS) == _PROVOKED
