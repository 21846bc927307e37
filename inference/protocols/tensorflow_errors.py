"""Finds the mistake in a TensorFlow Serving request, value by value, and describes it in TensorFlow Serving's words."""

from __future__ import annotations

import binascii
import json
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from inference.errors import LONGEST_QUOTE, BadInput, cut
from inference.protocols.tensors import array_of, as_text, shape_text
from inference.schema import DType, GraphTensor

#: TensorFlow's names of types that differ from numpy's
_NAMES = {DType.FLOAT16: "half", DType.FLOAT32: "float", DType.FLOAT64: "double"}
_INVALID = "INVALID_ARGUMENT: "
_INDENT = " " * 4
#: elements to try together; each element is only tried by itself if they fail
_CHUNK = 4096
#: the most dimensions of a tensor
MAX_RANK = 64


def type_name(dtype: DType) -> str:
    """Return TensorFlow's name of a type."""
    return _NAMES.get(dtype, dtype.value)


def described(value: Any) -> str:
    """Return the start of a JSON value as error texts quote it: lists on one line, objects on several.

    TensorFlow Serving quotes four times as much.
    """
    text = ""
    for part in _pieces(value, 0):  # stop early: the value may be a whole body
        text += part
        if len(text) > LONGEST_QUOTE:
            break
    return cut(text)


def _pieces(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, bytes):
        value = {"b64": b64encode(value).decode("ascii")}
    if not isinstance(value, list | dict):
        yield json.dumps(value, ensure_ascii=False)
        return
    is_list, deeper = isinstance(value, list), f"\n{_INDENT * (depth + 1)}"
    opening, between, closing = "[", ", ", "]"
    if not is_list:
        opening, between, closing = "{", f",{deeper}", f"\n{_INDENT * depth}}}"
    yield opening
    for number, one in enumerate(value):
        yield between if number else "" if is_list else deeper
        if not is_list:
            yield f"{json.dumps(one, ensure_ascii=False)}: "
        yield from _pieces(one if is_list else value[one], depth + 1)
    yield closing if value else closing[-1]


def is_base64(value: Any) -> bool:
    """Return whether a value is an object that holds bytes in base 64."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def with_decoded_bytes(value: Any) -> Any:
    """Return the lists with their base-64 objects decoded: as text if the bytes are UTF-8, otherwise as bytes.

    Raises:
        BadInput: one of them is not base 64.
    """
    if isinstance(value, list):
        if set(map(type, value)) <= {str}:
            return value
        return [with_decoded_bytes(one) for one in value]
    return decoded(value) if is_base64(value) else value


def decoded(value: dict[str, Any]) -> str | bytes:
    """Return the text or bytes that a base-64 object holds.

    Raises:
        BadInput: it is not base 64.
    """
    text = value["b64"]
    try:
        # like TensorFlow Serving's decoder, accept a text without padding
        return as_text(b64decode(text + "=" * (-len(text) % 4), validate=True))
    except (binascii.Error, ValueError) as error:
        raise BadInput("Unable to base64 decode") from error


def explain_tensor(value: Any, declared: GraphTensor) -> BadInput:
    """Return the error that describes the mistake in the value of one tensor."""
    dtype = declared.element
    if dtype is None:
        return _unknown_type(value, declared)
    return BadInput(
        _problem(value, dtype, _shape(value), 0)
        or f"JSON Value: {described(value)} is no tensor of type {type_name(dtype)}"
    )


def _unknown_type(value: Any, declared: GraphTensor) -> BadInput:
    kind = declared.dtype.removeprefix("DT_").lower()
    return BadInput(f"Conversion of JSON Value: {described(value)} to type: {kind}")


def explain_instances(instances: list[Any], inputs: Sequence[GraphTensor]) -> BadInput:
    """Return the error for the first mistake in instances, in the order in which TensorFlow Serving checks them."""
    specs = {spec.name: spec for spec in inputs}
    objects = _is_named(instances[0])
    shapes: dict[str, list[int]] = {}
    for number, element in enumerate(instances):
        if _is_named(element) is not objects:
            return BadInput(
                f"Expecting object but got list at item {number} of input list"
                if objects
                else f"Expecting value/list but got object at item {number} of input list"
            )
        items = element if objects else {inputs[0].name: element}
        for name, value in items.items():
            problem = _instance_problem(value, specs.get(name), name, shapes)
            if problem:
                key = f" key: {cut(name)}" if objects else ""
                return BadInput(
                    f"Failed to process element: {number}{key} of 'instances' list. Error: {_INVALID}{problem}"
                )
        if objects and element.keys() != specs.keys():
            return BadInput(
                f"Failed to process element: {number} of 'instances' list. JSON object: {described(element)} "
                f"keys must be equal to: {','.join(sorted(specs))}"
            )
    return BadInput("Failed to process 'instances' list")


def _instance_problem(value: Any, spec: GraphTensor | None, name: str, shapes: dict[str, list[int]]) -> str | None:
    if spec is None:
        return f"JSON object: does not have named input: {cut(name)}"
    if spec.element is None:
        return _unknown_type(value, spec).message
    shape = _shape(value)
    problem = _problem(value, spec.element, shape, 0)
    if problem:
        return problem
    first = shapes.setdefault(name, shape)
    if np.prod(first) != np.prod(shape):
        return f"Expecting tensor size: {int(np.prod(first))} but got: {int(np.prod(shape))}"
    return f"Expecting shape {_shown(first)} but got: {_shown(shape)}" if first != shape else None


def _shown(shape: list[int]) -> str:
    return cut(shape_text(shape))


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def _shape(value: Any) -> list[int]:
    """Return the shape according to the first elements."""
    shape: list[int] = []
    while isinstance(value, list) and len(shape) <= MAX_RANK:
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _problem(value: Any, dtype: DType, shape: list[int], level: int) -> str | None:
    if not isinstance(value, list):
        if level != len(shape):
            return (
                f"JSON Value: {described(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        return _value_problem(value, dtype)
    if level >= min(len(shape), MAX_RANK):
        return f"Encountered list at unexpected level: {level} expected < {min(len(shape), MAX_RANK)}"
    if len(value) != shape[level]:
        return f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
    for start in range(0, len(value), _CHUNK):
        chunk = value[start : start + _CHUNK]
        if _is_good(chunk, dtype, shape[level + 1 :]):
            continue
        for one in chunk:
            problem = _problem(one, dtype, shape, level + 1)
            if problem:
                return problem
    return None


def _is_good(values: list[Any], dtype: DType, shape: list[int]) -> bool:
    """Return whether all values have this type and shape. Checks them together: millions may precede the bad one."""
    array = array_of(values, dtype, rounds=True)
    return array is not None and list(array.shape[1:]) == shape


def _value_problem(value: Any, dtype: DType) -> str | None:
    if array_of(value, dtype, rounds=True) is not None:
        return None
    if dtype is DType.STRING and isinstance(value, dict):
        if is_base64(value):
            return _undecodable(value)
        return f"JSON Value: {described(value)} not formatted correctly for base64 data"
    return _type_problem(value, dtype)


def _undecodable(value: dict[str, Any]) -> str | None:
    try:
        decoded(value)
    except BadInput as error:
        return error.message
    return None


def _type_problem(value: Any, dtype: DType) -> str:
    kinds = {type(None): "Null", dict: "Object", list: "Array", str: "String", bytes: "Object"}
    kind = str(value) if isinstance(value, bool) else kinds.get(type(value), "Number")
    return f"JSON Value: {described(value)} Type: {kind} is not of expected type: {type_name(dtype)}"
