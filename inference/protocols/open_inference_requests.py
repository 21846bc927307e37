"""Reads the infer requests of the Open Inference Protocol (v2): the model's input tensors, and the wanted outputs.

A request hears of all its faults at once, in the words of Triton, one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from inference.errors import LONGEST_QUOTE, BadInput, cut, quoted
from inference.protocols.json_documents import parse
from inference.protocols.open_inference import InferRequest, datatype
from inference.protocols.tensors import (
    MAX_TENSOR_ROWS,
    array_of,
    check_tensors,
    fits,
    full,
    shape_text,
    text_from_bytes,
    whole_number,
)
from inference.schema import Block, DType, Signature, TensorSpec

#: the largest size or length: an int64
_LARGEST = 2**63 - 1
_TYPES = {datatype(dtype): dtype for dtype in DType}
#: integers that may stand for floats
_INTEGERS = {name for name, dtype in _TYPES.items() if dtype.is_integer}
#: `content_type` of a request that MLServer's pandas codec wrote: its floats are doubles, whatever the model takes
_FRAME = "pd"
_FLOATS = {name for name, dtype in _TYPES.items() if dtype.is_float}
LONGEST_TIMEOUT_S = 600.0
NO_SHARED_MEMORY = "the shared memory extensions are not supported"
_T = TypeVar("_T")

#: the bytes of an input; None: its elements are in the JSON; an error: they cannot be read
Content = bytes | memoryview | BadInput | None


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
        BadInput: the request does not fit the model or the protocol; the message has all faults.
    """
    contents: list[Content] = []
    start = 0
    for item in _objects(document, "inputs"):
        try:
            size = _binary_size(item)
        except BadInput as error:
            contents.append(error)
            continue
        contents.append(None if size is None else _part(item, binary[start : start + size], size))
        start += size or 0
    more = [] if start >= len(binary) else [f"unexpected additional input data for model '{model}'"]
    return infer_request_of(model, document, contents, signature, faults=more)


def _part(item: Mapping[str, Any], data: memoryview, size: int) -> Content:
    name = cut(_name(item, "input"))
    if "data" in item:
        return BadInput(f"input '{name}' has both 'data' and 'binary_data_size'")
    if len(data) < size:
        return BadInput(f"unexpected size for input '{name}', expecting {size - len(data)} additional bytes")
    return data


def infer_request_of(
    model: str,
    document: Mapping[str, Any],
    contents: Sequence[Content],
    signature: Signature,
    *,
    faults: Iterable[str] = (),
) -> InferRequest:
    """Return the same as `infer_request`. `contents`: of each input, in order. `faults`: those that are known already.

    Raises:
        BadInput: as `infer_request` says.
    """
    return _RequestReader(model, document, signature, faults).read(contents)


class _RequestReader:
    """Reads one request and collects its faults."""

    def __init__(self, model: str, document: Mapping[str, Any], signature: Signature, faults: Iterable[str]) -> None:
        self._model = model
        self._document = document
        self._inputs = {spec.name: spec for spec in signature.inputs}
        self._output_specs = {spec.name: spec for spec in signature.outputs}
        self._faults = list(faults)
        self._parameters = self._try(_parameters, document) or {}
        self._is_frame = self._parameters.get("content_type") == _FRAME

    def read(self, contents: Sequence[Content]) -> InferRequest:
        """Return the request.

        Raises:
            BadInput: the message has all faults.
        """
        request_id = self._try(_request_id, self._document)
        tensors = self._tensors(contents)
        outputs = self._outputs()
        timeout_s = self._try(_timeout_s, self._parameters)
        if self._faults:
            raise BadInput("; ".join(dict.fromkeys(self._faults)))
        wanted = {name: binary for name, (binary, _) in outputs.items()}
        classes = {name: most for name, (_, most) in outputs.items() if most}
        return InferRequest(request_id, tensors, wanted, classes, timeout_s)

    def _try(self, call: Callable[..., _T], *arguments: Any) -> _T | None:
        """Return the call's result; None, and its error is one more fault, if it raises BadInput."""
        try:
            return call(*arguments)
        except BadInput as error:
            self._faults.append(error.message)
            return None

    def _tensors(self, contents: Sequence[Content]) -> Block:
        """Return the tensors that are without fault."""
        items = _objects(self._document, "inputs")
        tensors: Block = {}
        seen: set[str] = set()
        for item, content in zip(items, contents, strict=True):
            name = self._try(_name, item, "input")
            if name is None:
                continue
            if name in seen:
                self._faults.append(f"input '{cut(name)}' already exists in request")
                continue
            seen.add(name)
            values = self._input(name, item, content)
            if values is not None:
                tensors[name] = values
        self._check_missing(len(items), [name for name in self._inputs if name not in seen])
        if tensors:  # each must have as many rows as the others
            self._try(check_tensors, tensors, [self._inputs[name] for name in tensors])
        return tensors

    def _check_missing(self, given: int, missing: Sequence[str]) -> None:
        if not missing:
            return
        few = f"expected {len(self._inputs)} inputs but got {given} inputs" if given < len(self._inputs) else "inputs"
        self._faults.append(f"{few} for model '{self._model}': {cut(', '.join(missing))} missing")

    def _input(self, name: str, item: Mapping[str, Any], content: Content) -> npt.NDArray[Any] | None:
        """Return one tensor; None if it is at fault."""
        spec = self._inputs.get(name)
        if spec is None:
            self._faults.append(f"unexpected inference input '{cut(name)}' for model '{self._model}'")
            return None
        faults = [*self._faults_of_type(item, spec), *self._faults_of_shape(item, spec)]
        if isinstance(content, BadInput):
            self._faults += [content.message, *faults]
            return None
        if faults:
            self._faults += faults
            return None
        return self._try(_from_json, item, spec) if content is None else self._try(_from_binary, content, item, spec)

    def _faults_of_type(self, item: Mapping[str, Any], spec: TensorSpec) -> Iterator[str]:
        wanted, given = datatype(spec.dtype), item.get("datatype")
        if given == wanted:
            return
        if (
            spec.dtype.is_float
            and isinstance(given, str)
            and (given in _INTEGERS or (self._is_frame and given in _FLOATS))
        ):
            return
        shown = cut(given) if isinstance(given, str) else "no text"
        yield f"inference input '{spec.name}' data-type is '{shown}', but model '{self._model}' expects '{wanted}'"

    def _faults_of_shape(self, item: Mapping[str, Any], spec: TensorSpec) -> Iterator[str]:
        shape = item.get("shape")
        if not isinstance(shape, list) or not all(type(size) is int and 0 <= size <= _LARGEST for size in shape):
            yield f"input '{spec.name}' must have a 'shape', a list of sizes"
        elif not fits(shape, spec) and not _is_column(shape, spec):
            yield (
                f"unexpected shape for input '{spec.name}' for model '{self._model}'. Expected "
                f"{shape_text(full(spec))}, got {cut(shape_text(shape[:LONGEST_QUOTE]))}"
            )
        elif not 0 < shape[0] <= MAX_TENSOR_ROWS:
            yield f"{shape[0]} rows: send 1 to {MAX_TENSOR_ROWS} in a request"

    def _outputs(self) -> dict[str, tuple[bool, int]]:
        """Return each wanted output's name → whether it comes as bytes, and the number of classes; 0: no classes."""
        by_default = self._try(_flag, self._parameters, "binary_data_output") or False
        wanted = self._try(_objects, self._document, "outputs") if self._document.get("outputs") else None
        if not wanted:
            return dict.fromkeys(self._output_specs, (by_default, 0))
        found: dict[str, tuple[bool, int]] = {}
        for item in wanted:
            name = self._try(_name, item, "output")
            if name is None:
                continue
            spec = self._output_specs.get(name)
            if spec is None:
                self._faults.append(f"unexpected inference output '{cut(name)}' for model '{self._model}'")
            else:
                found[name] = self._try(_output, item, spec, by_default) or (by_default, 0)
        return found


def _request_id(document: Mapping[str, Any]) -> str | None:
    value = document.get("id")
    if not isinstance(value, str | None):
        raise BadInput("the inference request's 'id' must be a string")
    return value


def _timeout_s(parameters: Mapping[str, Any]) -> float | None:
    """Return Triton's parameter `timeout`, which is in microseconds; 0 means none."""
    value = parameters.get("timeout", 0)
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise BadInput("parameter 'timeout' must be a number of microseconds")
    return min(value / 1e6, LONGEST_TIMEOUT_S) or None


def _output(item: Mapping[str, Any], spec: TensorSpec, by_default: bool) -> tuple[bool, int]:
    parameters = _parameters(item)
    if "shared_memory_region" in parameters:
        raise BadInput(f"output '{spec.name}': {NO_SHARED_MEMORY}")
    classes = parameters.get("classification", 0)
    if type(classes) is not int or not 0 <= classes <= _LARGEST:
        raise BadInput(f"output '{spec.name}': 'classification' must be a number of classes")
    if classes and not (spec.dtype.is_float or spec.dtype.is_integer):
        raise BadInput(f"output '{spec.name}' has no classes: its datatype is {datatype(spec.dtype)}")
    binary = _flag(parameters, "binary_data")
    return by_default if binary is None else binary, classes


def _is_column(shape: Sequence[int], spec: TensorSpec) -> bool:
    """Return whether this is one value a row with a dimension of its own, as the pandas codec of MLServer writes it."""
    return not spec.shape and len(shape) == 2 and shape[1] == 1


def _from_json(item: Mapping[str, Any], spec: TensorSpec) -> npt.NDArray[Any]:
    data, rounds = item.get("data"), item["datatype"] in _FLOATS - {datatype(spec.dtype)}
    if not isinstance(data, list):
        raise BadInput(f"input '{spec.name}' must have 'data', a list, or 'binary_data_size' in its parameters")
    values = array_of(data, spec.dtype, rounds=rounds)
    if values is None and spec.dtype.is_float:  # MLServer's codecs write null for NaN
        values = array_of(_with_nan(data), spec.dtype, rounds=rounds)
    if values is None:
        raise BadInput(f"unable to parse 'data' of input '{spec.name}': not all of it is {datatype(spec.dtype)}")
    return _shaped(values, item, spec)


def _with_nan(data: list[Any]) -> list[Any]:
    return [_with_nan(one) if isinstance(one, list) else math.nan if one is None else one for one in data]


def _from_binary(data: bytes | memoryview, item: Mapping[str, Any], spec: TensorSpec) -> npt.NDArray[Any]:
    if spec.dtype is DType.STRING:
        try:
            return _shaped(text_from_bytes(data), item, spec)
        except ValueError as error:
            raise BadInput(f"unable to parse the bytes of input '{spec.name}': {error}") from error
    given = _TYPES[item["datatype"]]
    expected = math.prod(item["shape"]) * given.numpy.itemsize
    if len(data) != expected:
        raise BadInput(f"unexpected total byte size {len(data)} for input '{spec.name}', expecting {expected}")
    # every byte except 0 means true; numpy would keep the byte
    values = np.frombuffer(data, np.uint8 if given is DType.BOOL else given.numpy)
    values = values.astype(bool) if given is DType.BOOL else values
    if given.is_integer and spec.dtype.is_float:
        values = _as_floats(values, spec)
    with np.errstate(over="ignore"):
        return _shaped(values.astype(spec.dtype.numpy, copy=False), item, spec)


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
        raise BadInput(f"input '{name}': {NO_SHARED_MEMORY}")
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
