"""The clients of the two protocols of remote engines: TensorFlow Serving's REST API, and the Open Inference Protocol.

Sources: http_rest_api_util.cc and json_tensor.cc of tensorflow/serving; inference_rest.md of version 2 of the Open
Inference Protocol.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from inference.errors import ModelError, PredictionFailed
from inference.models.remote_file import RemoteEngine
from inference.models.runtimes.runtime import row_spec
from inference.schema import Block, DType, TensorSpec, rows_in

#: TensorFlow's name of a dtype → numpy's
_TENSORFLOW_DTYPES = {
    "DT_FLOAT": "float32", "DT_DOUBLE": "float64", "DT_HALF": "float16", "DT_BOOL": "bool", "DT_STRING": "string",
    **{f"DT_{kind}{bits}": f"{kind.lower()}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)},
}  # fmt: skip
#: the Open Inference Protocol's name of a dtype → numpy's
_DTYPES = {
    "BOOL": "bool", "BYTES": "string", "FP16": "float16", "FP32": "float32", "FP64": "float64",
    **{f"{kind}{bits}": f"{kind.lower()}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)},
}  # fmt: skip
_NAMES = {ours: theirs for theirs, ours in _DTYPES.items()}


class TensorFlowServingProtocol:
    """TensorFlow Serving's REST API. Asks for predictions by rows or by columns."""

    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine
        self._path = f"/v1/models/{quote(engine.name, safe='')}"
        if engine.version:
            self._path += f"/versions/{quote(engine.version, safe='')}"
        if engine.label:
            self._path += f"/labels/{quote(engine.label, safe='')}"
        self._outputs: tuple[TensorSpec, ...] = ()

    def describe(self, ask: Callable[..., Any]) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return the inputs and outputs of the signature, ordered by name: the engine's JSON has no order.

        Raises:
            ModelError: the model has no such signature, or one that cannot be served.
        """
        metadata = ask(f"{self._path}/metadata")
        try:
            signatures = metadata["metadata"]["signature_def"]["signature_def"]
        except (KeyError, TypeError) as error:
            raise ModelError("its engine does not describe the model as TensorFlow Serving does") from error
        signature = signatures.get(self._engine.signature)
        if signature is None:
            known = ", ".join(sorted(name for name in signatures if not name.startswith("__")))
            raise ModelError(f"the model has no signature {self._engine.signature!r}; it has: {known}")
        inputs = tensorflow_specs(self._engine.name, "input", signature["inputs"])
        self._outputs = tensorflow_specs(self._engine.name, "output", signature["outputs"])
        return inputs, self._outputs

    def predict(self, ask: Callable[..., Any], inputs: Block) -> dict[str, Any]:
        """Return the outputs' values by name.

        Raises:
            PredictionFailed: the answer does not have the form of the protocol.
        """
        by_columns = self._engine.form == "columns"
        body: dict[str, Any] = {"signature_name": self._engine.signature}
        body |= {"inputs": _columns(inputs)} if by_columns else {"instances": _rows(inputs)}
        answer = ask(f"{self._path}:predict", body)
        try:
            return self._from_columns(answer["outputs"]) if by_columns else self._from_rows(answer["predictions"])
        except (KeyError, TypeError) as error:
            raise PredictionFailed("its engine did not answer as TensorFlow Serving does") from error

    def _from_columns(self, answer: Any) -> dict[str, Any]:
        """Return the outputs. A single output comes without its name."""
        if len(self._outputs) == 1:
            answer = {self._outputs[0].name: answer}
        return {spec.name: _text(answer[spec.name], spec) for spec in self._outputs}

    def _from_rows(self, answer: list[Any]) -> dict[str, Any]:
        if len(self._outputs) == 1:
            return {self._outputs[0].name: _text(answer, self._outputs[0])}
        return {spec.name: _text([row[spec.name] for row in answer], spec) for spec in self._outputs}


def tensorflow_specs(model: str, kind: str, tensors: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    """Return the tensors of a signature as TensorFlow Serving's JSON describes them, ordered by name.

    Raises:
        ModelError: one of them cannot be served.
    """
    return tuple(_spec(model, kind, name, tensors[name]) for name in sorted(tensors))


def _spec(model: str, kind: str, name: str, tensor: Mapping[str, Any]) -> TensorSpec:
    shape = tensor["tensor_shape"]
    if shape.get("unknown_rank"):
        raise ModelError(f"{model}: {kind} {name!r} is no plain tensor of known rank", field=name)
    sizes = [int(dim["size"]) for dim in shape["dim"]]
    dtype = _TENSORFLOW_DTYPES.get(tensor["dtype"], tensor["dtype"])
    return row_spec(Path(model), kind, name, dtype, [None if size < 0 else size for size in sizes])


def _columns(inputs: Block) -> Any:
    """Return the inputs by name. Text becomes lists: the JSON encoder takes no arrays of objects."""
    columns = {name: array.tolist() if array.dtype == object else _plain(array) for name, array in inputs.items()}
    return next(iter(columns.values())) if len(columns) == 1 else columns


def _rows(inputs: Block) -> list[Any]:
    values = {name: array.tolist() for name, array in inputs.items()}
    if len(values) == 1:
        return next(iter(values.values()))
    return [{name: column[row] for name, column in values.items()} for row in range(rows_in(inputs))]


def _plain(array: Any) -> Any:
    # the JSON encoder takes no arrays with gaps, and not all versions take half floats
    array = array.astype(np.float32) if array.dtype == np.float16 else array
    return np.ascontiguousarray(array)


def _text(values: Any, spec: TensorSpec) -> Any:
    """Return decoded bytes of a text output whose name ends in `_bytes`; other values unchanged."""
    if spec.dtype is not DType.STRING:
        return values
    if isinstance(values, list):
        return [_text(value, spec) for value in values]
    return base64.b64decode(values["b64"]) if isinstance(values, dict) else values


class OpenInferenceProtocol:
    """The Open Inference Protocol, version 2, over HTTP. Sends flat JSON arrays, which every engine takes."""

    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine
        self._path = f"/v2/models/{quote(engine.name, safe='')}"
        if engine.version:
            self._path += f"/versions/{quote(engine.version, safe='')}"
        self._inputs: dict[str, TensorSpec] = {}
        self._outputs: dict[str, TensorSpec] = {}

    def describe(self, ask: Callable[..., Any]) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return the inputs and outputs in the order of the model's metadata.

        Raises:
            ModelError: the metadata name none, or some that cannot be served.
        """
        metadata = ask(self._path)
        metadata = metadata if isinstance(metadata, dict) else {}
        self._inputs = open_inference_specs(self._engine.name, "input", metadata.get("inputs") or ())
        self._outputs = open_inference_specs(self._engine.name, "output", metadata.get("outputs") or ())
        return tuple(self._inputs.values()), tuple(self._outputs.values())

    def predict(self, ask: Callable[..., Any], inputs: Block) -> dict[str, Any]:
        """Return the outputs' values by name.

        Raises:
            PredictionFailed: the answer does not have the form of the protocol.
        """
        body = {
            "inputs": [_tensor(self._inputs[name], array) for name, array in inputs.items()],
            "outputs": [{"name": name} for name in self._outputs],
        }
        answer = ask(f"{self._path}/infer", body)
        try:
            return {one["name"]: _values(one, self._outputs.get(one["name"])) for one in answer["outputs"]}
        except (KeyError, TypeError, ValueError) as error:
            raise PredictionFailed("its engine did not answer by the Open Inference Protocol") from error


def open_inference_specs(model: str, kind: str, tensors: Sequence[Mapping[str, Any]]) -> dict[str, TensorSpec]:
    """Return the tensors of a model's metadata by name, in their order.

    Raises:
        ModelError: there are none, or one of them cannot be served.
    """
    if not tensors:
        raise ModelError(
            f"its engine does not say what the {kind}s of model {model!r} are: "
            "declare them in the engine's settings of the model"
        )
    return {one["name"]: _row_spec(model, kind, one) for one in tensors}


def _row_spec(model: str, kind: str, tensor: Mapping[str, Any]) -> TensorSpec:
    dtype = _DTYPES.get(tensor["datatype"], tensor["datatype"])
    shape = [None if int(size) < 0 else int(size) for size in tensor["shape"]]
    return row_spec(Path(model), kind, tensor["name"], dtype, shape)


def _tensor(spec: TensorSpec, array: npt.NDArray[Any]) -> dict[str, Any]:
    flat = np.ascontiguousarray(array).ravel()
    # the JSON encoder takes neither text nor half floats
    data = flat.tolist() if spec.dtype in (DType.STRING, DType.FLOAT16) else flat
    return {"name": spec.name, "shape": list(array.shape), "datatype": _NAMES[spec.dtype.value], "data": data}


def _values(tensor: Mapping[str, Any], spec: TensorSpec | None) -> npt.NDArray[Any]:
    """Return a tensor's values, flat or nested, in its shape. Some engines write null for NaN."""
    dtype: Any = object if spec is None or not spec.dtype.is_float else spec.dtype.numpy
    return np.asarray(tensor["data"], dtype=dtype).reshape(tensor["shape"])
