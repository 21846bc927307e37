"""The Open Inference Protocol (v2) over HTTP, with the binary tensor data extension.

Turns an infer request into the model's input tensors and outputs into the answer; describes server and models.
Specifications: https://github.com/open-inference/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
and https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md. Error texts
follow Triton's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.errors import LONGEST_QUOTE, BadInput, cut, quoted
from inference.protocols.json_documents import parse
from inference.protocols.tensors import (
    array_of,
    check_rows,
    check_tensors,
    fits,
    full,
    render,
    shape_text,
    text_from_bytes,
    text_to_bytes,
    whole_number,
)
from inference.schema import Block, DType, Signature, TensorSpec

#: the largest size or length: an int64
_LARGEST = 2**63 - 1
#: the protocol's names of types; the others are numpy's in capitals
_DATATYPES = {
    DType.FLOAT16: "FP16",
    DType.FLOAT32: "FP32",
    DType.FLOAT64: "FP64",
    DType.STRING: "BYTES",
}
#: integers that may stand for floats
_INTEGERS = {dtype.value.upper(): dtype for dtype in DType if dtype.is_integer}


@dataclass(frozen=True)
class InferRequest:
    """What to compute. `outputs`: wanted outputs in order → whether to return them as bytes rather than JSON.

    `request_id` None: the client gave none.
    """

    request_id: str | None
    tensors: Block
    outputs: Mapping[str, bool]


def read_body(body: bytes, header_length: str | None) -> tuple[dict[str, Any], memoryview]:
    """Return the request's JSON object and the binary tensors behind it.

    `header_length`: the header Inference-Header-Content-Length; None if all of the body is JSON.

    Raises:
        BadInput: the body has no JSON object of that length.
    """
    length = len(body)
    if header_length is not None:
        within = whole_number(header_length, length)
        if within is None:
            raise BadInput(
                f"Inference-Header-Content-Length {quoted(header_length)} is no length within the body's {length}"
            )
        length = within
    document = parse(body[:length])
    if not isinstance(document, dict):
        raise BadInput("the inference request is no JSON object")
    return document, memoryview(body)[length:]


def infer_request(model: str, document: Mapping[str, Any], binary: memoryview, signature: Signature) -> InferRequest:
    """Return the tensors of a request and the outputs that it wants.

    Raises:
        BadInput: the request does not fit the model or the protocol.
    """
    request_id = document.get("id")
    if not isinstance(request_id, str | None):
        raise BadInput("the inference request's 'id' must be a string")
    tensors = _tensors(model, document, binary, signature.inputs)
    check_tensors(tensors, signature.inputs)
    return InferRequest(request_id, tensors, _outputs(model, document, signature.outputs))


def _tensors(model: str, document: Mapping[str, Any], binary: memoryview, specs: Sequence[TensorSpec]) -> Block:
    """Return the tensors of a request.

    Raises:
        BadInput: it names every input at fault.
    """
    known = {spec.name: spec for spec in specs}
    tensors: Block = {}
    faults: list[str] = []
    start = 0
    for item in _objects(document, "inputs"):
        name, size = _name(item, "input"), _binary_size(item)
        try:
            data = binary[start : start + (size or 0)]
            tensors[name] = _input(model, item, data, known.get(name), is_repeated=name in tensors)
        except BadInput as error:
            faults.append(error.message)
        start += size or 0
    if faults:
        raise BadInput("; ".join(dict.fromkeys(faults)))
    if start != len(binary):
        raise BadInput(f"unexpected additional input data for model '{model}'")
    if len(tensors) < len(specs):
        raise BadInput(f"expected {len(specs)} inputs but got {len(tensors)} inputs for model '{model}'")
    return tensors


def _input(
    model: str, item: Mapping[str, Any], data: memoryview, spec: TensorSpec | None, *, is_repeated: bool
) -> npt.NDArray[Any]:
    """Return one tensor; `data`: its bytes if it is binary, fewer than declared if the body ends before."""
    if spec is None:
        raise BadInput(f"unexpected inference input '{cut(_name(item, 'input'))}' for model '{model}'")
    if is_repeated:
        raise BadInput(f"input '{spec.name}' already exists in request")
    _check_declared(item, spec, model)
    size = _binary_size(item)
    return _from_json(item, spec) if size is None else _from_binary(data, size, item, spec)


def _outputs(model: str, document: Mapping[str, Any], specs: Sequence[TensorSpec]) -> dict[str, bool]:
    names = [spec.name for spec in specs]
    by_default = _flag(_parameters(document), "binary_data_output") or False
    if not document.get("outputs"):
        return dict.fromkeys(names, by_default)
    wanted: dict[str, bool] = {}
    for item in _objects(document, "outputs"):
        name, parameters = _name(item, "output"), _parameters(item)
        if name not in names:
            raise BadInput(f"unexpected inference output '{cut(name)}' for model '{model}'")
        if parameters.get("classification"):
            raise BadInput(f"output '{name}': the classification extension is not supported")
        binary = _flag(parameters, "binary_data")
        wanted[name] = by_default if binary is None else binary
    return wanted


def _check_declared(item: Mapping[str, Any], spec: TensorSpec, model: str) -> None:
    wanted, given = datatype(spec.dtype), item.get("datatype")
    if given != wanted and not (spec.dtype.is_float and isinstance(given, str) and given in _INTEGERS):
        shown = cut(given) if isinstance(given, str) else "no text"
        raise BadInput(f"inference input '{spec.name}' data-type is '{shown}', but model '{model}' expects '{wanted}'")
    shape = item.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size <= _LARGEST for size in shape):
        raise BadInput(f"input '{spec.name}' must have a 'shape', a list of sizes")
    if not fits(shape, spec) and not _is_column(shape, spec):
        raise BadInput(
            f"unexpected shape for input '{spec.name}' for model '{model}'. Expected {shape_text(full(spec))}, "
            f"got {cut(shape_text(shape[:LONGEST_QUOTE]))}"
        )
    check_rows(shape[0])


def _is_column(shape: Sequence[int], spec: TensorSpec) -> bool:
    """Return whether this is one value a row with a dimension of its own, as the pandas codec of MLServer writes it."""
    return not spec.shape and len(shape) == 2 and shape[1] == 1


def _from_json(item: Mapping[str, Any], spec: TensorSpec) -> npt.NDArray[Any]:
    if not isinstance(item.get("data"), list):
        raise BadInput(f"input '{spec.name}' must have 'data', a list, or 'binary_data_size' in its parameters")
    values = array_of(item["data"], spec.dtype)
    if values is None:
        raise BadInput(f"unable to parse 'data' of input '{spec.name}': not all of it is {datatype(spec.dtype)}")
    return _shaped(values, item, spec)


def _from_binary(data: memoryview, size: int, item: Mapping[str, Any], spec: TensorSpec) -> npt.NDArray[Any]:
    if "data" in item:
        raise BadInput(f"input '{spec.name}' has both 'data' and 'binary_data_size'")
    if len(data) < size:
        raise BadInput(f"unexpected size for input '{spec.name}', expecting {size - len(data)} additional bytes")
    if spec.dtype is DType.STRING:
        try:
            values = text_from_bytes(data)
        except ValueError as error:
            raise BadInput(f"unable to parse the bytes of input '{spec.name}': {error}") from error
    else:
        given = _INTEGERS.get(item["datatype"], spec.dtype)
        width = given.numpy.itemsize
        expected = math.prod(item["shape"]) * width
        if size != expected:
            raise BadInput(f"unexpected total byte size {size} for input '{spec.name}', expecting {expected}")
        # every byte except 0 means true; numpy would keep the byte
        values = np.frombuffer(data, np.uint8 if given is DType.BOOL else given.numpy)
        values = values.astype(bool) if given is DType.BOOL else values
        if given is not spec.dtype:
            values = _as_floats(values, spec)
    return _shaped(values, item, spec)


def _as_floats(values: npt.NDArray[Any], spec: TensorSpec) -> npt.NDArray[Any]:
    largest = 2 ** (np.finfo(spec.dtype.numpy).nmant + 1)  # a float of this type holds every integer up to here
    if values.size and (values.max() > largest or values.min() < -largest):
        raise BadInput(f"input '{spec.name}' has an integer that {datatype(spec.dtype)} cannot hold without loss")
    return values.astype(spec.dtype.numpy)


def _shaped(values: npt.NDArray[Any], item: Mapping[str, Any], spec: TensorSpec) -> npt.NDArray[Any]:
    expected = math.prod(item["shape"])
    if values.size != expected:
        raise BadInput(f"unexpected number of elements {values.size} for input '{spec.name}', expecting {expected}")
    try:
        return values.reshape(item["shape"] if fits(item["shape"], spec) else item["shape"][:1])
    except (ValueError, OverflowError) as error:  # an empty tensor with a size that numpy cannot hold
        raise BadInput(f"unexpected shape for input '{spec.name}': {error}") from error


def _binary_size(item: Mapping[str, Any]) -> int | None:
    name, parameters = cut(_name(item, "input")), _parameters(item)
    if "shared_memory_region" in parameters:
        raise BadInput(f"input '{name}': the shared memory extensions are not supported")
    size = parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or not 0 <= size <= _LARGEST):
        raise BadInput(f"input '{name}': 'binary_data_size' must be a number of bytes")
    return size


def _objects(document: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    items = document.get(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise BadInput(f"the inference request's '{key}' must be a list of objects")
    return items


def _name(item: Mapping[str, Any], kind: str) -> str:
    name = item.get("name")
    if not isinstance(name, str):
        raise BadInput(f"an {kind} of the inference request has no 'name'")
    return name


def _parameters(item: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = item.get("parameters")
    if not isinstance(parameters, dict | None):
        raise BadInput("'parameters' must be an object")
    return parameters or {}


def _flag(parameters: Mapping[str, Any], name: str) -> bool | None:
    value = parameters.get(name)
    if not isinstance(value, bool | None):
        raise BadInput(f"parameter '{name}' must be true or false")
    return value


@dataclass(frozen=True)
class InferAnswer:
    """A body. `json_length`: bytes of JSON in front of binary tensors; None if all of the body is JSON."""

    body: bytes
    json_length: int | None


def infer_answer(model: str, version: int, request: InferRequest, outputs: Block) -> InferAnswer:
    """Return the answer with the wanted outputs, in the request's order."""
    items: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, binary in request.outputs.items():
        values = outputs[name]
        text = values.dtype.kind == "O"
        item: dict[str, Any] = {
            "name": name,
            "datatype": datatype(DType.STRING if text else DType(values.dtype.name)),
            "shape": list(values.shape),
        }
        if binary:
            blobs.append(tensor_bytes(values))
            item["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            item["data"] = values.ravel().tolist() if text else np.ascontiguousarray(values).ravel()
        items.append(item)
    document = {
        "model_name": model,
        "model_version": str(version),
        **({} if request.request_id is None else {"id": request.request_id}),
        "outputs": items,
    }
    head = render(document)
    return InferAnswer(b"".join([head, *blobs]), len(head) if blobs else None)


def tensor_bytes(values: npt.NDArray[Any]) -> bytes:
    """Return a tensor's bytes as the binary extension and gRPC's raw contents have them: little-endian, by row."""
    if values.dtype.kind == "O":
        return text_to_bytes(values)
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def server_metadata(release: str) -> dict[str, Any]:
    """Return the body that describes this server."""
    return {"name": "forecache", "version": release, "extensions": ["binary_tensor_data"]}


def model_metadata(model: str, versions: Iterable[int], platform: str, signature: Signature) -> dict[str, Any]:
    """Return the body that describes the tensors of a model."""
    return {
        "name": model,
        "versions": [str(version) for version in versions],
        "platform": platform,
        "inputs": [_tensor(spec) for spec in signature.inputs],
        "outputs": [_tensor(spec) for spec in signature.model_outputs],
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype(spec.dtype), "shape": list(full(spec))}


def datatype(dtype: DType) -> str:
    """Return the protocol's name of a type: `FP32`, `INT64`, `BOOL`, `BYTES`, …"""
    return _DATATYPES.get(dtype, dtype.value.upper())
