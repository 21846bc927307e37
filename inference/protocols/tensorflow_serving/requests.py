"""A predict request's JSON as the model's input tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from inference.errors import BadInput, cut
from inference.protocols.json_documents import parse
from inference.protocols.json_tensors import array_of
from inference.protocols.tensorflow_serving.error_texts import (
    described,
    explain_instances,
    explain_tensor,
    is_base64,
    with_decoded_bytes,
)
from inference.protocols.tensors import check_rows, check_tensors
from inference.schema import Block, DType, TensorSpec

DEFAULT_SIGNATURE = "serving_default"


def read_document(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a request.

    Raises:
        BadInput: it is no JSON, or no object.
    """
    document = parse(body)
    if not isinstance(document, dict):
        raise BadInput(f"JSON Value: {described(document)} Is not object")
    return document


def signature_of(document: Mapping[str, Any]) -> str:
    """Return the signature that a request names.

    Raises:
        BadInput: its name is no text.
    """
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise BadInput(
            f"JSON Value: {described(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name or DEFAULT_SIGNATURE


def tensors_of(
    document: Mapping[str, Any], inputs: Sequence[TensorSpec], *, served: str | None = None
) -> tuple[Block, bool]:
    """Return the tensors of a predict request, and whether it came by rows (`instances`) or by columns (`inputs`).

    `served`: the signature that the settings choose, which answers to its own name too.

    Raises:
        BadInput: in the protocol's words.
    """
    signature = signature_of(document)
    if signature not in (DEFAULT_SIGNATURE, served):
        raise BadInput(f'Serving signature name: "{cut(signature)}" not found in signature def')
    if "instances" in document:
        _check_instances(document)
        tensors, by_row = _from_instances(document["instances"], inputs), True
    elif "inputs" in document:
        tensors, by_row = _from_inputs(document["inputs"], inputs), False
    else:
        raise BadInput("Missing 'inputs' or 'instances' key")
    check_tensors(tensors, inputs)
    return tensors, by_row


def _check_instances(document: Mapping[str, Any]) -> None:
    instances = document["instances"]
    problem = None
    if "inputs" in document:
        problem = "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
    elif not isinstance(instances, list):
        problem = "Excepting 'instances' to be an list/array"
    elif not instances:
        problem = "No values in 'instances' array"
    if problem:
        raise BadInput(f"JSON Value: {described(document)} {problem}")
    check_rows(len(instances))


def _from_instances(instances: list[Any], inputs: Sequence[TensorSpec]) -> Block:
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


def _array(column: list[Any], spec: TensorSpec) -> npt.NDArray[Any] | None:
    if spec.dtype is not DType.STRING:
        return array_of(column, spec.dtype)
    try:
        return array_of(with_decoded_bytes(column), spec.dtype)
    except BadInput:  # no base 64
        return None


def _columns(instances: list[Any], inputs: Sequence[TensorSpec]) -> list[list[Any]] | None:
    """Return the values of each input, in order; None where an instance has another form than the first."""
    if not isinstance(instances[0], dict) or is_base64(instances[0]):
        return [instances]
    names = {spec.name for spec in inputs}
    if not all(isinstance(one, dict) and one.keys() == names for one in instances):
        return None
    return [[one[spec.name] for one in instances] for spec in inputs]


def _from_inputs(value: Any, inputs: Sequence[TensorSpec]) -> Block:
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
        if spec.dtype is DType.STRING:
            tensor = with_decoded_bytes(tensor)
        values = array_of(tensor, spec.dtype)
        if values is None:
            raise explain_tensor(tensor, spec.dtype)
        tensors[spec.name] = values
    return tensors
