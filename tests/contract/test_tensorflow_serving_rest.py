"""TensorFlow Serving's own situations over REST, answered by a real API and a real worker with real SavedModels."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from inference.protocols.tensorflow_examples import read_examples
from tests.contract.tensorflow_serving_cases import CASES, EXAMPLE_KINDS, Case
from tests.support.lazy_imports import LazyModule
from tests.support.models import export_models
from tests.support.plain_onnx import write_sum
from tests.support.stack import Stack
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration
datasets = LazyModule("sklearn.datasets")
linear_model = LazyModule("sklearn.linear_model")

MODELS = ("half_plus_two_tf2", "half_plus_three", "digits", "tensors", "window")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("serving")
    export_models({folder / "half_plus_two" / "123": "half_plus_two"} | {folder / name / "1": name for name in MODELS})
    write_sum(folder / "column" / "1", 1)
    realtime = "realtime = { timeout_ms = 10000, max_micro_batch = 8 }\n"
    toml = "".join(f'[models.{name}]\npath = "{name}"\n{realtime}' for name in ("half_plus_two", "column", *MODELS))
    with Stack(folder, toml, with_tensorflow=True) as running:
        running.start("realtime", "api")
        running.wait_ready()
        running.deployment.registry.label("half_plus_two", "Version_Label", 123)
        wait_for(lambda: get(running, "/v1/models/half_plus_two/labels/Version_Label").is_success, "the label", 10)
        yield running


@pytest.fixture(scope="module")
def http(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.url, timeout=30) as client:
        yield client


def get(stack: Stack, path: str) -> httpx.Response:
    return httpx.get(stack.url + path)


def read(text: str) -> Any:
    """JSON whose numbers that are not finite compare equal."""
    return json.loads(text, parse_constant=str)


def predict(http: httpx.Client, model: str, **body: Any) -> Any:
    response = http.post(f"/v1/models/{model}:predict", content=json.dumps(body))
    assert response.status_code == 200, response.text
    return read(response.text)


@pytest.mark.parametrize("case", CASES, ids=[f"{one.path.rpartition(':')[2]}: {one.what}" for one in CASES])
def test_a_request_has_the_answer_of_tensorflow_serving(http: httpx.Client, case: Case) -> None:
    response = http.request(case.method, case.path, content=case.body)
    assert response.headers["content-type"] == "application/json"
    expected = read(case.answer) if case.status == 200 else {"error": case.answer}
    assert (response.status_code, read(response.text)) == (case.status, expected)


@pytest.mark.parametrize(("sent", "kept"), EXAMPLE_KINDS)
def test_an_example_carries_features_of_every_kind_to_the_model(
    http: httpx.Client, sent: dict[str, Any], kept: dict[str, Any]
) -> None:
    # classify and regress give numbers only: predict shows what the model reads in the same example
    [example] = read_examples({"examples": [sent]})
    instance = {"b64": b64encode(example).decode()}
    assert predict(http, "tensors", signature_name="examples", instances=[instance]) == {"predictions": [kept]}


def test_digits_are_recognised_as_scikit_learn_does(http: httpx.Client) -> None:
    images, labels = datasets.load_digits(return_X_y=True)
    trained = linear_model.LogisticRegression().fit(images[:300] / 16.0, labels[:300])
    some = (images[::90] / 16.0).astype(np.float32)
    expected = trained.predict_proba(some)
    # 20 rows in micro-batches of 8
    answer = predict(http, "digits", signature_name="predict_images", instances=some.tolist())
    np.testing.assert_allclose(answer["predictions"], expected, atol=1e-5)
    response = http.post("/v1/models/digits:classify", json={"examples": [{"x": row} for row in some.tolist()]})
    results = response.json()["results"]
    assert [[int(label) for label, _ in one] for one in results] == np.argsort(-expected)[:, :3].tolist()
    np.testing.assert_allclose([[score for _, score in one] for one in results], -np.sort(-expected)[:, :3], atol=1e-5)


def as_rows(widths: list[int], width: int) -> list[list[float]]:
    """Rows of ones that end at a NaN."""
    return [[1.0] * one + [float("nan")] * (width - one) for one in widths]


def test_requests_of_different_lengths_never_spoil_each_other(http: httpx.Client) -> None:
    # the model's answer is as wide as the longest row of a call, and it takes no row of less than three numbers
    def ask(number: int) -> tuple[int, Any]:
        widths = [1 + (number + row) % 3 for row in range(number % 5 + 1)]
        return number, predict(http, "window", inputs=as_rows(widths, 3 + number % 7))["outputs"]

    with ThreadPoolExecutor(16) as threads:
        answers = dict(threads.map(ask, range(64)))
    for number, outputs in answers.items():
        widths = [1 + (number + row) % 3 for row in range(number % 5 + 1)]
        assert outputs["width"] == widths
        assert {len(row) for row in outputs["kept"]} == {max(widths)}
    refused = http.post("/v1/models/window:predict", json={"inputs": [[1.0, 2.0]]})
    assert (refused.status_code, refused.json()) == (
        500,
        {"error": "the model gave no usable prediction for this input"},
    )


def test_a_model_that_takes_no_short_rows_has_answered_longer_ones(stack: Stack) -> None:
    assert stack.deployment.registry.active("window").is_proved


def test_rows_that_are_padded_to_the_longest_of_them_are_one_call(http: httpx.Client) -> None:
    # in micro-batches of 8, the first would be 2 wide and the last 5
    widths = [2] * 19 + [5]
    outputs = predict(http, "window", inputs=as_rows(widths, 6))["outputs"]
    assert outputs["width"] == widths
    assert [len(row) for row in outputs["kept"]] == [5] * 20
    tensor = {"name": "x", "shape": [20, 6], "datatype": "FP32", "data": as_rows(widths, 6)}
    answer = http.post("/v2/models/window/infer", content=json.dumps({"inputs": [tensor]})).text
    assert [(one["name"], one["shape"]) for one in read(answer)["outputs"]] == [("kept", [20, 5]), ("width", [20])]


def test_a_model_without_rows_says_so_to_those_who_ask_for_rows(stack: Stack, http: httpx.Client) -> None:
    model = "half_plus_two_tf2"
    answer = http.post("/predict", json={"model": model, "instances": [{"x": 2.0}]}).json()
    assert "the model computes no rows" in str(answer)
    tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [2.0]}
    answer = http.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]})
    assert (answer.status_code, answer.json()) == (
        400, {"error": f"model '{model}' computes no rows: call its signatures under /v1"},
    )  # fmt: skip
    shown = stack.cli("models", "show", model).stdout
    assert "'x' has a fixed row dimension of 1" in shown
    assert "only clients of /v1 can call it" in shown


def test_the_command_line_shows_every_signature(stack: Stack) -> None:
    done = stack.cli("models", "show", "half_plus_two")
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "signature serving_default predict, x float[-1, 1] → y float[-1, 1]" in lines
    assert "signature classify_x_to_y classify, inputs string[-1] → scores float[-1, 1]" in lines
