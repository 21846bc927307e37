"""Keeps a generation's rows in one file, which the processes of a host map and read in microseconds.

| part      | content                                                                                             |
|-----------|-----------------------------------------------------------------------------------------------------|
| rows      | of each row: the length of its stored id (1 byte), the stored id, the packed row (`RowCodec`); the  |
|           | length of the row (4 bytes) stands before it if rows differ in size                                 |
| padding   | zeros: a reader loads words behind the end of an id                                                 |
| directory | for each slot, uint32: the number of rows in the slots before it                                    |
| places    | where each row starts, uint32 or uint64, in the order of the slots                                  |
| footer    | the numbers and the manifest as JSON; its length (4 bytes); `MAGIC`                                 |

The upper bits of the CRC-32 of the stored id choose its slot, which has one row or none, rarely more. The stored ids
are compared in full, so no row answers for another id. A file never changes: it gets its name when it is whole.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np
import numpy.typing as npt

from inference.errors import Unreadable
from inference.monitoring.id_hashes import bytes_of_ids
from inference.redis.keys import MAX_INLINE_ID_BYTES
from inference.schema import Block
from inference.serving.answers import prediction_of
from inference.store.codec import codec_for, crc32_of_spans, empty_column, row_as_of, stored_id
from inference.store.records import Manifest
from inference.store.scanning import StoredBatch, spans_of

MAGIC = b"FCROWS1\n"
_END = struct.Struct(f"<I{len(MAGIC)}s")
_LENGTH = struct.Struct("<I")
_WORD_BYTES = 8
_ALIGNED = 64
#: a reader loads words behind the end of an id, as far as the longest id reaches
_PADDING = MAX_INLINE_ID_BYTES + 2 * _WORD_BYTES
_PAGE_BYTES = 4096
_LENGTH_BYTES = [bytes([length]) for length in range(MAX_INLINE_ID_BYTES + 1)]

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class FoundRows:
    """The rows of many ids, in their order. Of an id that is not `found`, `as_of` and `block` hold zeros and "".

    `block`: field name → array (n, *shape). `as_of`: epoch seconds.
    """

    found: npt.NDArray[np.bool_]
    as_of: npt.NDArray[np.float64]
    block: Block


class PackedGeneration:
    """A mapped file of rows. Threads may share it; the mapping ends with the last reference to it.

    `manifest`: of the generation; `rows`: their number; `size`: of the file, in bytes.
    """

    def __init__(self, path: Path) -> None:
        """Map a file.

        Raises:
            OSError: it cannot be mapped.
            Unreadable: it is no such file.
        """
        self.path = path
        with path.open("rb") as file:
            try:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:
                raise Unreadable(f"{path} is empty") from error
        self.size = len(self._map)
        footer = self._footer()
        self.manifest = Manifest.from_json(footer["manifest"])
        self.rows: int = footer["rows"]
        self._shift: int = 32 - footer["bits"]
        place_bytes: int = footer["place_bytes"]
        self._codec = codec_for(self.manifest.fields)
        self._row_bytes = self._codec.size
        self._single = self._codec.scalars if len(self.manifest.fields) == 1 else None
        directory = memoryview(self._map)[footer["directory"] : footer["places"]]
        places = memoryview(self._map)[footer["places"] : footer["places"] + self.rows * place_bytes]
        self._directory = directory.cast("I")
        self._places = places.cast("I" if place_bytes == 4 else "Q")
        self._every = np.frombuffer(self._map, np.uint8)
        # reads touch every page once, or the first read of each would wait for the kernel
        self._every[::_PAGE_BYTES].max()
        self._words = np.ndarray((self.size - _WORD_BYTES + 1,), "<u8", self._every, strides=(1,))
        self._slots = np.frombuffer(directory, np.uint32)
        self._starts = np.frombuffer(places, np.uint32 if place_bytes == 4 else np.uint64)

    def find(self, entity_id: str) -> tuple[float, Any] | None:
        """Return `as_of` (epoch seconds) and prediction of an id, or None if it has no row."""
        raw = entity_id.encode()
        if len(raw) > MAX_INLINE_ID_BYTES:
            raw = stored_id(entity_id)
        wanted, slot, content = _LENGTH_BYTES[len(raw)] + raw, crc32(raw) >> self._shift, self._map
        for place in self._places[self._directory[slot] : self._directory[slot + 1]]:
            end = place + len(wanted)
            if content[place:end] == wanted:
                return self._row_at(end)
        return None

    def find_many(self, entity_ids: Sequence[str]) -> FoundRows:
        """Return the rows of many ids, about 0.4 µs each."""
        data, starts, lengths = _stored_forms(entity_ids)
        places = self._places_of(data, starts, lengths)
        found = places >= 0
        at = places[found] + 1 + lengths[found]
        rows, block = (self._fixed if self._row_bytes is not None else self._loose)(at, found)
        same_age = self.manifest.rows_as_of
        as_of = rows["as_of"].astype(np.float64) if same_age is None else np.where(found, float(same_age), 0.0)
        return FoundRows(found, as_of, block)

    def _footer(self) -> dict[str, Any]:
        try:
            end = self.size - _END.size
            length, magic = _END.unpack_from(self._map, end)
            footer: dict[str, Any] = json.loads(self._map[end - length : end]) if magic == MAGIC else {}
        except (struct.error, ValueError) as error:
            raise Unreadable(f"{self.path} is no file of rows: {error}") from error
        if footer.get("at") != end - length:
            raise Unreadable(f"{self.path} is no whole file of rows")
        return footer

    def _row_at(self, at: int) -> tuple[float, Any]:
        same_age = self.manifest.rows_as_of
        if self._single is not None:  # nearly every model; the general way takes four times as long
            as_of, value = self._single.unpack_from(self._map, at)
            return as_of if same_age is None else same_age, value
        size = self._row_bytes
        if size is None:
            (size,) = _LENGTH.unpack_from(self._map, at)
            at += _LENGTH.size
        ((as_of, values),) = self._codec.unpack_rows((self._map[at : at + size],))
        return as_of if same_age is None else same_age, prediction_of(values)

    def _places_of(self, data: Bytes, starts: Ints, lengths: Ints) -> Ints:
        """Return where the row of each id starts; -1 for none. `data` ends with padding."""
        slots = (crc32_of_spans(data, starts, lengths) >> np.uint32(self._shift)).astype(np.int64)
        at, end = self._slots[slots].astype(np.int64), self._slots[slots + 1]
        found = np.full(len(starts), -1, np.int64)
        left = np.flatnonzero(at < end)
        words = np.ndarray((len(data) - _WORD_BYTES + 1,), "<u8", data, strides=(1,))
        while len(left):
            places = self._starts[at[left]].astype(np.int64)
            same = self._every[places] == lengths[left]
            same &= self._have_ids(places + 1, words, starts[left], np.where(same, lengths[left], 0))
            found[left[same]] = places[same]
            at[left] += 1
            left = left[~same & (at[left] < end[left])]
        return found

    def _have_ids(self, places: Ints, words: npt.NDArray[Any], starts: Ints, lengths: Ints) -> npt.NDArray[np.bool_]:
        """Tell whether the bytes at `places` are those of the ids at `starts`, word by word."""
        equal = np.ones(len(places), np.bool_)
        for done in range(0, int(lengths.max()), _WORD_BYTES):
            bits = (np.clip(lengths - done, 0, _WORD_BYTES) * 8).astype(np.uint64)
            differ = self._words[places + done]
            differ ^= words[starts + done]
            equal &= differ << (np.uint64(64) - bits) == 0  # numpy shifts by 64 to 0
        return equal

    def _fixed(self, at: Ints, found: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], Block]:
        dtype = self._codec.dtype
        rows = np.zeros(len(found), dtype)
        rows[found] = spans_of(self._every, at, dtype.itemsize).view(dtype)
        return rows, self._codec.columns_of(rows)

    def _loose(self, at: Ints, found: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], Block]:
        rows: list[bytes | None] = [None] * len(found)
        for index, place in zip(np.flatnonzero(found).tolist(), at.tolist(), strict=True):
            start = place + _LENGTH.size
            rows[index] = self._map[start : start + _LENGTH.unpack_from(self._map, place)[0]]
        if not any(found):
            block = {spec.name: empty_column(spec, len(rows)) for spec in self.manifest.fields}
        else:
            block, _ = self._codec.unpack_block(rows)
        ages = np.array([0 if row is None else row_as_of(row) for row in rows], np.uint32)
        return ages.view([("as_of", np.uint32)]), block


def _stored_forms(entity_ids: Sequence[str]) -> tuple[Bytes, Ints, Ints]:
    """Return the stored ids one after the other, with padding; and their starts and lengths."""
    text, offsets = bytes_of_ids(entity_ids)
    lengths = np.diff(offsets)
    if len(lengths) and lengths.max() > MAX_INLINE_ID_BYTES:
        stored = [stored_id(one) for one in entity_ids]
        text = np.frombuffer(b"".join(stored), np.uint8)
        lengths = np.array([len(one) for one in stored], np.int64)
        offsets = np.append(0, np.cumsum(lengths))
    return np.concatenate([text, np.zeros(_PADDING, np.uint8)]), offsets[:-1], lengths


class PackedWriter:
    """Writes the file of a generation: `add` each batch of its rows, then `finish`. Takes 12 bytes of memory a row.

    Writes, and does not map: a full disk then raises an OSError in place of a signal.
    """

    def __init__(self, file: BinaryIO, manifest: Manifest) -> None:
        self._file = file
        self._manifest = manifest
        self._has_lengths = codec_for(manifest.fields).size is None
        self._at = 0
        self._crcs: list[npt.NDArray[np.uint32]] = [np.empty(0, np.uint32)]
        self._places: list[npt.NDArray[np.uint64]] = [np.empty(0, np.uint64)]

    def add(self, batch: StoredBatch) -> None:
        """Write the rows of a batch.

        Raises:
            OSError: the disk is full, or fails.
        """
        # rows of one shape are copied together
        shapes = batch.id_lengths << 32 | batch.lengths
        order = np.argsort(shapes, kind="stable")
        bounds = np.flatnonzero(np.diff(shapes[order], prepend=-1, append=-1))
        for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            self._add_alike(batch, order[start:end])

    def finish(self) -> None:
        """Write the index and the footer, and wait until the disk has them.

        Raises:
            OSError: the disk is full, or fails.
        """
        crcs, places = np.concatenate(self._crcs), np.concatenate(self._places)
        self._crcs, self._places = [], []
        bits = max(1, len(crcs).bit_length())
        slots = crcs >> np.uint32(32 - bits)
        before = np.zeros((1 << bits) + 1, np.uint32)
        np.cumsum(np.bincount(slots, minlength=1 << bits), out=before[1:])
        place_type = np.uint32 if self._at <= np.iinfo(np.uint32).max else np.uint64
        self._pad()
        footer: dict[str, Any] = {
            "rows": len(crcs),
            "bits": bits,
            "place_bytes": place_type().itemsize,
            "directory": self._write(before),
        }
        self._pad()
        footer["places"] = self._write(places[np.argsort(slots, kind="stable")].astype(place_type))
        text = json.dumps(footer | {"at": self._at, "manifest": self._manifest.to_json()}).encode()
        self._file.write(text + _END.pack(len(text), MAGIC))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _add_alike(self, batch: StoredBatch, rows: Ints) -> None:
        """Write rows whose ids and values have the same lengths."""
        id_length, length = int(batch.id_lengths[rows[0]]), int(batch.lengths[rows[0]])
        ids = spans_of(batch.data, batch.id_starts[rows], id_length).view(np.uint8).reshape(len(rows), id_length)
        values = spans_of(batch.data, batch.starts[rows], length).view(np.uint8).reshape(len(rows), length)
        content = [np.full((len(rows), 1), id_length, np.uint8), ids, values]
        if self._has_lengths:
            content.insert(2, np.tile(np.frombuffer(_LENGTH.pack(length), np.uint8), (len(rows), 1)))
        block = np.concatenate(content, axis=1)
        self._crcs.append(crc32_of_spans(batch.data, batch.id_starts[rows], batch.id_lengths[rows]))
        self._places.append(self._at + np.arange(len(rows), dtype=np.uint64) * np.uint64(block.shape[1]))
        self._write(block)

    def _write(self, values: npt.NDArray[Any]) -> int:
        """Write an array, and return where it starts."""
        start = self._at
        self._at += self._file.write(values.data)
        return start

    def _pad(self) -> None:
        self._at += self._file.write(bytes(_PADDING + -(self._at + _PADDING) % _ALIGNED))
