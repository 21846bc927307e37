"""Cuts a source into chunks. Pure: footers in, descriptors out, one at a time, so that a long plan takes no memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from inference.sources import Slice, SourceFile
from inference.stored_data import record_from_json

#: files that a difference names
_MAX_NAMED = 5


_Slices = list[tuple[int, int, int, int] | tuple[int, int, int, int, str]]


@dataclass(frozen=True)
class Chunk:
    """What one task scores. `files`: those that its slices name by number; left out while a plan is being made."""

    number: int
    slices: tuple[Slice, ...]
    files: Mapping[int, SourceFile] = field(default_factory=dict, compare=False)

    @property
    def rows(self) -> int:
        """Rows of the chunk."""
        return sum(part.rows for part in self.slices)

    def to_json(self) -> list[list[Any]]:
        """Return the slices as plain values."""
        return [
            [part.file, part.row_group, part.offset, part.length, *([part.mask] if part.mask else [])]
            for part in self.slices
        ]

    @classmethod
    def from_json(cls, number: int, text: bytes | str) -> Chunk:
        """Rebuild from the JSON of `to_json`.

        Raises:
            Unreadable: it is none.
        """
        return cls(number, tuple(Slice(*part) for part in record_from_json(_Slices, text, f"chunk {number}")))


@dataclass(frozen=True)
class Fingerprint:
    """What a plan and its finished chunks rest on; a run is taken up again only if all of it is as it was.

    `files`: a digest of all files (names, sizes, stamps, footers), however many there are.
    """

    files: str
    entity_column: str
    event_time_column: str | None
    model_version: int
    contract_hash: str
    rows_per_chunk: int
    bytes_per_chunk: int
    rows: str = "one"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def differences(self, before: dict[str, Any]) -> list[str]:
        """Return what else than the files changed since `before` (a `to_json`), in words; empty for nothing."""
        now, before = self.to_json(), {"rows": "one", **before}  # older releases knew no other
        return [
            f"{key}: {before.get(key)!r} is now {now[key]!r}"
            for key in now
            if key != "files" and before.get(key) != now[key]
        ]


def files_digest(files: Iterable[SourceFile]) -> str:
    """Return a digest of the files' names and identities."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(json.dumps([file.path, *file.identity]).encode())
    return digest.hexdigest()


def file_differences(before: Sequence[SourceFile], now: Sequence[SourceFile]) -> list[str]:
    """Return which files came, went or were replaced, in words; the first few by name."""
    old, new = ({file.path: file.identity for file in files} for files in (before, now))
    lost = [f"{path} is gone" for path in old if path not in new]
    added = [f"{path} is new" for path in new if path not in old]
    replaced = [f"{path} was replaced" for path in new if path in old and old[path] != new[path]]
    told = lost + added + replaced
    return told if len(told) <= _MAX_NAMED else [*told[:_MAX_NAMED], f"and {len(told) - _MAX_NAMED:,} files more"]


@dataclass(frozen=True)
class RowSlice:
    """A slice with what it weighs: rows that are meant, and bytes before compression."""

    slice: Slice
    rows: int
    bytes: int


def plan_chunks(files: Sequence[SourceFile], *, rows_per_chunk: int, bytes_per_chunk: int) -> Iterator[Chunk]:
    """Yield chunks that cover every row once, in order, none larger than either limit (but for a single huge row).

    Small row groups share a chunk; one that is larger than a chunk is cut into equal slices.
    """
    pieces = cut_row_groups(files, rows_per_chunk=rows_per_chunk, bytes_per_chunk=bytes_per_chunk)
    return gather(pieces, rows_per_chunk=rows_per_chunk, bytes_per_chunk=bytes_per_chunk)


def cut_row_groups(files: Sequence[SourceFile], *, rows_per_chunk: int, bytes_per_chunk: int) -> Iterator[RowSlice]:
    """Yield row groups, those that are larger than a chunk in equal slices."""
    for index, file in enumerate(files):
        for group, (rows, size) in enumerate(zip(file.row_groups, file.group_bytes, strict=True)):
            count = min(max(-(-rows // rows_per_chunk), -(-size // bytes_per_chunk)), rows)
            for piece in range(count):
                start, end = rows * piece // count, rows * (piece + 1) // count
                yield RowSlice(Slice(index, group, start, end - start), end - start, size // count)


def gather(pieces: Iterable[RowSlice], *, rows_per_chunk: int, bytes_per_chunk: int) -> Iterator[Chunk]:
    """Yield chunks of neighbouring pieces, each as full as the limits allow."""
    number = rows = size = 0
    gathered: list[Slice] = []
    for piece in pieces:
        if gathered and (rows + piece.rows > rows_per_chunk or size + piece.bytes > bytes_per_chunk):
            yield Chunk(number, tuple(gathered))
            number, rows, size, gathered = number + 1, 0, 0, []
        gathered.append(piece.slice)
        rows, size = rows + piece.rows, size + piece.bytes
    if gathered:
        yield Chunk(number, tuple(gathered))
