"""TensorFlow Serving's gRPC with stubs that nobody here wrote, over a real worker and real SavedModels."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc
import httpx
import numpy as np
import ovmsclient
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from ovmsclient.tfs_compat.protos.tensorflow.core.example import example_pb2
from ovmsclient.tfs_compat.protos.tensorflow.core.framework import tensor_pb2, types_pb2
from ovmsclient.tfs_compat.protos.tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from app.api.limits import MAX_BODY_BYTES
from tests.support.models import dense_predictions, export_models
from tests.support.plain_onnx import write_sum
from tests.support.ports import free_port
from tests.support.stack import Stack
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow]

#: frames of HTTP/2: one without settings, and one that asks for an answer
SETTINGS, PING = b"\0\0\0\4\0\0\0\0\0", b"\0\0\x08\6\0\0\0\0\0" + bytes(8)
X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
REALTIME = "realtime = { timeout_ms = 10000, max_micro_batch = 100 }\n"
MODELS = ("half_plus_two", "dense", "echo", "scaled", "column", "slow")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("grpc")
    export_models(
        {
            folder / "half_plus_two" / "123": "half_plus_two",
            folder / "dense" / "2": "dense:3:2",
            folder / "dense" / "3": "dense:3:3",
            folder / "echo" / "1": "echo",
            folder / "scaled" / "1": "scaled",
            folder / "slow" / "1": "sum:1:0.7",
        }
    )
    write_sum(folder / "column" / "1", 1)
    toml = f"[grpc]\nport = {free_port()}\n" + "".join(
        f'[models.{name}]\npath = "{name}"\nversions = "all"\n{REALTIME}' for name in MODELS
    )
    with Stack(folder, toml, with_tensorflow=True) as running:
        running.start("realtime")
        running.start("api", environment={"FORECACHE_API__PROCESSES": "2"})
        running.wait_ready()
        running.deployment.registry.label("dense", "canary", 2)
        yield running


@pytest.fixture(scope="module")
def address(stack: Stack) -> str:
    return f"127.0.0.1:{stack.settings.grpc.port}"


@pytest.fixture(scope="module")
def channel(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address) as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def tensor(values: Any, *, content: bool = True) -> Any:
    """A tensor as `tf.make_tensor_proto` writes it."""
    array = np.asarray(values)
    kinds = {"float32": types_pb2.DT_FLOAT, "float64": types_pb2.DT_DOUBLE, "int64": types_pb2.DT_INT64,
             "bool": types_pb2.DT_BOOL, "object": types_pb2.DT_STRING}  # fmt: skip
    written = tensor_pb2.TensorProto(dtype=kinds[array.dtype.name])
    for size in array.shape:
        written.tensor_shape.dim.add(size=size)
    if array.dtype.kind == "O":
        written.string_val.extend(array.ravel().tolist())
    elif content:
        written.tensor_content = array.tobytes()
    else:
        field = {"float32": "float_val", "int64": "int64_val", "bool": "bool_val"}[array.dtype.name]
        getattr(written, field).extend(array.ravel().tolist())
    return written


def predict_request(model: str, **tensors: Any) -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    for name, values in tensors.items():
        request.inputs[name].CopyFrom(values if isinstance(values, tensor_pb2.TensorProto) else tensor(values))
    return request


def with_examples(request: Any, *values: float) -> Any:
    for value in values:
        example = example_pb2.Example()
        example.features.feature["x"].float_list.value.append(value)
        request.input.example_list.examples.append(example)
    return request


def refusal(call: Any, request: Any, **options: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refused:
        call(request, timeout=20, **options)
    return refused.value.code(), refused.value.details()


def test_the_client_of_openvino_model_server_predicts(address: str) -> None:
    client = ovmsclient.make_grpc_client(address)
    for version, seed in ((0, 3), (2, 2), (3, 3)):
        answers = client.predict({"x": X}, "dense", model_version=version)
        np.testing.assert_allclose(answers[:, 0], dense_predictions(X, seed=seed), rtol=1e-5)
    outputs = client.predict({"number": [[1.0, 2.0]], "count": np.int64([7]), "text": ["ü"], "flag": [True]}, "echo")
    assert outputs["same_number"].tolist() == [[1.0, 2.0]]
    assert (outputs["same_count"].tolist(), outputs["same_flag"].tolist()) == ([7], [True])
    assert outputs["same_text"].tolist() == ["ü".encode()]


def test_an_input_for_which_the_model_has_a_value_may_be_left_out(stub: Any, stack: Stack) -> None:
    def scaled(**more: Any) -> list[list[float]]:
        request = predict_request("scaled", x=np.float32([[1.0, 2.0]] * 2), **more)
        answer = tensor_pb2.TensorProto.FromString(stub.Predict(request, timeout=20).outputs["y"].SerializeToString())
        return np.array(answer.float_val).reshape(2, 2).tolist()

    assert scaled() == [[2.5, 4.5]] * 2
    assert scaled(factor=np.float32(10.0)) == [[10.5, 20.5]] * 2
    assert scaled(factor=np.float32(10.0), shift=np.float32([0.0, 1.0])) == [[10.0, 20.0], [11.0, 21.0]]
    without = predict_request("scaled", factor=np.float32(10.0))
    assert refusal(stub.Predict, without) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "input size does not match signature: 1!=3 len({factor}) != len({factor,shift,x}). Sent extra: {}. "
        "Missing but required: {x}.",
    )
    # TensorFlow Serving's JSON wants every input
    refused = httpx.post(f"{stack.url}/v1/models/scaled:predict", json={"inputs": {"x": [[1.0, 2.0]], "factor": 3.0}})
    assert (refused.status_code, refused.json()) == (400, {"error": "Missing named input: shift in 'inputs' object."})


def test_the_client_of_openvino_model_server_reads_status_and_metadata(address: str) -> None:
    client = ovmsclient.make_grpc_client(address)
    status = client.get_model_status("dense")
    assert {version: (one["state"], one["error_code"]) for version, one in status.items()} == {
        2: ("AVAILABLE", 0), 3: ("AVAILABLE", 0),
    }  # fmt: skip
    described = client.get_model_metadata("dense")
    assert described["inputs"] == {"x": {"shape": [-1, 3], "dtype": "DT_FLOAT"}}
    assert described["model_version"] == 3
    with pytest.raises(ovmsclient.ModelNotFoundError):
        client.predict({"x": X}, "nobody")


def test_every_process_of_the_api_listens(stack: Stack) -> None:
    wait_for(lambda: stack.log("api").count("grpc.listening") == 2, "both processes to listen", 20)


def test_elements_and_contents_mean_the_same(stub: Any) -> None:
    by_content = stub.Predict(predict_request("dense", x=X))
    by_element = stub.Predict(predict_request("dense", x=tensor(X, content=False)))
    assert by_content.outputs["y"].float_val == by_element.outputs["y"].float_val
    np.testing.assert_allclose(by_content.outputs["y"].float_val, dense_predictions(X, seed=3), rtol=1e-5)
    assert [dim.size for dim in by_content.outputs["y"].tensor_shape.dim] == [5, 1]


def test_the_last_element_stands_for_all_that_are_missing(stub: Any) -> None:
    one = tensor(np.float32([[3.0, 3.0, 3.0]]))
    one.ClearField("tensor_content")
    one.float_val.append(3.0)
    answer = stub.Predict(predict_request("dense", x=one)).outputs["y"].float_val
    np.testing.assert_allclose(answer, dense_predictions(np.float32([[3, 3, 3]]), seed=3), rtol=1e-5)


def test_an_answer_says_what_computed_it(stub: Any) -> None:
    request = predict_request("dense", x=X)
    request.model_spec.version_label = "canary"
    answer = stub.Predict(request)
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("dense", 2)
    assert answer.model_spec.signature_name == "serving_default"


def test_shapes_are_as_over_rest(stub: Any) -> None:
    # the graph decides; a model of another format takes columns without their 1
    for model in ("half_plus_two", "column"):
        answer = stub.Predict(predict_request(model, x=np.float32([1, 2])))
        [output] = answer.outputs.values()
        assert [dim.size for dim in output.tensor_shape.dim] == [2]


def test_an_output_filter_names_the_wanted_outputs(stub: Any) -> None:
    request = predict_request(
        "echo", number=np.float32([[1, 2]]), count=np.int64([7]), text=np.array([b"a"], object), flag=np.array([True])
    )
    request.output_filter.append("same_count")
    answer = stub.Predict(request)
    assert {name: list(one.int64_val) for name, one in answer.outputs.items()} == {"same_count": [7]}
    request.output_filter.append("same_count")
    assert refusal(stub.Predict, request) == (
        grpc.StatusCode.INVALID_ARGUMENT, "duplicate output tensor alias: same_count",
    )  # fmt: skip
    request.output_filter[:] = ["other"]
    assert refusal(stub.Predict, request)[1].startswith("output tensor alias not found in signature: other Outputs")


def test_examples_are_classified_and_regressed(stub: Any) -> None:
    classify = with_examples(classification_pb2.ClassificationRequest(), 2.0, 4.0)
    classify.model_spec.name, classify.model_spec.signature_name = "half_plus_two", "classify_x_to_y"
    answer = stub.Classify(classify)
    assert [[(one.label, one.score) for one in each.classes] for each in answer.result.classifications] == [
        [("", 3.0)], [("", 4.0)],
    ]  # fmt: skip
    assert (answer.model_spec.version.value, answer.model_spec.signature_name) == (123, "classify_x_to_y")
    regress = with_examples(regression_pb2.RegressionRequest(), 2.0)
    regress.model_spec.name, regress.model_spec.signature_name = "half_plus_two", "regress_x_to_y"
    assert [one.value for one in stub.Regress(regress).result.regressions] == [3.0]


def test_a_common_context_precedes_each_example(stub: Any) -> None:
    request = regression_pb2.RegressionRequest()
    request.model_spec.name, request.model_spec.signature_name = "half_plus_two", "regress_x_to_y"
    given = request.input.example_list_with_context
    given.context.features.feature["x"].float_list.value.append(8.0)
    given.examples.add()
    assert [one.value for one in stub.Regress(request).result.regressions] == [6.0]


def multi_request(*tasks: tuple[str, str, str]) -> Any:
    request = with_examples(inference_pb2.MultiInferenceRequest(), 2.0)
    for model, signature, method in tasks:
        added = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        added.model_spec.name, added.model_spec.signature_name = model, signature
    return request


def test_several_signatures_read_the_same_examples(stub: Any) -> None:
    answer = stub.MultiInference(
        multi_request(("half_plus_two", "regress_x_to_y", "regress"), ("half_plus_two", "classify_x_to_y", "classify"))
    )
    regressed, classified = answer.results
    assert [one.value for one in regressed.regression_result.regressions] == [3.0]
    assert classified.classification_result.classifications[0].classes[0].score == 3.0
    assert {one.model_spec.version.value for one in answer.results} == {123}


@pytest.mark.parametrize(
    ("tasks", "code", "words"),
    [
        ([("half_plus_two", "regress_x_to_y", "regress")] * 2, "INVALID_ARGUMENT", "Duplicate evaluation of signature"),
        (
            [("half_plus_two", "regress_x_to_y", "regress"), ("dense", "b", "regress")],
            "INVALID_ARGUMENT",
            "must access the same model name.",
        ),
        ([("half_plus_two", "serving_default", "predict")], "UNIMPLEMENTED", "Unsupported signature method_name"),
        ([("", "serving_default", "regress")], "INVALID_ARGUMENT", "Found ModelSpec with an empty model name."),
        ([], "INVALID_ARGUMENT", "Inference request must have at least one task"),
    ],
)
def test_tasks_that_do_not_fit_are_refused(stub: Any, tasks: Any, code: str, words: str) -> None:
    found, details = refusal(stub.MultiInference, multi_request(*tasks))
    assert found.name == code
    assert words in details


def test_metadata_describes_every_signature(stub: Any) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "half_plus_two"
    answer = stub.GetModelMetadata(request)
    definitions = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    definitions.ParseFromString(answer.metadata["signature_def"].value)
    assert answer.model_spec.version.value == 123
    regress = definitions.signature_def["regress_x_to_y"]
    assert regress.method_name == "tensorflow/serving/regress"
    assert {name: one.dtype for name, one in regress.inputs.items()} == {"inputs": types_pb2.DT_STRING}
    request.metadata_field[:] = ["other"]
    assert refusal(stub.GetModelMetadata, request)[1] == "Metadata field other is not supported"
    request.metadata_field[:] = []
    assert "at least one metadata_field" in refusal(stub.GetModelMetadata, request)[1]


def test_status_tells_each_version(channel: grpc.Channel) -> None:
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "dense"
    answer = stub.GetModelStatus(request)
    available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert [(one.version, one.state) for one in answer.model_version_status] == [(2, available), (3, available)]
    request.model_spec.version.value = 9
    assert refusal(stub.GetModelStatus, request) == (
        grpc.StatusCode.NOT_FOUND, "Could not find version 9 of model dense",
    )  # fmt: skip


def short(values: Any) -> Any:
    written = tensor(values)
    written.tensor_content = written.tensor_content[:-4]
    return written


def changed(values: Any, **fields: Any) -> Any:
    written = tensor(values)
    for name, value in fields.items():
        setattr(written, name, value)
    return written


def of_shape(*sizes: int, **fields: Any) -> Any:
    written = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, **fields)
    for size in sizes:
        written.tensor_shape.dim.add(size=size)
    return written


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"x": short(X)}, "tensor parsing error: x"),
        ({"x": changed(X, dtype=99)}, "tensor parsing error: x"),
        ({"x": changed(X, dtype=types_pb2.DT_COMPLEX64)}, "tensor parsing error: x"),
        ({"x": of_shape(-1, 3)}, "tensor parsing error: x"),
        ({"x": of_shape(*[1] * 100)}, "tensor parsing error: x"),
        ({"x": of_shape(2**40, 2**40)}, "at most 8388608"),
        ({"x": X.astype(np.float64)}, "Expects arg[0] to be float but double is provided"),
        ({"y": X}, "input tensor alias not found in signature: y. Inputs expected to be in the set {x}."),
        (
            {},
            "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. Missing but required: {x}.",
        ),
        ({"x": np.zeros((5000, 3), np.float32)}, "5000 rows: send 1 to 4096 in a request"),
        ({"x": np.zeros((2, 7), np.float32)}, "tensor 'x' has shape [2,7], but the model takes [-1,3]"),
    ],
)
def test_a_mistake_is_told_in_tensorflow_servings_words(stub: Any, sent: Any, words: str) -> None:
    code, details = refusal(stub.Predict, predict_request("dense", **sent))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert words in details


def test_a_model_a_version_and_a_signature_that_do_not_exist(stub: Any) -> None:
    unknown = predict_request("nobody", x=X)
    assert refusal(stub.Predict, unknown) == (
        grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(nobody)",
    )  # fmt: skip
    request = predict_request("dense", x=X)
    request.model_spec.version.value = 50
    assert refusal(stub.Predict, request)[1] == "Servable not found for request: Specific(dense, 50)"
    request.model_spec.version_label = "stable"
    assert refusal(stub.Predict, request)[1] == "Unrecognized servable version label: stable"
    request = predict_request("dense", x=X)
    request.model_spec.signature_name = "other"
    assert refusal(stub.Predict, request)[1] == 'Serving signature name: "other" not found in signature def'
    assert refusal(stub.Predict, predict_pb2.PredictRequest())[1] == "Missing ModelSpec"


def test_a_message_over_the_limit_is_refused_and_the_server_lives(address: str, stub: Any) -> None:
    large = b"\x0a" + b"\xff" * 200_000_000
    with grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        assert refusal(call, large)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        # what is small on the wire may be large when it is unpacked
        packed = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        code, _ = refusal(packed, bytes(4 * MAX_BODY_BYTES), compression=grpc.Compression.Gzip)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert stub.Predict(predict_request("dense", x=X)).outputs["y"].float_val


def test_bytes_that_are_no_message_are_refused(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    assert refusal(call, b"\xff\xff") == (
        grpc.StatusCode.INVALID_ARGUMENT, "the bytes are no message tensorflow.serving.PredictRequest",
    )  # fmt: skip
    other = channel.unary_unary("/tensorflow.serving.SessionService/SessionRun")
    assert refusal(other, b"")[0] is grpc.StatusCode.UNIMPLEMENTED


def test_the_clients_deadline_is_the_deadline(stub: Any) -> None:
    # the model takes 0.7 seconds, and its own budget is ten
    with pytest.raises(grpc.RpcError) as refused:
        stub.Predict(predict_request("slow", x=np.float32([[1]])), timeout=0.2)
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert stub.Predict(predict_request("dense", x=X), timeout=20)


def test_a_cancelled_call_ends_its_work(address: str, stub: Any) -> None:
    async def cancelled() -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            call = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(
                predict_request("slow", x=np.zeros((2000, 1), np.float32))
            )
            await asyncio.sleep(0.1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    # twenty micro-batches of 0.7 seconds each: were they computed, the next request would wait
    asyncio.run(cancelled())
    assert stub.Predict(predict_request("slow", x=np.float32([[1]])), timeout=10)


def test_a_client_that_never_reads_harms_nobody(address: str, stub: Any) -> None:
    host, port = address.split(":")
    with socket.create_connection((host, int(port))) as silent:
        silent.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS)
        silent.setblocking(False)
        with suppress(BlockingIOError, ConnectionError):  # the server has stopped reading, or hung up
            for _ in range(20_000):
                silent.send(PING)
        assert stub.Predict(predict_request("dense", x=X), timeout=10)


def test_health_needs_no_more_than_the_service(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    code, _ = refusal(stub.Check, health_pb2.HealthCheckRequest(service="other"))
    assert code is grpc.StatusCode.NOT_FOUND


def test_reflection_describes_the_services(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest
    asked = [request(list_services=""), request(file_containing_symbol="tensorflow.serving.PredictionService")]
    services, file = stub.ServerReflectionInfo(iter(asked))
    named = {one.name for one in services.list_services_response.service}
    assert {"tensorflow.serving.PredictionService", "grpc.health.v1.Health"} <= named
    assert b"PredictRequest" in file.file_descriptor_response.file_descriptor_proto[0]


#: a client as in TensorFlow Serving's documentation; arguments: address
CLIENT = """
import sys
import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(sys.argv[1]))
request = predict_pb2.PredictRequest()
request.model_spec.name = "half_plus_two"
request.model_spec.signature_name = "serving_default"
request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([1.0, 2.0, 5.0]), shape=[3]))
result = stub.Predict(request, 10.0)
print(tf.make_ndarray(result.outputs["y"]).tolist())
"""


def test_a_client_with_tensorflows_own_stubs_predicts(address: str) -> None:
    # a process of its own: it loads TensorFlow, which takes seconds
    done = subprocess.run([sys.executable, "-c", CLIENT, address], capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n")[-2:] == ["[2.5, 3.0, 4.5]", ""], done.stderr
