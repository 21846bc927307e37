"""Removes the rows of forgotten entities from the files of runs: Parquet parts, quarantined rows, vectors.

A part is written anew beside the old one, and takes its place in one step. May run twice, also after a kill.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from inference.batch.sinks import SUCCESS, part_names
from inference.storage import Location, open_location

#: takes ids as Arrow text, and returns a mask of those whose rows leave
IsDoomed = Callable[[pa.Array], npt.NDArray[np.bool_]]


@dataclass
class ErasedRows:
    """What left a folder. `places`: of the rows, the part's number times 2**32 and the row; `ids`: theirs, as text."""

    rows: int = 0
    parts: int = 0
    places: list[int] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)


def _nothing() -> None:
    """Do nothing."""


def erase_rows(
    folder: str,
    is_doomed: IsDoomed,
    *,
    before: Callable[[], None] = _nothing,
    give_way: Callable[[], None] = _nothing,
) -> ErasedRows:
    """Remove rows from all parts of a folder, a path or a URI, by their column `entity_id`.

    Calls `before` before the first part changes, and `give_way` before each part.

    Raises:
        OSError: a part cannot be read or written, or the store does not answer.
    """
    where, erased = open_location(folder), ErasedRows()
    for path in part_names(where):
        give_way()
        _erase_from(where.at(path), is_doomed, erased, before)
    return erased


def erase_from_success(folder: str, change: Callable[[str], str]) -> bool:
    """Replace the text of a folder's `_SUCCESS` by a changed one; return whether it differs.

    Raises:
        OSError: it cannot be read or written.
    """
    where = open_location(folder)
    path = f"{where.path}/{SUCCESS}"
    if not where.filesystem.get_file_info(path).is_file:
        return False
    with where.filesystem.open_input_stream(path) as stream:
        before = stream.read().decode()
    after = change(before)
    if after == before:
        return False
    _replace(where.at(path), lambda target: target.write(after.encode()))
    return True


def _erase_from(part: Location, is_doomed: IsDoomed, erased: ErasedRows, before: Callable[[], None]) -> None:
    with pq.ParquetFile(part.path, filesystem=part.filesystem) as file:
        ids = pc.cast(file.read(columns=["entity_id"]).column(0).combine_chunks(), pa.string())
        doomed = is_doomed(pc.fill_null(ids, ""))
        if not doomed.any():
            return
        if not erased.parts:
            before()
        _replace(part, lambda target: _write_without(file, doomed, target))
    number = int(part.path.rpartition("part-")[2].partition(".")[0])
    erased.rows += int(doomed.sum())
    erased.parts += 1
    erased.places += [(number << 32) + row for row in np.flatnonzero(doomed).tolist()]
    erased.ids.update(ids.filter(pa.array(doomed)).to_pylist())


def _write_without(file: pq.ParquetFile, doomed: npt.NDArray[np.bool_], target: Any) -> None:
    at = 0
    with pq.ParquetWriter(target, file.schema_arrow) as writer:
        for number in range(file.num_row_groups):
            group = file.read_row_group(number)
            writer.write_table(group.filter(pa.array(~doomed[at : at + group.num_rows])))
            at += group.num_rows


def _replace(file: Location, write: Callable[[Any], Any]) -> None:
    """Write a file anew; it changes in one step."""
    if not file.is_local:  # an object appears only when it is whole
        with tempfile.TemporaryFile() as copy:
            write(copy)
            copy.seek(0)
            with file.filesystem.open_output_stream(file.path) as target:
                shutil.copyfileobj(copy, target, 1 << 20)
        return
    path = Path(file.path)
    # the name of a worker's temporary files, which are swept after a kill
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as target:
            write(target)
        shutil.copymode(path, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
