"""Runs on a Ray cluster of several nodes: actors and nodes die, others join, and clients come from outside.

What all engines promise is in `tests/contract/test_engines.py`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.support.plain_models import write_slow_sum_model
from tests.support.ports import free_port
from tests.support.redis_server import missing
from tests.support.runs_rig import CALL_S, Rig
from tests.support.stack import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

_ROWS = 20_000
#: what a cluster with tokens asks of its nodes and of whoever joins
_TOKENS = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4, "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def client_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def cluster(client_port: int) -> Iterator[Any]:
    """A head without processors, and two nodes with one each."""
    if importlib.util.find_spec("ray") is None:
        missing("Ray")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in _TOKENS.items():
            environment.setenv(name, value)
        from ray.cluster_utils import Cluster

        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=0, include_dashboard=False, ray_client_server_port=client_port)
            for _ in range(2):
                cluster.add_node(num_cpus=1)
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture(scope="module")
def rig(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(tmp_path_factory.mktemp("ray"), batch='engine = "ray"')
    write_slow_sum_model(rig.stack.folder / "model", ["a", "b"], seconds=CALL_S)
    rig.write_table(_ROWS, offset=0)
    rig.write_table(50, offset=0, name="tick.parquet")
    with rig.stack as stack:
        # a worker for versions and contracts; no run of these tests needs it
        stack.start("gpu", "api")
        _start_maintenance(rig, cluster.address)
        stack.wait_ready(150)
        yield rig


def _start_maintenance(rig: Rig, address: str) -> None:
    rig.stack.start("maintenance", environment={**_TOKENS, "RAY_ADDRESS": address})


def _actors(cluster: Any) -> list[psutil.Process]:
    nodes = [node.all_processes["raylet"][0].process.pid for node in cluster.worker_nodes]
    family = [child for pid in nodes for child in psutil.Process(pid).children(recursive=True)]
    return [one for one in family if one.name().startswith("ray::ChunkActor")]


def test_an_actor_and_a_node_killed_in_mid_run_cost_no_prediction_and_a_new_node_takes_part(
    rig: Rig, cluster: Any
) -> None:
    rig.write_table(_ROWS, offset=100_000)
    run_id = rig.request()
    rig.wait_chunks(run_id, 2)
    _actors(cluster)[0].kill()
    rig.wait_chunks(run_id, 10)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    newcomer = cluster.add_node(num_cpus=1)
    raylet = psutil.Process(newcomer.all_processes["raylet"][0].process.pid)
    wait_for(
        lambda: [one for one in raylet.children(recursive=True) if one.name().startswith("ray::ChunkActor")],
        "an actor on the new node",
        100,
    )
    assert rig.run(run_id)["state"] == "running"

    done = rig.assert_published(run_id, _ROWS, offset=100_000)
    assert done["engine"] == "ray"
    wait_for(lambda: not _actors(cluster), "the end of the actors", 60)


def test_a_cluster_of_other_versions_is_refused_before_anything_is_opened(rig: Rig, cluster: Any) -> None:
    from ray._private import ray_constants
    from ray._raylet import GcsClient

    kept = GcsClient(address=cluster.address)
    key, room = b"CLUSTER_METADATA", ray_constants.KV_NAMESPACE_CLUSTER
    before = kept.internal_kv_get(key, room)
    kept.internal_kv_put(key, json.dumps(json.loads(before) | {"ray_version": "2.1.0"}).encode(), True, room)
    try:
        run = rig.end(rig.request())
    finally:
        kept.internal_kv_put(key, before, True, room)
    assert (run["state"], run["generation"]) == ("failed", None)
    assert f"the Ray cluster at {cluster.address} runs another Ray or Python: Version mismatch" in run["error"]
    assert "Ray: 2.1.0" in run["error"]
    assert "\n" not in run["error"]


def test_a_driver_from_outside_joins_by_the_clients_port_and_may_be_killed(
    rig: Rig, cluster: Any, client_port: int
) -> None:
    rig.stack.kill("maintenance")
    _start_maintenance(rig, f"ray://127.0.0.1:{client_port}")
    rig.write_table(_ROWS, offset=200_000)
    run_id = rig.request()
    rig.wait_chunks(run_id, 1)
    children = psutil.Process(rig.stack.processes["maintenance"].pid).children()
    drivers = [child for child in children if "inference.engines.driver" in child.cmdline()]
    assert len(drivers) == 1
    drivers[0].kill()

    rig.assert_published(run_id, _ROWS, offset=200_000)
