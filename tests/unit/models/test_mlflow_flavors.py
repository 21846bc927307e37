"""Version folders from the folders that MLflow's flavors write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inference.errors import ModelError
from inference.features.contract import logged_contract
from inference.models.formats import require_model_file
from inference.models.mlflow_flavors import make_version

PYFUNC = {"python_function": {"loader_module": "x", "data": "data"}}


def logged(folder: Path, flavors: dict[str, Any], *files: str) -> Path:
    """Write an MLflow model with these flavors and empty files. JSON is YAML too."""
    folder.mkdir()
    (folder / "MLmodel").write_text(json.dumps({"flavors": flavors | PYFUNC}))
    for file in [*files, "requirements.txt", "input_example.json"]:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


@pytest.mark.parametrize(
    ("flavors", "files", "format_name"),
    [
        ({"onnx": {"data": "model.onnx"}}, ["model.onnx", "model.onnx.data"], "onnx"),
        ({"sklearn": {"pickled_model": "model.skops"}}, ["model.skops"], "skops"),
        ({"sklearn": {"pickled_model": "model.pkl"}}, ["model.pkl"], "pickle"),
        ({"lightgbm": {"data": "model.pkl"}}, ["model.pkl"], "pickle"),
        ({"keras": {"data": "data"}}, ["data/model.keras", "data/keras_module.txt"], "keras"),
        (
            {"tensorflow": {"data": "data", "model_type": "keras"}},
            ["data/model.keras", "data/save_format.txt"],
            "keras",
        ),
        ({"keras": {"data": "data"}}, ["data/model/saved_model.pb", "data/model/variables/x"], "saved_model"),
        ({"tensorflow": {"saved_model_dir": "tf2model"}}, ["tf2model/saved_model.pb", "tf2model/v/x"], "saved_model"),
        ({"pytorch": {"model_data": "data"}}, ["data/model.pt2"], "torch_export"),
        # the better one of two
        ({"xgboost": {"data": "model.xgb"}, "onnx": {"data": "model.onnx"}}, ["model.onnx", "model.xgb"], "onnx"),
    ],
)
def test_the_model_of_a_served_flavor_lies_at_the_top_with_what_belongs_to_it(
    tmp_path: Path, flavors: dict[str, Any], files: list[str], format_name: str
) -> None:
    raw = logged(tmp_path / "raw", flavors, *files, "features.json")
    make_version(raw, tmp_path / "3", "models:/m/3")
    assert require_model_file(tmp_path / "3").format.name == format_name
    assert (tmp_path / "3" / "MLmodel").is_file()
    assert (tmp_path / "3" / "features.json").is_file()
    assert len(list((tmp_path / "3").rglob("*"))) >= len(files) + 2
    assert not raw.exists()


@pytest.mark.parametrize(
    ("flavors", "files", "words"),
    [
        ({}, ["python_model.pkl"], "but python_function alone: Forecache serves the flavors onnx, keras"),
        ({"spark": {"model_data": "sparkml"}}, ["sparkml/x"], "but spark: Forecache serves"),
        ({"xgboost": {"data": "model.ubj"}}, ["model.ubj"], "model.ubj is a booster's own file"),
        ({"pytorch": {"model_data": "data"}}, ["data/model.pth"], "data/model.pth holds weights without"),
        ({"sklearn": {"pickled_model": "model.pkl"}}, ["model.pkl", "other.pkl"], "holds 2 models"),
        ({"onnx": {"data": "../secret"}}, [], "but onnx"),
    ],
)
def test_another_flavor_is_refused_by_its_name_without_the_folder_of_the_download(
    tmp_path: Path, flavors: dict[str, Any], files: list[str], words: str
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "model.onnx").touch()
    raw = logged(tmp_path / "raw", flavors, *files)
    with pytest.raises(ModelError) as raised:
        make_version(raw, tmp_path / "3", "models:/m/3")
    assert words in raised.value.message
    assert raised.value.message.startswith("models:/m/3")
    assert str(tmp_path) not in raised.value.message


@pytest.mark.parametrize(
    ("inputs", "columns"),
    [
        (
            [
                {"name": "b", "type": "long", "required": True},
                {"name": "a b", "type": "double", "required": False},
                {"name": "city", "type": "string"},
                {"name": "flag", "type": "boolean"},
            ],
            {"b": "int64", "a b": "float64", "city": "string", "flag": "bool"},
        ),
        ([{"type": "double"}], None),
        ([{"name": "at", "type": "datetime"}], None),
        ([{"name": "a", "type": "array", "items": {"type": "double"}}], None),
        ([{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 4]}}], None),
        ([{"name": "a", "type": "double"}, {"name": "a", "type": "double"}], None),
        ([], None),
    ],
)
def test_the_named_columns_of_a_signature_lie_beside_the_model_as_a_contract(
    tmp_path: Path, inputs: list[Any], columns: dict[str, str] | None
) -> None:
    raw = logged(tmp_path / "raw", {"onnx": {"data": "model.onnx"}}, "model.onnx")
    described = json.loads((raw / "MLmodel").read_text())
    (raw / "MLmodel").write_text(json.dumps(described | {"signature": {"inputs": json.dumps(inputs)}}))
    make_version(raw, tmp_path / "3", "models:/m/3")
    found = logged_contract(tmp_path / "3")
    assert (found and {one.name: one.dtype.value for one in found.features}) == columns
    if found:
        assert [one.name for one in found.features if one.nullable] == ["a b"]


@pytest.mark.parametrize("text", [None, "", "flavors: 3", "flavors: [a]", "{", "flavors: {onnx: 3}"])
def test_a_folder_without_a_usable_mlmodel_is_named(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "raw").mkdir()
    if text is not None:
        (tmp_path / "raw" / "MLmodel").write_text(text)
    with pytest.raises(ModelError, match=r"models:/m/3.* MLmodel"):
        make_version(tmp_path / "raw", tmp_path / "3", "models:/m/3")
