"""TensorFlow Serving's REST protocol: paths, predict requests and their answers, descriptions of models.

Follows `json_tensor.cc` and `http_rest_api_handler.cc` of tensorflow/serving. `tensorflow_examples.py` has classify and
regress; `tensorflow_calls.py` has what does not depend on JSON; `tensorflow_errors.py` finds a request's mistake and
words it.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from inference.errors import BadInput, cut
from inference.protocols.json_documents import parse
from inference.protocols.tensorflow_calls import DEFAULT_SIGNATURE
from inference.protocols.tensorflow_errors import (
    described,
    explain_instances,
    explain_tensor,
    is_base64,
    with_decoded_bytes,
)
from inference.protocols.tensors import MOST_VERSION, array_of, check_rows, render, whole_number
from inference.schema import Block, DType, GraphSignature, GraphTensor, rows_in

#: the name of an output that holds bytes rather than text ends like this
_BYTES_SUFFIX = "_bytes"
_MODEL = r"/v1/models/(?P<model>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_CALL = re.compile(_MODEL + r":(?P<method>classify|regress|predict)", re.IGNORECASE | re.ASCII)
_LOOK = re.compile(_MODEL + r"(?P<method>/metadata)?", re.IGNORECASE | re.ASCII)
_PATTERNS = {"GET": _LOOK, "POST": _CALL}
_NO_MODEL = re.compile(r"/v1/models(/metadata)?", re.IGNORECASE)


class Method(StrEnum):
    """The call in a path."""

    PREDICT = "predict"
    CLASSIFY = "classify"
    REGRESS = "regress"
    STATUS = "status"
    METADATA = "metadata"


@dataclass(frozen=True)
class ModelUrl:
    """A parsed path. `version` None: the active one. `label` None: the path has none."""

    model: str
    method: Method
    version: int | None = None
    label: str | None = None


def methods_of(path: str) -> tuple[str, ...]:
    """Return the HTTP methods of a path; none if the protocol has no such path."""
    return tuple(method for method, pattern in _PATTERNS.items() if pattern.fullmatch(path))


def parse_path(http_method: str, path: str) -> ModelUrl:
    """Return the model, version and call of a request.

    Version 0 means the active one, as in OpenVINO Model Server: its client always names a version.

    Raises:
        BadInput: the protocol has no such path or HTTP method.
    """
    pattern = _PATTERNS.get(http_method)
    found = pattern.fullmatch(path) if pattern else None
    if found is None or pattern is None:
        if http_method == "GET" and _NO_MODEL.fullmatch(path):
            raise BadInput("Missing model name in request.")
        raise BadInput(f"Malformed request: {http_method} {cut(path)}")
    version = whole_number(found["version"] or "0", MOST_VERSION)
    if version is None:
        raise BadInput(f"Failed to convert version: {cut(found['version'])} to numeric.")
    method = Method((found["method"] or "status").removeprefix("/").lower())
    return ModelUrl(found["model"], method, version or None, found["label"])


def read_document(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a request.

    Raises:
        BadInput: the body is not JSON, or not an object.
    """
    document = parse(body)
    if not isinstance(document, dict):
        raise BadInput(f"JSON Value: {described(document)} Is not object")
    return document


def signature_of(document: Mapping[str, Any]) -> str:
    """Return the signature name of a request.

    Raises:
        BadInput: the name is not text.
    """
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise BadInput(
            f"JSON Value: {described(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name or DEFAULT_SIGNATURE


def unknown_signature(name: str) -> BadInput:
    """Return the error for a predict request that names a signature which the model does not have."""
    return BadInput(f'Serving signature name: "{cut(name)}" not found in signature def')


def tensors_of(document: Mapping[str, Any], inputs: Sequence[GraphTensor]) -> tuple[Block, bool]:
    """Return the tensors of a predict request, and True if it has rows (`instances`), False for columns (`inputs`).

    They have the shapes of the request, whatever `inputs` declare.

    Raises:
        BadInput: the request is malformed, or does not fit the inputs' names and types; TensorFlow Serving's words.
    """
    if "instances" in document:
        _check_instances(document)
        return _from_instances(document["instances"], inputs), True
    if "inputs" in document:
        return _from_inputs(document["inputs"], inputs), False
    raise BadInput("Missing 'inputs' or 'instances' key")


def _check_instances(document: Mapping[str, Any]) -> None:
    instances = document["instances"]
    problem = None
    if "inputs" in document:
        problem = "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
    elif not isinstance(instances, list):
        problem = "Expecting 'instances' to be an list/array"
    elif not instances:
        problem = "No values in 'instances' array"
    if problem:
        raise BadInput(f"JSON Value: {described(document)} {problem}")
    check_rows(len(instances))


def _from_instances(instances: list[Any], inputs: Sequence[GraphTensor]) -> Block:
    if not isinstance(instances[0], dict) and len(inputs) > 1:
        raise BadInput(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    columns = _columns(instances, inputs)
    if columns is None:
        raise explain_instances(instances, inputs)
    tensors: Block = {}
    for spec, column in zip(inputs, columns, strict=True):
        values = _array(column, spec)
        if values is None:
            raise explain_instances(instances, inputs)
        tensors[spec.name] = values
    return tensors


def _array(value: Any, spec: GraphTensor) -> npt.NDArray[Any] | None:
    """Return a tensor; None if something does not fit."""
    if spec.element is not DType.STRING:
        return None if spec.element is None else array_of(value, spec.element, rounds=True)
    try:
        return array_of(with_decoded_bytes(value), spec.element)
    except BadInput:  # not base 64
        return None


def _columns(instances: list[Any], inputs: Sequence[GraphTensor]) -> list[list[Any]] | None:
    """Return the values of each input, in order; None if an instance has a different form than the first."""
    if not isinstance(instances[0], dict) or is_base64(instances[0]):
        return [instances]
    names = {spec.name for spec in inputs}
    if not all(isinstance(one, dict) and one.keys() == names for one in instances):
        return None
    return [[one[spec.name] for one in instances] for spec in inputs]


def _from_inputs(value: Any, inputs: Sequence[GraphTensor]) -> Block:
    named = isinstance(value, dict) and not is_base64(value)
    if not named and len(inputs) > 1:
        raise BadInput(
            "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
            "tensorinfo_map"
        )
    tensors: Block = {}
    for spec in inputs:
        if named and spec.name not in value:
            raise BadInput(f"Missing named input: {spec.name} in 'inputs' object.")
        tensor = value[spec.name] if named else value
        values = _array(tensor, spec)
        if values is None:
            raise explain_tensor(tensor, spec)
        tensors[spec.name] = values
    return tensors


def check_types(outputs: Sequence[GraphTensor]) -> None:
    """Check that JSON can hold the elements of every output.

    Raises:
        BadInput: it cannot; TensorFlow Serving's words.
    """
    for one in outputs:
        if one.element is None:
            kind = one.dtype.removeprefix("DT_").lower()
            raise BadInput(f"Failed to write JSON value for tensor type: {kind}")


def predict_answer(outputs: Block, *, by_row: bool) -> bytes:
    """Return the answer to a predict request. A single output has no name.

    Raises:
        BadInput: the request had rows, but the outputs have none, or different numbers of them.
    """
    values = {name: _values(name, one) for name, one in outputs.items()}
    if not by_row:
        return render({"outputs": next(iter(values.values())) if len(values) == 1 else values})
    for name, one in outputs.items():
        if not one.ndim:
            raise BadInput(f"Tensor name: {name} has no shape information ")
    rows = rows_in(outputs)
    for name, one in outputs.items():
        if len(one) != rows:
            raise BadInput(f"Tensor name: {name} has inconsistent batch size: {len(one)} expecting: {rows}")
    if len(values) == 1:
        return render({"predictions": next(iter(values.values()))})
    return render({"predictions": [{name: one[row] for name, one in values.items()} for row in range(rows)]})


def _values(name: str, values: npt.NDArray[Any]) -> Any:
    """Return numbers as an array, texts as (lists of) texts."""
    if values.dtype.kind != "O":
        return np.ascontiguousarray(values) if values.ndim else values[()]
    return _texts(values.tolist(), as_bytes=name.endswith(_BYTES_SUFFIX))


def _texts(value: Any, *, as_bytes: bool) -> Any:
    if isinstance(value, list):
        return [_texts(one, as_bytes=as_bytes) for one in value]
    if as_bytes:
        return {"b64": b64encode(value.encode() if isinstance(value, str) else value).decode("ascii")}
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


@dataclass(frozen=True)
class VersionStatus:
    """State of a version. `AVAILABLE`: a worker holds it; `END`: none does. `error`: why it was refused, or waits."""

    version: int
    state: Literal["AVAILABLE", "END"]
    error: str = ""


def status(versions: Iterable[VersionStatus]) -> dict[str, Any]:
    """Return the body with the states of versions."""
    return {
        "model_version_status": [
            {
                "version": str(one.version),
                "state": one.state,
                "status": {"error_code": "UNKNOWN" if one.error else "OK", "error_message": one.error},
            }
            for one in versions
        ]
    }


def metadata(model: str, version: int, signatures: Mapping[str, GraphSignature]) -> dict[str, Any]:
    """Return the body that describes the signatures of a version."""
    return {
        "model_spec": {"name": model, "signature_name": "", "version": str(version)},
        "metadata": {"signature_def": {"signature_def": {name: _definition(one) for name, one in signatures.items()}}},
    }


def _definition(signature: GraphSignature) -> dict[str, Any]:
    return {
        "inputs": {one.name: _tensor(one) for one in signature.inputs},
        "outputs": {one.name: _tensor(one) for one in signature.outputs},
        "method_name": signature.method,
        "defaults": {},
    }


def _tensor(declared: GraphTensor) -> dict[str, Any]:
    return {
        "dtype": declared.dtype,
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in declared.shape or ()],
            "unknown_rank": declared.shape is None,
        },
        "name": declared.node,
    }
