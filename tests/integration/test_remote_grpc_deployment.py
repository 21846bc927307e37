"""One deployment is the engine of another: it is asked by gRPC for entities, for tensors and in a batch run."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.models import float_features, write_features
from tests.support.plain_onnx import write_sum
from tests.support.ports import free_port
from tests.support.stack import Stack, run_cli

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(280)]

ROWS = 3_000
REALTIME = "realtime = { timeout_ms = 20000, max_micro_batch = 512 }\n"
PROTOCOLS = ("tensorflow-serving-grpc", "open-inference-grpc")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder, port = tmp_path_factory.mktemp("asking"), free_port()
    engine = tmp_path_factory.mktemp("engine")
    write_sum(engine / "sum" / "1", 3)
    toml = ""
    for name in PROTOCOLS:
        version = folder / name / "1"
        version.mkdir(parents=True)
        (version / "remote.toml").write_text(
            f'protocol = "{name}"\nurl = "grpc://127.0.0.1:{port}"\nname = "sum"\nversion = 1\n'
        )
        write_features(folder / name, float_features(3))
        toml += f'[models.{name}]\npath = "{name}"\nfeatures = "t.parquet"\n{REALTIME}'
    columns = {f"f{i}": np.arange(ROWS, dtype=np.float32) + i for i in range(3)}
    pq.write_table(pa.table({"entity_id": [f"e{i}" for i in range(ROWS)], **columns}), folder / "t.parquet")
    with Stack(engine, f'[grpc]\nport = {port}\n[models.sum]\npath = "sum"\n{REALTIME}') as serving:
        serving.start("realtime", "api")
        serving.wait_ready()
        with Stack(folder, toml) as asking:
            asking.start("gpu", "realtime", "maintenance", "api")
            asking.wait_ready()
            yield asking


@pytest.mark.parametrize("model", PROTOCOLS)
def test_a_batch_run_and_requests_are_computed_by_the_engine(stack: Stack, model: str) -> None:
    begun = httpx.post(f"{stack.url}/runs", json={"model": model}).raise_for_status().json()
    run = stack.wait_run(begun["run_id"])
    assert (run["state"], run["rows_done"]) == ("published", ROWS), run["error"]
    for number in (0, ROWS - 1):
        answer = httpx.get(f"{stack.url}/predict/e{number}", params={"model": model}).raise_for_status().json()
        assert (answer["prediction"], answer["outcome"]) == (3 * number + 3, "hit_batch")
    said = httpx.post(
        f"{stack.url}/v1/models/{model}:predict", json={"instances": [[1.0, 2.0, 3.5]] * 700}, timeout=30
    ).raise_for_status()
    assert said.json() == {"predictions": [[6.5]] * 700}


@pytest.mark.parametrize("model", PROTOCOLS)
def test_the_commands_describe_the_model_as_the_engine_does(stack: Stack, model: str) -> None:
    shown = stack.cli("models", "show", model).stdout
    assert "remote" in shown
    assert "x float32[3]" in shown
    new = stack.folder / f"new-{model}"
    new.mkdir()
    tried = run_cli(new, "init", "--yes", "--model", f"../{model}", "--features", "../t.parquet")
    assert tried.returncode == 0, tried.stdout + tried.stderr
