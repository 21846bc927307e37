"""What Triton's client and its examples ask besides tensors, by both doors, over a real worker."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from functools import partial
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from tests.support.lazy_imports import LazyModule
from tests.support.plain_onnx import write_sum, write_times
from tests.support.ports import free_port
from tests.support.stack import Stack
from tests.support.triton_models import write_identity, write_image_classes, write_simple, write_simple_string
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration
triton = LazyModule("tritonclient.grpc")
triton_aio = LazyModule("tritonclient.grpc.aio")
triton_http = LazyModule("tritonclient.http")
model_config_pb2 = LazyModule("tritonclient.grpc.model_config_pb2")
service_pb2 = LazyModule("tritonclient.grpc.service_pb2")
service_pb2_grpc = LazyModule("tritonclient.grpc.service_pb2_grpc")
utils = LazyModule("tritonclient.utils")

MODELS = {
    "simple": write_simple,
    "simple_string": write_simple_string,
    "simple_identity": write_identity,
    "image": write_image_classes,
    "column": lambda folder: write_times(folder, 2.0),
}
NUMBERS, ONES = np.arange(16, dtype=np.int32).reshape(1, 16), np.ones((1, 16), np.int32)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("triton")
    toml = f"[grpc]\nport = {free_port()}\n"
    for name, write in MODELS.items():
        write(folder / name / "1")
        toml += f'[models.{name}]\npath = "{name}"\nrealtime = {{ timeout_ms = 10000, max_micro_batch = 100 }}\n'
    for version in ("1", "2"):
        write_sum(folder / "sum" / version, 3)
    toml += '[models.sum]\npath = "sum"\nversions = [1, 2]\nrealtime = { timeout_ms = 10000, max_micro_batch = 100 }\n'
    (folder / "column" / "2").mkdir()
    (folder / "column" / "2" / "model.onnx").write_text("no model")
    with Stack(folder, toml) as running:
        running.start("realtime", "api")
        running.wait_ready()
        # on a busy machine the first heartbeats after the loading may be late, and the API refuses meanwhile
        body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [0, 0, 0]}]}
        wait_for(lambda: httpx.post(f"{running.url}/v2/models/sum/infer", json=body).status_code != 503, "an answer")
        yield running


@pytest.fixture(scope="module")
def address(stack: Stack) -> str:
    return f"127.0.0.1:{stack.settings.grpc.port}"


@pytest.fixture(scope="module")
def by_grpc(address: str) -> Iterator[Any]:
    with triton.InferenceServerClient(address) as opened:
        yield opened


@pytest.fixture
def by_http(stack: Stack) -> Iterator[Any]:
    opened = triton_http.InferenceServerClient(f"127.0.0.1:{stack.api_port}")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def http(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{stack.api_port}") as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(address: str) -> Iterator[Any]:
    with grpc.insecure_channel(address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def tensor(name: str, values: np.ndarray, datatype: str, door: Any = triton) -> Any:
    return door.InferInput(name, list(values.shape), datatype).set_data_from_numpy(values)


def pair(first: np.ndarray, second: np.ndarray, datatype: str = "INT32", door: Any = triton) -> list[Any]:
    return [tensor("INPUT0", first, datatype, door), tensor("INPUT1", second, datatype, door)]


SPENT = ("queue", "compute_input", "compute_infer", "compute_output")


def test_sums_and_differences_and_then_the_statistics(by_grpc: Any, by_http: Any) -> None:
    before = by_grpc.get_inference_statistics("simple").model_stats[0]
    outputs = [triton.InferRequestedOutput("OUTPUT0"), triton.InferRequestedOutput("OUTPUT1")]
    answer = by_grpc.infer("simple", pair(NUMBERS, ONES), outputs=outputs, headers={"test": "1"})
    assert (answer.as_numpy("OUTPUT0") == NUMBERS + 1).all()
    assert (answer.as_numpy("OUTPUT1") == NUMBERS - 1).all()
    many = np.repeat(NUMBERS, 250, axis=0)
    by_http.infer("simple", pair(many, many, door=triton_http))

    def counted() -> tuple[int, int, int]:
        [now] = by_grpc.get_inference_statistics("simple", "1").model_stats
        requests = now.inference_stats.success.count - before.inference_stats.success.count
        return now.inference_count - before.inference_count, now.execution_count - before.execution_count, requests

    # the second request took three micro-batches
    wait_for(lambda: counted() == (251, 4, 2), "the counts, which processes add once a second", 10)
    [by_rest] = by_http.get_inference_statistics("simple")["model_stats"]
    assert (by_rest["name"], by_rest["version"]) == ("simple", "1")
    assert by_rest["last_inference"] > before.last_inference
    assert by_rest["inference_stats"]["success"]["ns"] > 0
    assert by_rest["inference_stats"]["fail"] == {"count": 0, "ns": 0}
    spent = {name: by_rest["inference_stats"][name]["ns"] for name in SPENT}
    assert all(spent.values()), spent
    # calls of one request run at the same time, so all together may take longer than the requests
    assert spent["queue"] < by_rest["inference_stats"]["success"]["ns"]
    everything = {one["name"] for one in by_http.get_inference_statistics()["model_stats"]}
    assert everything == {one.name for one in by_grpc.get_inference_statistics().model_stats} == {*MODELS, "sum"}


def test_texts_with_zero_bytes_and_texts_of_numbers(by_grpc: Any) -> None:
    texts = np.array([b"he\x00llo"] * 16, object).reshape(1, 16)
    answer = by_grpc.infer("simple_identity", [tensor("INPUT0", texts, "BYTES")])
    assert (answer.as_numpy("OUTPUT0") == texts).all()
    numbers = np.array([str(n).encode() for n in range(16)], object).reshape(1, 16)
    answer = by_grpc.infer("simple_string", pair(numbers, numbers, "BYTES"))
    assert answer.as_numpy("OUTPUT0").ravel().tolist() == [str(2 * n).encode() for n in range(16)]


@pytest.mark.parametrize("door", ["by_grpc", "by_http"])
def test_the_server_and_its_models_are_described(request: pytest.FixtureRequest, door: str) -> None:
    client = request.getfixturevalue(door)
    as_json = {} if door == "by_http" else {"as_json": True}
    assert client.is_server_live(headers={"test": "1"})
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    named = client.get_server_metadata(**as_json)
    assert named["name"] == "forecache"
    assert {"classification", "model_configuration", "statistics"} < set(named["extensions"])
    assert client.get_model_metadata("simple", **as_json)["name"] == "simple"
    for ask in (client.get_model_metadata, client.get_model_config, client.get_inference_statistics):
        with pytest.raises(utils.InferenceServerException, match="Request for unknown model"):
            ask("wrong_model_name")


def test_a_models_configuration_is_in_tritons_words(by_grpc: Any, by_http: Any) -> None:
    config = by_grpc.get_model_config("image").config
    assert (config.name, config.platform, config.backend) == ("image", "onnxruntime_onnx", "onnxruntime")
    assert (config.max_batch_size, list(config.version_policy.specific.versions)) == (4096, [1])
    [image], [scores] = config.input, config.output
    assert image.data_type == model_config_pb2.TYPE_FP32
    assert (list(image.dims), image.format) == ([4, 4, 3], model_config_pb2.ModelInput.FORMAT_NHWC)
    assert (list(scores.dims), scores.label_filename) == ([3], "labels.txt")
    by_rest = by_http.get_model_config("image", "1")
    assert by_rest["input"] == [{"name": "image", "data_type": "TYPE_FP32", "dims": [4, 4, 3], "format": "FORMAT_NHWC"}]
    # one value a row: the protocol's clients send [rows, 1], and the model gets [rows]
    [x] = by_grpc.get_model_config("column").config.input
    assert (list(x.dims), x.HasField("reshape"), list(x.reshape.shape)) == ([1], True, [])


@pytest.mark.parametrize("binary", [True, False])
def test_classes_come_with_their_labels(by_grpc: Any, by_http: Any, binary: bool) -> None:
    picture = np.zeros((2, 4, 4, 3), np.float32)
    picture[0, ..., 1], picture[1, ..., 2] = 0.5, 0.25
    wanted = [[b"0.500000:1:dog", b"0.000000:0:cat"], [b"0.250000:2:bird", b"0.000000:0:cat"]]
    output = triton_http.InferRequestedOutput("scores", binary_data=binary, class_count=2)
    answer = by_http.infer("image", [tensor("image", picture, "FP32", triton_http)], outputs=[output])
    assert [[bytes(one) if binary else one.encode() for one in row] for row in answer.as_numpy("scores")] == wanted
    answer = by_grpc.infer(
        "image", [tensor("image", picture, "FP32")], outputs=[triton.InferRequestedOutput("scores", class_count=2)]
    )
    assert answer.as_numpy("scores").tolist() == wanted


def test_the_index_tells_every_version_and_why_one_does_not_serve(by_grpc: Any, http: httpx.Client) -> None:
    def refused() -> bool:
        return ("column", "2") in {(one.name, one.version) for one in by_grpc.get_model_repository_index().models}

    wait_for(refused, "the version that is no model", 20)
    index = {(one.name, one.version): one for one in by_grpc.get_model_repository_index().models}
    assert {name for name, version in index if version == "1"} == {*MODELS, "sum"}
    assert {index[name, "1"].state for name in MODELS} == {"READY"}
    assert index["column", "2"].state == "UNAVAILABLE"
    assert index["column", "2"].reason
    by_rest = http.post("/v2/repository/index").json()
    assert by_rest[0] == {"name": "simple", "version": "1", "state": "READY", "reason": ""}
    ready = http.post("/v2/repository/index", json={"ready": True}).json()
    assert {one["state"] for one in ready} == {"READY"}
    assert http.post("/v2/repository/index", json={"ready": "yes"}).status_code == 400


def test_nobody_loads_or_unloads_a_model_from_outside(by_grpc: Any, by_http: Any) -> None:
    for client, status in ((by_grpc, "StatusCode.UNIMPLEMENTED"), (by_http, "400")):
        for call, verb in ((client.load_model, "load"), (client.unload_model, "unload")):
            with pytest.raises(
                utils.InferenceServerException, match=f"failed to {verb} 'simple', explicit model"
            ) as refused:
                call("simple")
            assert refused.value.status() == status
        assert client.is_model_ready("simple")


def test_missing_extensions_are_named(by_grpc: Any, by_http: Any, http: httpx.Client) -> None:
    for call in (
        by_grpc.get_system_shared_memory_status,
        by_grpc.unregister_cuda_shared_memory,
        by_grpc.get_trace_settings,
        by_grpc.get_log_settings,
        partial(by_grpc.register_system_shared_memory, "region", "/key", 64),
    ):
        with pytest.raises(utils.InferenceServerException, match="extension is not supported") as refused:
            call()
        assert refused.value.status() == "StatusCode.UNIMPLEMENTED"
    with pytest.raises(utils.InferenceServerException, match="the shared memory extension is not supported"):
        by_http.register_system_shared_memory("region", "/key", 64)
    shared = pair(NUMBERS, ONES)
    for one in shared:
        one.set_shared_memory("region", NUMBERS.nbytes)
    with pytest.raises(utils.InferenceServerException) as refused:
        by_grpc.infer("simple", shared)
    both = [f"input 'INPUT{n}': the shared memory extensions are not supported" for n in range(2)]
    assert refused.value.message() == "; ".join(both)
    assert "generate extension" in http.post("/v2/models/simple/generate", json={}).json()["error"]


def test_a_clients_timeout_is_its_budget(stub: Any, http: httpx.Client) -> None:
    item = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    response = http.post("/v2/models/column/infer", json={"inputs": [item], "parameters": {"timeout": 1}})
    assert response.status_code == 504
    request = service_pb2.ModelInferRequest(model_name="column")
    request.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(1)
    request.parameters["timeout"].int64_param = 1
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(request)
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


# --- tensors ---

X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def test_every_version_is_described(by_grpc: Any) -> None:
    assert by_grpc.is_model_ready("sum")
    assert not by_grpc.is_model_ready("sum", "9")
    assert not by_grpc.is_model_ready("nobody")
    wait_for(lambda: by_grpc.is_model_ready("sum", "1"), "the older version to be held", 20)
    described = by_grpc.get_model_metadata("sum")
    assert (list(described.versions), described.platform) == (["1", "2"], "onnxruntime_onnx")
    assert [(one.name, one.datatype, list(one.shape)) for one in described.inputs] == [("x", "FP32", [-1, 3])]
    assert list(by_grpc.get_model_metadata("sum", "1").versions) == ["1"]


def test_tensors_come_and_go_as_bytes(by_grpc: Any) -> None:
    answer = by_grpc.infer("sum", [tensor("x", X, "FP32")], request_id="seven")
    [output] = answer.get_response().outputs
    np.testing.assert_allclose(np.ravel(answer.as_numpy(output.name)), X.sum(axis=1), rtol=1e-5)
    found = answer.get_response()
    assert (found.model_name, found.model_version, found.id) == ("sum", "2", "seven")
    wanted = [triton.InferRequestedOutput(output.name)]
    older = by_grpc.infer("sum", [tensor("x", X, "FP32")], model_version="1", outputs=wanted)
    assert older.get_response().model_version == "1"
    # more rows than a micro-batch
    many = np.ones((250, 3), np.float32)
    assert by_grpc.infer("sum", [tensor("x", many, "FP32")]).as_numpy(output.name).sum() == 750


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
        ("nobody", "", tensor("x", X, "FP32"), "NOT_FOUND", "Request for unknown model: 'nobody' is not found"),
        ("sum", "9", tensor("x", X, "FP32"), "NOT_FOUND", "Request for unknown model: 'sum' version 9 is not found"),
        (
            "sum",
            "one",
            tensor("x", X, "FP32"),
            "INVALID_ARGUMENT",
            "failed to get model version from specified",
        ),
        ("sum", "", tensor("y", X, "FP32"), "INVALID_ARGUMENT", "unexpected inference input 'y' for model 'sum'"),
        ("sum", "", tensor("x", X.astype(float), "FP64"), "INVALID_ARGUMENT", "data-type is 'FP64'"),
        ("sum", "", tensor("x", X[:, :2], "FP32"), "INVALID_ARGUMENT", "Expected [-1,3], got [5,2]"),
    ],
)
def test_a_mistake_is_told_in_tritons_words(
    by_grpc: Any, model: str, version: str, sent: Any, code: str, words: str
) -> None:
    with pytest.raises(utils.InferenceServerException) as refused:
        by_grpc.infer(model, [sent], model_version=version)
    assert refused.value.status() == f"StatusCode.{code}"
    assert words in refused.value.message()


# --- streams ---


def column(*values: float, name: str = "x", model: str = "column", request_id: str = "") -> Any:
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    request.inputs.add(name=name, datatype="FP32", shape=[len(values)])
    request.raw_input_contents.append(np.float32(values).tobytes())
    return request


def test_a_stream_answers_each_message_in_order(by_grpc: Any) -> None:
    done: queue.Queue[Any] = queue.Queue()
    by_grpc.start_stream(lambda result, error: done.put((result, error)))
    for n in range(50):
        rows = 1 if n % 2 else 200  # these take longer, and come first all the same
        sent = tensor("x", np.full(rows, n, np.float32), "FP32")
        by_grpc.async_stream_infer("column", [sent], request_id=str(n), sequence_id=7, sequence_start=n == 0)
    found = [done.get(timeout=20) for _ in range(50)]
    by_grpc.stop_stream()
    assert [error for _, error in found if error] == []
    assert [result.get_response().id for result, _ in found] == [str(n) for n in range(50)]
    assert [float(result.as_numpy("y")[0]) for result, _ in found] == [2.0 * n for n in range(50)]
    assert all(result.get_response().parameters["triton_final_response"].bool_param for result, _ in found)


def test_an_error_answers_its_message_and_the_stream_goes_on(stub: Any) -> None:
    sent = [
        column(1), column(2, name="z", request_id="wrong"), column(3, model="nobody"), column(4),
        service_pb2.ModelInferRequest(model_name="column", model_version="x"), column(5),
    ]  # fmt: skip
    found = list(stub.ModelStreamInfer(iter(sent), timeout=20))
    values = [
        np.frombuffer(one.infer_response.raw_output_contents[0], "<f4").tolist() if not one.error_message else None
        for one in found
    ]
    assert values == [[2.0], None, None, [8.0], None, [10.0]]
    assert found[1].infer_response.id == "wrong"
    assert found[1].error_message == (
        "unexpected inference input 'z' for model 'column'; inputs for model 'column': x missing"
    )
    assert found[2].error_message == "Request for unknown model: 'nobody' is not found"


def test_a_client_may_want_an_error_to_end_its_stream(stub: Any) -> None:
    call = stub.ModelStreamInfer(
        iter([column(1), column(2, name="z"), column(3)]), timeout=20, metadata=(("triton_grpc_error", "true"),)
    )
    assert not next(call).error_message
    with pytest.raises(grpc.RpcError) as ended:
        next(call)
    assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "unexpected inference input 'z'" in ended.value.details()


def test_bytes_that_are_no_message_are_one_error_of_a_stream(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        good = column(1).SerializeToString()
        found = list(map(service_pb2.ModelStreamInferResponse.FromString, call(iter([b"\xff", good]), timeout=20)))
        assert [one.error_message for one in found] == [
            "the bytes are no message inference.ModelInferRequest", "",
        ]  # fmt: skip
        assert list(call(iter([]), timeout=20)) == []


async def test_the_asyncio_client_infers_and_streams(address: str) -> None:
    async with triton_aio.InferenceServerClient(address) as client:
        answer = await client.infer("simple", pair(NUMBERS, ONES))
        assert (answer.as_numpy("OUTPUT0") == NUMBERS + 1).all()

        async def requests() -> Any:
            for _ in range(3):
                yield {"model_name": "simple", "inputs": pair(NUMBERS, ONES)}

        found = [one async for one in client.stream_infer(requests())]
        assert [error for _, error in found] == [None] * 3


async def test_a_cancelled_stream_ends_and_the_server_answers_others(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for _ in range(200):  # more than may be open at a time
            call = stub.ModelStreamInfer()
            await call.write(column(1, 2, 3))
            call.cancel()
        one = stub.ModelStreamInfer(timeout=20)
        await one.write(column(1))
        assert (await one.read()).infer_response.raw_output_contents
        await one.done_writing()
