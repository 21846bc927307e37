"""What there is of a model, and what it takes and gives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from inference.protocols.tensors import full
from inference.schema import DType, Signature, TensorSpec

_DTYPES = {DType.FLOAT16: "DT_HALF", DType.FLOAT32: "DT_FLOAT", DType.FLOAT64: "DT_DOUBLE"}


@dataclass(frozen=True)
class VersionStatus:
    """How a version stands. `AVAILABLE`: a worker holds it; `END`: none does. `error`: why it was refused, or waits."""

    version: int
    state: Literal["AVAILABLE", "END"]
    error: str = ""


def status(versions: Iterable[VersionStatus]) -> dict[str, Any]:
    """Return the body that tells how versions stand."""
    return {
        "model_version_status": [
            {
                "version": str(one.version),
                "state": one.state,
                "status": {"error_code": "UNKNOWN" if one.error else "OK", "error_message": one.error},
            }
            for one in versions
        ]
    }


def metadata(model: str, version: int, signature: Signature) -> dict[str, Any]:
    """Return the body that describes a version's tensors."""
    definition = {
        "inputs": {spec.name: _tensor(spec) for spec in signature.inputs},
        "outputs": {spec.name: _tensor(spec) for spec in signature.model_outputs},
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {"name": model, "signature_name": "", "version": str(version)},
        "metadata": {"signature_def": {"signature_def": {"serving_default": definition}}},
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {
        "dtype": _DTYPES.get(spec.dtype, f"DT_{spec.dtype.value.upper()}"),
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in full(spec)],
            "unknown_rank": False,
        },
        "name": f"{spec.name}:0",
    }
