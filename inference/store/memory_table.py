"""The table in this process's memory, for tests and experiments; held to the same contract as Redis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.clock import Clock, system_clock
from inference.errors import Conflict, NotFound
from inference.schema import Block, TensorSpec
from inference.store.codec import (
    OUTDATED,
    codec_for,
    outdated_as_of,
    pack_changes,
    pack_outdated,
    pack_overlay,
    schema_digest,
    since_change,
    unpack_overlay,
)
from inference.store.decoding import Fetched, Fields, decode_block, decode_entries, decode_for_change
from inference.store.labels import CANARY, STABLE, Labels
from inference.store.layout import bucket_count
from inference.store.records import ChangeableRows, Entry, GenerationState, Manifest, Origin, Pointer, StoredRows
from inference.store.table import SWEEP_AFTER_S

_IN_USE = {GenerationState.CURRENT, GenerationState.PREVIOUS, GenerationState.LOADING}


@dataclass
class _Generation:
    manifest: Manifest
    state: GenerationState = GenerationState.LOADING
    rows: dict[str, bytes] = field(default_factory=dict)
    sweep_due_at: float | None = None


class MemoryTable:
    """A `Table` in memory. `run_states` (run key → state) stands in for the run records `publish` checks."""

    def __init__(self, clock: Clock = system_clock, *, model: str = "m") -> None:
        self._model = model
        self.run_states: dict[str, str] = {}
        self._clock = clock
        self._sequence = 0
        self._pointer = Pointer()
        self._generations: dict[int, _Generation] = {}
        self._overlay: dict[str, tuple[float, bytes]] = {}
        self._schemas: dict[bytes, Fields] = {}
        self._parts: dict[str, MemoryTable] = {}

    def now(self) -> float:
        """See `Table.now`."""
        return self._clock()

    def begin(
        self,
        fields: Sequence[TensorSpec],
        *,
        rows_expected: int,
        model_version: int,
        contract_hash: str,
        keep_s: float,
        run_id: str | None = None,
    ) -> Manifest:
        """See `Table.begin`."""
        self._sequence += 1
        now = self._clock()
        manifest = Manifest(
            number=self._sequence,
            fields=tuple(fields),
            buckets=bucket_count(rows_expected),
            model_version=model_version,
            contract_hash=contract_hash,
            run_id=run_id,
            created_at=now,
            deadline=now + keep_s,
            rows_expected=rows_expected,
        )
        self._generations[self._sequence] = _Generation(manifest)
        return manifest

    def write(self, manifest: Manifest, ids: Any, block: Block, as_of: npt.NDArray[np.float64]) -> None:
        """See `Table.write`."""
        manifest.check_format()
        if ids.null_count or len(ids) != len(as_of):
            raise ValueError(f"{len(ids)} ids ({ids.null_count} of them null) for {len(as_of)} rows")
        rows = codec_for(manifest.fields).pack(block, np.minimum(as_of, manifest.created_at))
        if manifest.number in self._generations:
            self._generations[manifest.number].rows.update(zip(ids.to_pylist(), rows.to_pylist(), strict=True))

    def count(self, manifest: Manifest) -> int:
        """See `Table.count`."""
        return len(self._rows(manifest.number))

    def manifest(self, number: int) -> Manifest | None:
        """See `Table.manifest`."""
        generation = self._generations.get(number)
        return generation.manifest if generation else None

    def state(self, number: int) -> GenerationState | None:
        """See `Table.state`."""
        generation = self._generations.get(number)
        return generation.state if generation else None

    def generations(self) -> list[Manifest]:
        """See `Table.generations`."""
        return [generation.manifest for generation in self._generations.values()]

    def publish(self, number: int, *, run_key: str | None = None, run_state: str | None = None) -> Pointer:
        """See `Table.publish`."""
        pointer, generation = self._pointer, self._generations.get(number)
        if pointer.current == number:
            return pointer
        if generation is None:
            raise NotFound(f"generation {number} does not exist (any more)")
        if run_key is not None and self.run_states.get(run_key) != run_state:
            raise Conflict(f"generation {number}: its run is not {run_state}")
        if generation.state is not GenerationState.LOADING:
            raise Conflict(f"generation {number} is {generation.state}: only a loading one is published")
        self._set_state(pointer.previous, GenerationState.COLLECTING)
        self._set_state(pointer.current, GenerationState.PREVIOUS)
        self._set_state(number, GenerationState.CURRENT)
        self._pointer = replace(pointer, current=number, previous=pointer.current)
        return self._pointer

    def move_to_overlay(self, number: int, *, keep_s: float) -> None:
        """See `Table.move_to_overlay`."""
        generation = self._generations.get(number)
        if generation is None:
            raise NotFound(f"generation {number} does not exist (any more)")
        if generation.state not in (GenerationState.LOADING, GenerationState.COLLECTING):
            raise Conflict(f"generation {number} is {generation.state}: only a loading one is moved")
        if generation.state is GenerationState.LOADING:
            own = generation.manifest
            rows = self._rows(number)
            entries = pack_overlay(own.fields, list(rows.values()), own.created_at, own.model_version, Origin.BATCH)
            self._upsert(list(rows), entries, own.fields, keep_s)
        generation.state = GenerationState.COLLECTING

    def discard(self, number: int, state: GenerationState) -> None:
        """See `Table.discard`."""
        present = self.state(number)
        if present in (GenerationState.CURRENT, GenerationState.PREVIOUS):
            raise Conflict(f"generation {number} is {present}: roll back instead")
        if present is not GenerationState.COLLECTING:
            self._set_state(number, state)

    def rollback(self, expected_current: int) -> Pointer:
        """See `Table.rollback`."""
        pointer = self._pointer
        if pointer.current != expected_current:
            raise Conflict(f"generation {expected_current} is not the current one (any more)")
        if pointer.previous is None:
            raise Conflict("there is no previous generation to go back to")
        left = self._generations[expected_current].manifest.model_version
        back = self._generations[pointer.previous].manifest.model_version
        self._set_state(pointer.previous, GenerationState.CURRENT)
        self._set_state(expected_current, GenerationState.COLLECTING)
        active, held, labels = pointer.active_version, pointer.held_versions, pointer.labels
        if back:  # features have no versions
            held = frozenset({*held, left, *([active] if active else [])} - {back})
            active, labels = back, _moved_along(labels, back)
        self._pointer = Pointer(pointer.previous, None, active, held, labels)
        return self._pointer

    def collectable(self) -> list[int]:
        """See `Table.collectable`."""
        now = self._clock()
        return [
            number
            for number, generation in self._generations.items()
            if generation.state not in _IN_USE and (generation.sweep_due_at is None or generation.sweep_due_at <= now)
        ]

    def collect(
        self,
        number: int,
        *,
        pause_s: float = 0.01,  # noqa: ARG002 - nothing to spare here: removal is one step
        buckets_per_batch: int = 500,  # noqa: ARG002
        sweep_after_s: float = SWEEP_AFTER_S,
    ) -> int:
        """See `Table.collect`; the count is of rows."""
        generation = self._generations.get(number)
        if generation is None:
            return 0
        if generation.state in _IN_USE:
            raise Conflict(f"generation {number} is {generation.state}: it cannot be collected")
        generation.state = GenerationState.COLLECTING
        now, due_at = self._clock(), generation.sweep_due_at
        if due_at is not None and now < due_at:
            return 0
        removed = len(generation.rows)
        generation.rows.clear()
        if due_at is None and sweep_after_s > 0:
            generation.sweep_due_at = now + sweep_after_s
        else:
            del self._generations[number]
        return removed

    def pointer(self) -> Pointer:
        """See `Table.pointer`."""
        return self._pointer

    def activate(self, version: int, *, force: bool = False) -> bool:
        """See `Table.activate`."""
        pointer = self._pointer
        labels = pointer.labels
        if labels.stable is None:
            refused = (pointer.active_version or 0) > version or labels.canary == version
        else:
            refused = labels.stable != version
        if (refused or version in pointer.held_versions) and not force:
            return False
        held = pointer.held_versions - {version}
        labels = _moved_along(labels, version)
        self._pointer = replace(pointer, active_version=version, held_versions=held, labels=labels)
        return True

    def label(self, name: str, version: int | None, *, share: float = 0.0) -> None:
        """See `Table.label`."""
        old, held = self._pointer.labels, self._pointer.held_versions
        names = {label: given for label, given in old.versions.items() if label != name}
        if version is not None:
            names[name] = version
        if name == STABLE and version is not None:
            held -= {version}
            if names.get(CANARY) == version:
                del names[CANARY]
        labels = Labels(names, _share(names, share if name == CANARY else old.canary_share))
        self._pointer = replace(self._pointer, held_versions=held, labels=labels)

    def read(self, ids: Sequence[str]) -> list[Entry | None]:
        """See `Table.read`."""
        return decode_entries(self._fetch(ids))

    def read_generation(self, ids: Sequence[str], number: int) -> list[Entry | None]:
        """See `Table.read_generation`."""
        rows = self._rows(number)
        return decode_entries(Fetched(self.manifest(number), None, [rows.get(entity_id) for entity_id in ids]))

    def read_block(self, ids: Sequence[str]) -> StoredRows | None:
        """See `Table.read_block`."""
        return decode_block(self._fetch(ids))

    def part(self, name: str) -> MemoryTable:
        """See `Table.part`."""
        return self._parts.setdefault(name, MemoryTable(self._clock))

    def read_blocks(self, ids: Sequence[str], parts: Sequence[str]) -> list[StoredRows | None]:
        """See `Table.read_blocks`."""
        return [self.read_block(ids), *(self.part(name).read_block(ids) for name in parts)]

    def upsert(
        self,
        ids: Sequence[str],
        fields: Sequence[TensorSpec],
        block: Block,
        *,
        as_of: npt.NDArray[np.float64],
        computed_at: float,
        model_version: int,
        origin: Origin,
        keep_s: float,
    ) -> None:
        """See `Table.upsert`."""
        schema = tuple(fields)
        rows = codec_for(schema).pack(block, np.minimum(as_of, computed_at)).to_pylist()
        self._upsert(ids, pack_overlay(schema, rows, computed_at, model_version, origin), schema, keep_s)

    def read_for_change(self, ids: Sequence[str]) -> ChangeableRows | None:
        """See `Table.read_for_change`."""
        return decode_for_change(self._fetch(ids))

    def replace(
        self,
        ids: Sequence[str],
        fields: Sequence[TensorSpec],
        block: Block,
        *,
        known_at: npt.NDArray[np.float64],
        expected: Sequence[bytes | None],
        keep_s: float,
    ) -> list[bool]:
        """See `Table.replace`."""
        schema = tuple(fields)
        self._schemas[schema_digest(schema)] = schema
        done = []
        for entity_id, entry, known in zip(ids, pack_changes(schema, block, known_at), expected, strict=True):
            done.append(self._overlay_entry(entity_id) == known)
            if done[-1]:
                self._overlay[entity_id] = (self._clock() + keep_s, entry)
        return done

    def outdate(self, ids: Sequence[str], *, changed_at: npt.NDArray[np.float64], keep_s: float) -> None:
        """See `Table.outdate`."""
        now = self._clock()
        for entity_id, newest in zip(ids, outdated_as_of(changed_at).tolist(), strict=True):
            old = self._overlay_entry(entity_id)
            header = unpack_overlay(old)[0] if old else None
            before = header.as_of if header and header.schema == OUTDATED else 0
            self._overlay[entity_id] = (now + keep_s, pack_outdated(now, max(before, newest)))

    def _upsert(self, ids: Sequence[str], entries: Sequence[bytes], schema: Fields, keep_s: float) -> None:
        self._schemas[schema_digest(schema)] = schema
        for entity_id, entry in zip(ids, entries, strict=True):
            old = self._overlay_entry(entity_id)
            if old is None or not _is_newer(old, entry):
                kept = since_change(entry) if old is not None and _follows_change(old, entry) else entry
                self._overlay[entity_id] = (self._clock() + keep_s, kept)

    def _fetch(self, ids: Sequence[str]) -> Fetched:
        current = self._pointer.current
        manifest = None if current is None else self.manifest(current)
        rows = {} if current is None else self._rows(current)
        return Fetched(
            manifest,
            self._pointer.active_version,
            [rows.get(entity_id) for entity_id in ids],
            [self._overlay_entry(entity_id) for entity_id in ids],
            self._schemas,
            labels=self._pointer.labels,
            model=self._model,
            ids=ids,
        )

    def _rows(self, number: int) -> dict[str, bytes]:
        generation = self._generations.get(number)
        if generation is None or self._clock() >= generation.manifest.deadline:
            return {}
        return generation.rows

    def _overlay_entry(self, entity_id: str) -> bytes | None:
        expires_at, entry = self._overlay.get(entity_id, (0.0, b""))
        return entry if self._clock() < expires_at else None

    def _set_state(self, number: int | None, state: GenerationState) -> None:
        if number in self._generations:
            self._generations[number].state = state


def _moved_along(labels: Labels, version: int) -> Labels:
    """Return the labels after a version was made the active one by somebody who insists."""
    names = {name: given for name, given in labels.versions.items() if (name, given) != (CANARY, version)}
    if STABLE in names:
        names[STABLE] = version
    return Labels(names, _share(names, labels.canary_share))


def _share(names: dict[str, int], share: float) -> float:
    return share if CANARY in names else 0.0


def _follows_change(old: bytes, new: bytes) -> bool:
    header = unpack_overlay(old)[0]
    return (header.schema == OUTDATED or header.since_change) and unpack_overlay(new)[0].origin is Origin.REALTIME


def _is_newer(old: bytes, new: bytes) -> bool:
    old_header, new_header = unpack_overlay(old)[0], unpack_overlay(new)[0]
    if old_header.schema == OUTDATED:
        if new_header.origin is Origin.REALTIME:
            return old_header.computed_at > new_header.computed_at
        return old_header.as_of > new_header.as_of
    if old_header.model_version != new_header.model_version:
        return False
    return (old_header.as_of, old_header.computed_at) > (new_header.as_of, new_header.computed_at)
