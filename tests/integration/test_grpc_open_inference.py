"""The Open Inference Protocol over gRPC with Triton's client, over a real worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.support.plain_onnx import write_sum
from tests.support.ports import free_port
from tests.support.stack import Stack
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration

X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("grpc")
    for version in ("1", "2"):
        write_sum(folder / "sum" / version, 3)
    toml = f'[grpc]\nport = {free_port()}\n[models.sum]\npath = "sum"\nversions = [1, 2]\n'
    with Stack(folder, f"{toml}realtime = {{ timeout_ms = 10000, max_micro_batch = 100 }}\n") as running:
        running.start("realtime", "api")
        running.wait_ready()
        yield running


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[Any]:
    opened = triton.InferenceServerClient(f"127.0.0.1:{stack.settings.grpc.port}")
    wait_for(lambda: opened.is_model_ready("sum", "1"), "the older version to be held", 20)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def stub(stack: Stack) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{stack.settings.grpc.port}") as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def tensor(values: np.ndarray, name: str = "x", datatype: str = "FP32") -> Any:
    return triton.InferInput(name, list(values.shape), datatype).set_data_from_numpy(values)


def test_the_server_and_its_models_are_described(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("sum")
    assert client.is_model_ready("sum", "1")
    assert not client.is_model_ready("sum", "9")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata().name == "forecache"
    described = client.get_model_metadata("sum")
    assert (list(described.versions), described.platform) == (["1", "2"], "onnxruntime_onnx")
    assert [(one.name, one.datatype, list(one.shape)) for one in described.inputs] == [("x", "FP32", [-1, 3])]
    assert list(client.get_model_metadata("sum", "1").versions) == ["1"]


def test_tensors_come_and_go_as_bytes(client: Any) -> None:
    answer = client.infer("sum", [tensor(X)], request_id="seven")
    [output] = answer.get_response().outputs
    np.testing.assert_allclose(np.ravel(answer.as_numpy(output.name)), X.sum(axis=1), rtol=1e-5)
    found = answer.get_response()
    assert (found.model_name, found.model_version, found.id) == ("sum", "2", "seven")
    wanted = [triton.InferRequestedOutput(output.name)]
    older = client.infer("sum", [tensor(X)], model_version="1", outputs=wanted)
    assert older.get_response().model_version == "1"
    # more rows than a micro-batch
    many = np.ones((250, 3), np.float32)
    assert client.infer("sum", [tensor(many)]).as_numpy(output.name).sum() == 750


def by_element(**contents: Any) -> Any:
    request = service_pb2.ModelInferRequest(model_name="sum")
    item = request.inputs.add(name="x", datatype="FP32", shape=X.shape)
    for field, values in contents.items():
        getattr(item.contents, field).extend(values)
    return request


def test_tensors_come_by_element(stub: Any) -> None:
    answer = stub.ModelInfer(by_element(fp32_contents=X.ravel()), timeout=10)
    np.testing.assert_allclose(np.frombuffer(answer.raw_output_contents[0], "<f4"), X.sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("contents", "raw", "words"),
    [
        ({"fp32_contents": [1.0]}, [], "unexpected total byte size 4 for input 'x', expecting 60"),
        ({}, [bytes(56)], "unexpected total byte size 56 for input 'x', expecting 60"),
        ({}, [bytes(60)] * 2, "expected 1 raw_input_contents but got 2"),
        (
            {"fp32_contents": [1.0]},
            [bytes(60)],
            "contents field must not be specified when using raw_input_contents for 'x' for model 'sum'",
        ),
        ({"fp64_contents": [1.0]}, [], "input 'x' has fp64_contents, but its datatype is FP32"),
        (
            {"fp32_contents": [1.0]},
            [bytes(60)] * 2,
            "contents field must not be specified when using raw_input_contents for 'x' for model 'sum'",
        ),
    ],
)
def test_contents_that_do_not_fit_are_refused(stub: Any, contents: Any, raw: list[bytes], words: str) -> None:
    request = by_element(**contents)
    request.raw_input_contents.extend(raw)
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(request, timeout=10)
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, words)


@pytest.mark.parametrize(
    ("model", "version", "sent", "code", "words"),
    [
        ("nobody", "", tensor(X), "NOT_FOUND", "Request for unknown model: 'nobody' is not found"),
        ("sum", "9", tensor(X), "NOT_FOUND", "Request for unknown model: 'sum' version 9 is not found"),
        ("sum", "one", tensor(X), "INVALID_ARGUMENT", "failed to get model version from specified version string"),
        ("sum", "", tensor(X, "y"), "INVALID_ARGUMENT", "unexpected inference input 'y' for model 'sum'"),
        ("sum", "", tensor(X.astype(float), datatype="FP64"), "INVALID_ARGUMENT", "data-type is 'FP64'"),
        ("sum", "", tensor(X[:, :2]), "INVALID_ARGUMENT", "Expected [-1,3], got [5,2]"),
    ],
)
def test_a_mistake_is_told_in_tritons_words(
    client: Any, model: str, version: str, sent: Any, code: str, words: str
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        client.infer(model, [sent], model_version=version)
    assert refused.value.status() == f"StatusCode.{code}"
    assert words in refused.value.message()
