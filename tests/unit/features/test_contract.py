"""The feature contract: what `features.json` may say, and when it and a signature disagree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inference.errors import ContractError
from inference.features import FeatureContract, contract_from_signature, read_contract
from inference.features.contract import LOGGED_FILE, check_order
from inference.schema import DType, Signature, TensorSpec

OUTPUT = (TensorSpec("y", DType.FLOAT32),)


def dense(k: int, dtype: DType = DType.FLOAT32) -> Signature:
    return Signature((TensorSpec("x", dtype, (k,)),), OUTPUT)


def named(*specs: TensorSpec) -> Signature:
    return Signature(specs, OUTPUT)


def write(folder: Path, features: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "features.json").write_text(json.dumps({"features": features}))


def feature(name: str, dtype: str = "float32", **more: Any) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, **more}


def read(folder: Path, signature: Signature) -> FeatureContract:
    return read_contract(folder, folder / "1", signature)


def test_features_json_gives_the_order_of_a_single_input(tmp_path: Path) -> None:
    write(tmp_path, [feature("b"), feature("a", default=0.5)])
    contract = read(tmp_path, dense(2))
    assert contract.names == ["b", "a"]
    assert contract.features[1].default == 0.5


def test_a_versions_own_features_json_goes_before_the_models(tmp_path: Path) -> None:
    write(tmp_path, [feature("old")])
    write(tmp_path / "1", [feature("new")])
    assert read(tmp_path, dense(1)).names == ["new"]


def test_without_a_file_every_named_input_is_a_feature(tmp_path: Path) -> None:
    signature = named(
        TensorSpec("carat", DType.FLOAT32, (1,)),
        TensorSpec("cut", DType.STRING),
        TensorSpec("image", DType.UINT8, (2, 3)),
    )
    contract = read(tmp_path, signature)
    assert [(one.name, one.dtype, one.shape) for one in contract.features] == [
        ("carat", DType.FLOAT32, ()),
        ("cut", DType.STRING, ()),
        ("image", DType.UINT8, (2, 3)),
    ]


def log_signature(folder: Path, features: Any) -> None:
    write(folder, features)
    (folder / "features.json").rename(folder / LOGGED_FILE)


def test_columns_that_a_registry_names_fill_a_single_tensor_in_their_order_and_its_type(tmp_path: Path) -> None:
    log_signature(tmp_path / "1", [feature("b", "int64"), feature("a", "float64", nullable=True)])
    contract = read(tmp_path, dense(2))
    assert [(one.name, one.dtype, one.nullable) for one in contract.features] == [
        ("b", DType.FLOAT32, False),
        ("a", DType.FLOAT32, True),
    ]
    assert read(tmp_path, dense(-1)).names == ["b", "a"]
    log_signature(tmp_path / "2", [feature("a"), feature("b")])
    assert read_contract(tmp_path, tmp_path / "2", dense(2)).names == ["a", "b"]  # each version has its own


def test_what_model_or_features_json_say_counts_more_than_the_registry(tmp_path: Path) -> None:
    log_signature(tmp_path / "1", [feature("b"), feature("a")])
    assert read(tmp_path, named(TensorSpec("x", DType.FLOAT32), TensorSpec("y", DType.FLOAT32))).names == ["x", "y"]
    assert read(tmp_path, dense(3)).names == ["x"]
    log_signature(tmp_path / "1", [feature("b"), feature("a", "string")])
    assert read(tmp_path, dense(2)).names == ["x"]
    write(tmp_path, [feature("c"), feature("d")])
    assert read(tmp_path, dense(2)).names == ["c", "d"]


def test_the_registrys_columns_in_another_order_are_refused_by_name(tmp_path: Path) -> None:
    log_signature(tmp_path / "1", [feature("b"), feature("a")])
    write(tmp_path, [feature("a"), feature("b", default=0.5)])
    with pytest.raises(ContractError, match="has 'a' where the signature in MLflow has 'b'"):
        check_order(read(tmp_path, dense(2)), tmp_path / "1", dense(2))
    write(tmp_path, [feature("b"), feature("a", default=0.5)])
    check_order(read(tmp_path, dense(2)), tmp_path / "1", dense(2))


def test_a_contract_survives_json_and_keeps_its_hash(tmp_path: Path) -> None:
    write(tmp_path, [feature("a", shape=[2], default=[1, 2]), feature("b", "float64")])
    contract = read(tmp_path, dense(3))
    again = FeatureContract.from_json(json.loads(json.dumps(contract.to_json())))
    assert again == contract
    assert again.hash == contract.hash


@pytest.mark.parametrize("change", [{"name": "b"}, {"dtype": "int32"}, {"default": 1}, {"shape": [2]}])
def test_the_hash_changes_with_every_part_of_a_feature(change: dict[str, Any]) -> None:
    before = FeatureContract.from_json({"features": [feature("a")]})
    after = FeatureContract.from_json({"features": [{**feature("a"), **change}]})
    assert before.hash != after.hash


@pytest.mark.parametrize(
    ("features", "names"),
    [
        ([], "must be"),
        ([{"dtype": "float32"}], "needs a name"),
        ([feature("a", "float")], "'float' is not one of"),
        ([{"name": "a"}], "dtype None"),
        ([feature("a", defualt=1)], "'defualt'"),
        ([feature("a"), feature("a")], "appears twice"),
        ([feature("a", default="x")], "default"),
        ([feature("a", "int8", default=300)], "out of range"),
        ([feature("a", "int8", default=1.5)], "default"),
        ([feature("a", "string", default=1)], "default"),
        ([feature("a", default=float("nan"))], "not a finite number"),
        ([feature("a", default=True)], "default"),
        ([feature("a", shape=[2], default=[1, 2, 3])], "shape"),
        ([feature("a", shape=[0])], "shape"),
    ],
)
def test_a_malformed_features_json_is_refused_by_name(tmp_path: Path, features: Any, names: str) -> None:
    write(tmp_path, features)
    with pytest.raises(ContractError, match=names) as caught:
        read(tmp_path, dense(1))
    assert "features.json" in caught.value.message
    assert "\n" not in caught.value.message


def test_text_that_is_no_json_is_refused_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "features.json").write_text("{features")
    with pytest.raises(ContractError, match=r"features\.json is not valid JSON"):
        read(tmp_path, dense(1))


def test_too_few_features_for_the_tensor_are_refused_with_both_numbers(tmp_path: Path) -> None:
    write(tmp_path, [feature("a"), feature("b")])
    with pytest.raises(ContractError, match="lists 2 values but the model's input 'x' takes 3"):
        read(tmp_path, dense(3))


def test_a_text_feature_is_refused_for_a_tensor_of_numbers(tmp_path: Path) -> None:
    write(tmp_path, [feature("cut", "string")])
    with pytest.raises(ContractError, match="'cut' is string but the model's input 'x' is float32") as caught:
        read(tmp_path, dense(1))
    assert caught.value.field == "cut"


def test_a_float_feature_is_refused_for_a_tensor_of_integers(tmp_path: Path) -> None:
    write(tmp_path, [feature("age")])
    with pytest.raises(ContractError, match="'age' is float32 but"):
        read(tmp_path, dense(1, DType.INT64))


def test_with_several_inputs_each_feature_must_be_one_of_them(tmp_path: Path) -> None:
    signature = named(TensorSpec("carat", DType.FLOAT32), TensorSpec("cut", DType.STRING))
    write(tmp_path, [feature("carat"), feature("cutt", "string")])
    with pytest.raises(ContractError, match="'cutt' is no input of the model; its inputs: carat, cut"):
        read(tmp_path, signature)
    write(tmp_path, [feature("carat")])
    with pytest.raises(ContractError, match=r"input 'cut' is not in features\.json"):
        read(tmp_path, signature)


def test_an_input_of_unknown_size_needs_a_features_json(tmp_path: Path) -> None:
    signature = named(TensorSpec("x", DType.FLOAT32, (-1,)))
    with pytest.raises(ContractError, match=r"list its columns in features\.json"):
        contract_from_signature(signature)
    write(tmp_path, [feature("a"), feature("b")])
    assert read(tmp_path, signature).names == ["a", "b"]
