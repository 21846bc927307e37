"""Joins two generations, and a column of the source, by id in bounded memory: by parts of the ids' hashes on disk.

Each side is read once, in the order of its buckets, and written to a temporary file by hash: two generations rarely
have the same number of buckets, so ids that belong together lie apart. Then part after part fits into memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from types import TracebackType
from typing import Any, BinaryIO

import msgpack
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.entities import entity_ids_as_text
from inference.errors import BadInput
from inference.features.key_columns import event_times
from inference.schema import DType
from inference.settings import ModelSettings
from inference.sources import Source, find_column, hash_ids, hash_parts, plain_column, read_slices, whole_slices
from inference.store import Manifest, StoredBatch
from inference.store.codec import RowCodec, codec_for, stored_ids

#: rows of a part on each side: small enough for the processor's cache
_PART_ROWS = 1 << 16
_MOST_BITS = 14
HASH, BUCKET = "hash", "bucket"
#: different texts of an output that are kept to be shown
MAX_TEXTS = 1_000

Rows = npt.NDArray[Any]


class Parts:
    """Rows in a temporary file, by the upper bits of their hash; `dtype` has a field HASH. Leaving it removes the file.

    Raises:
        OSError: from `add` and `part`, such as when the disk is full.
    """

    def __init__(self, dtype: np.dtype[Any], bits: int) -> None:
        self.dtype, self._bits = dtype, bits
        self._file: BinaryIO = tempfile.TemporaryFile(prefix="forecache-")  # noqa: SIM115 - closed by __exit__
        self._size = 0
        #: for each addition: where it starts in the file, and at which of its rows each part does
        self._added: list[tuple[int, npt.NDArray[np.int64]]] = []

    @property
    def count(self) -> int:
        """The number of parts."""
        return 1 << self._bits

    def add(self, rows: Rows) -> None:
        """Write some rows."""
        part = self._part_of(rows[HASH])
        order = np.argsort(part, kind="stable")  # 16 bits: numpy sorts them in linear time
        counts = np.bincount(part, minlength=1 << self._bits)
        self._added.append((self._size, np.concatenate([[0], np.cumsum(counts)])))
        # in the smallest units: `take` of a structured array copies field by field
        data = rows.view((np.void, self.dtype.itemsize))[order]
        self._size += self._file.write(data.data.cast("B"))

    def part(self, number: int) -> Rows:
        """Return all rows of a part."""
        self._file.flush()
        pieces = []
        for offset, starts in self._added:
            first, last = int(starts[number]), int(starts[number + 1])
            if last > first:
                length, at = (last - first) * self.dtype.itemsize, offset + first * self.dtype.itemsize
                pieces.append(os.pread(self._file.fileno(), length, at))
        return np.frombuffer(b"".join(pieces), self.dtype)

    def _part_of(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint16]:
        if not self._bits:
            return np.zeros(len(hashes), np.uint16)
        return (hashes >> np.uint64(64 - self._bits)).astype(np.uint16)

    def __enter__(self) -> Parts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def bits_for(rows: int) -> int:
    """Return the number of a hash's bits that divide so many rows into parts of a good size."""
    return min(max(rows // _PART_ROWS, 1).bit_length() - 1 + (rows > _PART_ROWS), _MOST_BITS)


class Reduction:
    """Reduces packed rows to what is compared: the hash of the id, its bucket, and the fields.

    Text, and arrays of unknown shape, become a digest; `texts` has the first different ones of each field.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._codec: RowCodec = codec_for(manifest.fields)
        self._specs = manifest.fields
        self.texts: dict[str, dict[int, str]] = {spec.name: {} for spec in self._specs if not spec.is_fixed_number}
        fields: list[Any] = [(HASH, "<u8"), (BUCKET, "<u4")]
        fields += [
            (_key(at), spec.dtype.numpy, spec.shape) if spec.is_fixed_number else (_key(at), "<u8")
            for at, spec in enumerate(self._specs)
        ]
        self.dtype = np.dtype(fields)

    def of(self, batch: StoredBatch) -> Rows:
        """Return the reduced rows of a batch."""
        rows = np.empty(len(batch), self.dtype)
        rows[HASH] = hash_parts(batch.data, batch.id_starts, batch.id_lengths)
        rows[BUCKET] = batch.buckets
        fixed = self._codec.columns_of(batch.fixed(self._codec.dtype))
        loose = self._codec.loose_values(batch.values()) if self.texts else {}
        for at, spec in enumerate(self._specs):
            if spec.name in fixed:
                rows[_key(at)] = fixed[spec.name]
            else:
                rows[_key(at)] = self._digests(spec.name, loose[spec.name], is_text=spec.dtype is DType.STRING)
        return rows

    def column(self, rows: Rows, name: str) -> npt.NDArray[Any]:
        """Return a field of reduced rows: its values, or the digests of texts."""
        at = next(at for at, spec in enumerate(self._specs) if spec.name == name)
        column: npt.NDArray[Any] = rows[_key(at)]
        return column

    def _digests(self, name: str, values: Iterable[Any], *, is_text: bool) -> npt.NDArray[np.uint64]:
        known = self.texts[name]
        memory: dict[Any, int] = {}
        digests = []
        for value in values:
            key = value if isinstance(value, str) else msgpack.packb(value)
            digest = memory.get(key)
            if digest is None:
                raw = key.encode() if isinstance(key, str) else key
                digest = memory[key] = int.from_bytes(blake2b(raw, digest_size=8).digest(), "little")
                if is_text and len(known) < MAX_TEXTS:
                    known.setdefault(digest, value if isinstance(value, str) else str(value))
            digests.append(digest)
        return np.array(digests, np.uint64)


def _key(at: int) -> str:
    return f"f{at}"


def match(one: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> tuple[Rows, Rows]:
    """Return the positions of the hashes that both sides have, in the same order; each occurs once a side."""
    both = np.concatenate([one, other])
    order = np.argsort(both)
    found = both[order]
    pairs = np.flatnonzero(found[1:] == found[:-1])
    first, second = order[pairs], order[pairs + 1]
    return np.minimum(first, second), np.maximum(first, second) - len(one)


# --- the segment of each entity ---

#: different values of a segment column
MAX_SEGMENTS = 1_000
NULL, NOT_THERE = "(null)", "(not in the table)"
_BATCH_ROWS = 1 << 17
SEGMENT_ROW = np.dtype([(HASH, "<u8"), ("time", "<f8"), ("segment", "<i4")])


@dataclass
class Segments:
    """The segment of each entity of a source, in `parts` of `SEGMENT_ROW`. `names`: of the segments, by number."""

    parts: Parts
    names: list[str] = field(default_factory=lambda: [NOT_THERE])

    def read(
        self, source: Source, model: ModelSettings, column: str, *, give_way: Callable[[], None] = lambda: None
    ) -> None:
        """Read the ids and the column of all rows; of an entity with several rows, the newest counts.

        Calls `give_way` before each batch of rows.

        Raises:
            SourceError: the source lacks the column, or cannot be read.
            BadInput: it has too many different values, or values of a kind that is no segment.
        """
        check_segment(source, column)
        times = [model.event_time_column] if model.rows == "newest" and model.event_time_column else []
        columns = list(dict.fromkeys([model.entity_column, column, *times]))
        batches = read_slices(source.files, whole_slices(source.files), columns=columns, batch_rows=_BATCH_ROWS)
        for batch in batches:
            give_way()
            self._add(batch, model.entity_column, column, times)

    def of(self, part: int, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Return the number of each entity's segment; 0 for an entity that the source lacks."""
        rows = self.parts.part(part)
        rows = rows[np.lexsort((rows["time"], rows[HASH]))]
        last = np.append(rows[HASH][1:] != rows[HASH][:-1], np.ones(min(len(rows), 1), bool))
        rows = rows[last]
        segments = np.zeros(len(hashes), np.int64)
        of_hashes, of_rows = match(hashes, rows[HASH])
        segments[of_hashes] = rows["segment"][of_rows]
        return segments

    def _add(self, batch: pa.RecordBatch, entity_column: str, column: str, times: list[str]) -> None:
        ids = pc.fill_null(entity_ids_as_text(batch.column(entity_column), entity_column), "")
        rows = np.zeros(len(ids), SEGMENT_ROW)
        rows[HASH] = hash_ids(stored_ids(ids))
        rows["segment"] = self._numbers(_as_text(batch.column(column), column), column)
        if times:
            rows["time"] = np.nan_to_num(event_times(batch.column(times[0])), nan=-np.inf)
        self.parts.add(rows)

    def _numbers(self, texts: pa.Array, column: str) -> npt.NDArray[np.int64]:
        encoded = texts.dictionary_encode()
        known = {name: number for number, name in enumerate(self.names)}
        for name in encoded.dictionary.to_pylist():
            if name not in known:
                known[name] = len(self.names)
                self.names.append(name)
        if len(self.names) > MAX_SEGMENTS + 1:
            raise BadInput(
                f"column {column!r} has over {MAX_SEGMENTS:,} different values: choose one with fewer", field="segment"
            )
        numbers = np.array([known[name] for name in encoded.dictionary.to_pylist()], np.int64)
        found: npt.NDArray[np.int64] = numbers[encoded.indices.to_numpy()]
        return found


def check_segment(source: Source, column: str) -> None:
    """Check that a column can tell segments.

    Raises:
        SourceError: the source lacks the column.
        BadInput: its values are lists or structs.
    """
    type_ = find_column(source.schema, column, source.path, role="segment").type
    if pa.types.is_nested(type_) or pa.types.is_binary(type_):
        raise BadInput(f"column {column!r} is {type_}: a segment is text, a number, a flag or a date", field="segment")


def _as_text(values: pa.Array, column: str) -> pa.Array:
    try:
        return pc.fill_null(pc.cast(plain_column(values), pa.string()), NULL)
    except pa.ArrowException as error:
        raise BadInput(f"column {column!r} cannot be read as text: {error}", field="segment") from error
