"""A table of features, described by the footers of its files. Opening one reads no row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from inference.errors import SourceError
from inference.sources.files import list_files
from inference.sources.footers import Footer, SourceFile, read_footers
from inference.sources.partitions import PartitionValue, partition_values
from inference.storage import open_location


@dataclass(frozen=True)
class Source:
    """A table of features. `schema` ends with the columns of the files' folders."""

    path: str
    files: tuple[SourceFile, ...]
    schema: pa.Schema
    #: Parquet's own metadata of each file, where it was asked for
    metadata: tuple[Any, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def open_source(path: str, *, keep_metadata: bool = False) -> Source:
    """Return the source at an absolute path or URI: a Parquet file, a folder, a pattern, partitioned or not.

    Raises:
        SourceError: nothing is there, a file is not readable Parquet, the files differ in their columns or in how
            they are partitioned, or no row is there.
        BadInput: the URI's file system cannot be opened.
    """
    place = open_location(path)
    paths = list_files(place)
    footers = read_footers(place, paths, keep_metadata=keep_metadata)
    _check_same_columns(footers)
    partitions = partition_values(paths, [footer.file.path for footer in footers])
    schema = _schema(footers[0].schema, partitions[0])
    files = tuple(replace(footer.file, partition=values) for footer, values in zip(footers, partitions, strict=True))
    if not any(file.rows for file in files):
        raise SourceError(f"{path} has no rows: give a table of features with at least one", field="source")
    metadata = tuple(footer.metadata for footer in footers) if keep_metadata else ()
    return Source(path, files, schema, metadata)


def _schema(own: pa.Schema, partition: Sequence[PartitionValue]) -> pa.Schema:
    for value in partition:
        if value.column not in own.names:  # some writers keep the column in the file too, exact
            own = own.append(pa.field(value.column, pa.type_for_alias(value.type)))
    return own


def _check_same_columns(footers: Sequence[Footer]) -> None:
    first = footers[0]
    for other in footers[1:]:
        if not other.schema.equals(first.schema):
            _refuse_difference(first, other)


def _refuse_difference(first: Footer, other: Footer) -> None:
    """Name the first column that differs. Their order, and whether nulls are declared, is no difference."""
    ours, theirs = ({field.name: field.type for field in footer.schema} for footer in (first, other))
    for column in [*ours, *theirs]:
        if column not in theirs:
            told = f"{other.file.path} has no column {column!r}, but {first.file.path} has ({ours[column]})"
        elif column not in ours:
            told = f"{first.file.path} has no column {column!r}, but {other.file.path} has ({theirs[column]})"
        elif ours[column] != theirs[column]:
            told = (
                f"column {column!r} is {theirs[column]} in {other.file.path}, but {ours[column]} in {first.file.path}"
            )
        else:
            continue
        raise SourceError(f"{told}: write all files of a source with the same columns", field=column)
