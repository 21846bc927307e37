"""Tables with several rows an entity: refused before anything is made from them, or the newest row of each is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.entities import entity_ids_as_text, illegal_entity_ids
from inference.errors import SourceError
from inference.features.event_time import exact_instants
from inference.sources import Slice, Source, count_distinct_ids, hash_ids, pack_mask, read_slices, whole_slices

#: ids that are read before each run and load, some two seconds' worth; of larger tables as many, from all over it
LOOKED_AT_ROWS = 5_000_000
_BATCH_ROWS = 1 << 17
_EXAMPLES = 3


def repeated_ids_error(rows: int, examples: Sequence[str], entity_column: str) -> SourceError:
    """Return the error for a table with so many rows more than entities."""
    named = ", ".join(map(repr, examples))
    return SourceError(
        f"{rows:,} rows repeat an entity id, such as {named}, in the entity column {entity_column!r}: keep one row per "
        'entity, or set rows = "newest" and event_time_column in the settings to take the newest row of each',
        field=entity_column,
    )


def refuse_repeated_ids(source: Source, entity_column: str) -> None:
    """Refuses a source in which a legal id repeats, as far as a look at `LOOKED_AT_ROWS` of them tells.

    A repeat in a larger table that escapes this is found when what was stored is counted.

    Raises:
        SourceError: naming the column, ids that repeat, and the ways out; or the source cannot be read.
    """
    slices = list(_spread(list(whole_slices(source.files))))
    hashes = [np.empty(0, np.uint64)]
    for batch in read_slices(source.files, slices, columns=[entity_column], batch_rows=_BATCH_ROWS):
        ids = entity_ids_as_text(batch.column(entity_column), entity_column)
        hashes.append(hash_ids(ids.filter(pc.invert(illegal_entity_ids(ids)))))
    seen = np.concatenate(hashes)
    repeated = len(seen) - len(np.unique(seen))
    if repeated:
        # "" stands for ids that are missing, which are told of row by row
        counted = count_distinct_ids(source.files, entity_column, examples=_EXAMPLES + 1, slices=slices)
        raise repeated_ids_error(repeated, [one for one in counted.duplicates if one][:_EXAMPLES], entity_column)


def _spread(groups: list[Slice]) -> Iterator[Slice]:
    """Yield row groups from all over the table, of no more rows than are looked at."""
    left = LOOKED_AT_ROWS
    every = -(-sum(group.length for group in groups) // left)
    for group in groups[:: max(every, 1)]:
        if left > 0:
            yield replace(group, length=min(group.length, left))
        left -= group.length


class NewestRows:
    """Finds the newest row of each entity among rows that are added in the table's order.

    Takes some 60 bytes of memory a row. Ids are compared by 64-bit hashes.
    """

    def __init__(self) -> None:
        self._hashes = [np.empty(0, np.uint64)]
        self._instants = [np.empty((0, 2), np.int64)]
        self._illegal = [np.empty(0, np.bool_)]

    def add(
        self, hashes: npt.NDArray[np.uint64], instants: npt.NDArray[np.int64], illegal: npt.NDArray[np.bool_]
    ) -> None:
        """Add rows. `instants`: as `exact_instants` returns them; `illegal`: rows without a legal id."""
        self._hashes.append(hashes)
        self._instants.append(instants)
        self._illegal.append(illegal)

    def keep(self) -> npt.NDArray[np.bool_]:
        """Return which of all rows are the newest of their entity.

        Of equal event times the last row is; a row of unknown time is older than any other. Rows without a legal id
        all stay, so that they are told of as in any table.
        """
        hashes, instants = np.concatenate(self._hashes), np.concatenate(self._instants)
        order = np.lexsort((instants[:, 1], instants[:, 0], hashes))  # stable: equal ones stay in the table's order
        ordered = hashes[order]
        last = np.ones(len(order), np.bool_)
        last[:-1] = ordered[1:] != ordered[:-1]
        keep = np.concatenate(self._illegal)
        keep[order[last]] = True
        return keep


def newest_slices(source: Source, entity_column: str, event_time_column: str) -> list[Slice]:
    """Return the newest row of each entity as slices; reads the two columns once.

    Raises:
        SourceError: the source cannot be read.
    """
    slices, newest = list(whole_slices(source.files)), NewestRows()
    columns = list(dict.fromkeys([entity_column, event_time_column]))
    for batch in read_slices(source.files, slices, columns=columns, batch_rows=_BATCH_ROWS):
        newest.add(*_keys_of(batch, entity_column, event_time_column))
    keep, kept, at = newest.keep(), [], 0
    for part in slices:
        own = keep[at : at + part.length]
        at += part.length
        if own.any():
            kept.append(replace(part, mask=None if own.all() else pack_mask(own)))
    return kept


def _keys_of(
    batch: pa.RecordBatch, entity_column: str, event_time_column: str
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the rows' ids by hash, their exact event times, and which ids are illegal."""
    ids = entity_ids_as_text(batch.column(entity_column), entity_column)
    return (
        hash_ids(pc.fill_null(ids, "")),
        exact_instants(batch.column(event_time_column)),
        np.asarray(illegal_entity_ids(ids)),
    )
