"""Runs on a Spark cluster of real processes: a standalone master, two workers, and drivers that are killed.

What all engines promise is in `tests/contract/test_engines.py`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

import inference.engines.driver
from tests.support.plain_models import write_slow_sum_model
from tests.support.redis_server import missing
from tests.support.runs_rig import CALL_S, CHUNK_ROWS, Rig
from tests.support.spark_cluster import SparkCluster
from tests.support.stack import child_environment, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

_ROWS = 10_000
#: executors come and go with the work; a task that is slow is started twice
_BATCH = """
spark = {{ master = "{url}", conf = {{ "spark.dynamicAllocation.enabled" = "true", \
"spark.dynamicAllocation.executorIdleTimeout" = "5s", "spark.executor.memory" = "512m", "spark.executor.cores" = "1", \
"spark.speculation" = "true", "spark.speculation.interval" = "50ms", "spark.speculation.multiplier" = "1.01", \
"spark.speculation.quantile" = "0.1", "spark.ui.enabled" = "false" }} }}
"""
#: Spark itself refuses this
_WRONG = """
[models.wrong]
path = "model"
allow_code = true
features = "t.parquet"
[models.wrong.batch.spark]
master = "local[1]"
conf = { "spark.executor.heartbeatInterval" = "soon" }
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkCluster]:
    if importlib.util.find_spec("pyspark") is None:
        missing("PySpark")
    if shutil.which("java") is None:
        missing("java")
    with SparkCluster(tmp_path_factory.mktemp("cluster"), workers=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def rig(cluster: SparkCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(tmp_path_factory.mktemp("spark"), batch=_BATCH.format(url=cluster.url))
    with (rig.stack.folder / "forecache.toml").open("a") as file:
        file.write(_WRONG)
    write_slow_sum_model(rig.stack.folder / "model", ["a", "b"], seconds=CALL_S)
    rig.write_table(_ROWS, offset=0)
    rig.write_table(50, offset=0, name="tick.parquet")
    with rig.stack as stack:
        # a worker for versions and contracts; no run of these tests needs it
        stack.start("gpu", "api")
        stack.start("maintenance", environment={"SPARK_LOCAL_IP": "127.0.0.1"})
        stack.wait_ready(150)
        yield rig


def _drivers(rig: Rig) -> list[psutil.Process]:
    children = psutil.Process(rig.stack.processes["maintenance"].pid).children()
    return [child for child in children if "inference.engines.driver" in _command(child)]


def _command(process: psutil.Process) -> str:
    """Return the arguments of a process; none once it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_an_executor_and_a_worker_machine_killed_in_mid_run_cost_no_prediction(rig: Rig, cluster: SparkCluster) -> None:
    rig.write_table(_ROWS, offset=100_000)
    run_id = rig.request(engine="spark")
    rig.wait_chunks(run_id, 2)
    wait_for(cluster.executors, "an executor", 60)[0].kill()
    rig.wait_chunks(run_id, 10)
    cluster.kill("worker-2")
    assert rig.run(run_id)["state"] == "running"

    rig.assert_published(run_id, _ROWS, offset=100_000)

    cluster.start_worker("worker-2")
    cluster.wait_workers(3)
    # a process keeps the model for its next tasks; Spark ends some processes with their slower attempts
    loads, scored = (sum(log.count(event) for log in cluster.logs()) for event in ("model.loaded", "chunk.scored"))
    assert 0 < loads < scored / 4


def test_a_driver_that_is_killed_is_started_again_and_its_secrets_stand_in_no_argument(rig: Rig) -> None:
    rig.write_table(_ROWS, offset=200_000)
    run_id = rig.request(engine="spark")
    rig.wait_chunks(run_id, 1)
    drivers = _drivers(rig)
    assert len(drivers) == 1
    family = [*drivers, *drivers[0].children(recursive=True)]
    assert not [one for one in family if rig.stack.settings.cache_url in _command(one)]
    drivers[0].kill()

    rig.assert_published(run_id, _ROWS, offset=200_000)


def test_a_run_goes_on_under_spark_submit_while_maintenance_is_away(rig: Rig, cluster: SparkCluster) -> None:
    rig.write_table(_ROWS, offset=300_000)
    run_id = rig.request(engine="spark")
    wait_for(lambda: rig.run(run_id)["state"] == "running", "the plan", 60)
    rig.stack.stop("maintenance", signal.SIGTERM)  # with its driver
    try:
        binaries = Path(sys.executable).parent  # as in an activated environment
        environment = child_environment() | {
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_LOCAL_IP": "127.0.0.1",
        }
        submit = [str(binaries / "spark-submit"), "--master", cluster.url, "--deploy-mode", "client"]
        driver = [*submit, inference.engines.driver.__file__, run_id]
        while rig.run(run_id)["chunks"]["done"] < _ROWS / CHUNK_ROWS:  # another driver's lease lives for some seconds
            subprocess.run(driver, cwd=rig.stack.folder, env=environment, check=True, timeout=200)
    finally:
        rig.stack.start("maintenance", environment={"SPARK_LOCAL_IP": "127.0.0.1"})
    rig.assert_published(run_id, _ROWS, offset=300_000)


def test_what_spark_refuses_fails_the_run_in_its_own_words(rig: Rig) -> None:
    run_id = rig.request(model="wrong", engine="spark")
    run = rig.end(run_id, 100)
    assert run["state"] == "failed"
    assert run["error"].startswith("the Spark driver ended with status 1: Spark (local[1]) gave up: ")
    assert """The value 'soon' in the config "spark.executor.heartbeatInterval" is invalid""" in run["error"]


def test_without_java_a_run_fails_before_it_opens_a_generation(rig: Rig) -> None:
    before = rig.table.generations.all()
    rig.stack.kill("maintenance")
    rig.stack.start("maintenance", environment={"JAVA_HOME": str(rig.stack.folder)})
    run = rig.end(rig.request(engine="spark"))
    assert (run["state"], run["generation"]) == ("failed", None)
    assert "needs Java 17 or newer: JAVA_HOME" in run["error"]
    assert [one.number for one in rig.table.generations.all()] == [one.number for one in before]


def test_an_unknown_engine_is_refused_by_name(rig: Rig) -> None:
    refused = httpx.post(f"{rig.stack.url}/runs", json={"model": "m", "engine": "flink"})
    assert refused.status_code == 400
    assert "'flink' is none of celery, spark, ray" in refused.json()["detail"]
