"""The Open Inference Protocol against a server that nobody here wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from inference.errors import ModelError, PredictionFailed
from inference.models import LoadedModel, score_rows
from inference.models.loading import load_version
from inference.schema import DType, TensorSpec
from tests.support.mlserver import MLServer
from tests.support.runtimes.cases import learnable, learnt_weights

# its environment is made the first time
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLServer]:
    folder = tmp_path_factory.mktemp("mlserver")
    weights, bias = learnt_weights()
    np.savez(folder / "weights.npz", weights=weights, bias=bias)
    with MLServer(folder, folder / "weights.npz") as server:
        yield server


@pytest.fixture(params=["open-inference", "open-inference-grpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


def load(folder: Path, engine: MLServer, protocol: str, name: str, **more: str) -> LoadedModel:
    url = f"grpc://127.0.0.1:{engine.grpc_port}" if protocol.endswith("grpc") else engine.url
    lines = {"protocol": protocol, "url": url, "name": name, **more}
    (folder / "remote.toml").write_text("\n".join(f'{key} = "{value}"' for key, value in lines.items()))
    return load_version("m", folder, 1, folder)


def test_predictions_are_those_of_the_model_behind_it(tmp_path: Path, engine: MLServer, protocol: str) -> None:
    loaded = load(tmp_path, engine, protocol, "plain", version="3")
    assert loaded.record.signature.inputs == (TensorSpec("x", DType.FLOAT32, (4,)),)
    x, _ = learnable()
    weights, bias = learnt_weights()
    wanted = (x @ weights + bias)[:, 0]
    np.testing.assert_allclose(loaded.predict({"x": x})["y"], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loaded.predict({"x": x[:1]})["y"], wanted[:1], rtol=1e-5, atol=1e-6)


def test_text_goes_in_and_comes_out(tmp_path: Path, engine: MLServer, protocol: str) -> None:
    answer = load(tmp_path, engine, protocol, "text").predict({"colour": np.array(["rot", "blau", "grün"], object)})
    assert answer["code"].tolist() == [1, 0, 2]
    assert answer["english"].tolist() == ["red", "?", "green"]


def test_a_row_that_is_no_number_fails_alone(tmp_path: Path, engine: MLServer, protocol: str) -> None:
    x = np.ones((6, 4), np.float32)
    x[3, 1] = np.nan
    scored = score_rows(load(tmp_path, engine, protocol, "plain"), {"x": x})
    assert np.flatnonzero(scored.failed).tolist() == [3]


def test_its_refusals_are_ours(tmp_path: Path, engine: MLServer, protocol: str) -> None:
    with pytest.raises(ModelError, match=r"answered (404|NOT_FOUND|INVALID_ARGUMENT)"):
        load(tmp_path, engine, protocol, "nobody")
    with pytest.raises(ModelError, match=r"answered (404|NOT_FOUND|INVALID_ARGUMENT)"):
        load(tmp_path, engine, protocol, "plain", version="9")
    with pytest.raises(PredictionFailed, match=r"answered ([45]|[A-Z])"):
        load(tmp_path, engine, protocol, "plain").predict({"x": np.zeros((2, 9), np.float32)})
