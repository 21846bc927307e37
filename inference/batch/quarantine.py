"""Rows that a run left out, with why and with their original values: one Parquet part for each chunk that has any."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as fs
import pyarrow.parquet as pq

from inference.sources import concat_rows
from inference.storage import open_location

#: rows kept of one chunk, so that a table that is bad throughout does not fill the memory
MAX_ROWS = 100_000

_PART = re.compile(r"part-\d+\.parquet|\.part-\d+\.\w+\.tmp")
_HEAD = (("entity_id", pa.string()), ("reason", pa.string()), ("feature", pa.string()))


class Quarantine:
    """Gathers one chunk's bad rows and writes them when the chunk is whole.

    Columns: `entity_id` (as text; null if it was), `reason`, `feature` (null when no single one is at fault) and
    `values`, a struct of the columns that were read, as they were.
    """

    def __init__(self, folder: str, *, chunk: int, token: str) -> None:
        self._folder = folder
        self._name = f"part-{chunk:06d}.parquet"
        self._temporary = f".part-{chunk:06d}.{token}.tmp"
        self._parts: list[pa.Table] = []
        self._room = MAX_ROWS

    def add(
        self, batch: pa.RecordBatch, ids: pa.Array, rows: npt.NDArray[Any], *, reason: str, feature: str | None = None
    ) -> None:
        """Take rows of a batch, by position; `ids` are the batch's ids as text."""
        taken = pa.array(rows[: self._room], pa.int64())
        if not len(taken):
            return
        self._room -= len(taken)
        values = batch.take(taken).to_struct_array()
        why = (pa.repeat(pa.scalar(text, pa.string()), len(taken)) for text in (reason, feature))
        schema = pa.schema([*_HEAD, ("values", values.type)])
        text = pc.cast(ids.take(taken), pa.string())
        self._parts.append(pa.Table.from_arrays([text, *why, values], schema=schema))

    def commit(self) -> None:
        """Write the part, complete or not at all; an earlier attempt's part held the same rows."""
        if not self._parts:
            return
        table = concat_rows(self._parts)
        where = open_location(self._folder)
        final = f"{where.path}/{self._name}"
        if not where.is_local:  # an object appears when it is whole
            pq.write_table(table, final, filesystem=where.filesystem)
            return
        Path(where.path).mkdir(parents=True, exist_ok=True)
        temporary = Path(where.path) / self._temporary
        try:
            pq.write_table(table, temporary)
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)


def remove_parts(folder: str) -> int:
    """Remove a run's parts, and its folder when nothing else lies in it; return how many there were.

    Raises:
        OSError: a part, or the store, does not let itself be removed.
    """
    where = open_location(folder)
    selector = fs.FileSelector(where.path, allow_not_found=True)
    parts = [info.path for info in where.filesystem.get_file_info(selector) if _PART.fullmatch(info.base_name)]
    for part in parts:
        where.filesystem.delete_file(part)
    if where.is_local and parts:
        with suppress(OSError):  # somebody put something there
            Path(where.path).rmdir()
    return len(parts)
