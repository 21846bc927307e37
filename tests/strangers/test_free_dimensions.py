"""Inputs with dimensions of any size: tensors go in as they are, features only with a shape of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper

from inference.errors import ContractError
from inference.features import FeatureContract, Vectoriser
from inference.features.columns import type_problem
from inference.models import ModelHost, ModelRegistry, inspect_versions, prediction_values, score_rows
from inference.models.loading import load_version
from inference.protocols.tensors import pack, unpack
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.schema import DType, Signature, TensorSpec
from inference.serving.scorer import RealtimeScorer, TensorScorer
from inference.settings import Settings
from inference.store import Table
from tests.support.models import write_features
from tests.support.plain_onnx import tensor, write_onnx
from tests.support.stack import Stack
from tests.support.waiting import wait_for

TOKENS = TensorSpec("tokens", DType.INT32, (-1,))


def write_centred(folder: Path, *shape: int | str) -> None:
    """x [rows, *shape] → y: each value less the mean of its row's last dimension."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[-1], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    write_onnx(folder, nodes, [tensor("x", *shape)], [tensor("y", *shape)])


def write_total(folder: Path) -> None:
    """tokens [rows, any] int64 → total [rows, 1]"""
    nodes = [
        helper.make_node("Cast", ["tokens"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["numbers", "axes"], ["total"], keepdims=1),
    ]
    tokens: onnx.ValueInfoProto = tensor("tokens", "length", dtype=TensorProto.INT64)
    write_onnx(folder, nodes, [tokens], [tensor("total", 1)], axes=np.array([1]))


@pytest.fixture
def tensors_only(tmp_path: Path, redis_client: Client) -> Any:
    """A model of sequences of any length, of which nobody has listed the features, in a deployment."""
    write_total(tmp_path / "m" / "1")
    pq.write_table(pa.table({"entity_id": ["u0"], "tokens": [[1, 2, 3]]}), tmp_path / "t.parquet")
    model = {"path": str(tmp_path / "m"), "features": str(tmp_path / "t.parquet")}
    settings = Settings.model_validate({"models": {"m": model}})
    registry = ModelRegistry(redis_client, Keys("t"))
    host = ModelHost(settings, registry)
    host.start()
    return settings, registry, host


def test_sequences_of_any_length_are_answered_without_listed_features(tensors_only: Any) -> None:
    settings, registry, host = tensors_only
    assert registry.active("m").is_proved
    scorer = TensorScorer(settings, host, lambda *_: 0.0)
    for length in (1, 2, 9, 30):
        answer = scorer.predict_tensors("m", pack({"tokens": np.ones((3, length), np.int64)}))
        assert unpack(answer["outputs"])["total"].tolist() == [[length]] * 3


def test_entities_of_such_a_model_are_refused_with_what_to_write(tensors_only: Any, redis_client: Client) -> None:
    settings, _, host = tensors_only

    def table(kind: TableKind) -> Any:
        return lambda model: Table(redis_client, Keys("t").table(kind, model), kind=kind, model=model)

    scorer = RealtimeScorer(settings, host, table(TableKind.PREDICTIONS), table(TableKind.FEATURES))
    for result in (scorer.predict_entities("m", ["u0"]), scorer.predict_instances("m", [{"tokens": [1, 2]}])):
        error = result["predictions"][0]["error"]
        assert (error["code"], error["field"]) == ("bad-features", "tokens")
        assert '{"features": [{"name": "tokens", "dtype": "int64", "shape": [9]}]}' in error["message"]


def test_its_record_says_that_it_has_no_features(tensors_only: Any) -> None:
    _, registry, _ = tensors_only
    record = registry.active("m")
    assert record.contract == FeatureContract(())
    assert record.signature.inputs == (TensorSpec("tokens", DType.INT64, (-1,)),)
    with pytest.raises(ContractError, match="of unknown size"):
        Vectoriser(record.contract, record.signature)


def test_with_listed_features_the_same_model_takes_padded_rows(tmp_path: Path) -> None:
    write_total(tmp_path / "1")
    write_features(tmp_path, [{"name": "tokens", "dtype": "int64", "shape": [3]}])
    loaded = load_version("m", tmp_path, 1, tmp_path / "1")
    rows = loaded.vectoriser.features_from_arrow(pa.record_batch({"tokens": [[1, 2, 3], [4, 0, 0]]}))
    assert prediction_values(score_rows(loaded, rows.block).outputs) == [6.0, 4.0]
    assert loaded.predict({"tokens": np.ones((1, 7), np.int64)})["total"].tolist() == [7.0]


@pytest.mark.parametrize(
    ("shape", "feature", "hint"),
    [
        ((-1,), (), "give it a shape such as [1]"),
        ((-1,), (2, 3), "give it a shape such as [6]"),
        ((-1, 3), (7,), "give it a shape such as [2, 3]"),
        ((-1, 3), (6,), "give it a shape such as [2, 3]"),
        ((-1, 3), (3, 4), "give it a shape such as [4, 3]"),
        ((-1, -1, 3), (32, 32), "give it a shape such as [341, 1, 3]"),
        ((24, -1), (), "give it a shape such as [24, 1]"),
        ((4, -1), (3, 2), "give it a shape such as [4, 1]"),
    ],
)
def test_a_feature_of_another_rank_or_size_is_refused_with_a_shape(
    shape: tuple[int, ...], feature: tuple[int, ...], hint: str
) -> None:
    signature = Signature((TensorSpec("x", DType.FLOAT32, shape), TOKENS), (TensorSpec("y", DType.FLOAT32),))
    one = {"name": "x", "dtype": "float32", **({"shape": list(feature)} if feature else {})}
    features = [one, {"name": "tokens", "dtype": "int32", "shape": [4]}]
    told = f"feature 'x' has shape {list(feature)} but the model's input takes {list(shape)}: {hint}"
    with pytest.raises(ContractError) as caught:
        Vectoriser(FeatureContract.from_json({"features": features}), signature)
    assert told in caught.value.message


def test_a_row_alone_has_the_answer_that_it_has_among_others(tmp_path: Path) -> None:
    write_centred(tmp_path / "1", "K")
    write_features(tmp_path, [{"name": "x", "dtype": "float32"}])
    record = inspect_versions(tmp_path, "latest")[1]
    assert record.state == "refused"
    assert "feature 'x' has shape [] but the model's input takes [-1]" in (record.error or "")
    write_features(tmp_path, [{"name": "x", "dtype": "float32", "shape": [1]}])
    loaded = load_version("m", tmp_path, 1, tmp_path / "1")
    together = score_rows(loaded, {"x": np.arange(6, dtype=np.float32)[:, None]}).outputs["y"]
    assert together.tolist() == [[0.0]] * 6


def test_columns_side_by_side_still_fill_a_free_dimension(tmp_path: Path) -> None:
    write_centred(tmp_path / "1", "K")
    write_features(tmp_path, [{"name": "a", "dtype": "float32"}, {"name": "b", "dtype": "float32"}])
    loaded = load_version("m", tmp_path, 1, tmp_path / "1")
    scored = score_rows(loaded, {"a": np.float32([1, 5]), "b": np.float32([3, 5])})
    assert scored.outputs["y"].tolist() == [[-1.0, 1.0], [0.0, 0.0]]


def test_a_feature_whose_values_fill_a_fixed_shape_may_be_flat(tmp_path: Path) -> None:
    write_centred(tmp_path / "1", 4, 2)
    write_features(tmp_path, [{"name": "x", "dtype": "float32", "shape": [8]}])
    loaded = load_version("m", tmp_path, 1, tmp_path / "1")
    flat = np.arange(8, dtype=np.float32)[None]
    assert score_rows(loaded, {"x": flat}).outputs["y"].tolist() == [[[-0.5, 0.5]] * 4]


LISTS = pa.list_(pa.float32())


@pytest.mark.parametrize(
    ("type_", "shape", "fix"),
    [
        (LISTS, [24, 3], "nest the lists, or declare shape [72] in features.json"),
        (pa.large_list(pa.float32()), [24, 3], "nest the lists, or declare shape [72] in features.json"),
        (pa.list_(pa.float32(), 72), [24, 3], "nest the lists, or declare shape [72] in features.json"),
        (pa.list_(LISTS), [2, 3, 4], "nest the lists, or declare shape [24] in features.json"),
        (pa.float32(), [3], "store lists"),
        (pa.list_(LISTS), [72], "nest the lists less, or correct its shape in features.json"),
        (LISTS, [], "store single values, or correct its shape in features.json"),
    ],
    ids=str,
)
def test_lists_of_another_depth_than_the_shape_are_refused_with_the_fix(
    type_: pa.DataType, shape: list[int], fix: str
) -> None:
    one = {"name": "w", "dtype": "float32", **({"shape": shape} if shape else {})}
    problem = type_problem(FeatureContract.from_json({"features": [one]}).features[0], type_) or ""
    assert problem.startswith(f"is {type_}, but the feature ")
    assert (f"has shape {shape}" if shape else "is float32") in problem
    assert problem.endswith(fix)


@pytest.mark.slow
def test_both_serving_protocols_answer_sequences_of_any_length(tmp_path: Path) -> None:
    write_total(tmp_path / "model" / "1")
    pq.write_table(pa.table({"entity_id": ["u0"], "tokens": [[1, 2, 3]]}), tmp_path / "t.parquet")
    settings = '[models.m]\npath = "model"\nfeatures = "t.parquet"\n[models.m.realtime]\ntimeout_ms = 10000\n'
    with Stack(tmp_path, settings) as stack:
        stack.start("realtime", "maintenance", "api")
        stack.wait_ready()
        url = f"{stack.url}/v1/models/m:predict"
        # the worker's first heartbeat may come after the look of the API at its start
        wait_for(lambda: httpx.post(url, json={"instances": [[1]]}, timeout=30).is_success, "an answer")
        for length in (1, 9, 30):
            rows = [[1] * length, [2] * length]
            answer = httpx.post(url, json={"instances": rows}, timeout=30)
            assert answer.json() == {"predictions": [[length], [2 * length]]}
            tensor = {"name": "tokens", "shape": [2, length], "datatype": "INT64", "data": rows}
            answer = httpx.post(f"{stack.url}/v2/models/m/infer", json={"inputs": [tensor]}, timeout=30)
            assert answer.json()["outputs"][0]["data"] == [length, 2 * length]
        refused = httpx.post(f"{stack.url}/predict", json={"instances": [{"tokens": [1]}]}, timeout=30)
        assert "features.json" in refused.text
        done = stack.cli("features", "load", "m", "t.parquet")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "features.json" in done.stderr
        run = stack.cli("batch", "run", "m", "--wait")
        assert run.returncode == 1
        assert "features.json" in run.stderr + run.stdout
        known = stack.cli("doctor").stdout
        assert "m, contract" in known
        assert "is not what version" not in known
