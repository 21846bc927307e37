"""Which of a generation's row and an overlay's entry is served, and its decoding. Pure functions.

The executors (Redis, asyncio, memory) only fetch bytes; what they mean is decided here, once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from inference.schema import TensorSpec
from inference.store.codec import (
    OUTDATED,
    OverlayHeader,
    codec_for,
    row_as_of,
    schema_digest,
    unpack_overlay,
)
from inference.store.labels import Labels
from inference.store.records import ChangeableRows, Entry, Manifest, Origin, StoredRows

Fields = tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Fetched:
    """The raw answer to a look-up, in the order of the ids; None where a part has no value.

    `schemas`: digest → fields, of the overlay entries. `manifest` is None when no generation is read. `ids` are asked
    for only where `labels` names a canary.
    """

    manifest: Manifest | None
    active_version: int | None
    rows: Sequence[bytes | None]
    overlay: Sequence[bytes | None] = ()
    schemas: Mapping[bytes, Fields] = field(default_factory=dict)
    labels: Labels = field(default_factory=Labels)
    model: str = ""
    ids: Sequence[str] = ()


def decode_entries(fetched: Fetched) -> list[Entry | None]:
    """Return the newest entry of each id; None where there is none."""
    entries: list[Entry | None] = [None] * len(fetched.rows)
    manifest = fetched.manifest
    overlay = _overlay_entries(fetched)
    winners = dict(_winners(fetched, overlay))
    changed = {i: h.as_of for i, (h, _) in overlay.items() if h.schema == OUTDATED}
    if manifest is not None:
        found = [i for i, row in enumerate(fetched.rows) if row is not None and i not in winners]
        retried_at = {i: header.computed_at for i, (header, _) in overlay.items() if header.model_version}
        begun_at, version, number = manifest.created_at, manifest.model_version, manifest.number
        origin = Origin.BATCH
        rows = codec_for(manifest.fields).unpack_rows([fetched.rows[i] for i in found])
        for i, (as_of, values) in zip(found, rows, strict=True):
            outdated = changed.get(i, 0) > as_of
            entries[i] = Entry(values, as_of, begun_at, version, origin, number, retried_at.get(i), outdated)
    for fields, group in _by_fields(winners, fetched.schemas).items():
        rows = codec_for(fields).unpack_rows([winners[i][1] for i in group])
        for i, (as_of, values) in zip(group, rows, strict=True):
            header = winners[i][0]
            entries[i] = Entry(values, as_of, header.computed_at, header.model_version, header.origin, None)
    return entries


def decode_block(fetched: Fetched) -> StoredRows | None:
    """Return the newest rows as arrays; None without a generation and without an overlay entry."""
    fields = _block_fields(fetched)
    if fields is None:
        return None
    rows = list(fetched.rows)
    overlay = _overlay_entries(fetched)
    if overlay:
        digest = schema_digest(fields)
        for i, (header, row) in _winners(fetched, overlay):
            if header.schema == digest:
                rows[i] = row
    block, as_of = codec_for(fields).unpack_block(rows)
    return StoredRows(block, np.array([row is not None for row in rows], np.bool_), as_of)


def decode_for_change(fetched: Fetched) -> ChangeableRows | None:
    """Return the newest rows and what is needed to change them; None without a generation and an overlay entry."""
    rows = decode_block(fetched)
    if rows is None:
        return None
    begun_at = fetched.manifest.created_at if fetched.manifest else 0.0
    known_at = np.where(rows.found, begun_at, 0.0)
    for i, (header, _) in _winners(fetched, _overlay_entries(fetched)):
        known_at[i] = header.computed_at
        # also of one with other fields, which the block leaves out
        rows.as_of[i] = header.as_of
    fields = _block_fields(fetched) or ()
    is_loaded = fetched.manifest is not None
    return ChangeableRows(rows, fields, is_loaded, known_at, tuple(fetched.overlay) or (None,) * len(fetched.rows))


def _overlay_entries(fetched: Fetched) -> dict[int, tuple[OverlayHeader, bytes]]:
    """Return the overlay's entries by index, but for those of a version that does not answer for that id."""
    entries = ((i, unpack_overlay(entry)) for i, entry in enumerate(fetched.overlay) if entry is not None)
    return {i: entry for i, entry in entries if _answers(entry[0].model_version, i, fetched)}


def _answers(version: int, index: int, fetched: Fetched) -> bool:
    # features have no versions: theirs is 0, and never out of date
    if version in (0, fetched.active_version):
        return True
    labels = fetched.labels
    return version == labels.canary and labels.canary_for(fetched.model, fetched.ids[index]) is not None


def _winners(
    fetched: Fetched, overlay: Mapping[int, tuple[OverlayHeader, bytes]]
) -> Iterator[tuple[int, tuple[OverlayHeader, bytes]]]:
    """Yield (index, entry) of the ids whose overlay entry is served."""
    for i, entry in overlay.items():
        header = entry[0]
        if header.schema in fetched.schemas and _overlay_wins(header, fetched.rows[i], fetched):
            yield i, entry


def _overlay_wins(header: OverlayHeader, row: bytes | None, fetched: Fetched) -> bool:
    if row is None or fetched.manifest is None:
        return True
    if header.since_change and header.computed_at >= fetched.manifest.created_at:
        return True  # what it was made from may be older than the row in other groups of features
    return (header.as_of, header.computed_at) >= (row_as_of(row), fetched.manifest.created_at)


def _block_fields(fetched: Fetched) -> Fields | None:
    if fetched.manifest is not None:
        return fetched.manifest.fields
    headers = [header for _, (header, _) in _winners(fetched, _overlay_entries(fetched))]
    newest = max(headers, key=lambda header: header.computed_at, default=None)
    return fetched.schemas[newest.schema] if newest else None


def _by_fields(
    winners: Mapping[int, tuple[OverlayHeader, bytes]], schemas: Mapping[bytes, Fields]
) -> dict[Fields, list[int]]:
    groups: defaultdict[Fields, list[int]] = defaultdict(list)
    for i, (header, _) in winners.items():
        groups[schemas[header.schema]].append(i)
    return groups
