"""Reads a table: asks Redis, chooses the newer of two rows, and decodes it.

A plan is a Python generator that does no input or output itself. It yields lists of commands, each for one pipeline,
gets their replies, and returns the outcome. `follow` runs plans for blocking callers, `AsyncTableReader` runs them on
an event loop.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from inference.redis.clients import AsyncClient, Client
from inference.redis.keys import TableKeys
from inference.redis.pipes import Command
from inference.schema import TensorSpec
from inference.store.codec import (
    OUTDATED,
    OverlayHeader,
    bucket_of,
    changes_after,
    codec_for,
    overlay_schema,
    row_as_of,
    schema_digest,
    schema_from_text,
    stored_id,
    unpack_overlay,
)
from inference.store.records import ChangeableRows, Entry, Manifest, Origin, Pointer, StoredRows
from inference.store.versions import Labels, labels_from_text
from inference.stored_data import UNREADABLE, unreadable

P = ParamSpec("P")
T = TypeVar("T")
Plan = Generator[list[Command], list[Any], T]
Fields = tuple[TensorSpec, ...]

_MANIFESTS_REMEMBERED = 8
#: ids for which a second round trip takes less time than the rows that it spares
_MANY = 64
_POINTER_FIELDS = ("current", "previous", "version", "held", "incarnation", "labels", "canary_share")


def follow(plan: Plan[T], client: Client) -> T:
    """Run a plan of read-only commands and return its outcome.

    Raises:
        StoreUnavailable: Redis did not answer in time.
        Unreadable: the stored data is not ours.
    """
    try:
        commands = next(plan)
        while True:
            commands = plan.send(client.exchange(commands))
    except StopIteration as done:
        outcome: T = done.value
        return outcome


class AsyncTableReader:
    """Reads one table on an event loop: one pipeline for each look-up, with any number of ids.

    Every method raises StoreUnavailable when Redis does not answer: an outage is never a miss.
    """

    def __init__(self, client: AsyncClient, keys: TableKeys) -> None:
        self._client = client
        self._keys = keys
        self._memory = ReaderMemory(is_spread=client.is_spread)

    @property
    def has_previous(self) -> bool:
        """Whether there was a previous generation at the last read."""
        pointer = self._memory.pointer
        return pointer is not None and pointer.previous is not None

    async def pointer(self) -> Pointer:
        """Return the generations and versions that are served now."""
        return await self._run(plan_pointer(self._keys))

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        """Return each id's newest entry, as `Table.read` does."""
        return await self._run(plan_read(self._keys, self._memory, ids))

    async def read_generation(self, ids: Sequence[str], number: int) -> list[Entry | None]:
        """Return each id's entry in one generation, such as the previous; None where it has none."""
        return await self._run(plan_read_generation(self._keys, self._memory, ids, number))

    async def _run(self, plan: Plan[T]) -> T:
        try:
            commands = next(plan)
            while True:
                commands = plan.send(await self._client.exchange(commands))
        except StopIteration as done:
            outcome: T = done.value
            return outcome


class ReaderMemory:
    """A reader's memory between look-ups: the last pointer, manifests, schemas. `is_spread`: as a client's."""

    def __init__(self, *, is_spread: bool = False) -> None:
        self.is_spread = is_spread
        self.pointer: Pointer | None = None
        self.manifests: dict[int, Manifest] = {}
        self.schemas: dict[bytes, Fields] = {}

    def renew(self, pointer: Pointer) -> None:
        """Remember the pointer just read."""
        if self.pointer is None or self.pointer.incarnation != pointer.incarnation:
            # a table that was lost starts its generation numbers anew
            self.manifests = {}
        self.pointer = pointer

    def add_manifest(self, manifest: Manifest) -> None:
        """Remember a manifest, and forget the oldest."""
        newest = sorted([*self.manifests, manifest.number])[-_MANIFESTS_REMEMBERED:]
        known = self.manifests | {manifest.number: manifest}
        self.manifests = {number: known[number] for number in newest}


def _of_our_data(plan: Callable[Concatenate[TableKeys, P], Plan[T]]) -> Callable[Concatenate[TableKeys, P], Plan[T]]:
    """Make a plan raise Unreadable if the data in Redis is not ours."""

    def careful(keys: TableKeys, /, *arguments: P.args, **named: P.kwargs) -> Plan[T]:
        try:
            return (yield from plan(keys, *arguments, **named))
        except UNREADABLE as error:
            raise unreadable(f"the data under {keys.base}", error) from error

    return careful


@_of_our_data
def plan_pointer(keys: TableKeys) -> Plan[Pointer]:
    """Read the pointer."""
    replies = yield [_pointer_command(keys)]
    return parse_pointer(replies[0])


@_of_our_data
def plan_read(keys: TableKeys, memory: ReaderMemory, ids: Sequence[str]) -> Plan[list[Entry | None]]:
    """Read each id's newest entry."""
    return decode_entries((yield from _fetch_newest(keys, memory, ids))) if ids else []


@_of_our_data
def plan_read_block(keys: TableKeys, memory: ReaderMemory, ids: Sequence[str]) -> Plan[StoredRows | None]:
    """Read the newest rows as arrays."""
    return decode_block((yield from _fetch_newest(keys, memory, ids)))


@_of_our_data
def plan_read_for_change(keys: TableKeys, memory: ReaderMemory, ids: Sequence[str]) -> Plan[ChangeableRows | None]:
    """Read the newest rows and the overlay entries, which later show whether the rows are still the newest."""
    return decode_for_change((yield from _fetch_newest(keys, memory, ids, overlay_first=len(ids) >= _MANY)))


@_of_our_data
def plan_read_generation(
    keys: TableKeys, memory: ReaderMemory, ids: Sequence[str], number: int
) -> Plan[list[Entry | None]]:
    """Read each id's entry in one generation."""
    while True:
        assumed = memory.pointer
        manifest = yield from _fetch_manifest(keys, memory, number)
        stored = [stored_id(entity_id) for entity_id in ids]
        commands, places = _bucket_commands(keys, manifest, ids, stored, range(len(ids)))
        replies = yield [*commands, _pointer_command(keys)]
        memory.renew(pointer := parse_pointer(replies[-1]))
        if assumed is not None and assumed.incarnation == pointer.incarnation:
            if manifest is not None:
                manifest.check_format()
            return decode_entries(Fetched(manifest, None, _in_order(replies, places, len(ids))))


def together(plans: Sequence[Plan[T]]) -> Plan[list[T]]:
    """Run several plans in step, so that their next commands share one pipeline."""
    outcomes: dict[int, T] = {}
    waiting: dict[int, list[Command]] = {}
    replies: dict[int, list[Any] | None] = dict.fromkeys(range(len(plans)))
    while True:
        for index, reply in replies.items():
            try:
                waiting[index] = next(plans[index]) if reply is None else plans[index].send(reply)
            except StopIteration as done:
                outcomes[index] = done.value
                waiting.pop(index, None)
        if not waiting:
            return [outcomes[index] for index in range(len(plans))]
        left = iter((yield [command for commands in waiting.values() for command in commands]))
        replies = {index: list(islice(left, len(commands))) for index, commands in waiting.items()}


def parse_pointer(reply: Sequence[bytes | None]) -> Pointer:
    """Return the pointer from the reply to its HMGET."""
    return _parsed_pointer(tuple(reply))


@lru_cache(maxsize=256)  # each look-up reads it, and it hardly ever changes
def _parsed_pointer(reply: tuple[bytes | None, ...]) -> Pointer:
    current, previous, version, held, incarnation, labels, canary_share = reply
    return Pointer(
        current=_number(current),
        previous=_number(previous),
        active_version=_number(version),
        held_versions=frozenset(int(part) for part in (held or b"").split(b",") if part),
        labels=labels_from_text(labels, canary_share),
        incarnation=(incarnation or b"").decode(),
    )


def _fetch_newest(
    keys: TableKeys, memory: ReaderMemory, ids: Sequence[str], *, overlay_first: bool = False
) -> Plan[Fetched]:
    """Fetch rows of the current generation and overlay entries in one pipeline; again if the pointer moved.

    `overlay_first`: in two pipelines, without the rows under entries that are newer than the whole generation.
    """
    stored, prefix = [stored_id(entity_id) for entity_id in ids], keys.overlay(b"")
    overlay_command = ("MGET", *[prefix + field for field in stored])
    while True:
        assumed = memory.pointer or (yield from plan_pointer(keys))
        number = assumed.current
        manifest = None if number is None else (yield from _fetch_manifest(keys, memory, number))
        overlay: Sequence[bytes | None] = ()
        changes: dict[int, tuple[float, bytes]] = {}
        if overlay_first and manifest is not None and manifest.rows_as_of is None:
            [overlay] = yield [overlay_command]
            changes = changes_after(overlay, schema_digest(manifest.fields), manifest.created_at)
        asked = [index for index in range(len(ids)) if index not in changes]
        commands, places = _bucket_commands(keys, manifest, ids, stored, asked)
        # the pointer is read last: if it has not changed by then, the rows belong to it
        replies = yield [*commands, *([overlay_command] if ids and not overlay else []), _pointer_command(keys)]
        memory.renew(pointer := parse_pointer(replies[-1]))
        if (pointer.current, pointer.incarnation) != (assumed.current, assumed.incarnation):
            continue
        rows = _in_order(replies, places, len(ids))
        for index, (_, row) in changes.items():
            rows[index] = row
        if not (memory.is_spread and manifest is not None and None in rows):
            break
        # a cluster's nodes answer in any order: a row that was collected after the pointer was read is no miss
        memory.renew(after := (yield from plan_pointer(keys)))
        if (after.current, after.incarnation) == (pointer.current, pointer.incarnation):
            break
    if manifest is not None:  # not earlier: the pointer may have left a generation of an unknown format
        manifest.check_format()
    overlay = overlay or (replies[-2] if ids else [])
    yield from _fetch_schemas(keys, memory, overlay)
    return Fetched(
        manifest,
        pointer.active_version,
        rows,
        overlay,
        memory.schemas,
        labels=pointer.labels,
        model=keys.model,
        ids=ids,
        changed_at={index: changed_at for index, (changed_at, _) in changes.items()},
    )


def _fetch_manifest(keys: TableKeys, memory: ReaderMemory, number: int) -> Plan[Manifest | None]:
    known = memory.manifests.get(number)
    if known is not None:
        return known
    replies = yield [("HGET", keys.generation(number), "manifest"), _pointer_command(keys)]
    memory.renew(parse_pointer(replies[1]))
    if replies[0] is None:
        return None
    manifest = Manifest.from_json(replies[0])
    memory.add_manifest(manifest)
    return manifest


def _fetch_schemas(keys: TableKeys, memory: ReaderMemory, overlay: Sequence[bytes | None]) -> Plan[None]:
    digests = {overlay_schema(entry) for entry in overlay if entry is not None}
    unknown = list(digests - memory.schemas.keys() - {OUTDATED})
    if unknown:
        replies = yield [("HMGET", keys.schemas, *unknown)]
        found = {d: schema_from_text(text) for d, text in zip(unknown, replies[0], strict=True) if text is not None}
        memory.schemas = memory.schemas | found


def _bucket_commands(
    keys: TableKeys, manifest: Manifest | None, ids: Sequence[str], stored: Sequence[bytes], asked: Sequence[int]
) -> tuple[list[Command], list[list[int]]]:
    """Return one HMGET per bucket of the `asked` ids (by index), and which of them each one answers."""
    if manifest is None:
        return [], []
    groups: dict[int, list[int]] = {}
    buckets = manifest.buckets
    for index in asked:
        groups.setdefault(bucket_of(ids[index], buckets), []).append(index)
    form = keys.bucket_form(manifest.number, tagged=manifest.is_tagged)
    commands = [("HMGET", form % b, *[stored[i] for i in group]) for b, group in groups.items()]
    return commands, list(groups.values())


def _in_order(replies: Sequence[Any], places: Sequence[Sequence[int]], count: int) -> list[bytes | None]:
    rows: list[bytes | None] = [None] * count
    for indexes, reply in zip(places, replies, strict=False):  # the overlay and the pointer follow
        for index, row in zip(indexes, reply, strict=True):
            rows[index] = row
    return rows


def _pointer_command(keys: TableKeys) -> Command:
    return ("HMGET", keys.pointer, *_POINTER_FIELDS)


def _number(text: bytes | None) -> int | None:
    return int(text) if text else None


@dataclass(frozen=True)
class Fetched:
    """The raw answer to a look-up, in the order of the ids; None where there is no value.

    `schemas`: digest → fields, of the overlay entries. `manifest` is None if no generation is read. `ids` matter only
    if `labels` names a canary. `changed_at`: the exact event times of the rows that are changes of features, by index;
    these rows have been chosen already.
    """

    manifest: Manifest | None
    active_version: int | None
    rows: Sequence[bytes | None]
    overlay: Sequence[bytes | None] = ()
    schemas: Mapping[bytes, Fields] = field(default_factory=dict)
    labels: Labels = field(default_factory=Labels)
    model: str = ""
    ids: Sequence[str] = ()
    changed_at: Mapping[int, float] = field(default_factory=dict)


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
        origin, same_age = Origin.BATCH, manifest.rows_as_of
        rows = codec_for(manifest.fields).unpack_rows([fetched.rows[i] for i in found])
        for i, (as_of, values) in zip(found, rows, strict=True):
            age = as_of if same_age is None else same_age
            outdated = changed.get(i, 0) > age
            entries[i] = Entry(values, age, begun_at, version, origin, number, retried_at.get(i), outdated)
    for fields, group in _by_fields(winners, fetched.schemas).items():
        rows = codec_for(fields).unpack_rows([winners[i][1] for i in group])
        for i, (as_of, values) in zip(group, rows, strict=True):
            header = winners[i][0]
            entries[i] = Entry(
                values, as_of, header.computed_at, header.model_version, header.origin, None,
                row_as_of=_row_under(header, fetched.rows[i], manifest),
            )  # fmt: skip
    return entries


def decode_block(fetched: Fetched) -> StoredRows | None:
    """Return the newest rows as arrays; None if there is neither a generation nor an overlay entry."""
    winners = dict(_winners(fetched, _overlay_entries(fetched)))
    fields = _block_fields(fetched, winners)
    return None if fields is None else _block_of(fetched, winners, fields)


def _block_of(fetched: Fetched, winners: Mapping[int, tuple[OverlayHeader, bytes]], fields: Fields) -> StoredRows:
    rows = list(fetched.rows)
    is_of_generation = np.array([row is not None for row in rows], np.bool_)
    if winners:
        digest = schema_digest(fields)
        for i, (header, row) in winners.items():
            if header.schema == digest:
                rows[i], is_of_generation[i] = row, False
    block, as_of = codec_for(fields).unpack_block(rows)
    if fetched.manifest is not None and fetched.manifest.rows_as_of is not None:
        as_of[is_of_generation] = fetched.manifest.rows_as_of
    return StoredRows(block, np.array([row is not None for row in rows], np.bool_), as_of)


def decode_for_change(fetched: Fetched) -> ChangeableRows | None:
    """Return the newest rows for a change; None if there is neither a generation nor an overlay entry."""
    winners = dict(_winners(fetched, _overlay_entries(fetched)))
    fields = _block_fields(fetched, winners)
    if fields is None:
        return None
    rows = _block_of(fetched, winners, fields)
    begun_at = fetched.manifest.created_at if fetched.manifest else 0.0
    known_at = np.where(rows.found, begun_at, 0.0)
    for i, (header, _) in winners.items():
        known_at[i] = header.computed_at
        # also of an entry with other fields, which the block leaves out
        rows.as_of[i] = header.as_of
    known_at[list(fetched.changed_at)] = list(fetched.changed_at.values())
    is_loaded = fetched.manifest is not None
    return ChangeableRows(rows, fields, is_loaded, known_at, tuple(fetched.overlay) or (None,) * len(fetched.rows))


def _overlay_entries(fetched: Fetched) -> dict[int, tuple[OverlayHeader, bytes]]:
    """Return the overlay's entries by index, without entries of a version that does not serve the id."""
    chosen = fetched.changed_at
    left = ((i, entry) for i, entry in enumerate(fetched.overlay) if entry is not None and i not in chosen)
    entries = ((i, unpack_overlay(entry)) for i, entry in left)
    return {i: entry for i, entry in entries if _answers(entry[0].model_version, i, fetched)}


def _answers(version: int, index: int, fetched: Fetched) -> bool:
    # features have no versions: they have 0, which always counts
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
        return True  # its other groups of features may be older than the row
    same_age = fetched.manifest.rows_as_of
    as_of = row_as_of(row) if same_age is None else same_age
    return (header.as_of, header.computed_at) >= (as_of, fetched.manifest.created_at)


def _row_under(header: OverlayHeader, row: bytes | None, manifest: Manifest | None) -> float | None:
    """Return the `as_of` of the row that an overlay entry is newer than; None if features changed between the two."""
    if row is None or manifest is None or header.since_change:
        return None
    return row_as_of(row) if manifest.rows_as_of is None else manifest.rows_as_of


def _block_fields(fetched: Fetched, winners: Mapping[int, tuple[OverlayHeader, bytes]]) -> Fields | None:
    if fetched.manifest is not None:
        return fetched.manifest.fields
    headers = (header for header, _ in winners.values())
    newest = max(headers, key=lambda header: header.computed_at, default=None)
    return fetched.schemas[newest.schema] if newest else None


def _by_fields(
    winners: Mapping[int, tuple[OverlayHeader, bytes]], schemas: Mapping[bytes, Fields]
) -> dict[Fields, list[int]]:
    groups: defaultdict[Fields, list[int]] = defaultdict(list)
    for i, (header, _) in winners.items():
        groups[schemas[header.schema]].append(i)
    return groups
