"""Models that would read or write files of the worker, by what they hold or by what a request says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper

from inference.errors import ModelError
from inference.models.runtimes import LoadOptions, load_runtime
from tests.support.lazy_imports import LazyModule
from tests.support.plain_onnx import tensor

skops_io = LazyModule("skops.io")
compose = LazyModule("sklearn.compose")
ensemble = LazyModule("sklearn.ensemble")
linear_model = LazyModule("sklearn.linear_model")
pipeline = LazyModule("sklearn.pipeline")
preprocessing = LazyModule("sklearn.preprocessing")
vectorisers = LazyModule("sklearn.feature_extraction.text")

# scikit-learn


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """Two files, by their names."""
    for name, text in (("first", "hello world"), ("second", "good night moon")):
        (tmp_path / name).write_text(text)
    return [str(tmp_path / name) for name in ("first", "second")]


def of_table(vectoriser: Any, texts: list[str]) -> Any:
    columns = compose.ColumnTransformer([("text", vectoriser, "a"), ("rest", "passthrough", ["b"])])
    return pipeline.make_pipeline(columns, linear_model.LogisticRegression()).fit(
        pd.DataFrame({"a": texts, "b": [1.0, 2.0]}), [0, 1]
    )


def of_union(vectoriser: Any, texts: list[str]) -> Any:
    both = pipeline.make_union(vectorisers.TfidfVectorizer(), vectoriser)
    return pipeline.make_pipeline(both, linear_model.LogisticRegression()).fit(texts, [0, 1])


def of_votes(vectoriser: Any, texts: list[str]) -> Any:
    good = pipeline.make_pipeline(vectorisers.CountVectorizer(), linear_model.LogisticRegression())
    votes = ensemble.VotingClassifier(
        [("a", good), ("b", pipeline.make_pipeline(vectoriser, linear_model.LogisticRegression()))]
    )
    return votes.fit(texts, [0, 1])


@pytest.mark.parametrize("inside", [of_table, of_union, of_votes])
@pytest.mark.parametrize(
    ("kind", "options"), [("CountVectorizer", {}), ("TfidfVectorizer", {}), ("HashingVectorizer", {"n_features": 16})]
)
def test_a_vectoriser_that_takes_texts_for_names_of_files_is_refused_wherever_it_is(
    tmp_path: Path, texts: list[str], inside: Any, kind: str, options: dict[str, int]
) -> None:
    folder = tmp_path / "1"
    folder.mkdir()
    vectoriser = getattr(vectorisers, kind)(input="filename", **options)
    skops_io.dump(inside(vectoriser, texts), folder / "m.skops")
    told = rf"its {kind} has input='filename', so requests could read files"
    with pytest.raises(ModelError, match=told):
        load_runtime(folder)


def test_it_is_served_where_the_settings_allow_code(tmp_path: Path, texts: list[str]) -> None:
    model = pipeline.make_pipeline(
        vectorisers.CountVectorizer(input="filename"), linear_model.LogisticRegression()
    ).fit(texts, [0, 1])
    skops_io.dump(model, tmp_path / "m.skops")
    runtime = load_runtime(tmp_path, options=LoadOptions(allow_code=True))
    assert runtime.predict({"x": np.array(texts, dtype=object)})["label"].tolist() == [0, 1]


def test_what_merely_equals_the_name_of_that_mode_is_refused_too(tmp_path: Path, texts: list[str]) -> None:
    model = pipeline.make_pipeline(vectorisers.CountVectorizer(), linear_model.LogisticRegression()).fit(texts, [0, 1])
    model[0].input = np.array(["filename"])  # decides as the text itself does
    skops_io.dump(model, tmp_path / "m.skops")
    with pytest.raises(ModelError, match="its CountVectorizer has input="):
        load_runtime(tmp_path)


def test_vectorisers_of_texts_are_served_as_before(tmp_path: Path, texts: list[str]) -> None:
    model = pipeline.make_pipeline(vectorisers.CountVectorizer(), linear_model.LogisticRegression()).fit(texts, [0, 1])
    skops_io.dump(model, tmp_path / "m.skops")
    runtime = load_runtime(tmp_path)
    assert runtime.predict({"x": np.array(texts, dtype=object)})["label"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (np.load, r"numpy\.load"), (np.loadtxt, r"numpy\.loadtxt"), (np.fromfile, r"numpy\.fromfile"),
        (np.memmap, r"numpy\.memmap"), (np.save, r"numpy\.save"), (open, r"io\.open"),
        (pd.read_csv, r"pandas.*read_csv"),
    ],
)  # fmt: skip
def test_functions_that_open_files_are_no_part_of_a_model(tmp_path: Path, function: Any, name: str) -> None:
    refuse_function(tmp_path, function, name)


def test_nor_are_methods_that_open_files(tmp_path: Path) -> None:
    opening = vectorisers.CountVectorizer(input="filename").decode
    refuse_function(tmp_path, opening, r"sklearn.*CountVectorizer\.decode")


def refuse_function(tmp_path: Path, function: Any, name: str) -> None:
    skops_io.dump(
        pipeline.make_pipeline(preprocessing.FunctionTransformer(function), linear_model.LogisticRegression()),
        tmp_path / "m.skops",
    )
    with pytest.raises(ModelError, match=rf"not known to be safe: .*{name}"):
        load_runtime(tmp_path)


# ONNX


def write_external(folder: Path, location: str) -> None:
    """Write a version whose weights lie in another file: x [rows, 4] → x times them."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location)
    times = helper.make_node("Mul", ["x", "w"], ["y"])
    graph = helper.make_graph([times], "g", [tensor("x", 4)], [tensor("y", 4)], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "m.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    "location",
    ["{home}/secret", "../../secret", "inside/../../../secret", "./../../secret", "/proc/self/environ", "/dev/zero"],
)
def test_weights_outside_of_the_folder_are_not_read(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(b"0123456789abcdef")
    folder = tmp_path / "m" / "1"
    (folder / "inside").mkdir(parents=True)
    write_external(folder, location.format(home=tmp_path))
    with pytest.raises(ModelError, match=r"m\.onnx cannot be loaded as an ONNX model"):
        load_runtime(folder)


def test_weights_inside_of_the_folder_are_read(tmp_path: Path) -> None:
    write_external(tmp_path, "weights/w.bin")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    assert onnx.load(tmp_path / "m.onnx").graph.initializer[0].name == "w"
    runtime = load_runtime(tmp_path)
    assert runtime.predict({"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[0, 1, 2, 3]]
