"""The client's side of the Open Inference Protocol, version 2, over HTTP (inference_rest.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from inference.errors import ModelError, PredictionFailed
from inference.models.remote import RemoteEngine
from inference.models.runtimes.tensors import row_spec
from inference.schema import Block, DType, TensorSpec

#: the protocol's names of element types → numpy's
_DTYPES = {
    "BOOL": "bool", "BYTES": "string", "FP16": "float16", "FP32": "float32", "FP64": "float64",
    **{f"{kind}{bits}": f"{kind.lower()}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)},
}  # fmt: skip
_NAMES = {ours: theirs for theirs, ours in _DTYPES.items()}


class OpenInference:
    """Predictions as flat JSON arrays, which every engine takes."""

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
            ModelError: the metadata name none, or such that cannot be served.
        """
        metadata = ask(self._path)
        self._inputs = self._specs("input", metadata)
        self._outputs = self._specs("output", metadata)
        return tuple(self._inputs.values()), tuple(self._outputs.values())

    def predict(self, ask: Callable[..., Any], inputs: Block) -> dict[str, Any]:
        """Return the outputs' values by name.

        Raises:
            PredictionFailed: the answer has not the form of the protocol.
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

    def _specs(self, kind: str, metadata: Any) -> dict[str, TensorSpec]:
        tensors: Sequence[Mapping[str, Any]] = (metadata.get(f"{kind}s") if isinstance(metadata, dict) else None) or ()
        if not tensors:
            raise ModelError(
                f"its engine does not say what the {kind}s of model {self._engine.name!r} are: "
                "declare them in the engine's settings of the model"
            )
        return {one["name"]: self._spec(kind, one) for one in tensors}

    def _spec(self, kind: str, tensor: Mapping[str, Any]) -> TensorSpec:
        dtype = _DTYPES.get(tensor["datatype"], tensor["datatype"])
        shape = [None if int(size) < 0 else int(size) for size in tensor["shape"]]
        return row_spec(Path(self._engine.name), kind, tensor["name"], dtype, shape)


def _tensor(spec: TensorSpec, array: npt.NDArray[Any]) -> dict[str, Any]:
    flat = np.ascontiguousarray(array).ravel()
    # the encoder knows neither text nor half floats
    data = flat.tolist() if spec.dtype in (DType.STRING, DType.FLOAT16) else flat
    return {"name": spec.name, "shape": list(array.shape), "datatype": _NAMES[spec.dtype.value], "data": data}


def _values(tensor: Mapping[str, Any], spec: TensorSpec | None) -> npt.NDArray[Any]:
    """Return a tensor's values in its shape, flat or nested as they came; null is NaN, as some engines write it."""
    dtype: Any = object if spec is None or not spec.dtype.is_float else spec.dtype.numpy
    return np.asarray(tensor["data"], dtype=dtype).reshape(tensor["shape"])
