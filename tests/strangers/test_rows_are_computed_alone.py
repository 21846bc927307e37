"""A version whose answer for a row depends on the other rows of a call is found out before it serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper
from sklearn.base import BaseEstimator, RegressorMixin

from inference.errors import ModelError
from inference.features import FeatureContract
from inference.models import VersionRecord
from inference.models.loaded import LoadedModel
from inference.models.loading import load_version
from inference.models.runtimes import LoadOptions
from inference.models.warm_up import SampleRows
from inference.onboarding.trial import TrialRequest, try_row
from tests.support.models import float_features, write_features
from tests.support.plain_models import write_version
from tests.support.plain_onnx import tensor, write_onnx

FEATURES = float_features(2)


def write_table(folder: Path, rows: int = 60) -> Path:
    rng = np.random.default_rng(5)
    columns = {feature["name"]: rng.normal(size=rows).astype(np.float32) for feature in FEATURES}
    pq.write_table(pa.table({"entity_id": [f"u{i}" for i in range(rows)], **columns}), folder / "t.parquet")
    return folder / "t.parquet"


def write_graph(folder: Path, *nodes: onnx.NodeProto, **weights: np.ndarray) -> Path:
    """An ONNX model x [rows, 2] → y [rows, 2], and a table for it."""
    write_onnx(folder / "m" / "1", list(nodes), [tensor("x", 2)], [tensor("y", 2)], **weights)
    write_features(folder / "m", FEATURES)
    write_table(folder)
    return folder / "m"


def load(folder: Path) -> LoadedModel:
    rows = SampleRows(str(folder.parent / "t.parquet"))
    return load_version("m", folder, 1, folder / "1", rows=rows, options=LoadOptions(allow_code=True))


def centred(folder: Path) -> Path:
    mean = helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1)
    return write_graph(folder, mean, helper.make_node("Sub", ["x", "mean"], ["y"]))


def shares(folder: Path) -> Path:
    return write_graph(folder, helper.make_node("Softmax", ["x"], ["y"], axis=0))


def scaled(folder: Path) -> Path:
    most = helper.make_node("ReduceMax", ["x"], ["most"], axes=[0], keepdims=1)
    return write_graph(folder, most, helper.make_node("Div", ["x", "most"], ["y"]))


class Ranks(RegressorMixin, BaseEstimator):
    """Answers with the place of a row among those of its call."""

    n_features_in_ = 2

    def predict(self, x: Any) -> np.ndarray:
        return np.argsort(np.argsort(np.asarray(x)[:, 0]))


def ranked(folder: Path) -> Path:
    write_table(folder)
    write_version(folder / "m", 1, Ranks(), FEATURES)
    return folder / "m"


MIXING = [centred, shares, scaled, ranked]


@pytest.mark.parametrize("write", MIXING)
def test_a_model_that_mixes_rows_is_refused_with_both_answers(tmp_path: Path, write: Any) -> None:
    with pytest.raises(
        ModelError, match=r"output '\w+' of a row is .* among 32 rows, and .* alone: its answers depend"
    ):
        load(write(tmp_path))


@pytest.mark.parametrize("write", MIXING)
def test_init_refuses_it_before_anything_is_written(tmp_path: Path, write: Any) -> None:
    request = TrialRequest(
        model="m",
        path=str(write(tmp_path)),
        version=1,
        contract=FeatureContract.from_json({"features": FEATURES}),
        source=str(tmp_path / "t.parquet"),
        entity_column="entity_id",
        allow_code=True,
    )
    with pytest.raises(ModelError, match="its answers depend on the other rows of a call"):
        try_row(request)


def test_a_model_that_takes_rows_by_the_four_only_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "by_four"], ["block"]),
        helper.make_node("Reshape", ["block", "by_one"], ["y"]),
    ]
    folder = write_graph(tmp_path, *nodes, by_four=np.array([-1, 8]), by_one=np.array([-1, 2]))
    with pytest.raises(ModelError, match="it answers 32 rows in one call, but not one of them alone"):
        load(folder)


class Rounds(RegressorMixin, BaseEstimator):
    """Answers by way of float16, otherwise rounded for one row than for many, as kernels of GPUs do."""

    n_features_in_ = 2

    def predict(self, x: Any) -> np.ndarray:
        exact = np.asarray(x, np.float64).sum(axis=1)
        return exact if len(exact) == 1 else exact.astype(np.float16).astype(np.float64)


class Draws(RegressorMixin, BaseEstimator):
    """Answers the same row now so, now so, as a bandit does."""

    n_features_in_ = 2

    def predict(self, x: Any) -> np.ndarray:
        return np.random.default_rng().normal(size=len(x))


class Counts(RegressorMixin, BaseEstimator):
    """Keeps a state: how often it was called."""

    n_features_in_ = 2
    calls = 0

    def predict(self, x: Any) -> np.ndarray:
        self.calls += 1
        return np.full(len(x), float(self.calls))


class Flips(RegressorMixin, BaseEstimator):
    """Answers one row of the table with another label when it is alone, as rounding does to a row on the border."""

    n_features_in_ = 2

    def __init__(self, border: float = 0.0) -> None:
        self.border = border

    def predict(self, x: Any) -> np.ndarray:
        first = np.asarray(x, np.float64)[:, 0]
        return np.where((first == self.border) & (len(x) == 1), "other", "usual")


class FailsOnOne(RegressorMixin, BaseEstimator):
    """Raises for a row whose first value is the largest of the table, whoever stands beside it."""

    n_features_in_ = 2

    def __init__(self, limit: float = 0.0) -> None:
        self.limit = limit

    def predict(self, x: Any) -> np.ndarray:
        values = np.asarray(x, np.float64)
        if (values[:, 0] >= self.limit).any():
            raise ValueError("too large")
        return values[:, 0]


@pytest.mark.parametrize("model", [Rounds(), Draws()], ids=["rounds", "draws"])
def test_what_is_no_mixing_of_rows_is_served(tmp_path: Path, model: Any) -> None:
    write_table(tmp_path)
    write_version(tmp_path / "m", 1, model, FEATURES)
    assert load(tmp_path / "m").record.is_proved


@pytest.mark.parametrize("model", [Draws(), Counts()], ids=["draws", "counts"])
def test_a_model_whose_answers_vary_is_told_so(tmp_path: Path, model: Any) -> None:
    write_table(tmp_path)
    write_version(tmp_path / "m", 1, model, FEATURES)
    record = load(tmp_path / "m").record
    assert record.is_proved
    assert "is another one each time: batch and real time cannot agree" in str(record.notice)
    assert VersionRecord.from_json(json.dumps(record.to_json())) == record


def test_a_label_on_the_border_is_no_mixing_of_rows(tmp_path: Path) -> None:
    border = pq.read_table(write_table(tmp_path)).column("f0")[0].as_py()
    write_version(tmp_path / "m", 1, Flips(border), FEATURES)
    assert load(tmp_path / "m").record.is_proved


def test_a_model_that_fails_on_some_rows_is_served(tmp_path: Path) -> None:
    first = pq.read_table(write_table(tmp_path)).column("f0").to_numpy()
    write_version(tmp_path / "m", 1, FailsOnOne(float(first[:30].max())), FEATURES)
    assert load(tmp_path / "m").record.is_proved


def test_a_model_of_dense_layers_is_served(tmp_path: Path) -> None:
    folder = write_graph(tmp_path, helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT))
    assert load(folder).record.is_proved
