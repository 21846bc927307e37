"""Entity ids of a whole source by 64-bit hash: 8 bytes a row, whatever the ids look like."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.entities import entity_ids_as_text
from inference.sources.footers import SourceFile
from inference.sources.reading import Slice, read_slices, whole_slices

_BATCH_ROWS = 1 << 17


@dataclass(frozen=True)
class IdCount:
    """Distinct entity ids of a source, and some that occur more than once."""

    distinct: int
    duplicates: tuple[str, ...]


def count_distinct_ids(
    files: Sequence[SourceFile], entity_column: str, *, examples: int, slices: Sequence[Slice] | None = None
) -> IdCount:
    """Read all ids (of `slices`, if they are given) once more and count them. Nulls count as one id."""
    parts = list(whole_slices(files)) if slices is None else slices
    hashes = np.concatenate([np.empty(0, np.uint64), *map(hash_ids, read_ids(files, parts, entity_column))])
    hashes.sort()
    repeated = hashes[1:][hashes[1:] == hashes[:-1]]
    names = _names_of(np.unique(repeated), read_ids(files, parts, entity_column), examples) if len(repeated) else ()
    return IdCount(len(hashes) - len(repeated), names)


def read_ids(files: Sequence[SourceFile], slices: Iterable[Slice], column: str) -> Iterator[pa.Array]:
    """Yield the entity ids of slices as text, some at a time; "" for null."""
    for batch in read_slices(files, slices, columns=[column], batch_rows=_BATCH_ROWS):
        yield pc.fill_null(entity_ids_as_text(batch.column(column), column), "")


def hash_ids(ids: pa.Array) -> npt.NDArray[np.uint64]:
    """Return a hash of each id (text), the same everywhere."""
    import pandas as pd  # slow to import, and only few runs come here

    return pd.util.hash_array(np.asarray(ids.to_pandas(), dtype=object), categorize=False)


def _names_of(hashes: npt.NDArray[Any], batches: Iterable[pa.Array], most: int) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for ids in batches:
        for row in np.flatnonzero(np.isin(hash_ids(ids), hashes)):
            names.setdefault(str(ids[int(row)].as_py()))
            if len(names) == most:
                return tuple(names)
    return tuple(names)
