"""The table in Redis, for blocking callers: workers, maintenance, commands. Redis 6.2 and later."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import redis

from inference.errors import Conflict, NotFound
from inference.keys import TableKeys, TableKind
from inference.schema import Block, TensorSpec
from inference.store.bulk import Pace, send_in_bulk, sum_of
from inference.store.codec import codec_for, outdated_as_of, pack_changes, pack_overlay, schema_digest, schema_text
from inference.store.connection import TableConnection
from inference.store.labels import CANARY
from inference.store.layout import bucket_count, stored_id
from inference.store.plans import (
    ReaderMemory,
    parse_pointer,
    plan_pointer,
    plan_read,
    plan_read_block,
    plan_read_for_change,
    plan_read_generation,
    together,
)
from inference.store.records import ChangeableRows, Entry, GenerationState, Manifest, Origin, Pointer, StoredRows
from inference.store.table import SWEEP_AFTER_S
from inference.store.wire import Commands, encode_lengths, encode_window
from inference.stored_data import reading

_KIND_NAMES = {TableKind.PREDICTIONS: "predictions", TableKind.FEATURES: "features"}

_HLEN_PER_PIPELINE = 4096
_IDS_PER_UPSERT = 1000
#: of about 100 rows each
_BUCKETS_PER_MOVE = 10
_BUCKETS_OF_SAMPLE = 3
_BYTES_PER_SEND = 256 * 1024


class RedisTable:
    """A `Table` in Redis. `client` must answer in bytes; threads may share it, and this too.

    `pace`: how much of the time `write` may keep Redis busy; None writes flat out.
    """

    def __init__(
        self, client: redis.Redis, keys: TableKeys, *, kind: TableKind, model: str, pace: Pace | None = None
    ) -> None:
        self._client: Any = client
        self._pace = pace or Pace()
        self._keys = keys
        self._kind, self._model = kind, model
        self._parts: dict[str, RedisTable] = {}
        self._name = f"{_KIND_NAMES[kind]} of {model!r}"
        self._redis = TableConnection(client, f"the {self._name}")
        self._memory = ReaderMemory()

    def now(self) -> float:
        """See `Table.now`."""
        return _to_seconds(self._redis.send([("TIME",)])[0])

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
        keys = self._keys
        number, time_reply, _ = self._redis.send(
            [
                ("INCR", keys.sequence),
                ("TIME",),
                ("HSETNX", keys.pointer, "incarnation", uuid.uuid4().hex),
            ]
        )
        created_at = _to_seconds(time_reply)
        manifest = Manifest(
            number=number,
            fields=tuple(fields),
            buckets=bucket_count(rows_expected),
            model_version=model_version,
            contract_hash=contract_hash,
            run_id=run_id,
            created_at=created_at,
            deadline=created_at + keep_s,
            rows_expected=rows_expected,
        )
        record = {
            "state": GenerationState.LOADING.value,
            "manifest": manifest.to_json(),
            "version": model_version,
        }
        pairs = [part for item in record.items() for part in item]
        self._redis.send(
            [
                ("HSET", keys.generation(number), *pairs),
                ("ZADD", keys.generations, created_at, number),
            ],
            atomic=True,
        )
        return manifest

    def write(self, manifest: Manifest, ids: Any, block: Block, as_of: npt.NDArray[np.float64]) -> None:
        """See `Table.write`."""
        manifest.check_format()
        if ids.null_count or len(ids) != len(as_of):
            raise ValueError(f"{len(ids)} ids ({ids.null_count} of them null) for {len(as_of)} rows")
        rows = codec_for(manifest.fields).pack(block, np.minimum(as_of, manifest.created_at))
        prefix = self._keys.bucket_prefix(manifest.number)
        deadline = math.ceil(manifest.deadline)
        window = encode_window(
            ids,
            rows,
            bucket_prefix=prefix,
            buckets=manifest.buckets,
            deadline=deadline,
            piece_bytes=_BYTES_PER_SEND,
        )
        with self._redis.outages():
            send_in_bulk(self._client.connection_pool, window, self._pace)

    def count(self, manifest: Manifest) -> int:
        """See `Table.count`."""
        pieces = (Commands(encode_lengths(keys), len(keys)) for keys in self._bucket_keys(manifest, _HLEN_PER_PIPELINE))
        with self._redis.outages():
            return sum_of(send_in_bulk(self._client.connection_pool, pieces, Pace()))

    def manifest(self, number: int) -> Manifest | None:
        """See `Table.manifest`."""
        text = self._redis.send([("HGET", self._keys.generation(number), "manifest")])[0]
        return None if text is None else Manifest.from_json(text)

    def state(self, number: int) -> GenerationState | None:
        """See `Table.state`."""
        text = self._redis.send([("HGET", self._keys.generation(number), "state")])[0]
        with self._reading():
            return None if text is None else GenerationState(text.decode())

    def generations(self) -> list[Manifest]:
        """See `Table.generations`."""
        texts = self._redis.send([("HGET", self._keys.generation(n), "manifest") for n in self._numbers()])
        return [Manifest.from_json(text) for text in texts if text is not None]

    def publish(self, number: int, *, run_key: str | None = None, run_state: str | None = None) -> Pointer:
        """See `Table.publish`."""
        keys = [self._keys.pointer, self._keys.generation(number), *([run_key] if run_key else [])]
        status = self._redis.script("publish", keys, [number, self._keys.generation_prefix, run_state or ""]).decode()
        if status == "gone":
            raise NotFound(f"generation {number} of the {self._name} does not exist (any more)")
        if status == "run":
            raise Conflict(f"generation {number} of the {self._name}: its run is not {run_state}")
        if status != "ok":
            raise Conflict(f"generation {number} of the {self._name} is {status}: only a loading one is published")
        return self.pointer()

    def move_to_overlay(self, number: int, *, keep_s: float) -> None:
        """See `Table.move_to_overlay`."""
        manifest, state = self.manifest(number), self.state(number)
        if manifest is not None and state is GenerationState.LOADING:
            for keys in self._bucket_keys(manifest, _BUCKETS_PER_MOVE):
                found = self._redis.send([("HGETALL", key) for key in keys])
                rows = {field: row for bucket in found for field, row in bucket.items()}
                entries = pack_overlay(
                    manifest.fields, list(rows.values()), manifest.created_at, manifest.model_version, Origin.BATCH
                )
                self._upsert([self._keys.overlay(field) for field in rows], entries, manifest.fields, keep_s)
        status = self._redis.script("moved", [self._keys.generation(number)], []).decode()
        if status == "gone":
            raise NotFound(f"generation {number} of the {self._name} does not exist (any more)")
        if status != "ok":
            raise Conflict(f"generation {number} of the {self._name} is {status}: only a loading one is moved")

    def some_rows(self) -> Block:
        """Return a few rows of the current generation as they were loaded, by column; empty when there is none."""
        number = self.pointer().current
        manifest = None if number is None else self.manifest(number)
        if manifest is None:
            return {}
        manifest.check_format()
        found = self._redis.send([("HGETALL", key) for key in next(self._bucket_keys(manifest, _BUCKETS_OF_SAMPLE))])
        rows = [row for bucket in found for row in bucket.values()]
        return codec_for(manifest.fields).unpack_block(rows)[0] if rows else {}

    def discard(self, number: int, state: GenerationState) -> None:
        """See `Table.discard`."""
        status = self._redis.script("discard", [self._keys.generation(number)], [state.value]).decode()
        if status != "ok":
            raise Conflict(f"generation {number} of the {self._name} is {status}: roll back instead")

    def rollback(self, expected_current: int) -> Pointer:
        """See `Table.rollback`."""
        arguments = [expected_current, self._keys.generation_prefix]
        status, *pointer = self._redis.script("rollback", [self._keys.pointer], arguments)
        if status == b"moved":
            raise Conflict(f"generation {expected_current} of the {self._name} is not the current one (any more)")
        if status != b"ok":
            raise Conflict(f"the {self._name} have no previous generation to go back to")
        with self._reading():
            return parse_pointer(pointer)

    def collectable(self) -> list[int]:
        """See `Table.collectable`."""
        numbers = self._numbers()
        commands = [("HMGET", self._keys.generation(n), "state", "sweep_due_at") for n in numbers]
        *replies, time_reply = self._redis.send([*commands, ("TIME",)])
        now = _to_seconds(time_reply)
        in_use = {GenerationState.CURRENT, GenerationState.PREVIOUS, GenerationState.LOADING}
        with self._reading():
            return [
                number
                for number, (state, due_at) in zip(numbers, replies, strict=True)
                if state is None or (state.decode() not in in_use and (due_at is None or float(due_at) <= now))
            ]

    def collect(
        self,
        number: int,
        *,
        pause_s: float = 0.01,
        buckets_per_batch: int = 500,
        sweep_after_s: float = SWEEP_AFTER_S,
    ) -> int:
        """See `Table.collect`."""
        status, *record = self._redis.script("begin_collection", [self._keys.generation(number)], [])
        if status == b"gone":
            self._redis.send([("ZREM", self._keys.generations, number)])
            return 0
        if status != b"ok":
            raise Conflict(f"generation {number} of the {self._name} is {status.decode()}: it cannot be collected")
        manifest, due_at = Manifest.from_json(record[0]), record[1]
        now = self.now()
        if due_at is not None and now < float(due_at):
            return 0
        removed = self._unlink_buckets(manifest, buckets_per_batch, pause_s)
        if due_at is None and sweep_after_s > 0:
            self._redis.send([("HSET", self._keys.generation(number), "sweep_due_at", now + sweep_after_s)])
        else:
            self._redis.send(
                [
                    ("UNLINK", self._keys.generation(number)),
                    ("ZREM", self._keys.generations, number),
                ],
                atomic=True,
            )
        return removed

    def pointer(self) -> Pointer:
        """See `Table.pointer`."""
        return self._redis.follow(plan_pointer(self._keys))

    def activate(self, version: int, *, force: bool = False) -> bool:
        """See `Table.activate`."""
        return bool(self._redis.script("activate", [self._keys.pointer], [version, int(force)]))

    def label(self, name: str, version: int | None, *, share: float = 0.0) -> None:
        """See `Table.label`."""
        of_canary = "" if version is None or name != CANARY else repr(share)
        self._redis.script("label", [self._keys.pointer], [name, "" if version is None else version, of_canary])

    def read(self, ids: Sequence[str]) -> list[Entry | None]:
        """See `Table.read`."""
        return self._redis.follow(plan_read(self._keys, self._memory, ids))

    def read_generation(self, ids: Sequence[str], number: int) -> list[Entry | None]:
        """See `Table.read_generation`."""
        return self._redis.follow(plan_read_generation(self._keys, self._memory, ids, number))

    def read_block(self, ids: Sequence[str]) -> StoredRows | None:
        """See `Table.read_block`."""
        return self._redis.follow(plan_read_block(self._keys, self._memory, ids))

    def part(self, name: str) -> RedisTable:
        """See `Table.part`."""
        part = self._parts.get(name)
        if part is None:
            part = RedisTable(self._client, self._keys.part(name), kind=self._kind, model=self._model)
            self._parts[name] = part
        return part

    def read_blocks(self, ids: Sequence[str], parts: Sequence[str]) -> list[StoredRows | None]:
        """See `Table.read_blocks`."""
        tables = [self, *(self.part(name) for name in parts)]
        return self._redis.follow(together([plan_read_block(table._keys, table._memory, ids) for table in tables]))

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
        entries = pack_overlay(schema, rows, computed_at, model_version, origin)
        keys = [self._keys.overlay(stored_id(entity_id)) for entity_id in ids]
        if len(keys) != len(entries):
            raise ValueError(f"{len(keys)} ids for {len(entries)} rows")
        self._upsert(keys, entries, schema, keep_s)

    def read_for_change(self, ids: Sequence[str]) -> ChangeableRows | None:
        """See `Table.read_for_change`."""
        return self._redis.follow(plan_read_for_change(self._keys, self._memory, ids))

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
        entries = pack_changes(schema, block, known_at)
        keys = [self._keys.overlay(stored_id(entity_id)) for entity_id in ids]
        pairs = [part for pair in zip(expected, entries, strict=True) for part in (pair[0] or b"", pair[1])]
        head = [_to_milliseconds(keep_s), schema_digest(schema), schema_text(schema)]
        done: list[int] = []
        for start in range(0, len(keys), _IDS_PER_UPSERT):
            part, its_pairs = keys[start : start + _IDS_PER_UPSERT], pairs[2 * start : 2 * (start + _IDS_PER_UPSERT)]
            done += self._redis.script("replace", [self._keys.schemas, *part], [*head, *its_pairs])
        return [bool(one) for one in done]

    def outdate(self, ids: Sequence[str], *, changed_at: npt.NDArray[np.float64], keep_s: float) -> None:
        """See `Table.outdate`."""
        as_of = outdated_as_of(changed_at).tolist()
        keys = [self._keys.overlay(stored_id(entity_id)) for entity_id in ids]
        for start in range(0, len(keys), _IDS_PER_UPSERT):
            part = slice(start, start + _IDS_PER_UPSERT)
            self._redis.script("outdate", keys[part], [_to_milliseconds(keep_s), *as_of[part]])

    def _upsert(
        self, keys: Sequence[bytes], entries: Sequence[bytes], schema: tuple[TensorSpec, ...], keep_s: float
    ) -> None:
        head = [_to_milliseconds(keep_s), schema_digest(schema), schema_text(schema)]
        for start in range(0, len(keys), _IDS_PER_UPSERT):
            part = slice(start, start + _IDS_PER_UPSERT)
            self._redis.script_again("upsert", [self._keys.schemas, *keys[part]], [*head, *entries[part]])

    def _numbers(self) -> list[int]:
        members = self._redis.send([("ZRANGE", self._keys.generations, 0, -1)])[0]
        with self._reading():
            return [int(number) for number in members]

    def _reading(self) -> AbstractContextManager[None]:
        return reading(f"what stands under {self._keys.base}")

    def _bucket_keys(self, manifest: Manifest, per_batch: int) -> Iterator[list[str]]:
        prefix = self._keys.bucket_prefix(manifest.number)
        for start in range(0, manifest.buckets, per_batch):
            yield [f"{prefix}{bucket}" for bucket in range(start, min(start + per_batch, manifest.buckets))]

    def _unlink_buckets(self, manifest: Manifest, per_batch: int, pause_s: float) -> int:
        removed = 0
        for index, keys in enumerate(self._bucket_keys(manifest, per_batch)):
            if index:
                time.sleep(pause_s)
            removed += self._redis.send([("UNLINK", *keys)])[0]
        return removed


def _to_seconds(time_reply: Sequence[Any]) -> float:
    seconds, microseconds = time_reply
    return int(seconds) + int(microseconds) / 1e6


def _to_milliseconds(seconds: float) -> int:
    return max(1, math.ceil(seconds * 1000))
