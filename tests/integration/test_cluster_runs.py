"""Runs, hits and misses of real processes whose predictions lie in a Redis Cluster, through the loss of a node."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from inference.redis.cluster import slot_of
from tests.support.plain_models import write_slow_sum_model
from tests.support.redis_cluster import RedisCluster
from tests.support.runs_rig import CALL_S, MODEL, Rig
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(420)]

ROWS = 3_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"))
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, cluster: RedisCluster) -> Iterator[Rig]:
    # a delta run compares digests, which whole runs keep with `delta`
    rig = Rig(tmp_path_factory.mktemp("rig"), cache_url=cluster.url(), batch="delta = true")
    write_slow_sum_model(rig.stack.folder / "model", ["a", "b"], seconds=CALL_S)
    rig.write_table(1_000, offset=0)
    rig.write_table(50, offset=0, name="tick.parquet")
    with rig.stack as stack:
        stack.start("gpu", "realtime", "maintenance", "api")
        stack.wait_ready(150)
        yield rig


def test_a_run_is_published_and_each_entity_is_a_hit(rig: Rig) -> None:
    rig.assert_published(rig.start_run(ROWS, offset=10_000), ROWS, offset=10_000)
    answer = httpx.get(f"{rig.stack.url}/predict/e7", params={"model": MODEL}).raise_for_status().json()
    assert (answer["prediction"], answer["outcome"]) == (10_007, "hit_batch")


# --- what else a deployment does, end to end -------------------------------------------------------------


def test_a_miss_is_computed_and_stored_and_a_job_computes_many(rig: Rig) -> None:
    new = {f"new{number}": number for number in range(40)}  # over all nodes
    items = [{"entity_id": name, "features": {"a": number, "b": 7}} for name, number in new.items()]
    stored = httpx.put(f"{rig.stack.url}/features", params={"model": MODEL}, json={"items": items}, timeout=10)
    assert all(item["applied"] for item in stored.raise_for_status().json()["items"])
    wait_for(lambda: _predicted(rig, "new0")[0] == 7, "a real-time worker", 60)
    assert {_predicted(rig, name) for name in list(new)[1:]} == {(number + 7, "computed") for number in range(1, 40)}
    assert {_predicted(rig, name) for name in new} == {(number + 7, "hit_realtime") for number in range(40)}
    request = {"model": MODEL, "entity_ids": list(new), "overrides": {"b": 100}}
    job = httpx.post(f"{rig.stack.url}/predictions", json=request, timeout=10).raise_for_status().json()
    done = httpx.get(f"{rig.stack.url}/predictions/{job['task_id']}", params={"wait_s": 30}, timeout=40).json()
    assert [row["prediction"] for row in done["result"]["predictions"]] == [number + 100 for number in new.values()]


def _predicted(rig: Rig, name: str) -> tuple[float | None, str | None]:
    """Return an entity's prediction and its outcome; None if there is none."""
    asked = {"model": MODEL, "timeout_ms": 20_000}
    body = httpx.get(f"{rig.stack.url}/predict/{name}", params=asked, timeout=30).json()
    return body.get("prediction"), body.get("outcome")


def test_a_delta_run_carries_over_what_did_not_change(rig: Rig) -> None:
    rig.assert_published(rig.start_run(ROWS, offset=40_000), ROWS, offset=40_000)
    delta = rig.assert_published(rig.request(delta=True), ROWS, offset=40_000)
    assert (delta["full_reason"], delta["rows_carried"], delta["rows_rescored"]) == (None, ROWS, 0)


def test_pages_and_commands_show_the_cluster(rig: Rig, cluster: RedisCluster) -> None:
    rig.stack.start("dashboard")
    wait_for(lambda: _page(rig, "healthcheck"), "the dashboard", 60)
    for page in ("hit-rates", "runs", "queues"):
        assert _page(rig, f"{page}/data"), page
    told = rig.stack.cli("doctor", "--json").stdout
    assert all(str(node.port) in told for node in cluster.nodes[:3]), told


def _page(rig: Rig, path: str) -> Any:
    try:
        answer = httpx.get(f"{rig.stack.dashboard_url}/{path}", timeout=10)
    except httpx.TransportError:
        return None
    return answer.text if answer.status_code == 200 else None


def test_slots_move_under_requests_and_a_run(rig: Rig, cluster: RedisCluster) -> None:
    rig.assert_published(rig.start_run(ROWS, offset=50_000), ROWS, offset=50_000)
    with Hammer(rig, {50_000, 60_000}) as hammer:
        run_id = rig.start_run(ROWS, offset=60_000)
        rig.wait_chunks(run_id, 2)
        for key in (*(f"{{{bucket}}}" for bucket in range(0, 40, 4)), "{forecache}"):
            source = cluster.primary_of(key)
            target = next(node for node in cluster.nodes if node is not source and node.ask("ROLE")[0] == b"master")
            cluster.move_slot(slot_of(key), source, target)
        wait_for(lambda: _is_over(rig, run_id), "the end of the run", 90)
    rig.assert_published(run_id, ROWS, offset=60_000)
    assert hammer.wrong == []
    assert hammer.hits > 100


# --- a node is lost ------------------------------------------------------------------------------------


class Hammer:
    """Asks for known entities all the time, and notes what is neither an allowed prediction nor a 503.

    `offsets`: a prediction is the entity's number plus one of them. `hits_since`: hits after the last 503.
    """

    def __init__(self, rig: Rig, offsets: set[int], *, threads: int = 3) -> None:
        self._url, self._offsets = f"{rig.stack.url}/predict/e", offsets
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(threads)]
        self.hits, self.hits_since, self.wrong = 0, 0, list[str]()
        self.defects: list[BaseException] = []

    def _ask(self, seed: int) -> None:
        rng = random.Random(seed)
        with httpx.Client(timeout=10) as client:
            while not self._over.is_set():
                number = rng.randrange(ROWS)
                answer = client.get(f"{self._url}{number}", params={"model": MODEL})
                if answer.status_code == 503:
                    self.hits_since = 0
                    continue
                body = answer.json()
                right = answer.status_code == 200 and body["prediction"] - number in self._offsets
                # a stored prediction that is computed anew is a miss that was none
                if right and body["outcome"] == "hit_batch":
                    self.hits += 1
                    self.hits_since += 1
                else:
                    self.wrong.append(answer.text[:300])

    def __enter__(self) -> Hammer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("tag", ["{forecache}", "{other}x3"], ids=["of the pointer", "of rows alone"])
def test_a_primary_killed_in_mid_run_costs_no_prediction_and_no_hit(rig: Rig, cluster: RedisCluster, tag: str) -> None:
    rig.assert_published(rig.start_run(ROWS, offset=20_000), ROWS, offset=20_000)
    victim = cluster.primary_of(tag)
    run_id = rig.start_run(ROWS, offset=30_000)
    rig.wait_chunks(run_id, 3)
    with Hammer(rig, {20_000, 30_000}) as hammer:
        victim.kill()
        wait_for(lambda: _answers(cluster, tag), "an election", 20)
        wait_for(lambda: hammer.hits_since > 100, "hits after the election, without a failure between", 60)
        wait_for(lambda: _is_over(rig, run_id), "the end of the run", 90)
    victim.start()
    wait_for(cluster.is_whole, "a whole cluster", 30)
    rig.assert_published(run_id, ROWS, offset=30_000)
    assert hammer.wrong == []


def _is_over(rig: Rig, run_id: str) -> bool:
    try:
        return rig.stack.run_if_over(run_id) is not None
    except httpx.HTTPStatusError:  # the API may still know the node that was lost
        return False


def _answers(cluster: RedisCluster, key: str) -> bool:
    try:
        return cluster.primary_of(key).answers()
    except AssertionError:
        return False
