"""What this server is, and what a model takes and gives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from inference.protocols.open_inference.datatypes import datatype
from inference.protocols.tensors import full
from inference.schema import Signature, TensorSpec


def server_metadata(release: str) -> dict[str, Any]:
    """Return the body that describes this server."""
    return {"name": "forecache", "version": release, "extensions": ["binary_tensor_data"]}


def model_metadata(model: str, versions: Iterable[int], platform: str, signature: Signature) -> dict[str, Any]:
    """Return the body that describes a model's tensors."""
    return {
        "name": model,
        "versions": [str(version) for version in versions],
        "platform": platform,
        "inputs": [_tensor(spec) for spec in signature.inputs],
        "outputs": [_tensor(spec) for spec in signature.model_outputs],
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype(spec.dtype), "shape": list(full(spec))}
