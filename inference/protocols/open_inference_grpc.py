"""The Open Inference Protocol over gRPC: its messages to and from those of HTTP, whose tensors are bytes.

Specification: https://github.com/open-inference/open-inference-protocol/blob/main/specification/protocol/inference_grpc.md
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.errors import BadInput, cut
from inference.protocols.messages import message_class
from inference.protocols.open_inference import InferRequest, datatype, tensor_bytes, wanted_outputs
from inference.protocols.open_inference_requests import NO_SHARED_MEMORY, Content
from inference.protocols.tensors import objects, text_from_bytes, text_to_bytes
from inference.schema import Block, DType, TensorSpec

#: the field for elements of a type; half floats have none, so they come as raw contents
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_TYPES = {datatype(dtype): dtype for dtype in DType}


def infer_document(request: Any) -> tuple[dict[str, Any], list[Content]]:
    """Return a `ModelInferRequest` as over HTTP: the JSON object, and the bytes of each input.

    Raises:
        BadInput: raw contents and inputs do not fit each other.
    """
    raw = request.raw_input_contents
    if raw:
        _check_raw(request)
    inputs = [
        {
            "name": item.name,
            "datatype": item.datatype,
            "shape": list(item.shape),
            "parameters": _parameters(item.parameters),
        }
        for item in request.inputs
    ]
    outputs = [{"name": one.name, "parameters": _parameters(one.parameters)} for one in request.outputs]
    document = {
        "id": request.id or None, "parameters": _parameters(request.parameters), "inputs": inputs, "outputs": outputs,
    }  # fmt: skip
    return document, list(raw) if raw else [_content(item) for item in request.inputs]


def _check_raw(request: Any) -> None:
    both = [item.name for item in request.inputs if item.HasField("contents")]
    if both:
        raise BadInput(
            "; ".join(
                f"contents field must not be specified when using raw_input_contents for '{cut(name)}' for model "
                f"'{cut(request.model_name)}'"
                for name in both
            )
        )
    if len(request.raw_input_contents) != len(request.inputs):
        raise BadInput(f"expected {len(request.inputs)} raw_input_contents but got {len(request.raw_input_contents)}")


def _content(item: Any) -> Content:
    if "shared_memory_region" in item.parameters:
        return BadInput(f"input '{cut(item.name)}': {NO_SHARED_MEMORY}")
    try:
        return _elements(item)
    except BadInput as error:
        return error


def _elements(item: Any) -> bytes:
    """Return the bytes of a tensor's elements."""
    field, dtype = _CONTENTS.get(item.datatype), _TYPES.get(item.datatype)
    for descriptor, values in item.contents.ListFields():
        if values and descriptor.name != field:
            raise BadInput(f"input '{cut(item.name)}' has {descriptor.name}, but its datatype is {cut(item.datatype)}")
    if field is None or dtype is None:
        return b""
    values = getattr(item.contents, field)
    if dtype is DType.STRING:
        return text_to_bytes(objects(list(values)))
    try:
        return np.fromiter(values, dtype.numpy, len(values)).tobytes()
    except OverflowError as error:
        raise BadInput(f"input '{cut(item.name)}' has a number that {cut(item.datatype)} cannot hold") from error


def _parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: getattr(one, choice) for name, one in parameters.items() if (choice := one.WhichOneof("parameter_choice"))
    }


def infer_response(model: str, version: int, request: InferRequest, outputs: Block, labels: Sequence[str] = ()) -> Any:
    """Return the `ModelInferResponse` with the wanted outputs as raw contents, in the request's order.

    `labels`: of the classes.

    Raises:
        BadInput: as `wanted_outputs` says.
    """
    response = message_class("inference.ModelInferResponse")(
        model_name=model, model_version=str(version), id=request.request_id or ""
    )
    for name, values in wanted_outputs(request, outputs, labels).items():
        kind = DType.STRING if values.dtype.kind == "O" else DType(values.dtype.name)
        response.outputs.add(name=name, datatype=datatype(kind), shape=values.shape)
        response.raw_output_contents.append(tensor_bytes(values))
    return response


def metadata_response(body: Mapping[str, Any]) -> Any:
    """Return the `ModelMetadataResponse` for the body that describes a model over HTTP."""
    return message_class("inference.ModelMetadataResponse")(**body)


def infer_message(
    model: str, version: str, tensors: Block, inputs: Mapping[str, TensorSpec], outputs: Iterable[str]
) -> Any:
    """Return the `ModelInferRequest` that asks a model of another server for outputs, with raw contents."""
    request = message_class("inference.ModelInferRequest")(model_name=model, model_version=version)
    for name, values in tensors.items():
        request.inputs.add(name=name, datatype=datatype(inputs[name].dtype), shape=values.shape)
        request.raw_input_contents.append(tensor_bytes(values))
    for name in outputs:
        request.outputs.add(name=name)
    return request


def output_tensors(response: Any) -> Block:
    """Return the outputs in another server's `ModelInferResponse`. Numbers are read-only views.

    Raises:
        BadInput: it has a type that models here do not have, or as many bytes as another shape.
    """
    raw = list(response.raw_output_contents)
    if raw and len(raw) != len(response.outputs):
        raise BadInput(f"expected {len(response.outputs)} raw_output_contents but got {len(raw)}")
    parts = raw or [_elements(item) for item in response.outputs]
    return {item.name: _array(item, part) for item, part in zip(response.outputs, parts, strict=True)}


def _array(item: Any, data: bytes) -> npt.NDArray[Any]:
    dtype = _TYPES.get(item.datatype)
    if dtype is None:
        raise BadInput(f"output '{cut(item.name)}' has the datatype {cut(item.datatype)}, which is not supported")
    try:
        if dtype is DType.STRING:
            return text_from_bytes(data).reshape(item.shape)
        # every byte except 0 means true; numpy would keep the byte
        values = np.frombuffer(data, np.uint8).astype(bool) if dtype is DType.BOOL else np.frombuffer(data, dtype.numpy)
        return values.reshape(item.shape)
    except (ValueError, OverflowError) as error:
        raise BadInput(f"output '{cut(item.name)}' does not have the bytes of its shape") from error
