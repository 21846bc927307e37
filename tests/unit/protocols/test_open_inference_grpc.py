"""Messages of the Open Inference Protocol: elements of every type, texts, parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from inference.errors import BadInput
from inference.protocols.messages import message_class
from inference.protocols.open_inference import datatype, infer_request
from inference.protocols.open_inference_grpc import infer_document, infer_response
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


def test_a_single_raw_tensor_is_not_copied() -> None:
    message = message_class("inference.ModelInferRequest")()
    message.inputs.add(name="x", datatype="FP32", shape=[4])
    message.raw_input_contents.append(np.ones(4, np.float32).tobytes())
    asked = infer_request("m", *infer_document(message), signature(DType.FLOAT32))
    assert not asked.tensors["x"].flags.owndata


def test_a_number_that_the_type_cannot_hold_is_refused() -> None:
    with pytest.raises(BadInput, match="input 'x' has a number that INT8 cannot hold"):
        infer_document(request(DType.INT8, [1000]))


def test_half_floats_come_as_raw_contents_only() -> None:
    with pytest.raises(BadInput, match="input 'x' has fp32_contents, but its datatype is FP16"):
        infer_document(request(DType.FLOAT16, [1.0], "fp32_contents"))
