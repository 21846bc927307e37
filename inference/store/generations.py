"""The generations of a table: complete sets of rows that runs write. One of them is current."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from inference.errors import Conflict, NotFound
from inference.redis.bulk import BulkCommands, Pace, sum_of
from inference.redis.clients import Client
from inference.redis.keys import TableKeys
from inference.schema import Block, TensorSpec
from inference.store.codec import bucket_count, bucket_of, codec_for, pack_overlay, stored_as_of, stored_id
from inference.store.forgotten import ForgottenIds
from inference.store.overlay import Overlay
from inference.store.reading import follow, parse_pointer, plan_pointer
from inference.store.records import GENERATION_FORMAT, GenerationState, Manifest, Origin, Pointer
from inference.store.scanning import StoredBatch, scan_buckets
from inference.store.wire import encode_ages, encode_copies, encode_lengths, encode_window
from inference.stored_data import reading

#: seconds between the two sweeps of a collection: longer than a late writer holds one window
SWEEP_AFTER_S = 900.0

#: half a millisecond of Redis, as `PIECE_S`
_HLEN_PER_PIPELINE = 1024
_HGET_PER_PIPELINE = 512
_BUCKETS_PER_REMOVAL = 64
#: a copied bucket takes Redis some 5 µs; a changed age takes 3 µs and 30 bytes
_COPIED_PER_PIECE, _BYTES_OF_AGES = 96, 4096
#: buckets at a time, of about 64 rows each
_BUCKETS_PER_MOVE = 10
_BUCKETS_OF_SAMPLE = 3
_BUCKETS_MEASURED = 16


class Generations:
    """Writes, publishes and removes generations. Every method raises StoreUnavailable when Redis does not answer.

    A run fills a generation that nobody reads; publishing it flips one pointer. `name`: the table's name in errors.
    """

    def __init__(self, client: Client, keys: TableKeys, overlay: Overlay, *, name: str, pace: Pace) -> None:
        self._client = client
        self._keys = keys
        self._overlay = overlay
        self._name = name
        self._pace = pace

    def begin(
        self,
        fields: Sequence[TensorSpec],
        *,
        rows_expected: int,
        model_version: int,
        contract_hash: str,
        keep_s: float,
        run_id: str | None = None,
        like: Manifest | None = None,
        rows_as_of: float | None = None,
    ) -> Manifest:
        """Open a new generation for loading. Redis forgets its rows after `keep_s` seconds.

        `like`: a generation whose number of buckets it keeps, if that is about right. `rows_as_of`: of all its rows,
        whatever they hold, in epoch seconds; None if each has its own.
        """
        keys = self._keys
        number, time_reply, _ = self._client.send(
            [
                ("INCR", keys.sequence),
                ("TIME",),
                ("HSETNX", keys.pointer, "incarnation", uuid.uuid4().hex),
            ]
        )
        created_at = to_seconds(time_reply)
        manifest = Manifest(
            number=number,
            fields=tuple(fields),
            buckets=bucket_count(rows_expected, like.buckets if like else None),
            model_version=model_version,
            contract_hash=contract_hash,
            run_id=run_id,
            created_at=created_at,
            deadline=created_at + keep_s,
            rows_expected=rows_expected,
            format=GENERATION_FORMAT,
            rows_as_of=None if rows_as_of is None else int(rows_as_of),
        )
        record = {
            "state": GenerationState.LOADING.value,
            "manifest": manifest.to_json(),
            "version": model_version,
        }
        pairs = [part for item in record.items() for part in item]
        self._client.send(
            [
                ("HSET", keys.generation(number), *pairs),
                ("ZADD", keys.generations, created_at, number),
            ],
            atomic=True,
        )
        # rows on other nodes of a cluster would outlive the number, which a later generation would be given again
        self._client.await_replica(keys.replicated)
        return manifest

    def write(self, manifest: Manifest, ids: Any, block: Block, as_of: npt.NDArray[np.float64]) -> None:
        """Store rows in a generation; may run twice.

        Windows of some 250 000 rows are fastest. `ids`: an Arrow text array without nulls; `as_of` is
        clamped to the generation's `created_at`. If an id repeats, the last row wins.

        Raises:
            UnknownFormat: another release began the generation in an unknown format.
        """
        manifest.check_format()
        if ids.null_count or len(ids) != len(as_of):
            raise ValueError(f"{len(ids)} ids ({ids.null_count} of them null) for {len(as_of)} rows")
        rows = codec_for(manifest.fields).pack(block, np.minimum(as_of, manifest.created_at))
        window = encode_window(
            ids,
            rows,
            bucket_form=self._bucket_form(manifest),
            buckets=manifest.buckets,
            deadline=math.ceil(manifest.deadline),
            piece_bytes=lambda: self._pace.piece_bytes,
            nodes=self._client.nodes_of(manifest.buckets),
        )
        self._client.send_in_bulk(window, self._pace)

    def copy(
        self,
        base: Manifest,
        manifest: Manifest,
        *,
        give_way: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy all rows of generation `base` inside Redis, before anybody writes into the copy; may run twice.

        Both generations have the same number of buckets and the same fields, and keys of one slot of a cluster for each
        bucket. Calls `give_way` before each piece.

        Raises:
            UnknownFormat: another release began a generation in an unknown format.
        """
        manifest.check_format()
        base.check_format()
        forms, deadline = (self._bucket_form(base), self._bucket_form(manifest)), math.ceil(manifest.deadline)

        def pieces() -> Iterator[BulkCommands]:
            for node, part in self._parts(range(base.buckets), _COPIED_PER_PIECE):
                give_way()
                yield BulkCommands(encode_copies(forms, part, deadline=deadline), 2 * len(part), node)

        # the sizes of pieces are its own
        self._client.send_in_bulk(pieces(), replace(self._pace))

    def set_ages(self, manifest: Manifest, ids: Any, as_of: npt.NDArray[np.float64]) -> None:
        """Replace the ages of rows that the generation holds; may run twice. `ids` and `as_of`: as for `write`.

        Raises:
            Conflict: it lacks one of the rows.
        """
        calls = encode_ages(
            ids,
            stored_as_of(np.minimum(as_of, manifest.created_at)),
            script=self._client.load_script("set_ages"),
            bucket_form=self._bucket_form(manifest),
            buckets=manifest.buckets,
            piece_bytes=lambda: _BYTES_OF_AGES,
            nodes=self._client.nodes_of(manifest.buckets),
        )
        lost = len(ids) - sum_of(self._client.send_in_bulk(calls, replace(self._pace)))
        if lost:
            raise Conflict(f"generation {manifest.number} of the {self._name} lacks {lost:,} of the rows carried over")

    def remove(self, manifest: Manifest, buckets: Sequence[int], is_doomed: Callable[[Any], Any]) -> int:
        """Remove rows from some buckets, and return their number; may run twice.

        `is_doomed`: takes the stored ids of rows (Arrow binary), and returns a mask of those to remove.
        """
        form, removed = self._bucket_form(manifest), 0
        for start in range(0, len(buckets), _BUCKETS_PER_REMOVAL):
            keys = [form % bucket for bucket in buckets[start : start + _BUCKETS_PER_REMOVAL]]
            found = self._client.send([("HKEYS", key) for key in keys])
            of_keys = [(key, field) for key, fields in zip(keys, found, strict=True) for field in fields]
            mask = np.asarray(is_doomed(pa.array([field for _, field in of_keys], pa.large_binary())), bool)
            lost = [("HDEL", *of_keys[row]) for row in np.flatnonzero(mask)]
            removed += sum(self._client.send(lost)) if lost else 0
        return removed

    def forget(self, entity_id: str) -> dict[int, bool]:
        """Remove an entity's row from all generations; return whether each one, by its number, had a row of it.

        May run twice. Looks at generations that begin meanwhile too, since they may copy others: once the row is gone
        from all that there were, no later copy has it.

        Raises:
            UnknownFormat: another release began a generation in an unknown format.
        """
        stored, had = stored_id(entity_id), dict[int, bool]()
        while left := [manifest for manifest in self.all() if manifest.number not in had]:
            for manifest in left:
                manifest.check_format()
                key = self._bucket_form(manifest) % bucket_of(entity_id, manifest.buckets)
                had[manifest.number] = bool(self._client.send([("HDEL", key, stored)])[0])
        return had

    def sweep(self, manifest: Manifest, forgotten: ForgottenIds, *, give_way: Callable[[], None]) -> list[bytes]:
        """Remove the rows of forgotten entities from one generation; return their stored ids. May run twice.

        Reads all ids: a second for some millions of them. Calls `give_way` between the parts.
        """
        removed: list[bytes] = []

        def is_doomed(fields: pa.Array) -> npt.NDArray[np.bool_]:
            give_way()
            mask = forgotten.mask(fields)
            removed.extend(fields.filter(pa.array(mask)).to_pylist() if mask.any() else ())
            return mask

        self.remove(manifest, range(manifest.buckets), is_doomed)
        return removed

    def some_of(self, manifest: Manifest, ids: Sequence[str]) -> Block:
        """Return the values of a few rows by column; rows that the generation lacks are left out."""
        form, rows = self._bucket_form(manifest), []
        for start in range(0, len(ids), _HGET_PER_PIPELINE):
            part = ids[start : start + _HGET_PER_PIPELINE]
            rows += self._client.exchange([("HGET", form % bucket_of(i, manifest.buckets), stored_id(i)) for i in part])
        return codec_for(manifest.fields).unpack_block([row for row in rows if row is not None])[0]

    def count(self, manifest: Manifest) -> int:
        """Return how many distinct ids a generation holds, counted in Redis."""
        form = self._bucket_form(manifest)
        pieces = (
            BulkCommands(encode_lengths([form % bucket for bucket in part]), len(part), node)
            for node, part in self._parts(range(manifest.buckets), _HLEN_PER_PIPELINE)
        )
        return sum_of(self._client.send_in_bulk(pieces, replace(self._pace, share=1.0)))

    def manifest(self, number: int) -> Manifest | None:
        """Return a generation's manifest, or None when it is gone."""
        text = self._client.send([("HGET", self._keys.generation(number), "manifest")])[0]
        return None if text is None else Manifest.from_json(text)

    def state(self, number: int) -> GenerationState | None:
        """Return a generation's state, or None when it is gone."""
        text = self._client.send([("HGET", self._keys.generation(number), "state")])[0]
        with self._reading():
            return None if text is None else GenerationState(text.decode())

    def all(self) -> list[Manifest]:
        """Return the manifests of all generations that are not gone, oldest first."""
        texts = self._client.send([("HGET", self._keys.generation(n), "manifest") for n in self._numbers()])
        return [Manifest.from_json(text) for text in texts if text is not None]

    def published(self) -> tuple[Manifest | None, Manifest | None]:
        """Return the manifests of the generation that serves, and of the one that would after a rollback."""
        pointer = follow(plan_pointer(self._keys), self._client)
        current, previous = (None if n is None else self.manifest(n) for n in (pointer.current, pointer.previous))
        return current, previous

    def publish(
        self, number: int, *, run_key: str | None = None, run_state: str | None = None, instead_of: int | None = None
    ) -> Pointer:
        """Make a generation current, and the current one previous, in one step; may run twice.

        With `run_key`, publishes only if that run record's `state` is `run_state`; with `instead_of`, only if that
        generation is current. The former previous generation becomes collectable.

        Raises:
            Conflict: it is neither loading nor current already, the run is in another state, or another generation
                than `instead_of` is current.
            NotFound: it is gone.
        """
        keys = [self._keys.pointer, self._keys.generation(number), run_key or self._keys.pointer]
        status = self._client.run_script(
            "publish",
            [*keys, *self._served()],
            [number, self._keys.generation_prefix, run_state or "", "" if instead_of is None else instead_of],
        ).decode()
        if status == "gone":
            raise NotFound(f"generation {number} of the {self._name} does not exist (any more)")
        if status == "run":
            raise Conflict(f"generation {number} of the {self._name}: its run is not {run_state}")
        if status == "moved":
            raise Conflict(f"generation {instead_of}, whose rows it carries over, serves no more: start a new run")
        if status != "ok":
            raise Conflict(f"generation {number} of the {self._name} is {status}: only a loading one can be published")
        # before rows on other nodes of a cluster, which the pointer named until now, are removed
        self._client.await_replica(self._keys.replicated)
        return follow(plan_pointer(self._keys), self._client)

    def move_to_overlay(self, number: int, *, keep_s: float) -> None:
        """Move a loading generation's rows into the overlay, each for `keep_s` seconds; may run twice.

        Newer overlay entries stay: the rows count as computed when the generation began. Readers see the rows one
        after the other. After the last one, the generation becomes collectable.

        Raises:
            Conflict: it is neither loading nor already moved.
            NotFound: it is gone.
        """
        manifest, state = self.manifest(number), self.state(number)
        if manifest is not None and state is GenerationState.LOADING:
            for keys in self._bucket_keys(manifest, _BUCKETS_PER_MOVE):
                found = self._client.send([("HGETALL", key) for key in keys])
                rows = {field: row for bucket in found for field, row in bucket.items()}
                entries = pack_overlay(
                    manifest.fields, list(rows.values()), manifest.created_at, manifest.model_version, Origin.BATCH
                )
                self._overlay.put(list(rows), entries, manifest.fields, keep_s)
        status = self._client.run_script("moved", [self._keys.generation(number)], []).decode()
        if status == "gone":
            raise NotFound(f"generation {number} of the {self._name} does not exist (any more)")
        if status != "ok":
            raise Conflict(f"generation {number} of the {self._name} is {status}: only a loading one can be moved")

    def some_rows(self) -> Block:
        """Return a few rows of the current generation, without the overlay, by column; empty if there is none."""
        number = follow(plan_pointer(self._keys), self._client).current
        manifest = None if number is None else self.manifest(number)
        if manifest is None:
            return {}
        manifest.check_format()
        found = self._client.send([("HGETALL", key) for key in next(self._bucket_keys(manifest, _BUCKETS_OF_SAMPLE))])
        rows = [row for bucket in found for row in bucket.values()]
        return codec_for(manifest.fields).unpack_block(rows)[0] if rows else {}

    def scan(
        self,
        manifest: Manifest,
        buckets: Iterable[int] | None = None,
        *,
        give_way: Callable[[], None] = lambda: None,
    ) -> Iterator[StoredBatch]:
        """Yield the rows of a generation, or of some of its buckets, in batches of about 130 000.

        Calls `give_way` before each piece of about 4 000 rows.
        """
        manifest.check_format()
        wanted = range(manifest.buckets) if buckets is None else buckets
        size = codec_for(manifest.fields).size
        form = self._bucket_form(manifest)
        for _, part in self._parts(list(wanted), None):
            yield from scan_buckets(self._client, form, part, size, give_way)

    def discard(self, number: int, state: GenerationState) -> None:
        """Mark a generation FAILED or CANCELLED, so that it is never served. Does nothing if it is gone.

        Raises:
            Conflict: it is current or previous.
        """
        status = self._client.run_script("discard", [self._keys.generation(number)], [state.value]).decode()
        if status != "ok":
            raise Conflict(f"generation {number} of the {self._name} is {status}: roll back instead")

    def rollback(self, expected_current: int) -> Pointer:
        """Go back to the previous generation and its model version, in one step.

        Holds the versions left behind: they are neither activated again nor read from the overlay. Moves the label
        `stable`, if there is one, to the previous version.

        Raises:
            Conflict: `expected_current` is not current, or there is no previous generation.
        """
        arguments = [expected_current, self._keys.generation_prefix]
        status, *pointer = self._client.run_script("rollback", [self._keys.pointer, *self._served()], arguments)
        if status == b"moved":
            raise Conflict(f"generation {expected_current} of the {self._name} is not the current one (any more)")
        if status != b"ok":
            raise Conflict(f"the {self._name} have no previous generation to go back to")
        with self._reading():
            return parse_pointer(pointer)

    def collectable(self) -> list[int]:
        """Return the generations that can be removed now: not current, previous or loading."""
        numbers = self._numbers()
        commands = [("HMGET", self._keys.generation(n), "state", "sweep_due_at") for n in numbers]
        *replies, time_reply = self._client.send([*commands, ("TIME",)])
        now = to_seconds(time_reply)
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
        """Remove a generation's rows and return the number of removed keys; may run twice.

        The first call removes the rows for good, and leaves the manifest. A call `sweep_after_s` later removes the
        rows of late writers, and then the manifest; 0 does both at once.
        `pause_s` is the pause between batches of `buckets_per_batch` keys.

        Raises:
            Conflict: it is current, previous or loading.
        """
        status, *record = self._client.run_script("begin_collection", [self._keys.generation(number)], [])
        if status == b"gone":
            self._client.send([("ZREM", self._keys.generations, number)])
            return 0
        if status != b"ok":
            raise Conflict(f"generation {number} of the {self._name} is {status.decode()}: it cannot be collected")
        manifest, due_at = Manifest.from_json(record[0]), record[1]
        now = self._client.now()
        if due_at is not None and now < float(due_at):
            return 0
        removed = self._unlink_buckets(manifest, buckets_per_batch, pause_s)
        if due_at is None and sweep_after_s > 0:
            self._client.send([("HSET", self._keys.generation(number), "sweep_due_at", now + sweep_after_s)])
        else:
            self._client.send(
                [
                    ("UNLINK", self._keys.generation(number)),
                    ("ZREM", self._keys.generations, number),
                ],
                atomic=True,
            )
        return removed

    def row_bytes(self, manifest: Manifest) -> float | None:
        """Return the bytes that a row takes in Redis, averaged over 16 buckets; None if they are empty."""
        step = max(manifest.buckets // _BUCKETS_MEASURED, 1)
        form = self._bucket_form(manifest)
        keys = [form % bucket for bucket in range(0, manifest.buckets, step)]
        sizes = [("MEMORY", "USAGE", key, "SAMPLES", 0) for key in keys]
        answers = self._client.send([*(("HLEN", key) for key in keys), *sizes])
        rows, taken = sum(answers[: len(keys)]), sum(size or 0 for size in answers[len(keys) :])
        return taken / rows if rows else None

    def _served(self) -> list[str]:
        """Return the keys that a script finds by the pointer; a cluster has to know them while it moves their slot."""
        if not self._client.is_spread:
            return []
        pointer = follow(plan_pointer(self._keys), self._client)
        return [self._keys.generation(n) for n in (pointer.current, pointer.previous) if n is not None]

    def _numbers(self) -> list[int]:
        members = self._client.send([("ZRANGE", self._keys.generations, 0, -1)])[0]
        with self._reading():
            return [int(number) for number in members]

    def _reading(self) -> AbstractContextManager[None]:
        return reading(f"the data under {self._keys.base}")

    def _bucket_keys(self, manifest: Manifest, per_batch: int) -> Iterator[list[str]]:
        form = self._bucket_form(manifest)
        for start in range(0, manifest.buckets, per_batch):
            yield [form % bucket for bucket in range(start, min(start + per_batch, manifest.buckets))]

    def _parts(self, buckets: Sequence[int], size: int | None) -> Iterator[tuple[int, Sequence[int]]]:
        """Yield each node with parts of its buckets, of at most `size`; one Redis has all."""
        nodes = self._client.nodes_of(max(buckets, default=0) + 1)
        of_nodes: Iterable[tuple[int, Sequence[int]]] = [(0, buckets)]
        if nodes is not None:
            chosen = np.asarray(buckets, np.int64)
            of_nodes = ((int(node), chosen[nodes[chosen] == node].tolist()) for node in np.unique(nodes[chosen]))
        for node, its in of_nodes:
            step = size or max(len(its), 1)
            for at in range(0, len(its), step):
                yield node, its[at : at + step]

    def _bucket_form(self, manifest: Manifest) -> str:
        return self._keys.bucket_form(manifest.number, tagged=manifest.is_tagged)

    def _unlink_buckets(self, manifest: Manifest, per_batch: int, pause_s: float) -> int:
        removed = 0
        for index, keys in enumerate(self._bucket_keys(manifest, per_batch)):
            if index:
                time.sleep(pause_s)
            removed += self._client.send([("UNLINK", *keys)])[0]
        return removed


def to_seconds(time_reply: Sequence[Any]) -> float:
    """Return epoch seconds from the reply to TIME."""
    seconds, microseconds = time_reply
    return int(seconds) + int(microseconds) / 1e6
