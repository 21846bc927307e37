"""A server that answers by the Open Inference Protocol as inference_rest.md has it, over models of numpy."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from tests.support.tensorflow_serving import Refusal, ServedModel, TensorFlowServingServer

_PATH = re.compile(r"^/v2/models/([^/]+)(?:/versions/([^/]+))?(/infer)?$")
_DATATYPES = {"DT_FLOAT": "FP32", "DT_INT64": "INT64", "DT_STRING": "BYTES"}
_NUMPY = {"FP32": np.float32, "INT64": np.int64, "BYTES": object}


class OpenInferenceServer(TensorFlowServingServer):
    """The same models, asked in the other language."""

    def _answer(self, path: str, body: bytes | None) -> Any:
        match = _PATH.match(path)
        if not match or bool(match[3]) != (body is not None):
            raise Refusal(404, "Not Found")
        model = self.models.get(match[1])
        if model is None or (match[2] and match[2] != str(model.version)):
            raise Refusal(404, f"Model {match[1]} with version {match[2]} not found")
        if body is None:
            return _metadata(match[1], model)
        self._turn_away()
        return self._infer(match[1], model, json.loads(body))

    def _infer(self, name: str, model: ServedModel, request: Any) -> Any:
        given = {one["name"]: _array(one, model) for one in request["inputs"]}
        missing = model.inputs.keys() - given.keys()
        if missing:
            raise Refusal(400, f"expected {len(model.inputs)} inputs, missing {sorted(missing)}")
        outputs = model.compute(**given)
        wanted = [one["name"] for one in request.get("outputs", [])] or list(outputs)
        return {
            "model_name": name, "model_version": str(model.version), "id": request.get("id", "made-up"),
            "outputs": [
                {
                    "name": key, "shape": list(outputs[key].shape), "datatype": _DATATYPES[model.outputs[key][0]],
                    "data": outputs[key].ravel().tolist(),
                }
                for key in wanted
            ],
        }  # fmt: skip


def _metadata(name: str, model: ServedModel) -> Any:
    def tensors(specs: dict[str, tuple[str, tuple[int, ...]]]) -> Any:
        return [
            {"name": key, "datatype": _DATATYPES[dtype], "shape": [-1, *shape]} for key, (dtype, shape) in specs.items()
        ]

    return {
        "name": name, "versions": [str(model.version)], "platform": "numpy",
        "inputs": tensors(model.inputs), "outputs": tensors(model.outputs),
    }  # fmt: skip


def _array(tensor: Any, model: ServedModel) -> np.ndarray:
    if tensor["name"] not in model.inputs:
        raise Refusal(400, f"unexpected inference input '{tensor['name']}' for model")
    dtype, shape = model.inputs[tensor["name"]]
    if tensor["datatype"] != _DATATYPES[dtype] or tuple(tensor["shape"][1:]) != shape:
        raise Refusal(
            400, f"unexpected shape or datatype for input '{tensor['name']}': {tensor['datatype']} {tensor['shape']}"
        )
    if any(value is None for value in np.asarray(tensor["data"], dtype=object).ravel()):
        raise Refusal(400, f"input '{tensor['name']}' holds null")
    return np.asarray(tensor["data"], dtype=_NUMPY[tensor["datatype"]]).reshape(tensor["shape"])
