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

from inference.errors import SourceError
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

#: carried rows whose predictions count for all of a batch in the histogram; more would not change the shares
SAMPLED = 2048

SUCCESS = "_SUCCESS"
_AS_OF = pa.timestamp("ms", "UTC")


@dataclass(frozen=True)
class Window:
    """Scored rows that are written together. `as_of`: epoch seconds.

    `features`: the features from which the rows were scored; None unless the run has a sink for them. `digests`: of the
    vectors that the model got; None unless the run keeps them.
    """

    ids: pa.StringArray
    block: Block
    as_of: npt.NDArray[np.float64]
    features: Block | None = None
    digests: npt.NDArray[np.uint64] | None = None

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


@dataclass(frozen=True)
class CarriedRows:
    """Rows whose predictions stay those of an earlier run, since the model would get the same vectors.

    `digests`: of those vectors; `aged`: which rows need another `as_of` than their copies in the table have; `places`:
    of the rows in the earlier run's Parquet parts, the part's number times 2**32 and the row.
    """

    ids: pa.StringArray
    as_of: npt.NDArray[np.float64]
    digests: npt.NDArray[np.uint64]
    aged: npt.NDArray[np.bool_]
    places: npt.NDArray[np.uint64]
    features: Block | None = None


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
        kept = [part.digests for part in parts if part.digests is not None]  # of all, or of none
        digests = np.concatenate(kept) if kept else None
        return Window(ids, _join([part.block for part in parts]), as_of, features, digests)


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

    def carry(self, rows: CarriedRows) -> Block:
        """Keep rows of an earlier run; return the predictions of some `SAMPLED` of them, evenly spread."""

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

    def carry(self, rows: CarriedRows) -> Block:
        """Correct the ages of rows that planning has copied into the generation."""
        generations, aged = self.table.generations, pa.array(rows.aged)
        generations.set_ages(self.manifest, rows.ids.filter(aged), rows.as_of[rows.aged])
        return generations.some_of(self.manifest, rows.ids[:: every(len(rows.ids))].to_pylist())

    def commit(self) -> None:
        """Do nothing: the rows are final."""

    def abandon(self) -> None:
        """Do nothing: an unpublished generation is removed as a whole."""


class ParquetSink:
    """Writes one chunk as a part of `folder`, a path or a URI; the part appears when the chunk is whole.

    `earlier`: the folder of the run whose rows are carried over; None for none.

    Raises:
        OSError: from any call, for instance when the disk is full; the part is absent or unchanged then.
    """

    def __init__(
        self, folder: str, fields: Sequence[TensorSpec], *, chunk: int, token: str, earlier: str | None = None
    ) -> None:
        self._folder = open_location(folder)
        self._earlier = None if earlier is None else open_location(earlier)
        self._fields = tuple(fields)
        self._schema = _schema(fields)
        self._name = f"part-{chunk:06d}.parquet"
        self._temporary = Path(self._folder.path) / f".part-{chunk:06d}.{token}.tmp"
        self._file: Any = None
        self._writer: pq.ParquetWriter | None = None

    def write(self, window: Window) -> None:
        """Append rows to the temporary file."""
        columns = [window.ids, *(_column(window.block[spec.name], spec) for spec in self._fields)]
        self._append([*columns, _ages(window.as_of)])

    def carry(self, rows: CarriedRows) -> Block:
        """Append rows of the earlier run's parts, with the ages that they have now.

        Raises:
            SourceError: a part is gone, or does not hold these rows.
        """
        if self._earlier is None:
            raise ValueError("no run to carry rows over from")
        found = rows_at(self._earlier, rows.places, self._schema)
        if not found.column("entity_id").combine_chunks().equals(rows.ids):
            raise _changed(self._earlier)
        columns = [found.column(spec_at).combine_chunks() for spec_at in range(1, len(self._schema) - 1)]
        self._append([rows.ids, *columns, _ages(rows.as_of)])
        return _numbers(columns, self._fields, every(len(rows.ids)))

    def _append(self, columns: list[pa.Array]) -> None:
        if self._file is None:
            self._file = self._open()
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, self._schema)
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


def rows_at(folder: Location, places: npt.NDArray[np.uint64], schema: pa.Schema) -> pa.Table:
    """Return rows of a run's parts, in the order of `places` (see `CarriedRows`). Reads only their row groups.

    Raises:
        SourceError: a part is gone, or has another schema or fewer rows.
    """
    order = np.argsort(places, kind="stable")
    numbers, rows = (places[order] >> np.uint64(32)), (places[order] & np.uint64(2**32 - 1)).astype(np.int64)
    found = []
    try:
        for number in np.unique(numbers).tolist():
            path = f"{folder.path}/part-{number:06d}.parquet"
            with pq.ParquetFile(path, filesystem=folder.filesystem) as part:
                found += _rows_of(part, rows[numbers == number])
        table = pa.concat_tables([one.select(schema.names).cast(schema) for one in found])
    except (OSError, pa.ArrowException, KeyError) as error:
        raise _changed(folder) from error
    if len(table) != len(places):
        raise _changed(folder)
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return table.take(pa.array(back))


def _rows_of(part: pq.ParquetFile, rows: npt.NDArray[np.int64]) -> list[pa.Table]:
    """Return ascending rows of a part, those of each row group as one table."""
    found, start = [], 0
    for group in range(part.num_row_groups):
        end = start + part.metadata.row_group(group).num_rows
        inside = rows[np.searchsorted(rows, start) : np.searchsorted(rows, end)]
        if len(inside):
            found.append(part.read_row_group(group).take(pa.array(inside - start)))
        start = end
    return found


def _changed(folder: Location) -> SourceError:
    return SourceError(
        f"the Parquet parts in {folder.name} are not those of the run whose rows are carried over: start a new run"
    )


def _numbers(columns: Sequence[pa.Array], fields: Sequence[TensorSpec], step: int) -> Block:
    """Return every `step`-th row of the columns that hold numbers, each as one flat array."""
    block = {}
    for column, spec in zip(columns, fields, strict=True):
        if spec.dtype is not DType.STRING:
            some = column.take(pa.array(np.arange(0, len(column), step)))
            while pa.types.is_list(some.type):
                some = some.flatten()
            block[spec.name] = some.to_numpy(zero_copy_only=False)
    return block


def _ages(as_of: npt.NDArray[np.float64]) -> pa.Array:
    return pa.array((as_of * 1000).astype("int64"), pa.int64()).cast(_AS_OF)


def every(rows: int) -> int:
    """Return which step through so many rows meets about `SAMPLED` of them."""
    return max(1, -(-rows // SAMPLED))


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
