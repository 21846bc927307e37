"""One deployment on hosts with addresses, names and clocks of their own: one is cut off, slow, or two minutes ahead.

What `docs/architecture.md` promises has to hold there too.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.redis.clients import WORKER, Client, open_client
from inference.redis.keys import Keys, TableKind
from inference.store import Table
from tests.support.hosts import Host, Network, require_namespaces
from tests.support.plain_models import write_slow_sum_model
from tests.support.redis_server import find_redis_binary
from tests.support.waiting import LONG_S, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(280)]

ROWS, CHUNK_ROWS = 600, 20
#: of the hosts `api-2`, `worker-2` and `schedule`
AHEAD_S = 120.0
BUDGET_S = 2.0
AHEAD_OF_REDIS = re.compile(r"([0-9.]+) s ahead of Redis")
KEYS = Keys("forecache")
_TOML = """
[redis]
url = "redis://{broker}:6379/0"
cache_url = "redis://{cache}:6379/0"
[api]
host = "0.0.0.0"
allow_remote = true
hosts = ["*"]
[models.m]
path = "model"
allow_code = true
features = "t.parquet"
[models.m.batch]
rows_per_chunk = {chunk_rows}
micro_batch_rows = 4
[models.m.realtime]
min_recompute_interval = "1ms"
[models.tick]
path = "model"
allow_code = true
features = "tick.parquet"
[models.tick.batch]
schedule = "5s"
"""


class Deployment:
    """The processes on their hosts, and a client of the API on a host of its own."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.broker, self.cache = network.add("broker"), network.add("cache")
        self.api, self.api_ahead = network.add("api"), network.add("api-2", ahead_s=AHEAD_S)
        self.worker, self.worker_ahead = network.add("worker-1"), network.add("worker-2", ahead_s=AHEAD_S)
        self.schedule = network.add("schedule", ahead_s=AHEAD_S)
        self.user = network.add("user")

    def start(self) -> None:
        folder = self.network.folder
        (folder / "forecache.toml").write_text(
            _TOML.format(broker=self.broker.address, cache=self.cache.address, chunk_rows=CHUNK_ROWS)
        )
        write_slow_sum_model(folder / "model", ["a", "b"], seconds=0.005)
        write_rows(folder / "t.parquet", ROWS)
        write_rows(folder / "tick.parquet", 4)
        for host in (self.broker, self.cache):
            redis = [find_redis_binary(), "--bind", host.address, "--protected-mode", "no", "--save", ""]
            host.start("redis", [*redis, "--maxmemory-policy", "noeviction"])
        self.worker.start("maintenance", python("-m", "workers", "maintenance", "-n", "maintenance@%h"))
        for host in (self.worker, self.worker_ahead):
            host.start("gpu", python("-m", "workers", "gpu", "-n", "gpu@%h"))
            host.start("realtime", python("-m", "workers", "realtime", "-n", "realtime@%h"))
        for host in (self.api, self.api_ahead):
            host.start("api", python("-m", "app.cli", "api"))
        self.schedule.start("beat", python("-m", "beat_schedule"))
        for host in (self.api, self.api_ahead):
            wait_for(lambda host=host: self.is_ready(host), "readiness", 60, evidence=self.logs)
        self.api_ahead.start("load", python("-m", "app.cli", "features", "load", "m", "t.parquet"))
        wait_for(lambda: self.api_ahead.ended() == ["load"], "the load of features", 40, evidence=self.logs)

    def is_ready(self, host: Host) -> bool:
        for each in self.network.hosts.values():
            assert each.ended() == [], self.logs()
        return self.get("/health/ready", host) is not None

    def get(self, path: str, host: Host | None = None, **parameters: Any) -> dict[str, Any] | None:
        """Return what an API says; None if it says nothing or no 200. Its time is bounded by the budget."""
        with httpx.Client(timeout=BUDGET_S + LONG_S) as client:
            try:
                answer = client.get(f"http://{(host or self.api).address}:8000{path}", params=parameters)
            except httpx.TransportError:
                return None
        body: dict[str, Any] = answer.json()
        return body if answer.status_code == 200 else None

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        with httpx.Client(timeout=BUDGET_S + LONG_S) as client:
            answer = client.post(f"http://{self.api.address}:8000{path}", json=body)
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def outcome(self, number: int, host: Host | None = None, **parameters: Any) -> str:
        """Ask for a prediction within the budget; return its outcome, or the error's code."""
        parameters = {"model": "m", "timeout_ms": int(BUDGET_S * 1000), **parameters}
        with httpx.Client(timeout=BUDGET_S + LONG_S) as client:
            url = f"http://{(host or self.api).address}:8000/predict/e{number}"
            body = client.get(url, params=parameters).json()
        return str(body.get("outcome") or body["code"])

    def computed(self, number: int, host: Host | None = None) -> bool:
        return self.outcome(number, host, max_staleness_hours=0) == "computed"

    def run(self) -> str:
        return str(self.post("/runs", {"model": "m"})["run_id"])

    def assert_published(self, run_id: str) -> None:
        """Wait for the end of a run. All rows count once."""

        def over() -> dict[str, Any] | None:
            run = self.get(f"/runs/{run_id}")
            return run if run and run["state"] in ("published", "failed", "cancelled") else None

        done = wait_for(over, f"the end of {run_id}", 60, evidence=self.logs)
        assert (done["state"], done["error"], done["rows_done"]) == ("published", None, ROWS), str(done)

    def cache_client(self) -> Client:
        """A client of the cache."""
        return open_client(f"redis://{self.cache.address}:6379/0", WORKER)

    def alive(self, client: Client, queue: str) -> set[str]:
        """The hosts whose workers are heard."""
        names = client.zrange(KEYS.queue_workers(queue), 0, -1)
        beats = [client.get(KEYS.worker(name.decode())) for name in names]
        return {json.loads(beat)["host"] for beat in beats if beat is not None}

    def assert_serves(self, client: Client) -> None:
        """Every entity has its own prediction, once, of a time that Redis has reached."""
        table = Table(client, KEYS.table(TableKind.PREDICTIONS, "m"), kind=TableKind.PREDICTIONS, model="m")
        current = table.pointer().current
        manifest = None if current is None else table.generations.manifest(current)
        assert manifest is not None
        assert table.generations.count(manifest) == ROWS
        entries = table.read([f"e{number}" for number in range(ROWS)])
        assert [entry and list(entry.values.values()) for entry in entries] == [
            [number + 1.0] for number in range(ROWS)
        ]
        now = client.now()
        assert all(entry is not None and entry.as_of <= now for entry in entries)

    def logs(self) -> str:
        """The end of each log."""
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in self._logs())

    def _logs(self) -> list[Path]:
        return sorted(self.network.folder.glob("*.log"))


def python(*words: str) -> list[str | Path]:
    return [sys.executable, *words]


def write_rows(path: Path, rows: int) -> None:
    columns = {
        "entity_id": [f"e{number}" for number in range(rows)],
        "a": np.arange(rows, dtype=np.float32),
        "b": np.ones(rows, np.float32),
    }
    pq.write_table(pa.table(columns), path)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    require_namespaces()
    with Network(tmp_path_factory.mktemp("hosts")) as network:
        deployment = Deployment(network)
        with deployment.user.entered():  # all that tests send comes from there
            deployment.start()
            deployment.assert_published(deployment.run())
            yield deployment


def test_clocks_two_minutes_ahead_change_no_deadline_no_age_and_no_count(deployment: Deployment) -> None:
    with deployment.cache_client() as client:
        deployment.assert_serves(client)
        # both workers compute for both APIs, each task within its deadline
        assert deployment.alive(client, "realtime") == {"worker-1", "worker-2"}
        for host in (deployment.api, deployment.api_ahead):
            wait_for(lambda host=host: deployment.computed(0, host), "a computed answer", 30, evidence=deployment.logs)
            outcomes = [deployment.outcome(number, host, max_staleness_hours=0) for number in range(40)]
            assert outcomes == ["computed"] * 40
        # what the worker ahead has computed is as old as Redis says, so nothing hides a later run
        for host in (deployment.api, deployment.api_ahead):
            answer = deployment.get("/predict/e1", host, model="m")
            assert answer is not None
            assert answer["outcome"] in ("hit_realtime", "hit_batch")
            assert client.now() - 60 < answer["timestamp"] <= client.now()
        before = client.now()
        deployment.assert_published(deployment.run())
        after = deployment.get("/predict/e1", deployment.api_ahead, model="m")
        assert after is not None
        assert (after["outcome"], after["timestamp"] >= before - 1) == ("hit_batch", True)
        # requests are counted in the minute in which they came
        wait_for(lambda: _counted(client) >= 80, "the counts of both APIs", 30)


def _counted(client: Client) -> int:
    """The computed answers of the last minutes; fails if one stands in a minute that has not begun."""
    minute = int(client.now() // 60)
    assert [client.exists(KEYS.hits("m", minute + ahead)) for ahead in (1, 2, 3)] == [0, 0, 0]
    found = [client.hget(KEYS.hits("m", minute - back), "computed") for back in range(4)]
    return sum(int(count) for count in found if count is not None)


def test_a_beat_two_minutes_ahead_has_each_slot_run_once(deployment: Deployment) -> None:
    with deployment.cache_client() as client:

        def slots() -> dict[bytes, bytes]:
            return client.hgetall(KEYS.slots("tick"))

        wait_for(lambda: len(slots()) >= 3, "three slots", 60, evidence=deployment.logs)
        runs = list(slots().values())
        assert len(runs) == len(set(runs))


def test_doctor_on_the_host_ahead_tells_of_its_clock(deployment: Deployment) -> None:
    deployment.api_ahead.start("doctor", python("-m", "app.cli", "doctor"))
    log = partial(deployment.api_ahead.log, "doctor")
    found = wait_for(lambda: AHEAD_OF_REDIS.search(log()), "doctor", 40, evidence=log)
    assert float(found[1]) == pytest.approx(AHEAD_S, abs=1)


def test_a_worker_host_cut_off_in_mid_run_delays_it_and_takes_part_again_later(deployment: Deployment) -> None:
    with deployment.cache_client() as client:
        run = deployment.run()
        wait_for(lambda: (deployment.get(f"/runs/{run}") or {}).get("chunks_done", 0) >= 2, "a run at work", 30)
        with deployment.worker_ahead.cut_off():
            # nobody waits longer than the budget: the API notices within seconds that only one worker is left
            began_at = time.monotonic()
            outcomes = [deployment.outcome(number) for number in range(10)]
            assert set(outcomes) <= {"hit_batch", "hit_realtime"}
            assert time.monotonic() - began_at < LONG_S
            wait_for(lambda: deployment.alive(client, "realtime") == {"worker-1"}, "worker-2 to be missed", 30)
            wait_for(lambda: deployment.computed(3), "computed answers by the other worker", 30)
            deployment.assert_published(run)
        wait_for(lambda: deployment.alive(client, "realtime") == {"worker-1", "worker-2"}, "worker-2 again", 60)
        deployment.assert_published(deployment.run())
        deployment.assert_serves(client)


def test_with_the_broker_cut_off_hits_are_served_and_misses_answered_in_time(deployment: Deployment) -> None:
    with deployment.broker.cut_off():
        assert deployment.outcome(5) in ("hit_batch", "hit_realtime")
        began_at = time.monotonic()
        missed = [deployment.outcome(number, max_staleness_hours=0) for number in range(5)]
        assert set(missed) <= {"stale", "deadline-exceeded", "workers-unavailable", "broker-unavailable"}
        assert time.monotonic() - began_at < 5 * BUDGET_S + LONG_S
    wait_for(lambda: deployment.computed(6), "computed answers again", 60, evidence=deployment.logs)


def test_with_the_cache_cut_off_requests_get_an_outage_in_time_and_all_recover(deployment: Deployment) -> None:
    with deployment.cache.cut_off():
        assert deployment.outcome(7) in ("store-unavailable", "deadline-exceeded")
        assert deployment.get("/health/ready") is None
    wait_for(lambda: deployment.outcome(8) in ("hit_batch", "hit_realtime"), "hits again", 60, evidence=deployment.logs)
    wait_for(lambda: deployment.computed(9), "computed answers again", 60, evidence=deployment.logs)
    deployment.assert_published(deployment.run())


def test_a_slow_link_to_a_worker_costs_no_row_and_no_request_its_budget(deployment: Deployment) -> None:
    with deployment.worker_ahead.slow_link("128kbit"):
        outcomes = [deployment.outcome(number, max_staleness_hours=0) for number in range(20)]
        assert set(outcomes) <= {"computed", "stale", "deadline-exceeded"}
        assert "computed" in outcomes
        deployment.assert_published(deployment.run())
    with deployment.cache_client() as client:
        deployment.assert_serves(client)
