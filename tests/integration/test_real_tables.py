"""Real tables through real worker processes: every stored prediction against a direct TensorFlow call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from tests.support.stack import ROOT, Stack, child_environment
from tests.support.waiting import wait_for
from tests.support.warm_start import run_python

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

ANSWERS = "answers.parquet"
TABLES = {"flights": "flights-200k.parquet", "diamonds": "diamonds.parquet"}
#: in place of the flights, for the quick suite and for checkouts without real data
MADE = "made"
#: small enough for a run to last some seconds
CHUNK_ROWS = {"flights": 2_000, "diamonds": 500, MADE: 500}
#: the design's tolerance: float32 matrix products differ in the last bits with the size of a micro-batch
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


@dataclass(frozen=True)
class Deployment:
    stack: Stack
    kind: str
    answers: pd.DataFrame


def find_table(kind: str, folder: Path) -> tuple[str, Path]:
    """Return the kind of model to train and the table: a real one, or flights that were made up."""
    if kind != MADE:
        data = ROOT.parent / "shared" / "data" / TABLES[kind]
        if not data.is_file():
            pytest.skip(f"no real data: {data.name} is not beside this checkout")
        return kind, data
    rng = np.random.default_rng(11)
    distance, time = rng.integers(50, 3_000, 20_000), rng.uniform(0, 24, 20_000)
    ids = [f"FL-{number:06d}" for number in range(20_000)]
    table = pd.DataFrame({"entity_id": ids, "distance": distance, "time": time, "delay": time * 2 - distance / 500})
    table.to_parquet(folder / "made.parquet", row_group_size=5_000)
    return "flights", folder / "made.parquet"


@pytest.fixture(scope="module", params=[MADE, *(pytest.param(kind, marks=pytest.mark.slow) for kind in sorted(TABLES))])
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp(request.param)
    kind, data = find_table(request.param, folder)
    train = ["-m", "tests.support.real_models", kind, str(data), str(folder / "model"), str(folder / ANSWERS)]
    done = run_python(train, cwd=ROOT, env=child_environment(), timeout_s=300, with_tensorflow=True)
    assert done.returncode == 0, done.stderr
    toml = (
        f'[models.{kind}]\npath = "model"\nfeatures = "{data}"\n'
        f"[models.{kind}.batch]\nrows_per_chunk = {CHUNK_ROWS[request.param]}\n"
        f"[models.{kind}.realtime]\ntimeout_ms = 10000\n"
    )
    with Stack(folder, toml, with_tensorflow=True) as stack:
        stack.start("gpu", "realtime", "maintenance", "api")
        stack.wait_ready()
        yield Deployment(stack, kind, pd.read_parquet(folder / ANSWERS))


def test_a_run_stores_exactly_what_tensorflow_answers(deployment: Deployment) -> None:
    done = deployment.stack.cli("batch", "run", deployment.kind, "--wait", timeout_s=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_exactly_what_tensorflow_answers(deployment)


@pytest.mark.slow
def test_a_worker_killed_in_mid_run_costs_no_prediction(deployment: Deployment) -> None:
    stack = deployment.stack
    before = stack.deployment.predictions(deployment.kind).pointer().current
    run_id = httpx.post(f"{stack.url}/runs", json={}).raise_for_status().json()["run_id"]
    wait_for(lambda: run_of(stack, run_id)["chunks_done"] >= 1, "the first chunk")
    stack.kill("gpu")
    cut_short = run_of(stack, run_id)
    assert cut_short["state"] == "running", cut_short
    stack.start("gpu")
    assert stack.wait_run(run_id)["state"] == "published"
    assert stack.deployment.predictions(deployment.kind).pointer().current != before
    assert_exactly_what_tensorflow_answers(deployment)


def run_of(stack: Stack, run_id: str) -> dict[str, Any]:
    run: dict[str, Any] = httpx.get(f"{stack.url}/runs/{run_id}").raise_for_status().json()
    return run


def assert_exactly_what_tensorflow_answers(deployment: Deployment) -> None:
    """Every stored prediction within the tolerance, none missing, none extra."""
    table = deployment.stack.deployment.predictions(deployment.kind)
    current = table.pointer().current
    assert current is not None
    ids = deployment.answers["entity_id"].tolist()
    stored = [entry for start in range(0, len(ids), 10_000) for entry in table.read(ids[start : start + 10_000])]
    assert [entity_id for entity_id, entry in zip(ids, stored, strict=True) if entry is None] == []
    manifest = table.generations.manifest(current)
    assert manifest is not None
    assert table.generations.count(manifest) == len(ids), "entities that the table does not have"
    (output,) = {name for entry in stored if entry for name in entry.values}
    got = np.array([entry.values[output] for entry in stored if entry])
    np.testing.assert_allclose(got, deployment.answers["prediction"].to_numpy(), **TOLERANCE)


def test_real_time_answers_what_tensorflow_answers(deployment: Deployment) -> None:
    stack, kind = deployment.stack, deployment.kind
    features = stack.settings.model(kind)[1].features
    assert features is not None
    loaded = stack.cli("features", "load", kind, features)
    assert loaded.returncode == 0, loaded.stderr
    sample = deployment.answers.sample(200, random_state=1)
    answer = httpx.post(
        f"{stack.url}/predict",
        json={"entity_ids": sample["entity_id"].tolist(), "max_staleness_hours": 0, "timeout_ms": 20_000},
        timeout=30,
    ).raise_for_status()
    predictions = answer.json()["predictions"]
    assert {item["outcome"] for item in predictions} == {"computed"}
    got = np.array([item["prediction"] for item in predictions])
    np.testing.assert_allclose(got, sample["prediction"].to_numpy(), **TOLERANCE)


def test_the_parquet_of_features_need_not_be_read_twice(deployment: Deployment) -> None:
    """What `features load` stored is shown by `features get`, value for value."""
    stack, kind = deployment.stack, deployment.kind
    source = pd.read_parquet(Path(str(stack.settings.model(kind)[1].features))).iloc[7]
    shown = stack.cli("features", "get", kind, source["entity_id"], "--json")
    assert shown.returncode == 0, shown.stderr
    name = {"flights": "distance", "diamonds": "cut"}[kind]
    assert json.loads(shown.stdout)["features"][name] == source[name]
