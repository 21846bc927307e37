"""Reads rows of planned files as streams, and the entity ids of a whole source.

Memory does not grow with the size of a row group. A file that was replaced after planning is an error.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from inference.entities import MAX_ENTITY_ID_BYTES, entity_ids_as_text
from inference.errors import SourceError
from inference.sources.column_types import holds_text, plain_column
from inference.sources.footers import SourceFile, check_unchanged
from inference.sources.partitions import PartitionValue
from inference.storage import Location, open_location, reason_of
from inference.stored_data import reading

#: read buffer of one column; a row group is streamed through it, never held whole
_LOCAL_BUFFER_BYTES = 1 << 20
#: larger: each refill is a request to the store
_REMOTE_BUFFER_BYTES = 4 << 20

Files = Sequence[SourceFile] | Mapping[int, SourceFile]
_BATCH_ROWS = 1 << 17

#: bytes that a hash takes in at once, and ids, so that the data of one step stays in the processor's cache
_WORD, _HASHED_AT_ONCE = 8, 1 << 14
#: number of bytes → the part of a little-endian word that holds them
_FIRST_BYTES = np.array([(1 << 8 * count) - 1 for count in range(_WORD + 1)], np.uint64)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIXING = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
_LAST_SHIFT = np.uint64(31)


@dataclass(frozen=True)
class Slice:
    """Some rows of one row group: `length` rows from `offset` on. `file`: the file's number in the source, from 0.

    `mask`: which of these rows to read, as `pack_mask` packs it; None for all.
    """

    file: int
    row_group: int
    offset: int
    length: int
    mask: str | None = None

    @property
    def rows(self) -> int:
        """The number of rows to read."""
        return self.length if self.mask is None else int(unpack_mask(self.mask, self.length).sum())


def pack_mask(mask: npt.NDArray[np.bool_]) -> str:
    """Return a mask of rows as text: compressed bits."""
    return base64.b64encode(zlib.compress(np.packbits(mask).tobytes())).decode()


def unpack_mask(text: str, rows: int) -> npt.NDArray[np.bool_]:
    """Return the mask that `pack_mask` packed.

    Raises:
        Unreadable: the text is something else.
    """
    with reading("the rows of a slice"):
        packed = zlib.decompressobj().decompress(base64.b64decode(text), (rows + 7) // 8 or 1)
        return np.unpackbits(np.frombuffer(packed, np.uint8), count=rows).astype(bool)


def read_slices(
    files: Files, slices: Iterable[Slice], *, columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield the slices' rows in order, at most `batch_rows` at a time, with the `columns` in this order.

    `columns` may be in the files or in the names of their folders. Each has its plain type (see `column_types`), which
    may differ between files; `concat_rows` joins such batches. Compares each file with the plan before its first row
    and after its last: an object store may answer each read from another version of the file.

    Raises:
        SourceError: a file was removed or replaced, or cannot be read; names it.
    """
    for number, parts in groupby(slices, key=lambda part: part.file):
        planned = files[number]
        place = open_location(planned.path)
        check_unchanged(place, planned)
        yield from _read_file(place, planned, parts, columns, batch_rows)
        check_unchanged(place, planned)


def whole_slices(files: Sequence[SourceFile]) -> Iterator[Slice]:
    """Yield every row of every file, a row group at a time."""
    for number, file in enumerate(files):
        for group, rows in enumerate(file.row_groups):
            if rows:
                yield Slice(number, group, 0, rows)


def _read_file(
    place: Location, planned: SourceFile, parts: Iterable[Slice], columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    buffer = _LOCAL_BUFFER_BYTES if place.is_local else _REMOTE_BUFFER_BYTES
    try:
        # without pre_buffer pages are streamed, and a large row group is never in memory as a whole
        with (
            place.filesystem.open_input_file(place.path) as opened,
            # Spark writes INT96, which Arrow reads as nanoseconds: the year 9999 would wrap around to 1816
            pq.ParquetFile(opened, buffer_size=buffer, pre_buffer=False, coerce_int96_timestamp_unit="us") as file,
        ):
            in_file = set(file.schema_arrow.names)  # each access parses the schema of all columns again
            stored = [name for name in columns if name in in_file]
            rest = [value for value in planned.partition if value.column in columns and value.column not in in_file]
            for part in parts:
                for batch, mask in _read_slice(file, part, stored, batch_rows):
                    rows = _plain_rows(batch, stored, rest, columns)
                    _check_text(place, rows)
                    yield rows if mask is None else rows.filter(mask)
    except (pa.ArrowException, OSError) as error:
        check_unchanged(place, planned)  # a replaced file explains the error better
        raise SourceError(f"{place.name} cannot be read: {reason_of(error)}", field="source") from error


def _check_text(place: Location, rows: pa.RecordBatch) -> None:
    """Refuse text that is no UTF-8: nobody can read it, and Arrow does not check it."""
    for field, column in zip(rows.schema, rows.columns, strict=True):
        if not holds_text(field.type):
            continue
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise SourceError(
                f"{place.name}: column {field.name!r} is text, and holds bytes that are no UTF-8: write it in "
                "UTF-8, or as binary if it is no text",
                field=field.name,
            ) from error


def _read_slice(
    file: pq.ParquetFile, part: Slice, columns: list[str], batch_rows: int
) -> Iterator[tuple[pa.RecordBatch, pa.Array | None]]:
    """Yield rows of the file, and which of them to take; None for all."""
    begin, end, at = part.offset, part.offset + part.length, 0
    mask = None if part.mask is None else unpack_mask(part.mask, part.length)
    for batch in file.iter_batches(batch_rows, row_groups=[part.row_group], columns=columns):
        low, high = max(begin - at, 0), min(end - at, batch.num_rows)
        if low < high:
            chosen = None if mask is None else pa.array(mask[at + low - begin : at + high - begin])
            yield batch.slice(low, high - low), chosen
        at += batch.num_rows
        if at >= end:
            return


def _plain_rows(
    batch: pa.RecordBatch, stored: Sequence[str], partition: Sequence[PartitionValue], columns: Sequence[str]
) -> pa.RecordBatch:
    """Return the rows with these columns only: for a column `a.b`, Arrow also reads the field `b` of a struct `a`."""
    found = {name: batch.column(name) for name in stored}
    found |= {value.column: pa.repeat(value.scalar, batch.num_rows) for value in partition}
    arrays = [plain_column(found[name]) for name in columns]
    return pa.RecordBatch.from_arrays(arrays, names=list(columns)) if arrays else batch


@dataclass(frozen=True)
class IdCount:
    """The number of distinct entity ids of a source, and some ids that repeat."""

    distinct: int
    duplicates: tuple[str, ...]


def count_distinct_ids(
    files: Sequence[SourceFile],
    entity_column: str,
    *,
    examples: int,
    slices: Sequence[Slice] | None = None,
    give_way: Callable[[], None] = lambda: None,
) -> IdCount:
    """Read all ids again (of `slices`, if given) and count them by 64-bit hashes, 8 bytes a row. Nulls are one id.

    Calls `give_way` before it reads some more.
    """
    parts = list(whole_slices(files)) if slices is None else slices
    read = partial(read_ids, files, parts, entity_column, give_way=give_way)
    hashes = np.concatenate([np.empty(0, np.uint64), *map(hash_ids, read())])
    repeated = repeated_hashes(hashes)
    names = _names_of(np.unique(repeated), read(), examples) if len(repeated) else ()
    return IdCount(len(hashes) - len(repeated), names)


def read_ids(
    files: Sequence[SourceFile], slices: Iterable[Slice], column: str, *, give_way: Callable[[], None] = lambda: None
) -> Iterator[pa.Array]:
    """Yield the entity ids of slices as text, some at a time; "" for null. `give_way`: see `count_distinct_ids`."""
    for batch in read_slices(files, slices, columns=[column], batch_rows=_BATCH_ROWS):
        give_way()
        yield pc.fill_null(entity_ids_as_text(batch.column(column), column), "")


def repeated_hashes(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Sort the hashes, in place, and return each one again for each time it repeats.

    A million take 0.06 s, and 0.01 s if they consist of a few ascending parts. numpy's `unique` takes 0.6 s.
    """
    hashes.sort(kind="stable")  # merges ascending parts
    again: npt.NDArray[np.uint64] = hashes[1:][hashes[1:] == hashes[:-1]]
    return again


def hash_ids(ids: pa.Array) -> npt.NDArray[np.uint64]:
    """Return a 64-bit hash of each id (text without nulls), the same in every process.

    Of a text that is too long for an id, only the length and the first 512 bytes count. All ids take in their next
    eight bytes at once, by the steps of splitmix64 (https://prng.di.unimi.it/splitmix64.c): 0.03 µs an id of ten
    bytes, where pandas takes 0.16.
    """
    texts = pc.cast(ids, pa.large_binary())
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = np.append(np.frombuffer(texts.buffers()[2] or b"", np.uint8), np.zeros(_WORD, np.uint8))
    words = np.lib.stride_tricks.as_strided(data[:_WORD].view(np.uint64), (len(data) - _WORD + 1,), (1,))
    hashes = np.empty(len(texts), np.uint64)
    for start in range(0, len(texts), _HASHED_AT_ONCE):
        bounds = offsets[start : start + _HASHED_AT_ONCE + 1]
        hashes[start : start + _HASHED_AT_ONCE] = _hash_texts(words, bounds[:-1], np.diff(bounds))
    return hashes


def _hash_texts(
    words: npt.NDArray[np.uint64], starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """Return the hash of each text. `words`: the eight bytes from each byte on."""
    hashes = lengths.astype(np.uint64) * _STEP
    for at in range(0, min(int(lengths.max()), MAX_ENTITY_ID_BYTES), _WORD):
        longer = slice(None) if at == 0 else np.flatnonzero(lengths > at)
        mixed = hashes[longer] ^ (words[starts[longer] + at] & _FIRST_BYTES[np.minimum(lengths[longer] - at, _WORD)])
        for shift, factor in _MIXING:
            mixed ^= mixed >> shift
            mixed *= factor
        hashes[longer] = mixed ^ (mixed >> _LAST_SHIFT)
    return hashes


def _names_of(hashes: npt.NDArray[Any], batches: Iterable[pa.Array], most: int) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for ids in batches:
        for row in np.flatnonzero(np.isin(hash_ids(ids), hashes)):
            names.setdefault(str(ids[int(row)].as_py()))
            if len(names) == most:
                return tuple(names)
    return tuple(names)
