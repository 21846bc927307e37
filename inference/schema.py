"""Describes arrays by name, dtype and shape, for models, features and stores alike."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

#: name → array whose first dimension is the rows. Text is an object array of `str`.
Block = dict[str, npt.NDArray[Any]]

#: the method of a signature that is neither to classify nor to regress
PREDICT_METHOD = "tensorflow/serving/predict"


class DType(StrEnum):
    """Element types of tensors and features, spelled as in numpy."""

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
        return _NUMPY[self]


#: the types' names in SQL, and in pandas for types that can hold missing values
_SQL = {
    DType.BOOL: "BOOLEAN",
    DType.INT8: "SMALLINT",
    DType.INT16: "SMALLINT",
    DType.INT32: "INTEGER",
    DType.INT64: "BIGINT",
    DType.FLOAT32: "REAL",
    DType.FLOAT64: "DOUBLE",
    DType.STRING: "VARCHAR",
}
_PANDAS = {DType.BOOL: "boolean", DType.INT64: "Int64"}


def cast_expression(column: str, dtype: DType) -> str:
    """Return how to cast a table's column in SQL and in pandas, for a message."""
    sql, pandas = column_expressions(column)
    kind = _SQL.get(dtype, "NUMERIC(20)" if dtype is DType.UINT64 else "BIGINT" if dtype.is_integer else "REAL")
    return f'CAST({sql} AS {kind}) in SQL, {pandas}.astype("{_PANDAS.get(dtype, dtype.value)}") in pandas'


def column_expressions(column: str) -> tuple[str, str]:
    """Return a column's spelling in SQL and in pandas, each on one line."""
    quoted = json.dumps(column, ensure_ascii=not column.isprintable())
    is_plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", column)
    return column if is_plain else quoted.replace(r"\"", '""'), f"df[{quoted}]"


# made once: making one for each feature takes longer than reading a row
_NUMPY = {
    dtype: np.dtype(object) if dtype is DType.STRING else np.dtype(dtype.value).newbyteorder("<") for dtype in DType
}


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor. `shape` is the shape of one row, without the row dimension; -1 is unknown."""

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
    """A model's inputs and outputs, in the model's own order.

    `outputs` have the shapes that are served, without a trailing dimension of 1. `columns` names the outputs that have
    this dimension in the model.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    columns: tuple[str, ...] = ()

    @classmethod
    def of_model(cls, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> Signature:
        """Return the signature of a model with these `outputs`; drops trailing dimensions of 1."""
        given = tuple(outputs)
        columns = tuple(spec.name for spec in given if spec.shape[-1:] == (1,))
        served = (replace(spec, shape=spec.shape[:-1]) if spec.name in columns else spec for spec in given)
        return cls(tuple(inputs), tuple(served), columns)

    @property
    def model_outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs in the model's own shapes."""
        return tuple(
            replace(spec, shape=(*spec.shape, 1)) if spec.name in self.columns else spec for spec in self.outputs
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "columns": list(self.columns),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Signature:
        """Rebuild from `to_json`."""
        return cls(
            tuple(TensorSpec.from_json(item) for item in data["inputs"]),
            tuple(TensorSpec.from_json(item) for item in data["outputs"]),
            tuple(data.get("columns", ())),  # records of older releases have none
        )


#: TensorFlow's names of types that differ from numpy's in capitals
_GRAPH_DTYPES = {DType.FLOAT16: "DT_HALF", DType.FLOAT32: "DT_FLOAT", DType.FLOAT64: "DT_DOUBLE"}
_BY_GRAPH_DTYPE = {_GRAPH_DTYPES.get(dtype, f"DT_{dtype.value.upper()}"): dtype for dtype in DType}


@dataclass(frozen=True)
class GraphTensor:
    """One tensor of a `GraphSignature`.

    `dtype`: TensorFlow's name, such as `DT_FLOAT`. `shape`: the whole shape, rows included; -1 is an unknown size, None
    an unknown rank. `node`: its name in the graph, such as `x:0`. `optional`: an input for which the model has a value.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    node: str
    optional: bool = False

    @property
    def element(self) -> DType | None:
        """The type of its elements; None for one that numpy and JSON do not have."""
        return _BY_GRAPH_DTYPE.get(self.dtype)

    @property
    def has_rows(self) -> bool:
        """Whether its first dimension is of any size."""
        return self.shape is not None and self.shape[:1] == (-1,)

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether a tensor of this shape, rows included, is as declared."""
        wanted = self.shape
        return wanted is None or (
            len(wanted) == len(shape) and all(size in (-1, found) for size, found in zip(wanted, shape, strict=True))
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return vars(self) | {"shape": None if self.shape is None else list(self.shape)}

    @classmethod
    def of_rows(cls, spec: TensorSpec) -> GraphTensor:
        """Return a tensor whose rows are as in `spec`."""
        dtype = _GRAPH_DTYPES.get(spec.dtype, f"DT_{spec.dtype.value.upper()}")
        return cls(spec.name, dtype, (-1, *spec.shape), f"{spec.name}:0")


@dataclass(frozen=True)
class GraphSignature:
    """A signature as a SavedModel declares it: a function of named tensors, with or without rows.

    `method`: such as `tensorflow/serving/predict`. `inputs` and `outputs` are ordered by name.
    """

    method: str
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]

    @property
    def has_rows(self) -> bool:
        """Whether the first dimension of every input and output is of any size."""
        return all(tensor.has_rows for tensor in (*self.inputs, *self.outputs))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        inputs, outputs = ([one.to_json() for one in side] for side in (self.inputs, self.outputs))
        return {"method": self.method, "inputs": inputs, "outputs": outputs}

    @classmethod
    def of_rows(cls, signature: Signature) -> GraphSignature:
        """Return the signature of a model that computes rows."""
        return cls(
            PREDICT_METHOD,
            tuple(map(GraphTensor.of_rows, signature.inputs)),
            tuple(map(GraphTensor.of_rows, signature.model_outputs)),
        )


def rows_in(block: Block) -> int:
    """Return how many rows a block has; 0 for a block without columns."""
    return len(next(iter(block.values()))) if block else 0
