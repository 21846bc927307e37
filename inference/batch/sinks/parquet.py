"""Parquet parts as a sink: one file a chunk, complete or absent; `_SUCCESS`, written last, ends the run.

A folder of this machine gets a part by renaming a temporary file beside it. An object store has no rename, so there
a part is gathered in a local file without a name and sent whole; only `_SUCCESS` says that a folder may be read.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq

from inference.batch.sinks import Window
from inference.schema import DType, TensorSpec
from inference.storage import Location, open_location

SUCCESS = "_SUCCESS"


class ParquetSink:
    """Writes one chunk as a part of `folder`, a path or a URI; the part appears when the chunk is whole.

    Raises:
        OSError: from any call, such as when the disk is full; the part is absent then, or as it was.
    """

    def __init__(self, folder: str, fields: Sequence[TensorSpec], *, chunk: int, token: str) -> None:
        self._folder = open_location(folder)
        self._fields = tuple(fields)
        self._schema = _schema(fields)
        self._name = f"part-{chunk:06d}.parquet"
        self._temporary = Path(self._folder.path) / f".part-{chunk:06d}.{token}.tmp"
        self._file: Any = None
        self._writer: pq.ParquetWriter | None = None

    def write(self, window: Window) -> None:
        """Append rows to the temporary file."""
        if self._file is None:
            self._file = self._open()
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, self._schema)
        columns = [window.ids, *(_column(window.block[spec.name], spec) for spec in self._fields)]
        columns.append(pa.array((window.as_of * 1000).astype("int64"), pa.int64()).cast(_AS_OF))
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))

    def commit(self) -> None:
        """Make the temporary file the part; an earlier attempt's part held the same rows."""
        if self._writer is None:
            return
        self._writer.close()
        if self._folder.is_local:
            self._file.close()
            self._temporary.replace(self._temporary.with_name(self._name))
        else:
            self._send()
            self._file.close()
        self._file = self._writer = None

    def abandon(self) -> None:
        """Remove the temporary file."""
        try:
            # a full disk takes no footer, which nobody wants any more
            if self._writer is not None:
                with suppress(OSError):
                    self._writer.close()
            if self._file is not None:
                with suppress(OSError):
                    self._file.close()
        finally:
            self._file = self._writer = None
            if self._folder.is_local:
                self._temporary.unlink(missing_ok=True)

    def _open(self) -> Any:
        if not self._folder.is_local:
            return tempfile.TemporaryFile()
        self._temporary.parent.mkdir(parents=True, exist_ok=True)
        return self._folder.filesystem.open_output_stream(str(self._temporary))

    def _send(self) -> None:
        self._file.seek(0)
        with self._folder.filesystem.open_output_stream(f"{self._folder.path}/{self._name}") as target:
            shutil.copyfileobj(self._file, target, 1 << 20)


def sweep_temporary_files(folder: Path) -> None:
    """Remove what killed workers left behind in a run's folder."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def write_success(folder: str, facts: Mapping[str, Any]) -> None:
    """Write `_SUCCESS`, in one step: the run's facts as JSON, with the `schema` and number of its `parts`.

    Raises:
        OSError: the folder cannot be written to.
    """
    where = open_location(folder)
    text = json.dumps({**facts, **_parts(where)}, indent=2) + "\n"
    if not where.is_local:
        with where.filesystem.open_output_stream(f"{where.path}/{SUCCESS}") as target:
            target.write(text.encode())
        return
    path = Path(where.path)
    path.mkdir(parents=True, exist_ok=True)
    temporary = path / f".{SUCCESS}.{os.getpid()}.tmp"
    try:
        temporary.write_text(text)
        temporary.replace(path / SUCCESS)
    finally:
        temporary.unlink(missing_ok=True)


def part_names(folder: Location) -> list[str]:
    """Return the paths of a run's parts, in order; none when the folder does not exist."""
    selector = fs.FileSelector(folder.path, allow_not_found=True)
    infos = folder.filesystem.get_file_info(selector)
    return sorted(info.path for info in infos if info.base_name.startswith("part-"))


def _parts(folder: Location) -> dict[str, Any]:
    parts = part_names(folder)
    if not parts:
        return {"parts": 0, "schema": []}
    schema = pq.read_schema(parts[0], filesystem=folder.filesystem)
    return {"parts": len(parts), "schema": [{"name": field.name, "type": str(field.type)} for field in schema]}


_AS_OF = pa.timestamp("ms", "UTC")


def _schema(fields: Sequence[TensorSpec]) -> pa.Schema:
    """Return the columns of a part; an output that is called like another column has `output_` before its name."""
    names = ["entity_id", "as_of", *(spec.name for spec in fields)]
    outputs = []
    for spec in fields:
        name = spec.name
        while names.count(name) > (name == spec.name):
            name = f"output_{name}"
        outputs.append(pa.field(name, _arrow_type(spec)))
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
