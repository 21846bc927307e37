"""A model that cannot be served is refused in one line that says what to save, set or install instead."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from inference.errors import BadInput, ModelError
from inference.features.contract import read_contract
from inference.models.formats import check_allowed, instead_of_program, near_miss, require_model_file
from inference.models.runtimes import LoadOptions, load_runtime
from inference.models.runtimes.runtime import row_spec, telling_line
from inference.onboarding.files import check_model
from inference.onboarding.matching import UserTable, match_columns
from inference.schema import DType, Signature, TensorSpec
from tests.support.plain_onnx import write_sum
from tests.support.redis_server import missing


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("iris-lightgbm.bst", b"tree\nversion=v3\n", "a booster's own file; save the estimator around it"),
        ("model.txt", b"tree\nversion=v4\nnum_class=1\n", r"skops\.io\.dump\(model, '.*model\.skops'\)"),
        ("model.json", b'{"learner":{"attributes":{},"feature_names":[]', r"convert it to ONNX \(onnxmltools\)"),
        ("model.ubj", b"{L\x00\x00\x00\x00\x00\x00\x00\x07learner", "a booster's own file"),
        ("xgb.model", b"binf\x00\x00gbtree", "a booster's own file"),
        ("cat.cbm", b"CBM1", "a booster's own file"),
        ("old.H5", b"", r"keras\.models\.load_model"),
        ("m.tflite", b"", "name an engine in remote.toml"),
    ],
)
def test_a_librarys_own_file_says_what_to_save_instead(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=words):
        require_model_file(tmp_path)
    with pytest.raises(ModelError, match=words):
        check_model(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content"),
    [("notes.txt", b"trees are nice"), ("features.json", b'{"features": []}'), ("vocabulary.model", b"\n\x0e\n")],
)
def test_files_that_only_sound_alike_are_no_boosters(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert "booster" not in str(near_miss(tmp_path))


def write_zip(file: Path, *names: str) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(f"{file.stem}/{name}", b"")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["data.pkl", "code/__torch__.py", "constants.pkl", "version"],
            "is a TorchScript file: export the module anew",
        ),
        (["data.pkl", "data/0", "version", "byteorder"], "was written by torch.save, which keeps a module or weights"),
        (["data/aotinductor/model/x.so", "archive_format"], "a package of AOTInductor, compiled for one machine"),
        (["archive_format", "models/model.json", "data/weights/model.pt"], None),
    ],
)
def test_what_a_pt2_holds_is_told_by_the_names_in_it(names: list[str], words: str | None, tmp_path: Path) -> None:
    write_zip(tmp_path / "m.pt2", *names)
    told = instead_of_program(tmp_path / "m.pt2")
    assert told is None if words is None else words in told and "torch.export.save" in told


def test_a_pt2_that_is_no_zip_is_left_to_pytorch(tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_text("no zip")
    assert instead_of_program(tmp_path / "m.pt2") is None


@pytest.mark.parametrize(
    ("kind", "dtype", "fix"),
    [
        ("output", "bfloat16", r"convert it to float32 at the end of the model \(PyTorch: \.float\(\)"),
        ("input", "bfloat16", "have the model convert a float32"),
        ("output", "complex64", "its real and imaginary parts as two outputs"),
        ("output", "qint8", "convert it to float32"),
    ],
)
def test_a_dtype_that_json_cannot_carry_names_the_cast(kind: str, dtype: str, fix: str) -> None:
    with pytest.raises(ModelError, match=rf"'y' is {dtype}, which cannot be served: .*{fix}"):
        row_spec(Path("m"), kind, "y", dtype, [None, 2])


@pytest.mark.parametrize("shape", [[1], [1, 28], [4, 2]])
def test_an_onnx_model_with_fixed_rows_is_told_how_onnx_frees_them(shape: list[int], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"'x' has a fixed row dimension.*onnx\.tools\.update_model_dims"):
        load_runtime(tmp_path)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            "Graph execution error:\n\nDetected at node lookup/Assert defined at (most recent call last):\n"
            '  File "<frozen runpy>", line 198, in _run_module_as_main\n\n'
            "assertion failed: [all inputs should be in vocabulary]\n\t [[{{node lookup/Assert}}]] [Op:__inference_7]",
            "assertion failed: [all inputs should be in vocabulary]",
        ),
        (
            "{{function_node __inference_86}} assertion failed: [found OOV values]\n\t [[{{node a/Assert}}]]",
            "assertion failed: [found OOV values]",
        ),
        (
            "{{function_node a}} {{node b}} indices[0] = 7 is not in [0, 2) [Op:GatherV2]",
            "indices[0] = 7 is not in [0, 2)",
        ),
        ("", "ValueError"),
    ],
)
def test_a_graph_error_is_told_by_its_sentence(said: str, line: str) -> None:
    assert telling_line(ValueError(said)).startswith(line)


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ("jax", "install forecache[jax] where workers run"),
        ("torch", "install forecache[torch] where workers run"),
        ("openvino", "Keras' backend 'openvino' is not known here"),
    ],
)
def test_a_backend_that_is_not_there_names_its_own_extra(backend: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "m.keras").touch()
    code = (
        "from importlib import util; find = util.find_spec\n"
        f"util.find_spec = lambda name, *more: None if name == {backend!r} else find(name, *more)\n"
        "from pathlib import Path; from inference.errors import ModelError\n"
        "from inference.models.runtimes import load_runtime\n"
        f"try: load_runtime(Path({str(tmp_path)!r}))\n"
        "except ModelError as error: print(error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "KERAS_BACKEND": backend}, capture_output=True, text=True
    )
    assert words in done.stdout, done.stderr


@pytest.fixture(scope="module")
def keras() -> Any:
    try:
        from inference.models.runtimes import keras
    except (ImportError, ModelError):
        missing("keras")
    return keras


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_text_without_tensorflow_is_refused_with_the_setting(
    backend: str, keras: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras.keras.backend, "backend", lambda: backend)
    inputs = {"n": TensorSpec("n", DType.FLOAT32), "text": TensorSpec("text", DType.STRING)}
    with pytest.raises(ModelError, match=rf"'text' is text, which only TensorFlow.*by {backend}: set keras_backend ="):
        keras._check_text(inputs, Path("m.keras"))
    keras._check_text({"n": inputs["n"]}, Path("m.keras"))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "<class 'Functional'> could not be deserialized properly. config={…}. Exception encountered: "
            "Could not locate class 'Mine'. Make sure custom classes and functions are decorated",
            "it needs the class 'Mine', which is not part of Keras",
        ),
        ("Could not locate function 'gelu_2'. Make sure custom", "it needs the function 'gelu_2'"),
        ("Requested the deserialization of a `Lambda` layer … passing `safe_mode=False`", "it holds a Lambda layer"),
        ("A total of 3 objects could not be loaded. Exception encountered: bad shape", "bad shape"),
    ],
)
def test_keras_own_words_become_the_way_out(said: str, told: str, keras: Any) -> None:
    sentence = keras._why_not(ValueError(said))
    assert sentence.startswith(told)
    assert "safe_mode" not in sentence
    assert told == "bad shape" or "model.export(path)" in sentence


def test_a_signature_is_for_saved_models(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    with pytest.raises(ModelError, match=r"m\.onnx is ONNX: remove \"signature\" under \[models\.NAME\]"):
        load_runtime(tmp_path, options=LoadOptions(signature="serving_raw"))


@pytest.mark.parametrize("names", [["hour of day", "b", "c"], ["it's", "b", "c"], ["$x", "b", "c"]])
def test_a_hint_can_be_pasted_into_a_shell(names: list[str]) -> None:
    import pyarrow as pa

    signature = Signature((TensorSpec("x", DType.FLOAT32, (2,)),), ())
    with pytest.raises(BadInput) as caught:
        match_columns(signature, UserTable("t.parquet", pa.schema([(name, pa.float32()) for name in names])))
    assert f"--columns {shlex.quote(names[0])},…" in caught.value.message


def test_a_versions_folder_stands_for_its_model(tmp_path: Path) -> None:
    for version in ("1", "2"):
        write_sum(tmp_path / "delay" / version, 3)
    assert check_model(str(tmp_path / "delay" / "2")) == tmp_path / "delay"
    assert check_model(str(tmp_path / "delay")) == tmp_path / "delay"


@pytest.mark.parametrize("inner", ["v1", "delay"])
def test_a_folder_around_the_model_says_which_one_to_name(inner: str, tmp_path: Path) -> None:
    write_sum(tmp_path / "models" / inner / ("" if inner == "v1" else "1"), 3)
    with pytest.raises(ModelError, match=rf"; {inner}/ holds one: name that folder, or if it is a version, call it by"):
        check_model(str(tmp_path / "models"))


def test_weights_alone_do_not_name_a_call_that_fails_on_them(tmp_path: Path) -> None:
    (tmp_path / "churn.weights.h5").write_bytes(b"")
    with pytest.raises(ModelError, match=r"model\.load_weights\('.*'\), then model\.save\('churn\.keras'\)"):
        require_model_file(tmp_path)


def test_a_lone_pickle_is_told_what_to_save_without_a_passing_folder(tmp_path: Path) -> None:
    (tmp_path / "pipe.joblib").write_bytes(b"")
    found = require_model_file(tmp_path)
    with pytest.raises(ModelError, match=r"; skops\.io\.dump\(model, 'pipe\.skops'\) writes one"):
        check_allowed(found, allow_code=False)


def test_the_byte_order_mark_of_a_windows_editor_is_no_part_of_features_json(tmp_path: Path) -> None:
    (tmp_path / "features.json").write_bytes(b"\xef\xbb\xbf" + b'{"features": [{"name": "x", "dtype": "float32"}]}')
    signature = Signature((TensorSpec("x", DType.FLOAT32),), (TensorSpec("y", DType.FLOAT32),))
    assert read_contract(tmp_path, tmp_path, signature).names == ["x"]
