"""The Open Inference Protocol (v2) over HTTP: answers, and what describes server and models.

Specifications: https://github.com/open-inference/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
and https://github.com/triton-inference-server/server/blob/main/docs/protocol (extensions for binary data and
classification). `open_inference_requests.py` reads requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.protocols.classes import best_classes
from inference.protocols.tensors import full, render, text_to_bytes
from inference.schema import Block, DType, Signature, TensorSpec

#: the protocol's names of types; the others are numpy's in capitals
_DATATYPES = {
    DType.FLOAT16: "FP16",
    DType.FLOAT32: "FP32",
    DType.FLOAT64: "FP64",
    DType.STRING: "BYTES",
}
#: Triton's extensions that are here; of its model repository only the index
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")


@dataclass(frozen=True)
class InferRequest:
    """What to compute. `outputs`: wanted outputs in order → whether to return them as bytes rather than JSON.

    `request_id` None: the client gave none. `classes`: outputs that are wanted as classes → how many of the best.
    `timeout_s`: the client waits no longer, in seconds; None: it does not say.
    """

    request_id: str | None
    tensors: Block
    outputs: Mapping[str, bool]
    classes: Mapping[str, int] = field(default_factory=dict)
    timeout_s: float | None = None


@dataclass(frozen=True)
class InferAnswer:
    """A body. `json_length`: bytes of JSON in front of binary tensors; None if all of the body is JSON."""

    body: bytes
    json_length: int | None


def wanted_outputs(request: InferRequest, outputs: Block, labels: Sequence[str] = ()) -> Block:
    """Return the outputs that a request wants, in its order, those of classes as texts. `labels`: of the classes.

    Raises:
        BadInput: the request wants too many classes of too many rows.
    """
    return {
        name: best_classes(outputs[name], request.classes[name], labels) if name in request.classes else outputs[name]
        for name in request.outputs
    }


def infer_answer(
    model: str, version: int, request: InferRequest, outputs: Block, labels: Sequence[str] = ()
) -> InferAnswer:
    """Return the answer with the wanted outputs, in the request's order. `labels`: of the classes.

    Raises:
        BadInput: as `wanted_outputs` says.
    """
    items: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, values in wanted_outputs(request, outputs, labels).items():
        binary = request.outputs[name]
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
    return {"name": "forecache", "version": release, "extensions": list(EXTENSIONS)}


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
