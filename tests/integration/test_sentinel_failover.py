"""A whole deployment behind Redis Sentinels whose primary is killed under load."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.flights import write_flights
from tests.support.sentinel_group import SentinelGroup, fail_over
from tests.support.stack import Stack
from tests.support.waiting import LONG_S, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(280)]

PROCESSES = ("gpu", "realtime", "maintenance", "api")


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelGroup]:
    passwords = {"password": "hush-data-1", "sentinel_password": "hush-sentinel-2"}
    with SentinelGroup(tmp_path_factory.mktemp("sentinels"), **passwords) as group:
        yield group


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, group: SentinelGroup) -> Iterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("behind")
    toml = write_flights(folder) + "[models.delay.batch]\nrows_per_chunk = 5\n"
    with Stack(folder, toml, url=group.url(0), cache_url=group.url(1)) as stack:
        stack.start(*PROCESSES)
        stack.wait_ready()
        assert stack.cli("features", "load", "delay", "flights.parquet").returncode == 0
        wait_for(lambda: computed(stack), "the first computed prediction", 60)
        yield stack


def computed(stack: Stack) -> bool:
    parameters = {"max_staleness_hours": "0", "timeout_ms": "2000"}
    return httpx.get(f"{stack.url}/predict/F7", params=parameters, timeout=LONG_S).json().get("outcome") == "computed"


class Writers:
    """Clients that enqueue jobs and store features all the time. Remembers what the API has confirmed."""

    def __init__(self, stack: Stack) -> None:
        self.jobs: list[str] = []
        self.features: dict[str, float] = {}
        self.refused = 0
        self._stack = stack
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._keep, args=(one,)) for one in (self._enqueue, self._put)]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _keep(self, write: Callable[[httpx.Client, int], bool]) -> None:
        with httpx.Client(base_url=self._stack.url, timeout=LONG_S) as client:
            for number in itertools.count():
                if self._over.is_set():
                    return
                self.refused += not write(client, number)
                time.sleep(0.005)

    def _enqueue(self, client: httpx.Client, number: int) -> bool:
        answer = client.post("/predictions", json={"entity_ids": [f"F{number % 100}"]})
        if answer.status_code == 202:
            self.jobs.append(answer.json()["task_id"])
        return answer.status_code == 202

    def _put(self, client: httpx.Client, number: int) -> bool:
        entity, value = f"F{number % 50}", float(number)
        answer = client.put(f"/features/{entity}", json={"features": {"a": value, "b": 1.0}})
        if answer.status_code == 200:
            self.features[entity] = value
        return answer.status_code == 200


def finished(stack: Stack, job_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(
        f"{stack.url}/predictions/{job_id}", params={"wait_s": 20}, timeout=LONG_S + 20
    ).json()
    return answer


def test_the_api_waits_for_a_replica_before_it_confirms_a_write_and_not_before_a_read(
    stack: Stack, group: SentinelGroup
) -> None:
    def waits() -> int:
        with group.client(group.primary) as client:
            return int(client.info("commandstats").get("cmdstat_wait", {}).get("calls", 0))

    before = waits()
    httpx.get(f"{stack.url}/predict/F1").raise_for_status()
    httpx.post(f"{stack.url}/predict", json={"entity_ids": ["F1"]}).raise_for_status()
    assert httpx.put(f"{stack.url}/features/F1", json={"features": {"no": 1.0}}).status_code == 400
    assert waits() == before
    httpx.put(f"{stack.url}/features/F1", json={"features": {"a": 1.0, "b": 1.0}}).raise_for_status()
    assert waits() == before + 1
    job = httpx.post(f"{stack.url}/predictions", json={"entity_ids": ["F1"]}).raise_for_status().json()["task_id"]
    assert waits() == before + 2
    assert finished(stack, job)["state"] == "done"


def test_a_primary_killed_under_load_loses_nothing_that_a_client_was_told_is_stored(
    stack: Stack, group: SentinelGroup
) -> None:
    with Writers(stack) as writers:
        wait_for(lambda: len(writers.jobs) > 50 and len(writers.features) > 20, "load", 30)
        run = httpx.post(f"{stack.url}/runs", json={"model": "delay"}).raise_for_status().json()["run_id"]
        old = group.kill_primary()
        group.wait_failover(old)
        elected_at, confirmed = time.monotonic(), len(writers.jobs)
        wait_for(lambda: len(writers.jobs) > confirmed + 20, "jobs after the failover", 20)
        took_s = time.monotonic() - elected_at
        wait_for(lambda: computed(stack), "computed answers", 20)
        computed_s = time.monotonic() - elected_at
    assert max(took_s, computed_s) < LONG_S
    assert stack.wait_run(run)["state"] == "published"
    states = {job_id: finished(stack, job_id) for job_id in writers.jobs}
    assert {one.get("state", one.get("code")) for one in states.values()} == {"done"}
    for entity, value in writers.features.items():
        # a later write may be stored though its client was told of an outage
        assert httpx.get(f"{stack.url}/predict/{entity}", timeout=LONG_S).json()["prediction"] >= value + 1
    for process in ("gpu", "maintenance", "api"):
        assert "Traceback" not in stack.own_log(process)
    assert "redis.failover" in stack.log("api")


def test_a_primary_that_falls_silent_is_left_by_every_process_and_a_run_goes_on(
    stack: Stack, group: SentinelGroup
) -> None:
    silent = group.primary
    for server in group.servers:
        if server is not silent and server.process and server.process.poll() is not None:
            group.revive(server)
    assert silent.process
    run = httpx.post(f"{stack.url}/runs", json={"model": "delay"}).raise_for_status().json()["run_id"]
    silent.process.send_signal(signal.SIGSTOP)
    try:
        group.wait_failover(silent)
        elected_at = time.monotonic()
        wait_for(lambda: computed(stack), "computed answers", 40)
        assert stack.wait_run(run)["state"] == "published"
        assert time.monotonic() - elected_at < 3 * LONG_S
    finally:
        silent.process.send_signal(signal.SIGCONT)
    # it wakes up as a primary with clients, and becomes a replica
    wait_for(lambda: group.replicas() == 1, "the old primary as a replica", 30)
    wait_for(lambda: computed(stack), "computed answers", 20)
    again = httpx.post(f"{stack.url}/runs", json={"model": "delay"}).raise_for_status().json()["run_id"]
    assert stack.wait_run(again)["state"] == "published"


def test_failovers_by_command_one_after_the_other_leave_every_process_at_work(
    stack: Stack, group: SentinelGroup
) -> None:
    # the primary that steps down ends blocked commands with an error, twice within seconds
    for _ in range(2):
        before = group.primary
        with group.sentinel(group.sentinel_ports[0]) as sentinel:
            wait_for(lambda sentinel=sentinel: fail_over(sentinel), "a failover by command", 30)
        group.wait_failover(before)
        wait_for(lambda: computed(stack), "computed answers", 20)
    run = httpx.post(f"{stack.url}/runs", json={"model": "delay"}).raise_for_status().json()["run_id"]
    assert stack.wait_run(run)["state"] == "published"
    assert {name for name, process in stack.processes.items() if process.poll() is not None} == set()
