"""Warm-up requests as TensorFlow Serving's own declarations write them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.errors import ModelError
from inference.models import LoadedModel
from inference.models.loading import load_version
from tests.support.models import export_models, float_features, write_features

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    export_models({folder / name / "1": name for name in ("fussy", "mixed", "digits")})
    write_features(folder / "fussy", float_features(2, default=1.0))
    return folder


@pytest.fixture
def fussy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported / "fussy", tmp_path / "fussy"))


def write_requests(folder: Path, *requests: dict[str, Any], signature: str = "", regress: bool = False) -> Path:
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2, regression_pb2

    file = folder / "1" / "assets.extra" / "tf_serving_warmup_requests"
    file.parent.mkdir()
    with tf.io.TFRecordWriter(str(file)) as writer:
        if regress:
            request = regression_pb2.RegressionRequest()
            log = prediction_log_pb2.RegressLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(regress_log=log).SerializeToString())
        for inputs in requests:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "whatever"
            request.model_spec.signature_name = signature
            for name, values in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
    return file


def load(folder: Path) -> LoadedModel:
    return load_version("m", folder, 1, folder / "1")


@pytest.mark.slow
def test_requests_are_answered_before_the_model_is_served(fussy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_requests(fussy, {"x": np.ones((3, 2), np.float32)}, {"x": np.ones((1, 2), np.float32)}, regress=True)
    assert load(fussy).record.state == "ready"
    assert "answered=2" in capsys.readouterr().out


def test_a_version_that_fails_one_of_its_own_requests_is_refused(fussy: Path) -> None:
    write_requests(fussy, {"x": np.ones((1, 2), np.float32)}, {"x": np.array([[-1, 1]], np.float32)})
    with pytest.raises(ModelError, match=r"tf_serving_warmup_requests: request 2 fails: .*negative distance"):
        load(fussy)


def test_a_request_without_an_input_is_told_of(fussy: Path) -> None:
    write_requests(fussy, {"z": np.ones((1, 2), np.float32)})
    with pytest.raises(ModelError, match="request 1 has no input 'x'"):
        load(fussy)


def test_requests_to_unknown_signatures_are_left_out(fussy: Path) -> None:
    write_requests(fussy, {"x": np.array([[-1, 1]], np.float32)}, signature="another")
    assert load(fussy).record.state == "ready"


def test_text_in_requests_is_taken(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(exported / "mixed", tmp_path / "mixed"))
    one = np.ones(2, np.float32)
    write_requests(folder, {"carat": one, "depth": one, "cut": ["Ideal", "Größe"]}, signature="serving_default")
    assert load(folder).record.state == "ready"
    assert "answered=1" in capsys.readouterr().out


def write_examples(folder: Path, *values: list[float], kind: str, context: list[float] | None = None) -> None:
    """Write a request with examples of feature x; `kind`: `classify` or `regress`."""
    import tensorflow as tf
    from tensorflow_serving.apis import classification_pb2, prediction_log_pb2, regression_pb2

    requests = {"classify": classification_pb2.ClassificationRequest, "regress": regression_pb2.RegressionRequest}
    logs = {"classify": prediction_log_pb2.ClassifyLog, "regress": prediction_log_pb2.RegressLog}
    request = requests[kind]()
    examples = request.input.example_list
    if context is not None:
        examples = request.input.example_list_with_context
        examples.context.features.feature["x"].float_list.value.extend(context)
    for numbers in values:
        example = examples.examples.add()
        if numbers:
            example.features.feature["x"].float_list.value.extend(numbers)
    file = folder / "1" / "assets.extra" / "tf_serving_warmup_requests"
    file.parent.mkdir()
    with tf.io.TFRecordWriter(str(file)) as writer:
        log = prediction_log_pb2.PredictionLog(**{f"{kind}_log": logs[kind](request=request)})
        writer.write(log.SerializeToString())


@pytest.mark.parametrize(
    ("values", "context", "wrong"),
    [
        ([[0.5] * 64], None, None),
        ([[], []], [0.5] * 64, None),
        ([[0.5] * 64, []], None, "request 1 fails: Name: <unknown>, Feature: x .* is required but could not be found"),
    ],
)
def test_examples_prove_a_model_that_no_made_up_row_fits(
    exported: Path, tmp_path: Path, values: list[list[float]], context: list[float] | None, wrong: str | None
) -> None:
    folder = Path(shutil.copytree(exported / "digits", tmp_path / "digits"))
    assert "is required but could not be found" in (load(folder).record.unproven or "")
    write_examples(folder, *values, kind="classify", context=context)
    if wrong:
        with pytest.raises(ModelError, match=wrong):
            load(folder)
    else:
        assert load(folder).record.is_proved


def test_requests_to_any_signature_are_answered(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported / "digits", tmp_path / "digits"))
    write_requests(folder, {"images": np.ones((2, 63), np.float32)}, signature="predict_images")
    with pytest.raises(ModelError, match=r"request 1 fails: tensor 'images' has shape \[2,63\]"):
        load(folder)


def test_a_damaged_file_is_refused_in_one_line(fussy: Path) -> None:
    write_requests(fussy, {"x": np.ones((1, 2), np.float32)}).write_bytes(b"no records at all, but long enough")
    with pytest.raises(ModelError, match="cannot be read as warm-up requests") as caught:
        load(fussy)
    assert "\n" not in caught.value.message
