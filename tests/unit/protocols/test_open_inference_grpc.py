"""Messages of the Open Inference Protocol: elements of every type, texts, parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from inference.errors import BadInput
from inference.protocols.messages import descriptor_pool, message_class
from inference.protocols.open_inference import datatype
from inference.protocols.open_inference_grpc import infer_document, infer_response
from inference.protocols.open_inference_requests import infer_request_of as infer_request
from inference.schema import DType, Signature, TensorSpec

FIELDS = {
    DType.BOOL: "bool_contents",
    DType.INT8: "int_contents",
    DType.INT64: "int64_contents",
    DType.UINT16: "uint_contents",
    DType.UINT64: "uint64_contents",
    DType.FLOAT32: "fp32_contents",
    DType.FLOAT64: "fp64_contents",
    DType.STRING: "bytes_contents",
}


def request(dtype: DType, values: list[Any], field: str | None = None) -> Any:
    message = message_class("inference.ModelInferRequest")(model_name="m", id="seven")
    item = message.inputs.add(name="x", datatype=datatype(dtype), shape=[len(values)])
    getattr(item.contents, field or FIELDS[dtype]).extend(values)
    return message


def signature(dtype: DType) -> Signature:
    return Signature((TensorSpec("x", dtype),), (TensorSpec("y", dtype),))


@pytest.mark.parametrize("dtype", FIELDS)
def test_elements_of_every_type_come_and_go(dtype: DType) -> None:
    values = [b"a", "ü".encode(), b"\xff"] if dtype is DType.STRING else [1, 0, 1]
    asked = infer_request("m", *infer_document(request(dtype, values)), signature(dtype))
    read = ["a", "ü", b"\xff"] if dtype is DType.STRING else values
    assert (asked.tensors["x"].tolist(), asked.request_id) == (read, "seven")
    answer = infer_response("m", 3, asked, {"y": asked.tensors["x"]})
    assert (answer.model_version, answer.id, answer.outputs[0].datatype) == ("3", "seven", datatype(dtype))
    again = message_class("inference.ModelInferRequest")()
    again.inputs.add(name="x", datatype=datatype(dtype), shape=answer.outputs[0].shape)
    again.raw_input_contents.extend(answer.raw_output_contents)
    assert infer_request("m", *infer_document(again), signature(dtype)).tensors["x"].tolist() == read


def test_raw_tensors_are_not_copied() -> None:
    message = message_class("inference.ModelInferRequest")()
    two = Signature((TensorSpec("a", DType.FLOAT32), TensorSpec("b", DType.FLOAT32)), ())
    for spec in two.inputs:
        message.inputs.add(name=spec.name, datatype="FP32", shape=[4])
        message.raw_input_contents.append(np.ones(4, np.float32).tobytes())
    asked = infer_request("m", *infer_document(message), two)
    assert not any(one.flags.owndata for one in asked.tensors.values())


def test_all_faults_of_a_message_are_told_at_once() -> None:
    message = request(DType.INT8, [1000])
    message.inputs.add(name="z", datatype="INT8", shape=[1])
    message.inputs.add(name="x", datatype="INT8", shape=[1]).parameters["shared_memory_region"].string_param = "r"
    message.outputs.add(name="y").parameters["classification"].int64_param = -1
    message.parameters["timeout"].string_param = "soon"
    with pytest.raises(BadInput) as refused:
        infer_request("m", *infer_document(message), signature(DType.INT8))
    assert refused.value.message.split("; ") == [
        "input 'x' has a number that INT8 cannot hold",
        "unexpected inference input 'z' for model 'm'",
        "input 'x' already exists in request",
        "output 'y': 'classification' must be a number of classes",
        "parameter 'timeout' must be a number of microseconds",
    ]


def test_the_messages_have_the_fields_of_tritons_own() -> None:
    from tritonclient.grpc import model_config_pb2, service_pb2  # with a library that takes long to import

    theirs = {**service_pb2.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

    def check(ours: Any, other: Any) -> None:
        for field in ours.fields:
            same = other.fields_by_name[field.name]
            assert (field.number, field.type, field.is_repeated) == (same.number, same.type, same.is_repeated), field
        for inner in ours.nested_types:
            check(inner, other.nested_types_by_name[inner.name])

    file = descriptor_pool().FindFileByName("open_inference.proto")
    for name, message in file.message_types_by_name.items():
        check(message, theirs[name])
    for method in file.services_by_name["GRPCInferenceService"].methods:
        same = service.methods_by_name[method.name]
        assert (method.input_type.name, method.output_type.name) == (same.input_type.name, same.output_type.name)
        assert (method.client_streaming, method.server_streaming) == (same.client_streaming, same.server_streaming)


def test_a_number_that_the_type_cannot_hold_is_refused() -> None:
    with pytest.raises(BadInput, match="input 'x' has a number that INT8 cannot hold"):
        infer_request("m", *infer_document(request(DType.INT8, [1000])), signature(DType.INT8))


def test_half_floats_come_as_raw_contents_only() -> None:
    with pytest.raises(BadInput, match="input 'x' has fp32_contents, but its datatype is FP16"):
        infer_request("m", *infer_document(request(DType.FLOAT16, [1.0], "fp32_contents")), signature(DType.FLOAT16))
