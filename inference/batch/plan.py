"""Cuts a source into chunks. Pure: footers in, descriptors out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SourceFile:
    """One Parquet file as its footer describes it. `footer`: the footer's digest, new with new content."""

    path: str
    size: int
    footer: str
    #: rows of each row group
    row_groups: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return sum(self.row_groups)


@dataclass(frozen=True)
class Slice:
    """Some rows of one row group: `length` rows from `offset` on. `file` counts the source's files from 0."""

    file: int
    row_group: int
    offset: int
    length: int


@dataclass(frozen=True)
class Chunk:
    """What one task scores."""

    number: int
    slices: tuple[Slice, ...]

    @property
    def rows(self) -> int:
        """Rows of the chunk."""
        return sum(part.length for part in self.slices)

    def to_json(self) -> list[list[int]]:
        """Return the slices as plain numbers."""
        return [[part.file, part.row_group, part.offset, part.length] for part in self.slices]

    @classmethod
    def from_json(cls, number: int, data: Sequence[Sequence[int]]) -> Chunk:
        """Rebuild from `to_json`."""
        return cls(number, tuple(Slice(*part) for part in data))


@dataclass(frozen=True)
class Fingerprint:
    """What a plan and its finished chunks rest on; a run is taken up again only if all of it is as it was."""

    files: tuple[tuple[str, int, str], ...]
    entity_column: str
    event_time_column: str | None
    model_version: int
    contract_hash: str
    rows_per_chunk: int

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "files": [list(file) for file in self.files],
            "entity_column": self.entity_column,
            "event_time_column": self.event_time_column,
            "model_version": self.model_version,
            "contract_hash": self.contract_hash,
            "rows_per_chunk": self.rows_per_chunk,
        }

    def differences(self, before: dict[str, Any]) -> list[str]:
        """Return what changed since `before` (a `to_json`), in words; empty for nothing."""
        now = self.to_json()
        changed = [
            f"{key}: {before.get(key)!r} is now {now[key]!r}"
            for key in now
            if key != "files" and before.get(key) != now[key]
        ]
        return [*_file_differences(before.get("files", []), now["files"]), *changed]


def _file_differences(before: Sequence[Sequence[Any]], now: Sequence[Sequence[Any]]) -> list[str]:
    old, new = {file[0]: file for file in before}, {file[0]: file for file in now}
    lost = [f"{path} is gone" for path in old if path not in new]
    added = [f"{path} is new" for path in new if path not in old]
    replaced = [f"{path} was replaced" for path in new if path in old and list(old[path]) != list(new[path])]
    return lost + added + replaced


def plan_chunks(files: Sequence[SourceFile], *, rows_per_chunk: int) -> list[Chunk]:
    """Return chunks that cover every row once, in order, none with more than `rows_per_chunk` rows.

    Small row groups share a chunk; one that is larger than a chunk is cut into equal slices.
    """
    chunks: list[Chunk] = []
    gathered: list[Slice] = []
    for part in _slices(files, rows_per_chunk):
        if gathered and sum(piece.length for piece in gathered) + part.length > rows_per_chunk:
            chunks.append(Chunk(len(chunks), tuple(gathered)))
            gathered = []
        gathered.append(part)
    if gathered:
        chunks.append(Chunk(len(chunks), tuple(gathered)))
    return chunks


def _slices(files: Sequence[SourceFile], most: int) -> Iterator[Slice]:
    for index, file in enumerate(files):
        for group, rows in enumerate(file.row_groups):
            pieces = -(-rows // most)
            for piece in range(pieces):
                start, end = rows * piece // pieces, rows * (piece + 1) // pieces
                yield Slice(index, group, start, end - start)
