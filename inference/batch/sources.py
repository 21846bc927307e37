"""Tables of features as runs read them: local Parquet, one file or a folder. Planning reads footers only."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from inference.batch.plan import Slice, SourceFile
from inference.entities import check_entity_column_type, entity_ids_as_text
from inference.errors import BadInput, SourceError
from inference.features import check_event_time_column
from inference.settings import ModelSettings, Settings

#: read buffer of one column; a row group is streamed through it, never held whole
_BUFFER_BYTES = 1 << 20
#: columns, or row groups, of one file: the footer of a million takes minutes and gigabytes to take apart
MAX_FOOTER_ITEMS = 200_000


@dataclass(frozen=True)
class Source:
    """A table of features, described by its footers."""

    path: str
    files: tuple[SourceFile, ...]
    schema: pa.Schema

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)


def locate_source(settings: Settings, name: str, model: ModelSettings, asked: str | None, *, confined: bool) -> str:
    """Return the path of a run's source: the one asked for, else the model's `features`.

    `confined`: the one who asks may be anyone, so only what lies in the folder of `features` is allowed.

    Raises:
        BadInput: there is no source, it is not on this machine, or it lies outside that folder.
    """
    chosen = asked or model.features
    if not chosen:
        raise BadInput(
            f"model {name!r} has no table of features: set models.{name}.features, or name a source",
            field="source",
        )
    if "://" in chosen:
        raise SourceError(f"source {chosen!r} is not on this machine: give a Parquet file or a folder", field="source")
    path = settings.path(chosen)
    if asked and confined:
        home = settings.path(model.features).resolve() if model.features else None
        root = home if home is None or home.is_dir() else home.parent
        if root is None or not path.resolve().is_relative_to(root):
            raise BadInput(f"source {asked!r} lies outside the folder of models.{name}.features", field="source")
    return str(path)


def open_source(path: str) -> Source:
    """Return the source at a path: a Parquet file, or a folder whose `*.parquet` files have one schema.

    Raises:
        SourceError: nothing is there, a file is not readable Parquet, the schemas differ, or no row is there.
    """
    files, schema = [], None
    for file in _files(Path(path)):
        described, own = _describe(file)
        if schema is not None and not own.equals(schema):
            raise SourceError(f"{file} differs from {files[0].path} in its columns: {_difference(schema, own)}")
        files.append(described)
        schema = own
    if schema is None or not any(file.rows for file in files):
        raise SourceError(f"{path} has no rows: give a table of features with at least one", field="source")
    return Source(path, tuple(files), schema)


def check_key_columns(source: Source, entity_column: str, event_time_column: str | None) -> None:
    """Refuse a source without a usable entity column, or without the event-time column that was named.

    Raises:
        SourceError: naming the column and, when it is missing, the nearest one.
    """
    check_entity_column_type(entity_column, _field(source, entity_column, "entity_column").type)
    if event_time_column is None:
        return
    check_event_time_column(event_time_column, _field(source, event_time_column, "event_time_column").type)


def read_slices(
    files: Sequence[SourceFile], slices: Sequence[Slice], *, columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield the slices' rows in order, at most `batch_rows` at a time; memory does not grow with row groups.

    Raises:
        SourceError: a file is gone, unreadable, or not the one that was planned.
    """
    opened: int | None = None
    for part in slices:
        if part.file != opened:
            _check_unchanged(files[part.file])
            opened = part.file
        yield from _read_slice(files[part.file].path, part, list(columns), batch_rows)


@dataclass(frozen=True)
class IdCount:
    """Distinct entity ids of a source, and some that occur more than once."""

    distinct: int
    duplicates: tuple[str, ...]


def count_distinct_ids(files: Sequence[SourceFile], entity_column: str, *, examples: int) -> IdCount:
    """Read all ids once more and count them by 64-bit hash: 8 bytes a row. Nulls count as one id."""
    hashes = np.concatenate([_hashes(ids) for ids in _all_ids(files, entity_column)])
    hashes.sort()
    repeated = hashes[1:][hashes[1:] == hashes[:-1]]
    distinct = len(hashes) - len(repeated)
    return IdCount(distinct, _name_repeated(files, entity_column, np.unique(repeated), examples))


def _name_repeated(files: Sequence[SourceFile], column: str, repeated: npt.NDArray[Any], most: int) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for ids in _all_ids(files, column) if len(repeated) else ():
        for row in np.flatnonzero(np.isin(_hashes(ids), repeated)):
            names.setdefault(str(ids[int(row)].as_py()))
            if len(names) == most:
                return tuple(names)
    return tuple(names)


def _hashes(ids: pa.Array) -> npt.NDArray[np.uint64]:
    import pandas as pd  # slow to import, and only a run whose sums differ comes here

    return pd.util.hash_array(np.asarray(ids.to_pandas(), dtype=object), categorize=False)


def _all_ids(files: Sequence[SourceFile], column: str) -> Iterator[pa.Array]:
    whole = [Slice(i, g, 0, rows) for i, file in enumerate(files) for g, rows in enumerate(file.row_groups) if rows]
    for batch in read_slices(files, whole, columns=[column], batch_rows=1 << 17):
        yield pc.fill_null(entity_ids_as_text(batch.column(0), column), "")


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(
            p for p in path.rglob("*.parquet") if not any(q.startswith((".", "_")) for q in p.relative_to(path).parts)
        )
        if not found:
            raise SourceError(f"{path} holds no *.parquet file", field="source")
        return found
    if not path.exists():
        raise SourceError(f"{path} does not exist: give a Parquet file or a folder of them", field="source")
    return [path]


def _describe(path: Path) -> tuple[SourceFile, pa.Schema]:
    try:
        with pq.ParquetFile(path, thrift_container_size_limit=MAX_FOOTER_ITEMS) as file:
            metadata = file.metadata
            groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
            return SourceFile(
                str(path), path.stat().st_size, _footer_digest(path), groups
            ), file.schema_arrow.remove_metadata()
    except (pa.ArrowException, OSError) as error:
        if "Exceeded size limit" in str(error):
            raise SourceError(
                f"{path} has over {MAX_FOOTER_ITEMS:,} columns or row groups: write a table of features with fewer",
                field="source",
            ) from error
        raise SourceError(f"{path} is not readable as Parquet: {_first_line(error)}", field="source") from error


def _footer_digest(path: Path) -> str:
    """Digest of the footer (sizes, offsets and statistics of every column), the same on every machine."""
    with path.open("rb") as file:
        file.seek(-8, 2)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, 2)
        return hashlib.blake2b(file.read(length), digest_size=8).hexdigest()


def _check_unchanged(planned: SourceFile) -> None:
    path = Path(planned.path)
    try:
        same = path.stat().st_size == planned.size and _footer_digest(path) == planned.footer
    except OSError as error:
        raise SourceError(f"{path} cannot be read any more: {_first_line(error)}", field="source") from error
    if not same:
        raise SourceError(f"{path} was replaced while the run was reading it: start a new run", field="source")


def _read_slice(path: str, part: Slice, columns: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    begin, end, at = part.offset, part.offset + part.length, 0
    try:
        # without pre_buffer pages are streamed, and a large row group is never in memory as a whole
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_rows, row_groups=[part.row_group], columns=columns):
                low, high = max(begin - at, 0), min(end - at, batch.num_rows)
                if low < high:
                    yield batch.slice(low, high - low)
                at += batch.num_rows
                if at >= end:
                    return
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} cannot be read: {_first_line(error)}", field="source") from error


def _field(source: Source, name: str, setting: str) -> pa.Field:
    names = source.schema.names
    if name in names:
        return source.schema.field(name)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names[:8])}"
    raise SourceError(f"{source.path} has no column {name!r} ({setting}): {hint}", field=name)


def _difference(first: pa.Schema, second: pa.Schema) -> str:
    ours, theirs = ({f"{field.name}: {field.type}" for field in schema} for schema in (first, second))
    return ", ".join(sorted(ours ^ theirs)) or "their order"


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
