"""`/v1` and `/v2` with clients that nobody here wrote, over a real worker and real TensorFlow models."""

from __future__ import annotations

import asyncio
import gzip
import json
import signal
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import ovmsclient
import pytest

from app.api.limits import MAX_BODY_BYTES
from tests.support.lazy_imports import LazyModule
from tests.support.models import dense_predictions, export_models
from tests.support.stack import Stack
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration
triton_http = LazyModule("tritonclient.http")
utils = LazyModule("tritonclient.utils")

MODELS = """
[models.dense]
path = "dense"
versions = [2, 3]
realtime = { timeout_ms = 10000, max_micro_batch = 100 }
[models.quick]
path = "quick"
realtime = { timeout_ms = 300, default = 0.0 }
[models.counted]
path = "regress"
realtime = { timeout_ms = 10000 }
"""
OTHERS = ("mixed", "several", "fussy", "echo", "raw", "classify", "regress")
ROWS = np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32)
X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("protocols")
    kinds = {folder / "dense" / str(version): f"dense:3:{version}" for version in (1, 2, 3)}
    kinds |= {folder / "quick" / "1": "dense:3:1"}
    export_models(kinds | {folder / name / "1": name for name in OTHERS})
    (folder / "quick" / "2").mkdir()
    toml = MODELS + "".join(
        f'[models.{name}]\npath = "{name}"\nrealtime = {{ timeout_ms = 10000 }}\n' for name in OTHERS
    )
    with Stack(folder, toml, with_tensorflow=True) as running:
        running.start("realtime", "api")
        running.wait_ready()
        # dense has two, and of quick's two one is refused
        wait_for(lambda: available(running) == len(running.settings.models) + 1, "the versions to be held", 90)
        yield running


def available(stack: Stack) -> int:
    """How many versions the worker says that it holds."""
    answers = [httpx.get(f"{stack.url}/v1/models/{model}").json() for model in stack.settings.models]
    return sum(one["state"] == "AVAILABLE" for answer in answers for one in answer["model_version_status"])


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.url, timeout=20) as client:
        yield client


@pytest.fixture
def client(stack: Stack) -> Any:
    return ovmsclient.make_http_client(stack.url.removeprefix("http://"))


def error_of(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    return str(body["error"])


def predict(http: httpx.Client, model: str, body: Any) -> Any:
    content = body if isinstance(body, str) else json.dumps(body)
    response = http.post(f"/v1/models/{model}:predict", content=content)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.slow
def test_the_client_of_tensorflow_serving_predicts(client: Any) -> None:
    # it always names a version, and 0 unless told another
    answers = client.predict({"x": X}, "dense")
    np.testing.assert_allclose(answers[:, 0], dense_predictions(X, seed=3), rtol=1e-5)
    outputs = client.predict({"number": [[1.0, 2.0]], "count": [7], "text": ["ü"], "flag": [True]}, "echo")
    assert {name: value.tolist() for name, value in outputs.items()} == {
        "same_number": [[1.0, 2.0]], "same_count": [7], "same_text": ["ü"], "same_flag": [True],
    }  # fmt: skip


@pytest.mark.slow
def test_many_small_requests_at_once_get_their_own_answers(stack: Stack) -> None:
    """By two versions, as tensors and as features, a third of them wrong: they share messages, and nothing else."""
    versions, wide = (2, 3), [[0.0] * 4]

    async def ask() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=30)
        async with httpx.AsyncClient(base_url=stack.url, timeout=30, limits=limits) as http:
            asked = []
            for number, row in enumerate(ROWS):
                path = f"/v1/models/dense/versions/{versions[number % 2]}:predict"
                asked += [
                    http.post(path, json={"instances": [row.tolist()]}),
                    http.post(
                        "/predict", json={"model": "quick", "timeout_ms": 20000, "instances": [{"x": row.tolist()}]}
                    ),
                    http.post(path, json={"instances": wide}),
                ]
            return await asyncio.gather(*asked)

    replies = asyncio.run(ask())
    for number, row in enumerate(ROWS):
        tensors, instances, refused = replies[3 * number : 3 * number + 3]
        expected = dense_predictions(row[None], seed=versions[number % 2])[0]
        assert tensors.json()["predictions"] == [[pytest.approx(expected, rel=1e-4)]]
        [item] = instances.json()["predictions"]
        assert item["prediction"] == pytest.approx(dense_predictions(row[None], seed=1)[0], rel=1e-4)
        assert refused.status_code == 400


@pytest.mark.slow
def test_each_version_is_computed_by_that_version(client: Any) -> None:
    for version in (2, 3):
        answers = client.predict({"x": X}, "dense", model_version=version)
        np.testing.assert_allclose(answers[:, 0], dense_predictions(X, seed=version), rtol=1e-5)


def test_the_client_hears_of_an_unknown_version_and_model(client: Any) -> None:
    for model, version, servable in (("dense", 50, "Specific(dense, 50)"), ("nobody", 0, "Latest(nobody)")):
        with pytest.raises(ovmsclient.ModelNotFoundError) as refused:
            client.predict({"x": X}, model, model_version=version)
        assert f"Servable not found for request: {servable}" in str(refused.value)
    with pytest.raises(ovmsclient.InvalidInputError, match=r"Missing named input: x in 'inputs' object."):
        client.predict({"y": X}, "dense")


def test_a_version_that_is_only_on_disk_is_not_loaded_for_a_request(http: httpx.Client) -> None:
    response = http.post("/v1/models/dense/versions/1:predict", json={"instances": X.tolist()})
    assert error_of(response, 404) == "Servable not found for request: Specific(dense, 1)"


def test_the_client_reads_status_and_metadata(client: Any) -> None:
    status = client.get_model_status("dense")
    assert {version: one["state"] for version, one in status.items()} == {2: "AVAILABLE", 3: "AVAILABLE"}
    with pytest.raises(ovmsclient.ModelNotFoundError, match="Could not find any versions of model nobody"):
        client.get_model_status("nobody")
    with pytest.raises(ovmsclient.ModelNotFoundError, match="Could not find version 9 of model dense"):
        client.get_model_status("dense", 9)
    metadata = client.get_model_metadata("dense", 2)
    assert metadata["model_spec"] == {"name": "dense", "signature_name": "", "version": "2"}
    default = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert [dim["size"] for dim in default["inputs"]["x"]["tensor_shape"]["dim"]] == ["-1", "3"]
    assert [dim["size"] for dim in default["outputs"]["y"]["tensor_shape"]["dim"]] == ["-1", "1"]


def test_a_refused_version_has_ended_with_its_reason(http: httpx.Client) -> None:
    refused, active = sorted(
        http.get("/v1/models/quick").json()["model_version_status"], key=lambda one: one["state"] == "AVAILABLE"
    )
    assert (active["version"], active["state"], active["status"]["error_code"]) == ("1", "AVAILABLE", "OK")
    assert (refused["version"], refused["state"], refused["status"]["error_code"]) == ("2", "END", "UNKNOWN")
    assert refused["status"]["error_message"].startswith("quick/2 holds no known model")
    assert http.get("/v1/models/quick/versions/2").json()["model_version_status"] == [refused]


def test_rows_and_columns_give_what_the_prediction_api_gives(http: httpx.Client) -> None:
    ours = http.post("/predict", json={"model": "dense", "instances": [{"x": row} for row in X.tolist()]}).json()
    expected = [[item["prediction"]] for item in ours["predictions"]]
    for body, key in (
        ({"instances": X.tolist()}, "predictions"),
        ({"instances": [{"x": row} for row in X.tolist()], "signature_name": "serving_default"}, "predictions"),
        ({"inputs": X.tolist()}, "outputs"),
        ({"inputs": {"x": X.tolist()}}, "outputs"),
    ):
        np.testing.assert_allclose(predict(http, "dense", body)[key], expected, rtol=1e-6)


def test_a_model_with_named_inputs_takes_objects_and_columns(http: httpx.Client) -> None:
    rows = [{"carat": 0.5, "depth": 60, "cut": "Ideal"}, {"carat": 1, "depth": 61.5, "cut": "Good"}]
    assert predict(http, "mixed", {"instances": rows}) == {"predictions": [[140.0], [181.5]]}
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    assert predict(http, "mixed", {"inputs": columns}) == {"outputs": [[140.0], [181.5]]}


def test_several_outputs_are_objects_by_name(http: httpx.Client) -> None:
    assert predict(http, "several", {"instances": [[1, 2, 3, 4]]}) == {
        "predictions": [{"embedding": [2.0, 4.0, 6.0], "label": "über", "score": [10.0]}]
    }


def test_more_rows_than_a_micro_batch_come_back_in_order(http: httpx.Client) -> None:
    x = np.random.default_rng(1).normal(size=(777, 3)).astype(np.float32)
    answers = predict(http, "dense", {"inputs": x.tolist()})["outputs"]
    np.testing.assert_allclose(np.array(answers)[:, 0], dense_predictions(x, seed=3), rtol=1e-4, atol=1e-5)


def test_nan_and_infinity_go_through_the_model_and_back(http: httpx.Client) -> None:
    body = '{"inputs": {"number": [[NaN, -Infinity]], "count": [1], "text": ["a"], "flag": [false]}}'
    outputs = predict(http, "echo", body)["outputs"]
    assert str(outputs["same_number"]) == "[[nan, -inf]]"
    assert str(predict(http, "fussy", {"instances": [[1.0, 0.0]]})) == "{'predictions': [-inf]}"


def test_bytes_travel_in_base_64(http: httpx.Client, client: Any) -> None:
    assert client.predict({"image": [b"\xff\xd8\x01"]}, "raw")["length"].tolist() == [3]
    image = b64encode(b"\xff\xd8\x00").decode()
    assert predict(http, "raw", {"instances": [{"b64": image}]})["predictions"][0]["length"] == 3
    assert predict(http, "raw", {"instances": [{"image": {"b64": b64encode(b"abc").decode()}}]}) == {
        "predictions": [{"image_bytes": {"b64": "YWJj"}, "length": 3}]
    }


def test_examples_are_classified_and_regressed(http: httpx.Client) -> None:
    body = {"examples": [{"x": [0.25, 2.0]}, {}], "context": {"y": 1, "t": "a", "z": {"b64": "/w=="}}}
    answer = http.post("/v1/models/classify:classify", json=body)
    assert answer.json() == {"results": [[["first", 0.25], ["second", 2.0]], [["first", 0.0], ["second", 0.0]]]}
    answer = http.post("/v1/models/regress/versions/1:regress", json=body)
    assert answer.text == '{"results":[2.25,0.0]}'
    message = error_of(http.post("/v1/models/dense:regress", json=body), 400)
    assert message == "No regression inputs found in SignatureDef: x"


def test_a_gzipped_body_is_read(http: httpx.Client) -> None:
    body = gzip.compress(json.dumps({"instances": X.tolist()}).encode())
    answer = http.post("/v1/models/dense:predict", content=body, headers={"Content-Encoding": "gzip"})
    assert len(answer.json()["predictions"]) == 5
    bomb = gzip.compress(b" " * (MAX_BODY_BYTES + 1))
    answer = http.post("/v1/models/dense:predict", content=bomb, headers={"Content-Encoding": "gzip"})
    assert "over 8388608 bytes" in error_of(answer, 413)
    for content, encoding, status in (
        (b"no gzip", "gzip", 400), (body[:-9], "gzip", 400), (body + body, "gzip", 400), (b"{}", "br", 415),
    ):  # fmt: skip
        answer = http.post("/v1/models/dense:predict", content=content, headers={"Content-Encoding": encoding})
        error_of(answer, status)


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v1/foo", 400, "Malformed request: GET /v1/foo"),
        ("PUT", "/v1/models/dense:predict", 400, "Malformed request: PUT /v1/models/dense:predict"),
        ("GET", "/v1/models", 400, "Missing model name in request."),
        ("GET", "/v1/models/nobody/metadata", 404, "Servable not found for request: Latest(nobody)"),
        ("GET", "/v1/models/dense/versions/9/metadata", 404, "Servable not found for request: Specific(dense, 9)"),
        ("GET", "/v1/models/dense/labels/stable", 400, "Unrecognized servable version label: stable"),
        ("POST", "/v1/models/dense/labels/canary:predict", 400, "Unrecognized servable version label: canary"),
        ("POST", "/v1/models/dense:predict", 400, "Missing 'inputs' or 'instances' key"),
    ],
)
def test_what_cannot_be_answered_is_told_in_the_words_of_tensorflow_serving(
    http: httpx.Client, method: str, path: str, status: int, message: str
) -> None:
    assert error_of(http.request(method, path, content=b"{}"), status) == message


def test_the_models_own_failure_tells_nothing_of_its_insides(http: httpx.Client) -> None:
    response = http.post("/v1/models/fussy:predict", json={"instances": [[-1.0, 2.0]]})
    assert error_of(response, 500) == "the model gave no usable prediction for this input"


def test_a_body_over_the_limit_is_refused_while_it_arrives(http: httpx.Client) -> None:
    for path in ("/v1/models/dense:predict", "/v2/models/dense/infer"):
        assert "over 8388608 bytes" in error_of(http.post(path, content=b" " * (MAX_BODY_BYTES + 1)), 413)


@pytest.fixture
def triton(stack: Stack) -> Iterator[Any]:
    client = triton_http.InferenceServerClient(stack.url.removeprefix("http://"))
    yield client
    client.close()


def tensor(name: str, values: np.ndarray, *, binary: bool = True) -> Any:
    item = triton_http.InferInput(name, list(values.shape), utils.np_to_triton_dtype(values.dtype))
    return item.set_data_from_numpy(values, binary_data=binary)


def test_the_client_of_triton_hears_that_server_and_models_are_ready(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.get_server_metadata()["extensions"][0] == "binary_tensor_data"
    assert triton.is_model_ready("dense")
    assert triton.is_model_ready("dense", "2")
    assert not triton.is_model_ready("dense", "9")
    assert not triton.is_model_ready("nobody")
    assert triton.get_model_metadata("dense") == {
        "name": "dense",
        "versions": ["2", "3"],
        "platform": "tensorflow_savedmodel",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
    }
    assert triton.get_model_metadata("dense", "2")["versions"] == ["2"]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_the_client_of_triton_infers_in_binary_and_in_json(triton: Any, binary_in: bool, binary_out: bool) -> None:
    values = {
        "number": np.array([[1.5, np.nan], [np.inf, -2.25]], np.float32),
        "count": np.array([2**40, -1], np.int64),
        "text": np.array(["ü".encode(), b"b"], dtype=object),
        "flag": np.array([True, False]),
    }
    outputs = [triton_http.InferRequestedOutput(f"same_{name}", binary_data=binary_out) for name in values]
    inputs = [tensor(name, one, binary=binary_in) for name, one in values.items()]
    result = triton.infer("echo", inputs, outputs=outputs, request_id="r-1")
    assert result.get_response()["id"] == "r-1"
    assert result.get_response()["model_version"] == "1"
    for name in ("number", "count", "flag"):
        np.testing.assert_array_equal(result.as_numpy(f"same_{name}"), values[name])
    texts = result.as_numpy("same_text").tolist()
    assert [one if isinstance(one, bytes) else one.encode() for one in texts] == ["ü".encode(), b"b"]


def test_the_client_of_triton_infers_by_version_and_in_packed_bodies(triton: Any) -> None:
    for version in ("2", "3"):
        result = triton.infer("dense", [tensor("x", X)], model_version=version, request_compression_algorithm="gzip")
        assert result.get_response()["model_version"] == version
        np.testing.assert_allclose(result.as_numpy("y")[:, 0], dense_predictions(X, seed=int(version)), rtol=1e-5)
    result = triton.infer("dense", [tensor("x", X)], request_compression_algorithm="deflate")
    assert result.get_response()["model_version"] == "3"


def test_the_client_of_triton_hears_what_is_wrong(triton: Any) -> None:
    refusals = [
        ("404", "Request for unknown model: 'nobody' is not found", "nobody", [tensor("x", X)], ""),
        ("404", "Request for unknown model: 'dense' version 1 is not found", "dense", [tensor("x", X)], "1"),
        (
            "400",
            "unexpected inference input 'z' for model 'dense'; inputs for model 'dense': x missing",
            "dense",
            [tensor("z", X)],
            "",
        ),
        (
            "400",
            "inference input 'x' data-type is 'FP64', but model 'dense' expects 'FP32'",
            "dense",
            [tensor("x", X.astype(np.float64))],
            "",
        ),
        (
            "400",
            "unexpected shape for input 'x' for model 'dense'. Expected [-1,3], got [5,2]",
            "dense",
            [tensor("x", X[:, :2])],
            "",
        ),
        ("500", "the model gave no usable prediction for this input", "fussy", [tensor("x", -(X[:, :2] ** 2))], ""),
    ]
    for status, message, model, inputs, version in refusals:
        with pytest.raises(utils.InferenceServerException) as refused:
            triton.infer(model, inputs, model_version=version)
        assert (refused.value.status(), refused.value.message()) == (status, message)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/dense/infer", 405),
        ("GET", "/v2/models/dense/versions/x", 400),
        ("GET", "/v2/models/dense/versions/0", 400),
        ("POST", "/v2/models/dense/infer", 400),
    ],
)
def test_errors_under_v2_are_those_of_the_protocol(http: httpx.Client, method: str, path: str, status: int) -> None:
    error_of(http.request(method, path, content=b"[" * 2000), status)


def test_requests_are_counted_by_rows_and_mistakes_are_not(http: httpx.Client) -> None:
    def total() -> int:
        return int(http.get("/hit-rate?model=counted&window_s=3600").json()["outcomes"]["computed"])

    assert http.post("/v1/models/counted:regress", json={"examples": [1]}).status_code == 400
    assert http.post("/v1/models/counted:regress", json={"examples": [{}, {}, {}]}).status_code == 200
    wait_for(lambda: total() > 0, "the counters", 5)
    assert total() == 3


def test_a_silent_worker_is_a_deadline_and_a_dead_one_an_outage(stack: Stack, http: httpx.Client) -> None:
    body = {"instances": X.tolist()}
    wait_for(lambda: http.post("/v1/models/quick:predict", json=body).status_code == 200, "an answer in time", 20)
    worker = stack.processes["realtime"]
    worker.send_signal(signal.SIGSTOP)
    try:
        response = http.post("/v1/models/quick:predict", json=body)
        # no default takes its place: the protocol could not say so
        assert error_of(response, 504) == "the prediction was not computed in time"
    finally:
        worker.send_signal(signal.SIGCONT)
    wait_for(lambda: http.post("/v1/models/quick:predict", json=body).status_code == 200, "the worker", 20)
    stack.stop("realtime", signal.SIGTERM)

    def refused(path: str, sent: dict[str, Any]) -> httpx.Response | None:
        # now and then the breaker lets a request through to see whether a worker is back
        response = http.post(path, json=sent)
        return response if response.status_code == 503 else None

    response = wait_for(lambda: refused("/v1/models/quick:predict", body), "the breaker", 30)
    assert error_of(response, 503).startswith("no worker answers")
    assert int(response.headers["retry-after"]) >= 1
    states = {one["state"] for one in http.get("/v1/models/quick").json()["model_version_status"]}
    assert states == {"END"}
    assert "no worker holds it" in error_of(http.get("/v2/models/quick/ready"), 400)
    inputs = [{"name": "x", "shape": [5, 3], "datatype": "FP32", "data": X.tolist()}]
    response = wait_for(lambda: refused("/v2/models/quick/infer", {"inputs": inputs}), "the breaker", 30)
    assert error_of(response, 503).startswith("no worker answers")
    stack.start("realtime")
    wait_for(lambda: http.post("/v1/models/quick:predict", json=body).status_code == 200, "the worker", 60)
