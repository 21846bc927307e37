"""Runs on a Ray cluster of several nodes: actors and nodes die, others join, and clients come from outside.

What all engines promise is in `tests/contract/test_engines.py`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import psutil
import pytest

from tests.support.plain_models import write_slow_sum_model
from tests.support.ray_nodes import TOKENS, RayNodes
from tests.support.redis_server import missing
from tests.support.runs_rig import CALL_S, Rig
from tests.support.stack import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

_ROWS = 12_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    if importlib.util.find_spec("ray") is None:
        missing("Ray")
    with RayNodes(tmp_path_factory.mktemp("nodes") / "log") as cluster:
        cluster.tell("add")
        cluster.tell("add")
        yield cluster


@pytest.fixture(scope="module")
def rig(cluster: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
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
    rig.stack.start("maintenance", environment={**TOKENS, "RAY_ADDRESS": address})


def test_an_actor_and_a_node_killed_in_mid_run_cost_no_prediction_and_a_new_node_takes_part(
    rig: Rig, cluster: RayNodes
) -> None:
    rig.write_table(_ROWS, offset=100_000)
    run_id = rig.request()
    rig.wait_chunks(run_id, 2)
    cluster.actors()[0].kill()
    rig.wait_chunks(run_id, 4)
    cluster.tell("remove 0")
    cluster.tell("add")
    wait_for(lambda: cluster.actors(node=2), "an actor on the new node", 100)
    assert rig.run(run_id)["state"] == "running"

    done = rig.assert_published(run_id, _ROWS, offset=100_000)
    assert done["engine"] == "ray"
    wait_for(lambda: not cluster.actors(), "the end of the actors", 60)


def test_a_driver_from_outside_joins_by_the_clients_port_and_may_be_killed(rig: Rig, cluster: RayNodes) -> None:
    rig.stack.kill("maintenance")
    _start_maintenance(rig, cluster.client_address)
    rig.write_table(_ROWS, offset=200_000)
    run_id = rig.request()
    rig.wait_chunks(run_id, 1)
    children = psutil.Process(rig.stack.processes["maintenance"].pid).children()
    drivers = [child for child in children if "inference.engines.driver" in child.cmdline()]
    assert len(drivers) == 1
    drivers[0].kill()

    rig.assert_published(run_id, _ROWS, offset=200_000)


def test_a_cluster_of_other_versions_is_refused_before_anything_is_opened(rig: Rig, cluster: RayNodes) -> None:
    cluster.tell("claim 2.1.0")
    rig.stack.kill("maintenance")
    _start_maintenance(rig, cluster.address)

    run = rig.end(rig.request(), 150)

    assert (run["state"], run["generation"]) == ("failed", None)
    assert f"the Ray cluster at {cluster.address} runs another Ray or Python: Version mismatch" in run["error"]
    assert "Ray: 2.1.0" in run["error"]
    assert "\n" not in run["error"]
