"""Joins two generations by id, whatever their buckets, in bounded memory: by parts of the ids' hashes on disk.

Each side is read once, in the order of its buckets, and written to a temporary file by hash: two generations rarely
have the same number of buckets, so ids that belong together lie apart. Then part after part fits into memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from hashlib import blake2b
from types import TracebackType
from typing import Any, BinaryIO

import msgpack
import numpy as np
import numpy.typing as npt

from inference.schema import DType
from inference.sources import hash_parts
from inference.store import Manifest, StoredBatch
from inference.store.codec import RowCodec, codec_for

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
