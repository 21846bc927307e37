"""Runs on a real Spark: the same predictions as batch workers', whatever dies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from tests.support.flights import ROWS, write_flights
from tests.support.redis_server import missing
from tests.support.stack import Stack
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

IDS = [f"F{number}" for number in range(ROWS)]
#: the machine's own name may lead anywhere
ENVIRONMENT = {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_HOSTNAME": "localhost"}
TOML = """
[models.delay.batch]
rows_per_chunk = {rows}
[models.delay.batch.spark]
master = "{master}"
conf = {{ "spark.ui.enabled" = "false", "spark.speculation" = "true", "spark.speculation.multiplier" = "1.1" }}
"""


def deployment(folder: Path, *, master: str, rows: int) -> Stack:
    if find_spec("pyspark") is None or shutil.which("java") is None:
        missing("Spark, or Java for it")
    # several row groups, so that there are several chunks
    toml = write_flights(folder)
    return Stack(folder, toml + TOML.format(master=master, rows=rows))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with deployment(tmp_path_factory.mktemp("spark"), master="local-cluster[2,1,1024]", rows=2) as stack:
        stack.start("gpu", "maintenance", "api", environment=ENVIRONMENT)
        stack.wait_ready()
        yield stack


def request(stack: Stack, engine: str) -> str:
    run = httpx.post(f"{stack.url}/runs", json={"engine": engine}).raise_for_status().json()
    assert run["engine"] == engine
    return str(run["run_id"])


def answers(stack: Stack) -> np.ndarray[Any, Any]:
    entries = stack.services.predictions("delay").read(IDS)
    return np.array([np.nan if entry is None else next(iter(entry.values.values())) for entry in entries])


def executors(stack: Stack) -> list[psutil.Process]:
    found = []
    for one in psutil.Process(stack.processes["gpu"].pid).children(recursive=True):
        with suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            if "org.apache.spark.executor.CoarseGrainedExecutorBackend" in one.cmdline():
                found.append(one)
    return found


def test_an_executor_is_killed_and_every_prediction_is_that_of_batch_workers(stack: Stack) -> None:
    assert stack.wait_run(request(stack, "celery"))["state"] == "published"
    wanted = answers(stack)
    assert not np.isnan(wanted).any()

    run_id = request(stack, "spark")
    url = f"{stack.url}/runs/{run_id}"
    wait_for(lambda: httpx.get(url).json()["chunks_done"] >= 4, "the first chunks", 300)
    executors(stack)[0].kill()
    run = stack.wait_run(run_id, 400)

    assert run["state"] == "published", run
    assert (run["rows_done"], run["chunks_done"], run["rows_quarantined"]) == (ROWS, ROWS // 2, 0)
    assert stack.services.predictions("delay").pointer().current == run["generation"]
    np.testing.assert_allclose(answers(stack), wanted, rtol=1e-5, atol=1e-6)


def test_a_cancelled_run_ends_its_driver_and_leaves_what_serves(stack: Stack) -> None:
    before = stack.services.predictions("delay").pointer()
    run_id = request(stack, "spark")
    wait_for(lambda: httpx.get(f"{stack.url}/runs/{run_id}").json()["chunks_done"] >= 1, "the first chunk", 300)
    httpx.post(f"{stack.url}/runs/{run_id}/cancel").raise_for_status()
    wait_for(lambda: not executors(stack), "the end of the driver", 120)
    assert stack.wait_run(run_id)["state"] == "cancelled"
    assert stack.services.predictions("delay").pointer() == before

    httpx.post(f"{stack.url}/runs/{run_id}/resume").raise_for_status()
    assert stack.wait_run(run_id, 400)["state"] == "published"


def test_without_java_a_run_fails_with_what_to_install(tmp_path: Path) -> None:
    with deployment(tmp_path, master="local[1]", rows=50) as stack:
        stack.start("gpu", "maintenance", "api", environment={"JAVA_HOME": os.fspath(tmp_path)})
        stack.wait_ready()
        run = stack.wait_run(request(stack, "spark"))
        assert (run["state"], run["generation"] is None) == ("failed", False)
        assert "need Java 17 or later" in run["error"]
        assert stack.services.predictions("delay").pointer().current is None
