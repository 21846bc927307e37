"""Describes a table of features by the footers of its files, without reading any row."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from inference.errors import SourceError, shown_name
from inference.schema import DType, cast_expression
from inference.sources.column_types import common_type, plain_type, type_name
from inference.sources.files import TableName, list_files
from inference.sources.footers import Footer, SourceFile, read_footers
from inference.sources.named_tables import TableVersion, open_version
from inference.sources.partitions import PartitionValue, partition_values
from inference.storage import open_location

#: in a field's metadata: why its column cannot be read, and its type in words if files differ in it
_PROBLEM, _TYPES = b"forecache.problem", b"forecache.types"
_MOST_NAMED = 8


@dataclass(frozen=True)
class Source:
    """A table of features. `files`: its files with rows.

    `schema`: each column once, in the plain type for its values in all files; the columns of folder names come last. It
    also has columns that cannot be read, so look columns up by `find_column`.
    """

    path: str
    files: tuple[SourceFile, ...]
    schema: pa.Schema
    #: Parquet's own metadata of each file, with `keep_metadata`
    metadata: tuple[Any, ...] = ()
    #: the source as the user names it, if `path` is a copy
    original: str = ""
    #: the version of a Delta or Iceberg table with the table's id; empty for other sources
    version: str = ""

    @property
    def name(self) -> str:
        """The source as the user names it."""
        return self.original or self.path

    @property
    def rows(self) -> int:
        """The number of rows of all files."""
        return sum(file.rows for file in self.files)

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.files)


def open_source(path: str, *, as_text: Collection[str] = (), keep_metadata: bool = False) -> Source:
    """Return the source at an absolute path or URI: a Parquet file, a folder, a pattern, partitioned or not.

    A Delta or Iceberg table (see `TableName`) is opened at the version that `path` names, or its newest, which
    `Source.path` names then. `as_text`: columns to read as text, such as the ids; values of folder names are not
    converted then.

    Raises:
        SourceError: it does not exist, belongs to a table of another format, has a file that is not readable Parquet,
            has differently partitioned files, or has no row; or the data files of a table do not hold just its rows
            (see `pin_source`).
        BadInput: the URI's file system cannot be opened.
    """
    table = TableName.read(path)
    if table is not None:
        return source_of_version(open_version(table), as_text=as_text, keep_metadata=keep_metadata)
    place = open_location(path)
    paths = list_files(place)
    # ignore files without rows: their columns often have no type
    found = [
        (where, footer)
        for where, footer in zip(paths, read_footers(place, paths, keep_metadata=keep_metadata), strict=True)
        if footer.file.rows
    ]
    if not found:
        raise no_rows(path)
    footers = [footer for _, footer in found]
    partitions = partition_values([where for where, _ in found], [footer.file.path for footer in footers], as_text)
    return _source(path, footers, partitions)


def source_of_version(version: TableVersion, *, as_text: Collection[str] = (), keep_metadata: bool = False) -> Source:
    """Return the source that a version's data files are.

    Raises:
        SourceError: they do not hold just its rows, have none, or one cannot be read.
    """
    if version.files is None:
        raise SourceError(f"{version.table}: its data files do not hold just its rows", field="source")
    if not version.files:
        raise no_rows(str(version.table))
    places = [open_location(file.path) for file in version.files]
    try:
        read = read_footers(places[0], [one.path for one in places], keep_metadata=keep_metadata, of_lake=True)
    except SourceError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise SourceError(
            f"{version.table}: a data file of this version is gone; VACUUM and expired snapshots remove those of old "
            "versions: name a newer version, or none for the newest",
            field="source",
        ) from error
    found = [(file, footer) for file, footer in zip(version.files, read, strict=True) if footer.file.rows]
    if not found:
        raise no_rows(str(version.table))
    partitions = [
        tuple(replace(one, type="string") if one.column in as_text else one for one in file.partition)
        for file, _ in found
    ]
    return _source(str(version.table), [footer for _, footer in found], partitions)


def no_rows(path: str) -> SourceError:
    """Return the error about a table without rows."""
    return SourceError(f"{path} has no rows: give a table of features with at least one", field="source")


def _source(path: str, footers: Sequence[Footer], partitions: Sequence[tuple[PartitionValue, ...]]) -> Source:
    files = tuple(replace(footer.file, partition=values) for footer, values in zip(footers, partitions, strict=True))
    metadata = tuple(footer.metadata for footer in footers if footer.metadata is not None)
    return Source(path, files, _common_schema(footers, partitions[0]), metadata)


def find_column(schema: pa.Schema, name: str, table: str, *, role: str = "", hint: str = "") -> pa.Field:
    """Return the column of this name. `role`: the setting that names it; `hint`: the fix if it is missing.

    Raises:
        SourceError: it is missing (the message names the nearest one), repeats, or cannot be read.
    """
    places = schema.get_all_field_indices(name)
    if not places:
        of_role = f" ({role}): " if role else "; "
        raise SourceError(f"{table} has no column {name!r}{of_role}{hint or _nearest(name, schema)}", field=name)
    if not name:
        raise SourceError(f"{table}: column {places[0] + 1} has no name: give it one", field=name)
    if len(places) > 1:
        raise SourceError(f"{table}: {_times(name, len(places))}", field=name)
    field = schema.field(places[0])
    if problem := column_problem(field):  # the message names the files
        raise SourceError(problem, field=name)
    return field


def _nearest(name: str, schema: pa.Schema) -> str:
    near = difflib.get_close_matches(name, schema.names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(shown_name, schema.names[:_MOST_NAMED]))}"


def column_problem(field: pa.Field) -> str | None:
    """Return why a column of `Source.schema` cannot be read, with the fix; None if it can."""
    return _note(field, _PROBLEM)


def unreadable_field(field: pa.Field, problem: str) -> pa.Field:
    """Return a column of a schema with the reason why it cannot be read."""
    return field.with_metadata({_PROBLEM: problem})


def column_type_name(field: pa.Field) -> str:
    """Return the name of a column's type; if files differ in it, two types with their files."""
    return _note(field, _TYPES) or type_name(plain_type(field.type))


def _note(field: pa.Field, key: bytes) -> str | None:
    note = (field.metadata or {}).get(key)
    return None if note is None else str(note.decode())


@dataclass
class _Column:
    """One column during the comparison of a source's files. `path`: the first file with a type for it."""

    type: pa.DataType
    path: str
    problem: str = ""
    types: str = ""

    def add(self, name: str, type_: pa.DataType, path: str) -> None:
        """Take the column of another file into account."""
        common = common_type(self.type, type_)
        message = f"{type_name(type_)} in {path}, but {type_name(self.type)} in {self.path}"
        if common is None:
            self.problem = self.problem or f"column {name!r} is {message}: {_same_type(name, self.type)}"
            return
        if pa.types.is_null(self.type):
            self.path = path
        elif type_ != self.type and not pa.types.is_null(type_):
            self.types = self.types or message
        self.type = common

    def field(self, name: str) -> pa.Field:
        notes = {_PROBLEM: self.problem, _TYPES: self.types}
        return pa.field(name, self.type, metadata={key: note for key, note in notes.items() if note} or None)


def _common_schema(footers: Sequence[Footer], partition: Sequence[PartitionValue]) -> pa.Schema:
    columns: dict[str, _Column] = {}
    of_schemas = list(_different(footers))
    for footer in of_schemas:
        path = footer.file.path
        counts = Counter(footer.schema.names)
        typed = {field.name: plain_type(field.type) for field in footer.schema}
        # some writers store a partition's column in the file too, with its exact values
        typed |= {value.column: plain_type(value.arrow_type) for value in partition if value.column not in typed}
        problems = {field.name: column_problem(field) or "" for field in footer.schema}
        for name, type_ in typed.items():
            column = columns.setdefault(name, _Column(type_, path, problems.get(name, "")))
            column.add(name, type_, path)
            if counts[name] > 1:
                column.problem = column.problem or f"{path}: {_times(name, counts[name])}"
    for footer in of_schemas:
        _note_missing(columns, footer, {value.column for value in partition})
    return pa.schema([column.field(name) for name, column in columns.items()])


def _different(footers: Sequence[Footer]) -> Iterator[Footer]:
    """Yield one footer of each schema: thousands of files mostly have the same."""
    seen: set[bytes] = set()
    for footer in footers:
        spelled = footer.schema.serialize().to_pybytes()
        if spelled not in seen:
            seen.add(spelled)
            yield footer


def _note_missing(columns: dict[str, _Column], footer: Footer, partition: Collection[str]) -> None:
    for name in columns.keys() - set(footer.schema.names) - set(partition):
        column = columns[name]
        message = f"{footer.file.path} has no column {name!r}, but {column.path} has ({type_name(column.type)})"
        column.problem = column.problem or f"{message}: write all files with it, or leave the others out by a pattern"


def _same_type(name: str, type_: pa.DataType) -> str:
    known = {"large_string": DType.STRING, "float": DType.FLOAT32, "double": DType.FLOAT64}
    dtype = known.get(str(type_)) or next((dtype for dtype in DType if dtype.value == str(type_)), None)
    return "write it with one type in all files" + (f", such as {cast_expression(name, dtype)}" if dtype else "")


def _times(name: str, count: int) -> str:
    return f"column {name!r} appears {count} times: rename one"
