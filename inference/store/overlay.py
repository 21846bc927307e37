"""The overlay of a table: single entries that are newer than the generation, each with its own expiry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.redis.clients import Client
from inference.redis.keys import TableKeys
from inference.schema import Block, TensorSpec
from inference.store.codec import (
    codec_for,
    outdated_as_of,
    pack_changes,
    pack_overlay,
    schema_digest,
    schema_text,
    stored_id,
)
from inference.store.forgotten import ForgottenList
from inference.store.records import Origin

_IDS_PER_SCRIPT = 1000


class Overlay:
    """Writes the overlay entries of a table. Every method raises StoreUnavailable when Redis does not answer.

    After each write it looks whether an entity was `forgotten` meanwhile, and removes the entry then. Forgetting does
    the same two steps in the other order, so one of both removes the entry.
    """

    def __init__(self, client: Client, keys: TableKeys, forgotten: ForgottenList) -> None:
        self._client = client
        self._keys = keys
        self._forgotten = forgotten

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
        """Store entries, each for `keep_s` seconds; may run twice.

        Never overwrites an entry of the same model version with a newer (`as_of`, `computed_at`).
        `model_version` is 0 for features.
        """
        schema = tuple(fields)
        rows = codec_for(schema).pack(block, np.minimum(as_of, computed_at)).to_pylist()
        entries = pack_overlay(schema, rows, computed_at, model_version, origin)
        if len(ids) != len(entries):
            raise ValueError(f"{len(ids)} ids for {len(entries)} rows")
        self.put([stored_id(entity_id) for entity_id in ids], entries, schema, keep_s)

    def put(
        self, stored_ids: Sequence[bytes], entries: Sequence[bytes], schema: tuple[TensorSpec, ...], keep_s: float
    ) -> None:
        """Store packed entries as `upsert` does."""
        keys = self._entry_keys(stored_ids)
        head = [_to_milliseconds(keep_s), schema_digest(schema), schema_text(schema)]
        if self._client.is_spread:
            self._run_by_slot("upsert", keys, head, [(entry,) for entry in entries])
        else:
            for start in range(0, len(keys), _IDS_PER_SCRIPT):
                part = slice(start, start + _IDS_PER_SCRIPT)
                self._client.run_repeatable_script("upsert", [self._keys.schemas, *keys[part]], [*head, *entries[part]])
        self._remove_forgotten(stored_ids)

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
        """Store rows of features, each only if its overlay entry is still the `expected` one; return which were stored.

        `known_at`: the rows' event times; rounded down to seconds, they are `as_of`.
        """
        schema = tuple(fields)
        entries = pack_changes(schema, block, known_at)
        stored = [stored_id(entity_id) for entity_id in ids]
        keys = self._entry_keys(stored)
        done = self._replace(keys, entries, expected, schema, keep_s)
        self._remove_forgotten(stored)
        return done

    def _replace(
        self,
        keys: Sequence[bytes],
        entries: Sequence[bytes],
        expected: Sequence[bytes | None],
        schema: tuple[TensorSpec, ...],
        keep_s: float,
    ) -> list[bool]:
        pairs = [part for pair in zip(expected, entries, strict=True) for part in (pair[0] or b"", pair[1])]
        head = [_to_milliseconds(keep_s), schema_digest(schema), schema_text(schema)]
        if self._client.is_spread:
            each = [(before or b"", entry) for before, entry in zip(expected, entries, strict=True)]
            return [bool(stored) for stored in self._run_by_slot("replace", keys, head, each)]
        done: list[int] = []
        for start in range(0, len(keys), _IDS_PER_SCRIPT):
            part, its_pairs = keys[start : start + _IDS_PER_SCRIPT], pairs[2 * start : 2 * (start + _IDS_PER_SCRIPT)]
            # if it runs twice, the second time tells of a change by somebody else, and the caller looks again
            done += self._client.run_repeatable_script("replace", [self._keys.schemas, *part], [*head, *its_pairs])
        return [bool(stored) for stored in done]

    def outdate(self, ids: Sequence[str], *, changed_at: npt.NDArray[np.float64], keep_s: float) -> None:
        """Note in a table of predictions that features of the ids, with event times `changed_at`, have just changed.

        Removes earlier answers computed on demand, even if a worker stores them late. An answer of a run becomes
        `outdated` if it may be older than the change: `as_of` is in whole seconds, so a row of the same second counts
        as older. The next answer computed on demand replaces the note, or it expires after `keep_s` seconds.
        """
        as_of = outdated_as_of(changed_at).tolist()
        stored = [stored_id(entity_id) for entity_id in ids]
        keys = self._entry_keys(stored)
        if self._client.is_spread:
            self._run_by_slot("outdate", keys, [_to_milliseconds(keep_s)], [(second,) for second in as_of])
        else:
            for start in range(0, len(keys), _IDS_PER_SCRIPT):
                part = slice(start, start + _IDS_PER_SCRIPT)
                self._client.run_repeatable_script("outdate", keys[part], [_to_milliseconds(keep_s), *as_of[part]])
        self._remove_forgotten(stored)

    def remove(self, stored_ids: Sequence[bytes]) -> int:
        """Remove the entries of ids, by their stored forms; return the number of those that there were."""
        return sum(self._client.send([("UNLINK", self._keys.overlay(stored)) for stored in stored_ids]))

    def _entry_keys(self, stored: Sequence[bytes]) -> list[bytes]:
        prefix = self._keys.overlay(b"")
        return [prefix + one for one in stored]

    def _remove_forgotten(self, stored: Sequence[bytes]) -> None:
        found = self._forgotten.find(stored)
        if found.any():
            self.remove([stored[at] for at in np.flatnonzero(found).tolist()])

    def _run_by_slot(
        self, name: str, keys: Sequence[bytes], head: Sequence[Any], each: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        """Run a script over a cluster, once for each slot, and return its answer for each key.

        `each`: the arguments of each key. The schema in `head`, which lies in another slot, is stored first: a reader
        leaves out an entry whose schema it does not find.
        """
        if len(head) > 1:
            ms, digest, schema = head
            self._client.exchange([("HSETNX", self._keys.schemas, digest, schema)])
            head = [ms, digest, ""]
        answers: list[Any] = [None] * len(keys)
        for start in range(0, len(keys), _IDS_PER_SCRIPT):
            part = slice(start, start + _IDS_PER_SCRIPT)
            slots = [[start + place for place in places] for places in self._client.slots_of(keys[part])]
            calls = []
            for places in slots:
                its = [keys[place] for place in places]
                # the first key also stands where the schemas' would
                its_keys = its[:1] + its if len(head) > 1 else its
                calls.append((its_keys, [*head, *(value for place in places for value in each[place])]))
            for places, answer in zip(slots, self._client.run_scripts(name, calls), strict=True):
                for place, one in zip(places, answer or [None] * len(places), strict=True):
                    answers[place] = one
        return answers


def _to_milliseconds(seconds: float) -> int:
    return max(1, math.ceil(seconds * 1000))
