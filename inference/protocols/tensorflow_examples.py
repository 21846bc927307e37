"""TensorFlow Serving's classify and regress: requests with examples of named features, and their answers.

The model itself parses the examples, which are `tf.train.Example` messages. This module encodes these Protocol Buffers
by hand: there are only three message types, and only workers have TensorFlow.
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/example/feature.proto
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from inference.errors import BadInput, cut
from inference.protocols.tensorflow_errors import decoded, described, is_base64
from inference.protocols.tensorflow_serving import DEFAULT_SIGNATURE, signature_of
from inference.protocols.tensors import array_of, check_rows, objects, render
from inference.schema import Block, DType, Signature

#: the protocol's tensor names for such models
INPUTS, CLASSES, SCORES, OUTPUTS = "inputs", "classes", "scores", "outputs"

_KINDS = {bool: "int64", int: "int64", float: "float", str: "bytes", dict: "bytes"}
#: field numbers in the message Feature
_FIELDS = {"bytes": 1, "float": 2, "int64": 3}


def read_examples(document: Mapping[str, Any]) -> list[bytes]:
    """Return the request's examples as serialized `tf.train.Example`s. The common context precedes each of them.

    Raises:
        BadInput: the request has no legal examples; TensorFlow Serving's words.
    """
    signature_of(document)
    context = _example(document["context"]) if "context" in document else b""
    quoted = f"JSON Value: {described(document)}"
    if "examples" not in document:
        raise BadInput(f"{quoted} When method is classify, key 'examples' is expected and was not found")
    examples = document["examples"]
    if not isinstance(examples, list):
        raise BadInput(f"{quoted} Expecting 'examples' value to be an list/array")
    if not examples:
        raise BadInput(f"{quoted} 'examples' value is an empty array")
    check_rows(len(examples))
    # Protocol Buffers read two adjacent messages of one type as one
    return [context + _example(one) for one in examples]


def check_classify(document: Mapping[str, Any], signature: Signature) -> None:
    """Check that a model classifies examples.

    Raises:
        BadInput: it does not; TensorFlow Serving's words.
    """
    _check_input(document, signature, "classification")
    names = [spec.name for spec in signature.outputs]
    if len(names) not in (1, 2):
        raise BadInput(f"Expected one or two output Tensors, found {len(names)}")
    if not {CLASSES, SCORES} & set(names):
        raise BadInput(
            f'Expected classification signature outputs to contain at least one of "{CLASSES}" or "{SCORES}". '
            f"Signature was: {', '.join(names)}"
        )
    for spec in signature.model_outputs:
        wanted = {CLASSES: (DType.STRING, "DT_STRING"), SCORES: (DType.FLOAT32, "DT_FLOAT")}.get(spec.name)
        if wanted and len(spec.shape) != 1:
            raise BadInput(f"Expected Tensor shape: [batch_size num_classes] but got {[-1, *spec.shape]}")
        if wanted and spec.dtype is not wanted[0]:
            raise BadInput(f"Expected {spec.name} Tensor of {wanted[1]}. Got: {spec.dtype}")


def check_regress(document: Mapping[str, Any], signature: Signature) -> None:
    """Check that a model regresses examples.

    Raises:
        BadInput: it does not; TensorFlow Serving's words.
    """
    _check_input(document, signature, "regression")
    if len(signature.outputs) != 1:
        raise BadInput("Expected one output Tensor.")
    (output,) = signature.outputs
    if output.name != OUTPUTS:
        raise BadInput(f"No regression outputs found in SignatureDef: {output.name}")
    if output.shape:
        raise BadInput(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {[-1, *output.shape]}"
        )
    if output.dtype is not DType.FLOAT32:
        raise BadInput(f"Expected output Tensor of DT_FLOAT.  Got: {output.dtype}")


def example_tensors(examples: list[bytes]) -> Block:
    """Return the only input tensor of such a model."""
    return {INPUTS: objects(examples)}


def classify_answer(outputs: Block) -> bytes:
    """Return the answer to a classify request: label and score of each class, "" or 0 where the model has none."""
    labels, scores = outputs.get(CLASSES), outputs.get(SCORES)
    if labels is None and scores is not None:
        labels = np.full(scores.shape, "", dtype=object)
    if scores is None and labels is not None:
        scores = np.zeros(labels.shape, dtype=np.float32)
    if labels is None or scores is None or labels.shape != scores.shape:
        raise BadInput("Tensors class and score should match in dim_size(1).")
    return render({"results": [list(map(_class, *pair)) for pair in zip(labels, scores, strict=True)]})


def regress_answer(outputs: Block) -> bytes:
    """Return the answer to a regress request: one number for each example."""
    return render({"results": outputs[OUTPUTS].reshape(-1)})


def _class(label: str, score: np.float32) -> list[Any]:
    return [label, score]


def _check_input(document: Mapping[str, Any], signature: Signature, kind: str) -> None:
    name = signature_of(document)
    if name != DEFAULT_SIGNATURE:
        raise BadInput(f"No signature was found with the name: {cut(name)}")
    if len(signature.inputs) != 1:
        raise BadInput("Expected one input Tensor.")
    (only,) = signature.inputs
    if only.name != INPUTS:
        raise BadInput(f"No {kind} inputs found in SignatureDef: {only.name}")
    if only.dtype is not DType.STRING or only.shape:
        raise BadInput(f"Expects arg[0] to be {only.dtype} of shape {[-1, *only.shape]} but string is provided")


def _example(value: Any) -> bytes:
    if not isinstance(value, dict):
        kinds: dict[Any, str] = {list: "Array", str: "String", type(None): "Null", bool: str(value)}
        kind = kinds.get(type(value), "Number")
        raise BadInput(f"Example must be JSON object but got JSON {kind}")
    features = b"".join(
        _field(1, _field(1, name.encode()) + _field(2, _feature(name, content))) for name, content in value.items()
    )
    return _field(1, features)


def _feature(name: str, content: Any) -> bytes:
    values = content if isinstance(content, list) else [content]
    kind = None
    for value in values:
        found = _KINDS.get(type(value))
        if found is None or (isinstance(value, dict) and not is_base64(value)):
            what = "Object" if isinstance(value, dict) else "Array" if isinstance(value, list) else "Null"
            raise BadInput(f"Feature: {cut(name)} has element with unexpected JSON type: {what}")
        if kind not in (None, found):
            raise BadInput(f"Unexpected element type in feature: {cut(name)} expecting type: {kind}")
        kind = found
        _check_number(name, value)
    if kind is None:
        return b""
    return _field(_FIELDS[kind], _list_of(kind, values))


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, float) and array_of(value, DType.FLOAT32) is None:
        raise BadInput(f"Cannot convert JSON value: {value} to float without loss of precision.")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise BadInput(f"Feature: {cut(name)} has uint64 element. Only int64 is supported.")


def _list_of(kind: str, values: list[Any]) -> bytes:
    if kind == "float":
        return _field(1, struct.pack(f"<{len(values)}f", *values))
    if kind == "int64":
        return _field(1, b"".join(_varint(int(value) & 0xFFFFFFFFFFFFFFFF) for value in values))
    return b"".join(_field(1, _bytes_of(value)) for value in values)


def _bytes_of(value: Any) -> bytes:
    found = decoded(value) if isinstance(value, dict) else value
    return found.encode() if isinstance(found, str) else found


def _field(number: int, data: bytes) -> bytes:
    """Return a length-delimited field."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
