"""Reads which rows of a table were written between two of its versions, without reading the others.

Delta tells by its change data feed (`delta.enableChangeDataFeed`). Of Iceberg, pyiceberg scans appended rows, so that a
snapshot which overwrites rows tells nothing. Deleted rows may be left out: the newer version lacks them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from inference.errors import SourceError
from inference.sources.files import TableName
from inference.sources.named_tables import COLUMN_MAPPING, errors_of, load_iceberg

_FEED = "delta.enableChangeDataFeed"
#: operations of Iceberg's snapshots that write no row but those of an append
_ICEBERG_TELLS = {"append", "delete", "replace"}


class NoChangeFeed(SourceError):
    """Raised when a table does not tell which of its rows changed; says why."""


def written_since(before: str, now: str, column: str) -> Iterator[pa.Array]:
    """Yield one column of the rows that were inserted or updated between two versions, and of some others.

    `before`, `now`: as `Source.version` names them.

    Raises:
        NoChangeFeed: the table does not tell, since it has no feed, is another table, or lost its history.
    """
    (first, first_id), (last, last_id) = map(_read, (before, now))
    if (first.kind, first.place, first_id) != (last.kind, last.place, last_id):
        raise NoChangeFeed(f"{last.kind}:{last.place} is another table than the run before it read")
    if first.version == last.version:
        return
    try:
        with errors_of(last):
            yield from (batch.column(0) for batch in _READ_BY[last.kind](first, last, column))
    except SourceError as error:
        raise NoChangeFeed(error.message) from error


def _read(version: str) -> tuple[TableName, str]:
    name, _, id_ = version.rpartition(" ")
    table = TableName.read(name)
    if table is None or table.version is None:
        raise NoChangeFeed("the run before read no version of a table")
    return table, id_


def _of_delta(first: TableName, last: TableName, column: str) -> Iterator[pa.RecordBatch]:
    from deltalake import DeltaTable

    table = DeltaTable(last.place, version=last.version)
    configuration = table.metadata().configuration
    if configuration.get(_FEED, "").lower() != "true":
        raise NoChangeFeed(f"the table has no change data feed ({_FEED})")
    if configuration.get(COLUMN_MAPPING, "none") != "none":
        raise NoChangeFeed("deltalake does not read the change data feed of mapped columns")
    start, end = int(first.version or 0) + 1, last.version
    if end is None or start > end:
        raise NoChangeFeed(f"version {end} is older than version {first.version}, which the run before it read")
    feed = table.load_cdf(starting_version=start, ending_version=end, columns=[column])
    yield from pa.RecordBatchReader.from_stream(feed)


def _of_iceberg(first: TableName, last: TableName, column: str) -> Iterator[pa.RecordBatch]:
    table = load_iceberg(last.place)
    at: Any = table.snapshot_by_id(last.version)
    while at is not None and at.snapshot_id != first.version:
        if at.summary is None or at.summary.operation.value not in _ICEBERG_TELLS:
            raise NoChangeFeed(f"snapshot {at.snapshot_id} overwrites rows, and pyiceberg scans only appended ones")
        at = None if at.parent_snapshot_id is None else table.snapshot_by_id(at.parent_snapshot_id)
    if at is None:
        raise NoChangeFeed(f"snapshot {first.version}, which the run before it read, is no ancestor, or was expired")
    appended = table.incremental_append_scan(
        from_snapshot_id_exclusive=first.version, to_snapshot_id_inclusive=last.version, selected_fields=(column,)
    )
    yield from appended.to_arrow_batch_reader()


_READ_BY: Mapping[str, Callable[[TableName, TableName, str], Iterator[pa.RecordBatch]]] = {
    "delta": _of_delta,
    "iceberg": _of_iceberg,
}
