"""Names, dtypes and shapes of arrays: the one description that models, features and stores share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

#: name → array whose first dimension is the rows. Text is an object array of `str`.
Block = dict[str, npt.NDArray[Any]]


class DType(StrEnum):
    """Element types that a tensor or a feature may have; spelled as numpy spells them."""

    BOOL = "bool"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"
    FLOAT16 = "float16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    #: text, UTF-8
    STRING = "string"

    @property
    def is_float(self) -> bool:
        """Whether it is a floating-point type."""
        return self.value.startswith("float")

    @property
    def is_integer(self) -> bool:
        """Whether it is a signed or unsigned integer type."""
        return self.value.startswith(("int", "uint"))

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype, little-endian; object for text."""
        return np.dtype(object) if self is DType.STRING else np.dtype(self.value).newbyteorder("<")


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor. `shape` is that of a single row (the leading row dimension left out); -1 is unknown."""

    name: str
    dtype: DType
    shape: tuple[int, ...] = ()

    @property
    def is_fixed_number(self) -> bool:
        """Whether each row takes the same number of bytes."""
        return self.dtype is not DType.STRING and all(n >= 0 for n in self.shape)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"name": self.name, "dtype": self.dtype.value, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TensorSpec:
        """Rebuild from `to_json`."""
        return cls(data["name"], DType(data["dtype"]), tuple(data["shape"]))


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives, in the model's own order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Signature:
        """Rebuild from `to_json`."""
        return cls(
            tuple(TensorSpec.from_json(item) for item in data["inputs"]),
            tuple(TensorSpec.from_json(item) for item in data["outputs"]),
        )


def rows_in(block: Block) -> int:
    """Return how many rows a block has; 0 for a block without columns."""
    return len(next(iter(block.values()))) if block else 0
