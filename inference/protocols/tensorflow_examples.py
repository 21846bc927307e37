"""TensorFlow Serving's classify and regress: requests with examples of named features, and their answers.

The model itself parses the examples, which are `tf.train.Example` messages. This module encodes these Protocol Buffers
by hand: there are only three message types, and only workers have TensorFlow.
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/example/feature.proto
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from inference.errors import BadInput, cut
from inference.protocols.tensorflow_calls import classifications, regressions
from inference.protocols.tensorflow_errors import decoded, described, is_base64
from inference.protocols.tensors import check_rows, render
from inference.schema import Block

_KINDS = {bool: "int64", int: "int64", float: "float", str: "bytes", dict: "bytes"}
#: field numbers in the message Feature
_FIELDS = {"bytes": 1, "float": 2, "int64": 3}


def read_examples(document: Mapping[str, Any]) -> list[bytes]:
    """Return the request's examples as serialized `tf.train.Example`s. The common context precedes each of them.

    Raises:
        BadInput: the request has no legal examples; TensorFlow Serving's words.
    """
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


def unknown_signature(name: str) -> BadInput:
    """Return the error for a request with examples that names a signature which the model does not have."""
    return BadInput(f"No signature was found with the name: {cut(name)}")


def classify_answer(outputs: Block, examples: int) -> bytes:
    """Return the answer to a classify request: label and score of each class of each example.

    Raises:
        BadInput: the outputs are no classes; see `classifications`.
    """
    labels, scores = classifications(outputs, examples)
    return render({"results": [list(map(_class, *pair)) for pair in zip(labels, scores, strict=True)]})


def regress_answer(outputs: Block, examples: int) -> bytes:
    """Return the answer to a regress request: one number for each example.

    Raises:
        BadInput: the outputs are no numbers of examples; see `regressions`.
    """
    return render({"results": regressions(outputs, examples)})


def _class(label: str | bytes, score: np.float32) -> list[Any]:
    return [label if isinstance(label, str) else label.decode("utf-8", "replace"), score]


def _example(value: Any) -> bytes:
    if not isinstance(value, dict):
        kinds: dict[Any, str] = {list: "Array", str: "String", type(None): "Null", bool: str(value)}
        kind = kinds.get(type(value), "Number")
        raise BadInput(f"Example must be JSON object but got JSON {kind}")
    features = b"".join(
        delimited_field(1, delimited_field(1, name.encode()) + delimited_field(2, _feature(name, content)))
        for name, content in value.items()
    )
    return delimited_field(1, features)


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
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise BadInput(f"Feature: {cut(name)} has uint64_t element. Only int64_t is supported.")
    if kind is None:
        return b""
    return delimited_field(_FIELDS[kind], _list_of(kind, values))


def _list_of(kind: str, values: list[Any]) -> bytes:
    if kind == "float":
        with np.errstate(over="ignore", under="ignore"):  # a number beyond the largest float is infinite
            return delimited_field(1, np.array(values, np.float64).astype("<f4").tobytes())
    if kind == "int64":
        return delimited_field(1, b"".join(_varint(int(value) & 0xFFFFFFFFFFFFFFFF) for value in values))
    return b"".join(delimited_field(1, _bytes_of(value)) for value in values)


def _bytes_of(value: Any) -> bytes:
    found = decoded(value) if isinstance(value, dict) else value
    return found.encode() if isinstance(found, str) else found


def delimited_field(number: int, data: bytes) -> bytes:
    """Return a field of Protocol Buffers whose bytes follow their length: a text, a message, or packed numbers."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
