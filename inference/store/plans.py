"""What to ask Redis for a look-up, as generators that do no input or output themselves.

A plan yields lists of commands, each to be sent as one pipeline, is sent their replies, and returns the
outcome. `RedisTable` and `AsyncTableReader` drive the same plans, one blocking and one on an event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, Concatenate, ParamSpec, TypeVar

from inference.keys import TableKeys
from inference.store.codec import OUTDATED, schema_from_text, unpack_overlay
from inference.store.decoding import Fetched, Fields, decode_block, decode_entries, decode_for_change
from inference.store.labels import labels_from_text
from inference.store.layout import bucket_of, stored_id
from inference.store.records import ChangeableRows, Entry, Manifest, Pointer, StoredRows
from inference.stored_data import UNREADABLE, unreadable

Command = tuple[Any, ...]
P = ParamSpec("P")
T = TypeVar("T")
Plan = Generator[list[Command], list[Any], T]

_MANIFESTS_REMEMBERED = 8
_POINTER_FIELDS = ("current", "previous", "version", "held", "incarnation", "labels", "canary_share")


class ReaderMemory:
    """What a reader keeps between look-ups: the last pointer, manifests, schemas."""

    def __init__(self) -> None:
        self.pointer: Pointer | None = None
        self.manifests: dict[int, Manifest] = {}
        self.schemas: dict[bytes, Fields] = {}

    def renew(self, pointer: Pointer) -> None:
        """Take note of the pointer just read."""
        if self.pointer is None or self.pointer.incarnation != pointer.incarnation:
            # generation numbers start anew in a table that was lost
            self.manifests = {}
        self.pointer = pointer

    def add_manifest(self, manifest: Manifest) -> None:
        """Remember a manifest in place of the oldest."""
        newest = sorted([*self.manifests, manifest.number])[-_MANIFESTS_REMEMBERED:]
        known = self.manifests | {manifest.number: manifest}
        self.manifests = {number: known[number] for number in newest}


def _of_our_data(plan: Callable[Concatenate[TableKeys, P], Plan[T]]) -> Callable[Concatenate[TableKeys, P], Plan[T]]:
    """Have a plan raise Unreadable where what stands in Redis is none of our data."""

    def careful(keys: TableKeys, /, *arguments: P.args, **named: P.kwargs) -> Plan[T]:
        try:
            return (yield from plan(keys, *arguments, **named))
        except UNREADABLE as error:
            raise unreadable(f"what stands under {keys.base}", error) from error

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
    """Read the newest rows together with what tells later whether they are still the newest."""
    return decode_for_change((yield from _fetch_newest(keys, memory, ids)))


@_of_our_data
def plan_read_generation(
    keys: TableKeys, memory: ReaderMemory, ids: Sequence[str], number: int
) -> Plan[list[Entry | None]]:
    """Read each id's entry in one generation."""
    while True:
        assumed = memory.pointer
        manifest = yield from _fetch_manifest(keys, memory, number)
        stored = [stored_id(entity_id) for entity_id in ids]
        commands, places = _bucket_commands(keys, manifest, ids, stored)
        replies = yield [*commands, _pointer_command(keys)]
        memory.renew(pointer := parse_pointer(replies[-1]))
        if assumed is not None and assumed.incarnation == pointer.incarnation:
            if manifest is not None:
                manifest.check_format()
            return decode_entries(Fetched(manifest, None, _in_order(replies, places, len(ids))))


def together(plans: Sequence[Plan[T]]) -> Plan[list[T]]:
    """Carry several plans out in step, so that what they ask for next makes one pipeline."""
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


def _fetch_newest(keys: TableKeys, memory: ReaderMemory, ids: Sequence[str]) -> Plan[Fetched]:
    """Fetch rows of the current generation and overlay entries in one pipeline; anew if the pointer moved."""
    stored, prefix = [stored_id(entity_id) for entity_id in ids], keys.overlay(b"")
    overlay_command = ("MGET", *[prefix + field for field in stored])
    while True:
        assumed = memory.pointer or (yield from plan_pointer(keys))
        number = assumed.current
        manifest = None if number is None else (yield from _fetch_manifest(keys, memory, number))
        commands, places = _bucket_commands(keys, manifest, ids, stored)
        # the pointer is read last: unchanged then, it was so while the rows were read
        replies = yield [*commands, *([overlay_command] if ids else []), _pointer_command(keys)]
        memory.renew(pointer := parse_pointer(replies[-1]))
        if (pointer.current, pointer.incarnation) == (assumed.current, assumed.incarnation):
            break
    if manifest is not None:  # not before: the pointer may long have left a generation that cannot be read
        manifest.check_format()
    overlay = replies[-2] if ids else []
    yield from _fetch_schemas(keys, memory, overlay)
    rows = _in_order(replies, places, len(ids))
    return Fetched(
        manifest,
        pointer.active_version,
        rows,
        overlay,
        memory.schemas,
        labels=pointer.labels,
        model=keys.model,
        ids=ids,
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
    digests = {unpack_overlay(entry)[0].schema for entry in overlay if entry is not None}
    unknown = list(digests - memory.schemas.keys() - {OUTDATED})
    if unknown:
        replies = yield [("HMGET", keys.schemas, *unknown)]
        found = {d: schema_from_text(text) for d, text in zip(unknown, replies[0], strict=True) if text is not None}
        memory.schemas = memory.schemas | found


def _bucket_commands(
    keys: TableKeys, manifest: Manifest | None, ids: Sequence[str], stored: Sequence[bytes]
) -> tuple[list[Command], list[list[int]]]:
    """Return one HMGET per bucket, and which ids (by index) each one answers."""
    if manifest is None:
        return [], []
    groups: dict[int, list[int]] = {}
    buckets = manifest.buckets
    for index, entity_id in enumerate(ids):
        groups.setdefault(bucket_of(entity_id, buckets), []).append(index)
    prefix = keys.bucket_prefix(manifest.number)
    commands = [("HMGET", f"{prefix}{b}", *[stored[i] for i in group]) for b, group in groups.items()]
    return commands, list(groups.values())


def _in_order(replies: Sequence[Any], places: Sequence[Sequence[int]], count: int) -> list[bytes | None]:
    rows: list[bytes | None] = [None] * count
    for indexes, reply in zip(places, replies, strict=False):  # the replies go on with the overlay and the pointer
        for index, row in zip(indexes, reply, strict=True):
            rows[index] = row
    return rows


def _pointer_command(keys: TableKeys) -> Command:
    return ("HMGET", keys.pointer, *_POINTER_FIELDS)


def _number(text: bytes | None) -> int | None:
    return int(text) if text else None
