"""Pins tables that may change while a run reads them, and writes what is no Parquet as Parquet.

A Parquet table is its files, and workers notice when one is replaced. A Delta or Iceberg table is pinned at one
version. CSV, and versions whose rows are not just those of their data files, are read once and written into a folder.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from inference.errors import BadInput, SourceError, quoted
from inference.sources.csv_files import CsvTable, TypesChanged
from inference.sources.files import TableName, is_csv, list_files
from inference.sources.named_tables import TableVersion, open_version
from inference.sources.query_columns import storable
from inference.sources.source import Source, column_problem, no_rows, open_source, source_of_version
from inference.storage import Location, is_uri, open_location, reason_of, split_uri

#: rows and bytes of a row group that is written
_GROUP_ROWS, _GROUP_BYTES = 1 << 17, 64 << 20


def is_plain(path: str) -> bool:
    """Tell whether a source consists of Parquet files, so that `open_source` opens it as it is."""
    return not is_csv(path) and TableName.read(path) is None


def pin_source(
    path: str,
    folder: str,
    *,
    as_text: Collection[str] = (),
    keep_metadata: bool = False,
    most_rows: int | None = None,
) -> Source:
    """Return the source at a path, a URI or a `TableName`, so that its rows stay as they are now.

    `Source.path` names these rows: `open_source` opens them again. `folder`: a new folder below it, on this machine or
    in an object store, takes the rows that must be written as Parquet, `most_rows` at most; whoever reads the source
    must reach it. For `as_text` and `keep_metadata` see `open_source`.

    Raises:
        SourceError: as `open_source` says, or the rows cannot be read or written.
        BadInput: a URI's file system cannot be opened.
    """
    table, named = TableName.read(path), ""
    if table is not None:
        version = open_version(table)
        named = version.name
        source = _of_data_files(version, as_text, keep_metadata=keep_metadata)
        if source is not None:
            return replace(source, original=path, version=named)
        batches: Callable[[], Iterator[pa.RecordBatch]] = partial(_as_parquet, version, as_text)
    elif is_csv(path):
        batches = CsvTable(path, dict.fromkeys(as_text, pa.large_string())).batches
    else:
        return open_source(path, as_text=as_text, keep_metadata=keep_metadata)
    copy = _write(path, batches, folder, most_rows)
    source = open_source(copy, as_text=as_text, keep_metadata=keep_metadata)
    return replace(source, original=path, version=named)


def open_any(path: str, *, as_text: Collection[str] = (), most_rows: int | None = None) -> Source:
    """Return the source at a path, a URI or a `TableName` for this process alone.

    What must be written as Parquet lies in a temporary folder for as long as the source is referenced. `most_rows`: so
    many rows of it are enough.

    Raises:
        SourceError: as `pin_source` says.
        BadInput: a URI's file system cannot be opened.
    """
    if is_plain(path):
        return open_source(path, as_text=as_text)
    folder = tempfile.mkdtemp(prefix="forecache-")
    try:
        source = pin_source(path, folder, as_text=as_text, most_rows=most_rows)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(source, shutil.rmtree, folder, ignore_errors=True)
    return source


def state_of(path: str) -> str:
    """Return a text that changes when the rows of a source do. Reads no row.

    Raises:
        SourceError: the source does not exist, or cannot be read.
        BadInput: a URI's file system cannot be opened.
    """
    table = TableName.read(path)
    if table is not None and table.kind == "sql":
        path = table.place  # what a database holds cannot be told without the query
    elif table is not None:
        return str(open_version(table).table)
    if is_csv(path) or table is not None:
        place = open_location(path)
        infos = place.filesystem.get_file_info(list_files(place))
        return " ".join(f"{info.path} {info.size} {info.mtime_ns}" for info in infos)
    return " ".join(file.stamp + file.footer for file in open_source(path).files)


def absolute_source(path: str, root: Path) -> str:
    """Return a source with an absolute path, or with a checked URI. `root`: the folder of relative paths.

    Raises:
        BadInput: the path or the URI cannot be read.
    """
    table = TableName.read(path)
    if table is not None:
        place = table.place if table.kind == "iceberg" else absolute_source(table.place, root)
        return str(replace(table, place=place))
    if not is_uri(path):
        try:
            return str((root / Path(path).expanduser()).absolute())
        except RuntimeError as error:  # ~somebody
            raise BadInput(
                f"source {quoted(path)} lies in a home folder that is not known here", field="source"
            ) from error
    try:
        scheme, authority, within = split_uri(path)
    except BadInput as error:
        raise BadInput(error.message, field="source") from error
    return within if scheme == "file" else f"{scheme}://{authority}{within}"


def _of_data_files(version: TableVersion, as_text: Collection[str], *, keep_metadata: bool) -> Source | None:
    """Return the source of a version's data files; None if they do not hold just its rows, or lack a column."""
    if version.files is None:
        return None
    source = source_of_version(version, as_text=as_text, keep_metadata=keep_metadata)
    is_whole = set(version.columns) <= set(source.schema.names)
    if not is_whole or any(map(column_problem, source.schema)):
        return None
    return source


def _as_parquet(version: TableVersion, as_text: Collection[str]) -> Iterator[pa.RecordBatch]:
    return (storable(batch, as_text) for batch in version.batches())


def _write(name: str, batches: Callable[[], Iterable[pa.RecordBatch]], folder: str, most_rows: int | None) -> str:
    """Write the rows of a source into a new folder, as one file; return the folder."""
    place = open_location(f"{folder}/{uuid.uuid4().hex[:12]}")
    file = place.at(f"{place.path}/part-0.parquet")
    try:
        place.filesystem.create_dir(place.path)
        while True:
            try:
                written = _write_file(file, _first_rows(batches(), most_rows))
            except TypesChanged:
                continue
            break
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{name} cannot be written to {place.name}: {reason_of(error)}", field="source") from error
    if not written:
        raise no_rows(name)
    return place.name


def _write_file(place: Location, batches: Iterable[pa.RecordBatch]) -> int:
    """Write rows into a file; return how many."""
    rows = 0
    with ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for table in _groups(batches):
            if writer is None:
                stream = stack.enter_context(place.filesystem.open_output_stream(place.path))
                writer = stack.enter_context(pq.ParquetWriter(stream, table.schema))
            writer.write_table(table, row_group_size=_GROUP_ROWS)
            rows += table.num_rows
    return rows


def _first_rows(batches: Iterable[pa.RecordBatch], most: int | None) -> Iterator[pa.RecordBatch]:
    left = most
    for batch in batches:
        yield batch if left is None else batch.slice(0, left)
        if left is not None:
            left -= batch.num_rows
            if left <= 0:
                return


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield the rows of batches, as many at a time as a row group has."""
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        waiting.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
            yield pa.Table.from_batches(waiting)
            waiting, rows, size = [], 0, 0
    if waiting:
        yield pa.Table.from_batches(waiting)
