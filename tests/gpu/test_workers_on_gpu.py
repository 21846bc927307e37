"""Real workers on a GPU: a run and an answer on demand by the same model, and what the workers tell of their GPU."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.monitoring.presence import Presence
from tests.support.runtimes.cases import ROWS, answered, asked, train
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(400)

MODEL = """
[models.m]
path = "model/plain"
allow_code = true
features = "features.parquet"
[models.m.realtime]
timeout_ms = 10000
"""
TOLERANCE = {"gpu": 5e-3, "cpu": 1e-5}


def test_runs_and_answers_on_demand_agree_with_the_library(device: str, tmp_path: Path) -> None:
    if find_spec("torch") is None:
        pytest.skip("torch is not installed")
    train("torch_export", tmp_path / "model")
    ids = [f"e{number}" for number in range(ROWS)]
    batch = asked(tmp_path / "model" / "plain")
    columns = {name: column.cast(pa.float32()) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    pq.write_table(pa.table({"entity_id": ids, **columns}), tmp_path / "features.parquet")
    (wanted,) = answered(tmp_path / "model" / "plain").values()
    with Stack(tmp_path, MODEL) as stack:
        stack.start("gpu", "realtime", "maintenance", "api")
        stack.wait_ready()
        assert stack.cli("features", "load", "features.parquet").returncode == 0
        run = json.loads(stack.cli("batch", "run", "--wait", "--json").stdout.splitlines()[-1])
        assert (run["state"], run["rows_done"]) == ("published", ROWS)
        # the one request that an API which has just found a worker lets through
        assert httpx.get(f"{stack.url}/predict/e0?max_staleness_hours=0", timeout=30).status_code == 200
        for outcome, age in (("hit_batch", 24), ("computed", 0)):
            body = {"entity_ids": ids[1:], "max_staleness_hours": age}
            answers = httpx.post(f"{stack.url}/predict", json=body, timeout=30).json()["predictions"]
            assert {one["outcome"] for one in answers} == {outcome}
            given = np.array([one["prediction"] for one in answers])
            np.testing.assert_allclose(given, wanted[1:], rtol=TOLERANCE[device], atol=TOLERANCE[device])
        deployment = stack.deployment
        (worker,) = Presence(deployment.cache, deployment.keys).roster("batch").alive
    if device == "gpu" and find_spec("pynvml"):
        assert worker.gpus
        assert worker.gpus[0].memory_used > 0
