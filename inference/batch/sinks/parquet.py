"""Parquet parts as a sink: one file a chunk, complete or absent; `_SUCCESS`, written last, ends the run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from inference.batch.sinks import Window
from inference.clock import to_datetime
from inference.errors import SettingsError
from inference.schema import DType, TensorSpec

SUCCESS = "_SUCCESS"


def parquet_folder(pattern: str, *, model: str, run_id: str, created_at: float) -> str:
    """Return a run's folder: `{date}` (UTC), `{model}`, `{run_id}` filled in; the run id is added if missing.

    Raises:
        SettingsError: the pattern holds other braces.
    """
    if "{run_id}" not in pattern:
        pattern = f"{pattern.rstrip('/')}/{{run_id}}"  # runs of one day must not mix
    values = {"{date}": to_datetime(created_at).date().isoformat(), "{model}": model, "{run_id}": run_id}
    for name, value in values.items():
        pattern = pattern.replace(name, value)
    if "{" in pattern or "}" in pattern:
        raise SettingsError(f"parquet_path {pattern!r}: only {', '.join(values)} are filled in", field="parquet_path")
    return pattern


class ParquetSink:
    """Writes one chunk to a temporary file that is renamed to its part when the chunk is whole."""

    def __init__(self, folder: Path, fields: Sequence[TensorSpec], *, chunk: int, token: str) -> None:
        self._folder = folder
        self._fields = tuple(fields)
        self._schema = _schema(fields)
        self._part = folder / f"part-{chunk:06d}.parquet"
        self._temporary = folder / f".part-{chunk:06d}.{token}.tmp"
        self._writer: pq.ParquetWriter | None = None

    def write(self, window: Window) -> None:
        """Append rows to the temporary file."""
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._temporary, self._schema)
        columns = [window.ids, *(_column(window.block[spec.name], spec) for spec in self._fields)]
        columns.append(pa.array((window.as_of * 1000).astype("int64"), pa.int64()).cast(_AS_OF))
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))

    def commit(self) -> None:
        """Rename the temporary file to the part; an earlier attempt's part held the same rows."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._temporary.replace(self._part)

    def abandon(self) -> None:
        """Remove the temporary file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._temporary.unlink(missing_ok=True)


def sweep_temporary_files(folder: Path) -> None:
    """Remove what killed workers left behind in a run's folder."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def write_success(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write `_SUCCESS` with the run's facts as JSON, in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{SUCCESS}.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(facts, indent=2) + "\n")
    temporary.replace(folder / SUCCESS)


_AS_OF = pa.timestamp("ms", "UTC")


def _schema(fields: Sequence[TensorSpec]) -> pa.Schema:
    outputs = [pa.field(spec.name, _arrow_type(spec)) for spec in fields]
    return pa.schema([pa.field("entity_id", pa.string(), nullable=False), *outputs, pa.field("as_of", _AS_OF)])


def _arrow_type(spec: TensorSpec) -> pa.DataType:
    kind = pa.string() if spec.dtype is DType.STRING else pa.from_numpy_dtype(np.dtype(spec.dtype.value))
    for _ in spec.shape:
        kind = pa.list_(kind)
    return kind


def _column(values: npt.NDArray[Any], spec: TensorSpec) -> pa.Array:
    if values.ndim == 1 and values.dtype != object:
        return pa.array(values)
    return pa.array(values.tolist(), _arrow_type(spec))
