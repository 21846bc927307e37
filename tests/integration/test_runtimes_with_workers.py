"""A model that is not TensorFlow's through real workers: runs, misses, and no TensorFlow in any process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import psutil
import pytest

from tests.support.runtimes.cases import answered, asked, train
from tests.support.stack import Stack, run_cli
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
#: scored by the run; the others are asked for on demand
IN_TABLE = 200


@pytest.fixture(scope="module")
def onnx_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    train("onnx", folder)
    return folder


@pytest.fixture(scope="module")
def stack(onnx_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("deployment")
    table = asked(onnx_models / "plain").to_pandas()
    table.insert(0, "entity_id", [f"e-{i}" for i in range(len(table))])
    table[:IN_TABLE].to_parquet(folder / "table.parquet")
    table.to_parquet(folder / "all.parquet")
    toml = (
        f'[models.m]\npath = "{onnx_models / "plain"}"\nfeatures = "table.parquet"\n'
        "[models.m.batch]\nrows_per_chunk = 50\n[models.m.realtime]\ntimeout_ms = 20000\n"
    )
    with Stack(folder, toml) as stack:
        stack.start("gpu", "realtime", "maintenance", "api")
        stack.wait_ready()
        yield stack


def ask(stack: Stack, rows: range) -> list[dict]:
    body = {"entity_ids": [f"e-{i}" for i in rows]}
    return httpx.post(f"{stack.url}/predict", json=body, timeout=30).raise_for_status().json()["predictions"]


def test_a_run_and_a_miss_answer_what_the_library_answers(stack: Stack, onnx_models: Path) -> None:
    done = stack.cli("batch", "run", "m", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert stack.cli("features", "load", "m", "all.parquet").returncode == 0
    wanted = answered(onnx_models / "plain")["y"]
    for rows, outcome in ((range(IN_TABLE), "hit_batch"), (range(IN_TABLE, len(wanted)), "computed")):
        answers = ask(stack, rows)
        assert {answer.get("outcome") for answer in answers} == {outcome}
        np.testing.assert_allclose([answer["prediction"] for answer in answers], wanted[rows], **TOLERANCE)


def test_workers_load_no_library_that_no_model_needs(stack: Stack) -> None:
    for name in ("gpu", "realtime"):
        wait_for(lambda name=name: "model.loaded" in stack.log(name), f"the model in {name}")
        files = {mapped.path for mapped in psutil.Process(stack.processes[name].pid).memory_maps()}
        assert any("onnxruntime" in file for file in files)
        assert not any("tensorflow" in file for file in files)


@pytest.mark.slow
def test_init_takes_such_a_model(onnx_models: Path, tmp_path: Path) -> None:
    table = pd.DataFrame(asked(onnx_models / "several").to_pandas())
    table.insert(0, "person", [f"p-{i}" for i in range(len(table))])
    table.to_parquet(tmp_path / "people.parquet")
    done = run_cli(
        tmp_path, "init", "--model", str(onnx_models / "several"), "--features", "people.parquet",
        "--entity-column", "person",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "scored:" in done.stdout
    shown = run_cli(tmp_path, "doctor", "--json")
    lines = json.loads(shown.stdout)
    assert "ONNX" in json.dumps(lines)
