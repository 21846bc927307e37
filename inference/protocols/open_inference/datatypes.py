"""The protocol's names of element types."""

from __future__ import annotations

from inference.schema import DType

_NAMES = {
    DType.FLOAT16: "FP16",
    DType.FLOAT32: "FP32",
    DType.FLOAT64: "FP64",
    DType.STRING: "BYTES",
}


def datatype(dtype: DType) -> str:
    """Return the protocol's name of a type: `FP32`, `INT64`, `BOOL`, `BYTES`, …"""
    return _NAMES.get(dtype, dtype.value.upper())
