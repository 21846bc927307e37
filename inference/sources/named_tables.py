"""Reads tables that are no files: Delta, Iceberg, and queries of databases.

`delta:PATH`, `delta:PATH@VERSION`, `iceberg:CATALOG.NAMESPACE.TABLE`, `iceberg:…@SNAPSHOT` and `sql:FILE` name them.
The catalogs are those of pyiceberg's own configuration. Delta and Iceberg are read at one version, so that writers
cannot change a run's rows. Where the data files hold just the version's rows, runs read these files as they are.
Deleted rows, mapped columns and files of an older schema need the libraries' own readers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from inference.errors import SourceError
from inference.redaction import without_secrets
from inference.sources.files import TableName
from inference.sources.partitions import PartitionValue
from inference.sources.sql_queries import query_rows, read_query
from inference.storage import reason_of

#: how a Delta table's columns are named in its files
COLUMN_MAPPING = "delta.columnMapping.mode"
#: library → Forecache's extra that installs it
_EXTRAS = {
    "deltalake": "delta",
    "pyiceberg": "iceberg",
    "adbc_driver_postgresql": "adbc",
    "adbc_driver_sqlite": "adbc",
    "duckdb": "duckdb",
}
#: kind of table → what its library says, and the fix
_FIXES: Mapping[str, Sequence[tuple[str, str]]] = {
    "delta": (
        (r"LogSegment end version (\d+)", r"the newest version is \1"),
        (
            "No files in log segment|Invalid table location",
            "there is no log (_delta_log) of that version: name the folder of a Delta table, and a version that it "
            "keeps; for a folder of plain Parquet files leave delta: out",
        ),
    ),
    "sql": (
        ("password|authentication", "correct the user or the password of its url"),
        ("Could not set lock", "another process has the database open to write: close it there, or query a copy"),
        ("not a (valid DuckDB )?database", "correct the path in its url"),
        ("Failed to connect|translate host name", "correct host and port of its url, if this machine may reach it"),
        ("(?i)no such|does not exist|syntax error|not found in FROM", "correct its query"),
    ),
    "iceberg": (
        (
            "URI missing",
            "no such catalog is configured here: set that variable, or write the catalog into ~/.pyiceberg.yaml, "
            "wherever a process of Forecache reads the table",
        ),
        ("Empty namespace", "write iceberg:CATALOG.NAMESPACE.TABLE"),
        ("does not exist", "correct the name, or the catalog's uri (PYICEBERG_CATALOG__CATALOG__URI)"),
        (
            "Failed to establish|timed out|resolve|OperationalError|onnection (refused|reset)",
            "the catalog does not answer: check its uri (PYICEBERG_CATALOG__CATALOG__URI, or ~/.pyiceberg.yaml)",
        ),
        (
            "(?i)unauthori[sz]ed|forbidden|access denied|credential",
            "check the catalog's credential or token (PYICEBERG_CATALOG__CATALOG__CREDENTIAL, or ~/.pyiceberg.yaml)",
        ),
    ),
}


@dataclass(frozen=True)
class DataFile:
    """A data file: its path or URI, and the values of its partition columns."""

    path: str
    partition: Sequence[PartitionValue] = ()


@dataclass(frozen=True)
class TableVersion:
    """One version of a table. `table` names the version too.

    `files`: its data files; None if there are none that hold just the rows of the version. `reader`: streams the rows.
    `id`: of the table, which another one at the same place does not have; empty if it has no versions.
    """

    table: TableName
    reader: Callable[[], Iterable[pa.RecordBatch]]
    files: tuple[DataFile, ...] | None = None
    columns: tuple[str, ...] = ()
    id: str = ""

    @property
    def name(self) -> str:
        """The table, its version and its id in one text; empty if it has no versions."""
        return f"{self.table} {self.id}" if self.id else ""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows.

        Raises:
            SourceError: a file cannot be read, or the library does not know its kind, such as equality deletes; or the
                query fails, at its start or half-way.
        """
        with errors_of(self.table):
            yield from self.reader()


def open_version(table: TableName) -> TableVersion:
    """Return the version that a table names, or its newest. Reads its log or metadata, no row; asks no database.

    Raises:
        SourceError: the library is missing, or there is no such table, catalog or version.
    """
    with errors_of(table):
        return _OPENED_BY[table.kind](table)


def folder_of(table: TableName) -> str:
    """Return the folder or URI in which a table has its data files. Asks the catalog of an Iceberg table, once.

    Raises:
        SourceError: as `open_version` says.
    """
    if table.kind == "delta":
        return table.place
    with errors_of(table):
        return _location(table.place)


@contextmanager
def errors_of(table: TableName) -> Iterator[None]:
    """Raise what a table's library raises within the block as a SourceError that names the table."""
    try:
        yield
    except SourceError:
        raise
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _EXTRAS:
            raise
        message = f"{table} needs {library}: pip install 'forecache[{_EXTRAS[library]}]' on this machine"
        raise SourceError(message, field="source") from error
    except Exception as error:  # each of the libraries raises kinds of its own, and those of several stores
        reason = without_secrets(reason_of(error))
        raise SourceError(f"{table} cannot be read: {reason}{_fix(table, reason)}", field="source") from error


def _fix(table: TableName, reason: str) -> str:
    """Return the fix for what a library said; "" if that says enough."""
    for pattern, fix in _FIXES.get(table.kind, ()):
        if said := re.search(pattern, reason):
            catalog = table.place.partition(".")[0].upper()
            return f"; {said.expand(fix).replace('__CATALOG__', f'__{catalog}__')}"
    return ""


def _open_delta(table: TableName) -> TableVersion:
    from deltalake import DeltaTable

    opened = DeltaTable(table.place, version=table.version)
    schema = pa.schema(opened.schema().to_arrow())
    metadata = opened.metadata()
    files = None
    is_mapped = metadata.configuration.get(COLUMN_MAPPING, "none") != "none"
    if not is_mapped and not pa.table(opened.deletion_vectors()).num_rows:
        files = _files_of_delta(table.place, pa.table(opened.get_add_actions()), metadata.partition_columns)
    pinned = replace(table, version=opened.version())
    columns, id_ = tuple(schema.names), str(metadata.id)
    return TableVersion(pinned, lambda: pa.RecordBatchReader.from_stream(opened.scan()), files, columns, id_)


def _files_of_delta(root: str, added: pa.Table, partitioned: list[str]) -> tuple[DataFile, ...] | None:
    """Return the data files; None if a partition column has a type that a plan cannot spell."""
    columns: list[list[PartitionValue]] = []
    for name in partitioned:
        values = pc.struct_field(added.column("partition"), name)
        type_ = str(values.type)
        try:
            pa.type_for_alias(type_)
        except ValueError:  # such as decimals, and instants with a zone
            return None
        columns.append([PartitionValue(name, text, type_) for text in values.cast(pa.string()).to_pylist()])
    paths = [f"{root.rstrip('/')}/{unquote(path)}" for path in added.column("path").to_pylist()]
    return tuple(DataFile(path, values) for path, *values in zip(paths, *columns, strict=True))


def _open_iceberg(table: TableName) -> TableVersion:
    opened = load_iceberg(table.place)
    snapshot = opened.current_snapshot() if table.version is None else opened.snapshot_by_id(table.version)
    if snapshot is None:
        missing = (
            "has no snapshot yet: write rows into it"
            if table.version is None
            else "is gone: its snapshot was expired, or never was; name another one, or none for the newest"
        )
        raise SourceError(f"{table} {missing}", field="source")
    # the newest rows have today's names of columns, those of a snapshot its own
    scan = opened.scan(snapshot_id=table.version)
    tasks = list(scan.plan_files())
    is_plain = not any(task.delete_files or task.file.file_format != "PARQUET" for task in tasks)
    # columns are told apart by numbers: files of an older schema may have other names for them
    if is_plain and len(opened.schemas()) == 1:
        files = tuple(DataFile(_spelled(task.file.file_path)) for task in tasks)
    else:
        files = None
    names = tuple(field.name for field in scan.projection().fields)
    pinned, id_ = replace(table, version=snapshot.snapshot_id), str(opened.metadata.table_uuid)
    return TableVersion(pinned, scan.to_arrow_batch_reader, files, names, id_)


def load_iceberg(place: str) -> Any:
    """Return pyiceberg's table of CATALOG.NAMESPACE.TABLE.

    Raises:
        SourceError: the text names no table.
        Exception: pyiceberg's, such as for a catalog that does not answer.
    """
    from pyiceberg.catalog import load_catalog

    catalog, _, name = place.partition(".")
    if not name:
        raise SourceError(f"iceberg:{place} names no table: write iceberg:CATALOG.NAMESPACE.TABLE", field="source")
    return load_catalog(catalog).load_table(name)


@lru_cache(maxsize=64)
def _location(place: str) -> str:
    return _spelled(str(load_iceberg(place).location()))


def _spelled(uri: str) -> str:
    """Return a path or URI as settings spell it."""
    return re.sub(r"^s3[an]://", "s3://", uri.removeprefix("file://"))


def _open_query(table: TableName) -> TableVersion:
    read_query(table.place)
    return TableVersion(table, partial(query_rows, table.place))


_OPENED_BY: Mapping[str, Callable[[TableName], TableVersion]] = {
    "delta": _open_delta,
    "iceberg": _open_iceberg,
    "sql": _open_query,
}
