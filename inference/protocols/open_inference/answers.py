"""A model's output tensors as the answer to an infer request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.protocols.json_tensors import render
from inference.protocols.open_inference.datatypes import datatype
from inference.protocols.open_inference.requests import InferRequest
from inference.protocols.tensors import text_to_bytes
from inference.schema import Block, DType


@dataclass(frozen=True)
class InferAnswer:
    """A body. `json_length`: how much of it is JSON, when binary tensors follow; None when all of it is."""

    body: bytes
    json_length: int | None


def infer_answer(model: str, version: int, request: InferRequest, outputs: Block) -> InferAnswer:
    """Return the answer with the outputs that were asked for, in that order."""
    items: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, binary in request.outputs.items():
        values = outputs[name]
        text = values.dtype.kind == "O"
        item: dict[str, Any] = {
            "name": name,
            "datatype": datatype(DType.STRING if text else DType(values.dtype.name)),
            "shape": list(values.shape),
        }
        if binary:
            blobs.append(_bytes(values, text))
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


def _bytes(values: npt.NDArray[Any], text: bool) -> bytes:
    return text_to_bytes(values) if text else values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
