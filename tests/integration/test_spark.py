"""Runs scored on Spark by real processes: the same predictions as Celery's, also when executors are killed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import inference.engines.spark
from tests.support.models import export_models, write_features
from tests.support.plain_models import write_slow_sum_model
from tests.support.redis_server import missing
from tests.support.stack import Stack, child_environment, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

_ROWS = 20_000
_TOML = """
[models.m]
path = "model"
features = "t.parquet"
[models.m.batch]
rows_per_chunk = 500
micro_batch_rows = 4
parquet_path = "out/{run_id}"
[models.m.batch.spark]
master = "local-cluster[2,1,1024]"
conf = { "spark.speculation" = "true", "spark.speculation.interval" = "50ms", "spark.speculation.multiplier" = "1.01", \
"spark.speculation.quantile" = "0.1", "spark.ui.enabled" = "false" }
# what Spark itself refuses
[models.wrong]
path = "model"
features = "t.parquet"
[models.wrong.batch.spark]
master = "local[1]"
conf = { "spark.executor.heartbeatInterval" = "soon" }
"""
#: one that needs no library of models
_DELTA_TOML = """
[models.m]
path = "model"
allow_code = true
features = "t.parquet"
[models.m.batch]
rows_per_chunk = 5000
parquet_path = "out/{run_id}"
delta = true
[models.m.batch.spark]
master = "local[2]"
conf = { "spark.ui.enabled" = "false" }
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    _check_spark()
    folder = tmp_path_factory.mktemp("spark")
    stack = Stack(folder, _TOML)
    # executors load a library of models as workers do: TensorFlow is the one that costs
    export_models({folder / "model" / "1": "sum:2:0.001"})
    write_features(folder / "model", [{"name": name, "dtype": "float32"} for name in ("a", "b")])
    _write_table(folder)
    with stack:
        stack.start("gpu", "maintenance", "api")
        stack.wait_ready(150)
        yield stack


def _check_spark() -> None:
    if importlib.util.find_spec("pyspark") is None:
        missing("PySpark")
    if shutil.which("java") is None:
        missing("java")


def _write_table(folder: Path, *, changed: int = 0) -> np.ndarray[Any, Any]:
    """Write the table, and return its rows' sums; the first `changed` rows hold other values than without."""
    rng = np.random.default_rng(7)
    columns = {name: rng.normal(size=_ROWS).astype(np.float32) for name in ("a", "b")}
    columns["a"][:changed] += 1
    table = pa.table({"entity_id": [f"e{i}" for i in range(_ROWS)], **columns})
    pq.write_table(table, folder / "new", row_group_size=5_000)
    (folder / "new").replace(folder / "t.parquet")
    return columns["a"] + columns["b"]


def _start(stack: Stack, engine: str, **fields: Any) -> str:
    body = {"model": "m", "engine": engine, **fields}
    run_id: str = httpx.post(f"{stack.url}/runs", json=body).raise_for_status().json()["run_id"]
    return run_id


def _served(stack: Stack) -> np.ndarray[Any, Any]:
    entries = stack.deployment.predictions("m").read([f"e{i}" for i in range(_ROWS)])
    assert all(entries)
    return np.array([next(iter(entry.values.values())) for entry in entries if entry], np.float32)


def _processes(stack: Stack, word: str) -> list[psutil.Process]:
    children = psutil.Process(stack.processes["maintenance"].pid).children(recursive=True)
    return [child for child in children if word in " ".join(_command(child))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _assert_published(stack: Stack, run_id: str) -> dict[str, Any]:
    done = stack.wait_run(run_id, 300)
    assert (done["state"], done["error"], done["engine"]) == ("published", None, "spark"), done
    assert (done["rows_done"], done["rows_total"], done["rows_quarantined"]) == (_ROWS, _ROWS, 0)
    parts = pq.read_table(stack.folder / "out" / run_id)
    assert sorted(parts.column("entity_id").to_pylist()) == sorted(f"e{i}" for i in range(_ROWS))
    return done


def test_an_executor_killed_in_mid_run_costs_no_prediction_and_counts_nothing_twice(stack: Stack) -> None:
    celery = _start(stack, "celery")
    assert stack.wait_run(celery, 200)["state"] == "published"
    expected = _served(stack)

    run_id = _start(stack, "spark")
    wait_for(
        lambda: httpx.get(f"{stack.url}/runs/{run_id}").json()["chunks_done"] >= 2, "two chunks scored on Spark", 200
    )
    executors = _processes(stack, "CoarseGrainedExecutorBackend")
    assert executors
    executors[0].kill()
    assert httpx.get(f"{stack.url}/runs/{run_id}").json()["state"] == "running"
    _assert_published(stack, run_id)
    np.testing.assert_allclose(_served(stack), expected, rtol=1e-5, atol=1e-6)


def test_a_driver_that_is_killed_is_started_again_and_its_secrets_stand_in_no_argument(stack: Stack) -> None:
    run_id = _start(stack, "spark")
    wait_for(lambda: httpx.get(f"{stack.url}/runs/{run_id}").json()["chunks_done"] >= 1, "a chunk scored", 200)
    drivers = _processes(stack, "inference.engines.spark")
    assert len(drivers) == 1
    family = [*drivers, *drivers[0].children(recursive=True)]
    assert not [one for one in family if stack.settings.cache_url in " ".join(_command(one))]
    drivers[0].kill()
    _assert_published(stack, run_id)


def test_a_cancelled_run_ends_its_driver_leaves_what_serves_and_can_be_taken_up_again(stack: Stack) -> None:
    before = stack.deployment.predictions("m").pointer()
    run_id = _start(stack, "spark")
    url = f"{stack.url}/runs/{run_id}"
    wait_for(lambda: httpx.get(url).json()["chunks_done"] >= 1, "a chunk scored", 200)
    httpx.post(f"{url}/cancel").raise_for_status()
    wait_for(lambda: not _processes(stack, "inference.engines.spark"), "the end of the driver", 100)
    stopped = stack.wait_run(run_id)
    assert (stopped["state"], stopped["rows_done"] < _ROWS) == ("cancelled", True)
    assert stack.deployment.predictions("m").pointer() == before

    httpx.post(f"{url}/resume").raise_for_status()
    assert _assert_published(stack, run_id)["rows_done"] == _ROWS


def test_a_run_goes_on_under_spark_submit_while_maintenance_is_away(stack: Stack) -> None:
    run_id = _start(stack, "spark")
    wait_for(lambda: httpx.get(f"{stack.url}/runs/{run_id}").json()["state"] == "running", "the plan", 60)
    stack.stop("maintenance", signal.SIGTERM)  # with its driver
    try:
        binaries = Path(sys.executable).parent  # as in an activated environment
        environment = child_environment() | {
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "PYSPARK_PYTHON": sys.executable,
        }
        submit = [str(binaries / "spark-submit"), "--master", "local-cluster[1,2,1024]"]
        driver = [*submit, inference.engines.spark.__file__, run_id]
        left = lambda: httpx.get(f"{stack.url}/runs/{run_id}").json()["chunks"]["done"] < _ROWS / 500  # noqa: E731
        while left():  # another driver's lease lives for some seconds
            subprocess.run(driver, cwd=stack.folder, env=environment, check=True, timeout=200)
    finally:
        stack.start("maintenance")
    _assert_published(stack, run_id)


def test_a_delta_run_on_spark_scores_only_what_changed_and_stores_what_a_full_run_would(tmp_path: Path) -> None:
    _check_spark()
    with Stack(tmp_path, _DELTA_TOML) as stack:
        write_slow_sum_model(tmp_path / "model", ["a", "b"], seconds=0.0)
        expected = _write_table(tmp_path)
        stack.start("gpu", "maintenance", "api")
        stack.wait_ready(150)
        before = stack.wait_run(_start(stack, "celery"), 200)  # keeps what tells which rows change
        assert (before["state"], before["engine"]) == ("published", "celery")
        np.testing.assert_allclose(_served(stack), expected, rtol=1e-5, atol=1e-6)
        expected = _write_table(tmp_path, changed=100)
        done = _assert_published(stack, _start(stack, "spark", delta=True))
        assert (done["full_reason"], done["rows_carried"], done["rows_rescored"]) == (None, _ROWS - 100, 100)
        np.testing.assert_allclose(_served(stack), expected, rtol=1e-5, atol=1e-6)


def test_what_spark_refuses_fails_the_run_in_its_own_words(stack: Stack) -> None:
    body = {"model": "wrong", "engine": "spark"}
    run_id = httpx.post(f"{stack.url}/runs", json=body).raise_for_status().json()["run_id"]
    run = stack.wait_run(run_id, 100)
    assert run["state"] == "failed"
    assert run["error"].startswith("the Spark driver ended with status 1: Spark (local[1]) gave up: ")
    assert """The value 'soon' in the config "spark.executor.heartbeatInterval" is invalid""" in run["error"]


def test_without_java_a_run_fails_before_it_opens_a_generation(stack: Stack) -> None:
    before = stack.deployment.predictions("m").generations.all()
    stack.kill("maintenance")
    stack.start("maintenance", environment={"JAVA_HOME": str(stack.folder)})
    try:
        run = stack.wait_run(_start(stack, "spark"))
    finally:
        stack.kill("maintenance")
        stack.start("maintenance")
    assert (run["state"], run["generation"]) == ("failed", None)
    assert "needs Java 17 or newer: JAVA_HOME" in run["error"]
    assert [one.number for one in stack.deployment.predictions("m").generations.all()] == [one.number for one in before]


def test_an_unknown_engine_is_refused_by_name(stack: Stack) -> None:
    refused = httpx.post(f"{stack.url}/runs", json={"model": "m", "engine": "flink"})
    assert refused.status_code == 400
    assert "'flink' is none of celery, spark" in refused.json()["detail"]
