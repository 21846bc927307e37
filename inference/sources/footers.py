"""Reads the footers of Parquet files: row groups, schema, and a digest that shows whether a file was replaced."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from inference.errors import SourceError
from inference.sources.files import as_parquet
from inference.sources.partitions import PartitionValue
from inference.sources.table_formats import refuse_copied_file
from inference.storage import Location, is_lfs_pointer, reason_of
from inference.stored_data import record_from_json

#: footers read at the same time: an object store is slow but parallel; on a local disk, parsing takes the time
REMOTE_THREADS, LOCAL_THREADS = 16, 2
#: most footers fit, so that one request is enough
_TAIL_BYTES = 64 << 10
_MAGIC, _ENCRYPTED = b"PAR1", b"PARE"
#: Parquet's units of timestamps, in seconds
_UNITS_S = {"milliseconds": 1e-3, "microseconds": 1e-6, "nanoseconds": 1e-9}
#: columns, or row groups, of one file: to parse a footer with a million takes minutes and gigabytes
MAX_FOOTER_ITEMS = 200_000


class _StoredFile(NamedTuple):
    """The JSON of a `SourceFile`."""

    path: str
    size: int
    stamp: str
    footer: str
    partition: list[tuple[str, str | None, str]]


@dataclass(frozen=True)
class SourceFile:
    """One Parquet file as its footer describes it.

    `path`: as the user writes it. `stamp` changes with every write (the ETag, else the time of change). `footer`, a
    digest of the footer, changes with the content.
    """

    path: str
    size: int
    stamp: str
    footer: str
    #: the rows of each row group
    row_groups: tuple[int, ...] = ()
    #: the bytes of each row group before compression
    group_bytes: tuple[int, ...] = ()
    partition: tuple[PartitionValue, ...] = ()

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(self.row_groups)

    @property
    def identity(self) -> tuple[int, str, str]:
        """Size, stamp and footer: at least one changes when the file is replaced."""
        return self.size, self.stamp, self.footer

    def to_json(self) -> list[Any]:
        """Return plain JSON values for a reader, without the row groups."""
        return [self.path, *self.identity, [[value.column, value.text, value.type] for value in self.partition]]

    @classmethod
    def from_json(cls, text: bytes | str) -> SourceFile:
        """Read the JSON of `to_json`, without the row groups.

        Raises:
            Unreadable: the text is something else.
        """
        path, size, stamp, footer, partition = record_from_json(_StoredFile, text, "a file of a plan")
        values = tuple(PartitionValue(*value) for value in partition)
        return cls(path, size, stamp, footer, partition=values)


@dataclass(frozen=True)
class Footer:
    """A file and its columns, without those of its folders. `metadata`: Parquet's own, if it was kept."""

    file: SourceFile
    schema: pa.Schema
    metadata: Any = field(default=None, repr=False)


def read_footers(
    place: Location, paths: Sequence[str], *, keep_metadata: bool = False, of_lake: bool = False
) -> list[Footer]:
    """Return the footers of many files in their order. Reads several at the same time.

    `keep_metadata`: keep the statistics of the row groups, some kilobytes each. `of_lake`: a table's log names them, so
    they are no copies of another table's files.

    Raises:
        SourceError: a file cannot be read, or is no Parquet file; names it.
    """
    threads = min(LOCAL_THREADS if place.is_local else REMOTE_THREADS, len(paths))
    with ThreadPoolExecutor(threads, thread_name_prefix="footers") as pool:
        read = partial(read_footer, keep_metadata=keep_metadata, of_lake=of_lake)
        return list(pool.map(lambda path: read(place.at(path)), paths))


def read_footer(place: Location, *, keep_metadata: bool = False, of_lake: bool = False) -> Footer:
    """Return a file's footer.

    Raises:
        SourceError: it cannot be read, or is no Parquet file.
    """
    try:
        with place.filesystem.open_input_file(place.path) as opened:
            size, stamp, tail = opened.size(), _stamp(place, opened), _tail(opened)
        with pq.ParquetFile(
            pa.BufferReader(tail), thrift_container_size_limit=MAX_FOOTER_ITEMS, coerce_int96_timestamp_unit="us"
        ) as parsed:
            # metadata.schema and metadata refer to each other, and would stay until the next garbage collection
            metadata, schema = parsed.metadata, parsed.schema_arrow.remove_metadata()
    except UnicodeDecodeError as error:
        message = "has a column whose name is not UTF-8: write the names of its columns in UTF-8"
        raise SourceError(f"{place.name} {message}", field="source") from error
    except (OSError, pa.ArrowException) as error:
        if "Exceeded size limit" in str(error):
            message = f"has over {MAX_FOOTER_ITEMS:,} columns or row groups: write a table of features with fewer"
            raise SourceError(f"{place.name} {message}", field="source") from error
        message = as_parquet(place.name) or f"is not readable as Parquet: {reason_of(error)}"
        raise SourceError(f"{place.name} {message}", field="source") from error
    if not of_lake:
        refuse_copied_file(place, metadata.metadata or {})
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    file = SourceFile(
        place.name,
        size,
        stamp,
        hashlib.blake2b(tail, digest_size=8).hexdigest(),
        tuple(group.num_rows for group in groups),
        tuple(group.total_byte_size for group in groups),
    )
    return Footer(file, schema, metadata if keep_metadata else None)


def flat_columns(metadata: Any) -> dict[str, int]:
    """Return the place of each column that is no struct or list among Parquet's own columns.

    The path alone is ambiguous: a column `a.b` and a field `b` of a struct `a` have the same one.
    """
    schema = metadata.schema
    leaves = ((schema.column(place), place) for place in range(metadata.num_columns))
    return {leaf.name: place for leaf, place in leaves if leaf.name == leaf.path}


def newest_instants(metadata: Any, place: int) -> dict[int, float]:
    """Return the newest time (epoch seconds) of a column in each row group with such statistics.

    Reads the stored numbers: Python has no date for a database's infinity.
    """
    found = {}
    physical_type = metadata.schema.column(place).physical_type
    unread = pq.ParquetFile(pa.PythonFile(_Unread(), mode="r"), metadata=metadata)
    for group in range(metadata.num_row_groups):
        if not _is_sound(unread, group, place):
            continue  # the reader of the rows gets the error
        column = metadata.row_group(group).column(place)
        if column.physical_type != physical_type:  # its statistics would end the process
            continue
        statistics = column.statistics
        if statistics is None or not statistics.has_min_max or not isinstance(statistics.max_raw, int):
            continue
        kind = json.loads(statistics.logical_type.to_json())
        unit_s = 86_400.0 if kind["Type"] == "Date" else _UNITS_S.get(kind.get("timeUnit"))
        if unit_s is not None and kind["Type"] != "Time":
            found[group] = statistics.max_raw * unit_s
    return found


class _RowsWereRead(Exception):
    """Raised where a reader would read rows."""


class _Unread(io.RawIOBase):
    """A file without content, in place of one whose footer is known."""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:  # noqa: ARG002 - as Python has it
        raise _RowsWereRead

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:  # noqa: ARG002 - as Python has it
        return offset

    def tell(self) -> int:
        return 1 << 62  # its size for Arrow, which checks that each column ends before it


def _is_sound(unread: pq.ParquetFile, group: int, place: int) -> bool:
    """Tell whether the metadata of a column in a row group can be read: damaged ones end the process in Arrow 26.

    Arrow's reader of rows checks the same metadata carefully before it asks for bytes.
    """
    try:
        unread.reader.read_row_group(group, column_indices=[place], use_threads=False)
    except _RowsWereRead:
        return True
    except (OSError, pa.ArrowException):
        return False
    return True


def check_unchanged(place: Location, planned: SourceFile) -> None:
    """Refuse a file that was replaced after planning.

    Raises:
        SourceError: it was replaced or removed.
    """
    try:
        with place.filesystem.open_input_file(place.path) as opened:
            size, stamp = opened.size(), _stamp(place, opened)
            footer = hashlib.blake2b(_tail(opened), digest_size=8).hexdigest()
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{place.name} cannot be read any more: {reason_of(error)}", field="source") from error
    if replace(planned, size=size, stamp=stamp, footer=footer) != planned:
        raise SourceError(f"{place.name} was replaced while the run was reading it: start a new run", field="source")


def _stamp(place: Location, opened: Any) -> str:
    metadata = {key.lower(): value for key, value in (opened.metadata() or {}).items()}
    tag = metadata.get("etag", b"")
    if tag:
        return str(tag.decode().strip('"'))
    return str(place.filesystem.get_file_info(place.path).mtime_ns or "")


def _tail(opened: Any) -> bytes:
    """Return the footer, its length and the closing magic bytes."""
    size = opened.size()
    tail = opened.read_at(min(size, _TAIL_BYTES), max(size - _TAIL_BYTES, 0))
    if is_lfs_pointer(tail):
        raise pa.ArrowInvalid("it is a pointer of Git LFS, not the table itself: git lfs pull")
    if tail[-4:] == _ENCRYPTED:
        raise pa.ArrowInvalid("it is encrypted, and no key is known here: write it without encryption")
    if tail[-4:] != _MAGIC or len(tail) < 12:
        raise pa.ArrowInvalid("it does not end as a Parquet file does: is it truncated, or another format?")
    needed = int.from_bytes(tail[-8:-4], "little") + 8
    if needed > size:
        raise pa.ArrowInvalid("its footer is longer than the file: is it truncated?")
    return bytes(tail[-needed:] if needed <= len(tail) else opened.read_at(needed, size - needed))
