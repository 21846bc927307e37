"""Writes a chunk's rows: to the tables in Redis, and to Parquet parts. A sink commits when the chunk is whole.

Parquet has one part a chunk, complete or absent; `_SUCCESS`, written last, ends the run. A local folder gets a part by
renaming a temporary file in it. An object store has no rename, so a part is gathered in a nameless local file and sent
whole; only `_SUCCESS` says that a folder may be read.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq

from inference.schema import Block, DType, TensorSpec
from inference.storage import Location, open_location
from inference.store import Manifest, Table

#: rows of a window: larger windows put more fields into each HSET, smaller ones start Redis earlier
WINDOW_ROWS = 250_000
#: bytes of a window, for wide rows; some four windows are in memory at once
WINDOW_BYTES = 64 << 20
#: while the sinks are idle, a quarter of a window is written already: at a chunk's start, and while the sinks are
#: faster than the model
_EARLY = 4

SUCCESS = "_SUCCESS"
_AS_OF = pa.timestamp("ms", "UTC")


@dataclass(frozen=True)
class Window:
    """Scored rows that are written together. `as_of`: epoch seconds.

    `features`: the features from which the rows were scored; None unless the run has a sink for them.
    """

    ids: pa.StringArray
    block: Block
    as_of: npt.NDArray[np.float64]
    features: Block | None = None

    @property
    def of_features(self) -> Window:
        """The same rows with their features in place of the predictions.

        Raises:
            ValueError: the window has no features.
        """
        if self.features is None:
            raise ValueError("the window has no features")
        return Window(self.ids, self.features, self.as_of)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The predictions and, if there are any, the features."""
        return (self.block,) if self.features is None else (self.block, self.features)


class WindowBuilder:
    """Gathers scored rows until their window is full."""

    def __init__(self) -> None:
        self._parts: list[Window] = []
        self._bytes = 0
        self.rows = 0

    @property
    def is_full(self) -> bool:
        """Whether the window must be written."""
        return self.rows >= WINDOW_ROWS or self._bytes >= WINDOW_BYTES

    @property
    def is_worth_writing(self) -> bool:
        """Whether the window may be written while the sinks are idle."""
        return self.rows * _EARLY >= WINDOW_ROWS or self._bytes * _EARLY >= WINDOW_BYTES

    def add(self, part: Window) -> None:
        """Add scored rows."""
        if len(part.ids):
            self._parts.append(part)
            self.rows += len(part.ids)
            self._bytes += sum(values.nbytes for block in part.blocks for values in block.values())

    def take(self) -> Window:
        """Return all rows as one window, and start the next one; there must be rows."""
        parts, self._parts, self.rows, self._bytes = self._parts, [], 0, 0
        if len(parts) == 1:
            return parts[0]
        ids = pa.concat_arrays([part.ids for part in parts])
        features = None if parts[0].features is None else _join([part.features or {} for part in parts])
        as_of = np.concatenate([part.as_of for part in parts])
        return Window(ids, _join([part.block for part in parts]), as_of, features)


def _join(blocks: list[Block]) -> Block:
    return {name: _join_column([block[name] for block in blocks]) for name in blocks[0]}


def _join_column(columns: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    if len({values.shape[1:] for values in columns}) == 1:
        return np.concatenate(columns)
    rows = [row for values in columns for row in values]  # micro-batches differ in an inner dimension
    joined = np.empty(len(rows), dtype=object)
    joined[:] = rows
    return joined


class Sink(Protocol):
    """One destination of one chunk. A second call with the same rows changes nothing."""

    def write(self, window: Window) -> None:
        """Write rows."""

    def commit(self) -> None:
        """Make the chunk's rows final, once all of them are written."""

    def abandon(self) -> None:
        """Remove what is not final: in place of `commit`, or after it, when there is nothing left to remove."""


@dataclass(frozen=True)
class TableSink:
    """Writes windows into one generation, which nobody reads before it is published."""

    table: Table
    manifest: Manifest

    def write(self, window: Window) -> None:
        """Write rows; they are final at once."""
        self.table.generations.write(self.manifest, window.ids, window.block, window.as_of)

    def commit(self) -> None:
        """Do nothing: the rows are final."""

    def abandon(self) -> None:
        """Do nothing: an unpublished generation is removed as a whole."""


class ParquetSink:
    """Writes one chunk as a part of `folder`, a path or a URI; the part appears when the chunk is whole.

    Raises:
        OSError: from any call, for instance when the disk is full; the part is absent or unchanged then.
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
            # a full disk takes no footer, and nobody needs it any more
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
    """Remove the temporary files of killed workers from a run's folder."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def write_success(folder: str, facts: Mapping[str, Any]) -> None:
    """Write `_SUCCESS` in one step: the run's facts as JSON, with the `schema` and the number of its `parts`.

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


def _schema(fields: Sequence[TensorSpec]) -> pa.Schema:
    """Return the columns of a part; an output with the name of another column gets the prefix `output_`."""
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
