"""The list of forgotten entities of a model: it must not know them, whatever its tables and sources hold.

The list has no ids. It has keyed 64-bit digests of their stored forms, made with a random key that lies beside them, so
that a copy of the digests alone names nobody.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt
from pydantic import FiniteFloat

from inference.errors import EntityForgotten
from inference.monitoring.id_hashes import KEY_BYTES, id_hash, id_hashes
from inference.redis.clients import Client
from inference.store.codec import stored_id, stored_ids
from inference.stored_data import reading, record_from_json

#: the fields that are no entries
_KEY, _ADDITIONS = "key", "additions"
#: so many ids are hashed one by one, faster than by column
_FEW = 32
#: an entry that has ended is kept this long: a run that began before its end still expects rows that it lost
_KEEP_ENDED_S = 7 * 86400.0


@dataclass(frozen=True)
class ForgottenEntity:
    """An entry of the list; instants in epoch seconds of Redis' clock.

    `until`: when it ends; None: when somebody lifts it. `done_at`: when all was removed that could be found; None: not
    yet, so it should be forgotten again.
    """

    digest: str
    at: FiniteFloat
    until: FiniteFloat | None = None
    done_at: FiniteFloat | None = None

    def holds(self, now: float) -> bool:
        """Return whether the entity is forgotten at an instant."""
        return self.until is None or now < self.until


class ForgottenIds:
    """The list as it was at one moment. `now`: that moment."""

    def __init__(self, key: bytes, entries: Sequence[ForgottenEntity], now: float) -> None:
        self._key = key
        self.entries = entries
        self.now = now

    @cached_property
    def _hashes(self) -> npt.NDArray[np.uint64]:
        held = [int(entry.digest, 16) for entry in self.entries if entry.holds(self.now)]
        return np.unique(np.array(held, np.uint64))

    def __bool__(self) -> bool:
        return len(self._hashes) > 0

    def mask(self, ids: object) -> npt.NDArray[np.bool_]:
        """Return which ids of an Arrow array are forgotten: text, or stored forms as `large_binary`; no nulls."""
        count = len(ids)  # type: ignore[arg-type]  # pyarrow has no types
        if not self or not count:
            return np.zeros(count, np.bool_)
        return self._has(ids)

    def _has(self, ids: object) -> npt.NDArray[np.bool_]:
        hashes = id_hashes(stored_ids(ids), self._key)
        places = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        mask: npt.NDArray[np.bool_] = self._hashes[places] == hashes
        return mask

    def added_since(self, instant: float) -> int:
        """Return how many entities were put on the list since an instant, also those that were lifted after that."""
        return sum(entry.at >= instant for entry in self.entries)


#: an empty list
NOBODY = ForgottenIds(b"", (), 0.0)


class ForgottenList:
    """The forgotten entities of one model. Every method raises StoreUnavailable when Redis does not answer.

    `key`: of the list in Redis. Threads may share it.
    """

    def __init__(self, client: Client, key: str, *, model: str) -> None:
        self._client = client
        self._name = key
        self._model = model
        self._secret: bytes | None = None

    def add(self, entity_id: str, *, until: float | None = None) -> ForgottenEntity:
        """Put an entity on the list, or set another end of its entry, and return the entry."""
        self._client.send([("HSETNX", self._name, _KEY, secrets.token_bytes(KEY_BYTES))])
        digest, now = self._digest(entity_id), self._client.now()
        before = self.entry(entity_id)
        # rows that a run wrote before this moment may be there again, so it counts as new
        entry = ForgottenEntity(digest, now, until)
        if before is not None and before.holds(now):
            entry = ForgottenEntity(digest, before.at, until)
        self._client.send([("HSET", self._name, digest, _text_of(entry)), ("HINCRBY", self._name, _ADDITIONS, 1)])
        self._remove_ended(now)
        return entry

    def lift(self, entity_id: str) -> bool:
        """End an entity's entry; return whether there was one."""
        entry, now = self.entry(entity_id), self._client.now()
        if entry is None or not entry.holds(now):
            return False
        ended = ForgottenEntity(entry.digest, entry.at, now, entry.done_at)
        self._client.send([("HSET", self._name, entry.digest, _text_of(ended))])
        return True

    def note_done(self, entry: ForgottenEntity) -> None:
        """Note that all was removed that could be found of an entity, unless its entry has changed since."""
        done = ForgottenEntity(entry.digest, entry.at, entry.until, self._client.now())
        before, after = _text_of(entry), _text_of(done)
        self._client.run_script("swap_field", [self._name], [entry.digest, before, after])

    def entry(self, entity_id: str) -> ForgottenEntity | None:
        """Return an entity's entry, ended or not; None if there is none."""
        if self._read_secret() is None:
            return None
        digest = self._digest(entity_id)
        [text] = self._client.send([("HGET", self._name, digest)])
        return None if text is None else _entry_of(digest, text)

    def all(self) -> ForgottenIds:
        """Return the list as it is now."""
        pairs = cast("dict[bytes, bytes]", self._client.hgetall(self._name))
        secret, _ = pairs.pop(_KEY.encode(), None), pairs.pop(_ADDITIONS.encode(), None)
        if secret is None:
            return NOBODY
        with reading(f"the list of forgotten entities under {self._name}"):
            entries = [_entry_of(digest.decode(), text) for digest, text in pairs.items()]
        return ForgottenIds(secret, sorted(entries, key=lambda entry: entry.at), self._client.now())

    def additions(self) -> int:
        """Return how often an entity was put on the list: who keeps rows of their own looks whether it grows."""
        [count] = self._client.exchange([("HGET", self._name, _ADDITIONS)])
        return int(count or 0)

    def find(self, stored: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Return which of some ids, by their stored forms, are forgotten. Without a list this is one small question."""
        found = np.zeros(len(stored), np.bool_)
        if not len(stored) or (self._secret is None and self._read_secret() is None):
            return found
        texts: list[bytes | None] = []
        while self._secret is not None:
            secret = self._secret
            digests = _digests(stored, secret)
            [[self._secret, *texts]] = self._client.exchange([("HMGET", self._name, _KEY, *digests)])
            if self._secret == secret:
                break
            texts = []
        listed = {at: _entry_of("", text) for at, text in enumerate(texts) if text is not None}
        now = self._client.now() if any(entry.until is not None for entry in listed.values()) else 0.0
        found[[at for at, entry in listed.items() if entry.holds(now)]] = True
        return found

    def refuse(self, entity_ids: Sequence[str], *, field: str = "entity_id") -> None:
        """Refuse a request about entities if one of them is forgotten. `field`: its name, `{}` for the position.

        Raises:
            EntityForgotten: one is; `field` names it.
        """
        found = np.flatnonzero(self.find([stored_id(one) for one in entity_ids]))
        if len(found):
            at = int(found[0])
            raise self.error(field=field.format(at))

    def error(self, *, field: str = "entity_id") -> EntityForgotten:
        """Return the error of a request about a forgotten entity. It names no id, since results may be kept."""
        return EntityForgotten(
            f"this entity was forgotten on request: model {self._model!r} stores nothing of it and computes nothing "
            "for it until somebody lifts that",
            field=field,
        )

    def _digest(self, entity_id: str) -> str:
        secret = self._read_secret()
        if secret is None:
            raise ValueError("the list has no key yet")
        return _digests([stored_id(entity_id)], secret)[0]

    def _read_secret(self) -> bytes | None:
        [self._secret] = self._client.exchange([("HGET", self._name, _KEY)])
        return self._secret

    def _remove_ended(self, now: float) -> None:
        ended = [one.digest for one in self.all().entries if one.until is not None and one.until + _KEEP_ENDED_S < now]
        if ended:
            self._client.send([("HDEL", self._name, *ended)])


def _digests(stored: Sequence[bytes], secret: bytes) -> list[str]:
    few = len(stored) <= _FEW
    hashes = [id_hash(one, secret) for one in stored] if few else id_hashes(stored, secret).tolist()
    return [f"{one:016x}" for one in hashes]


def _text_of(entry: ForgottenEntity) -> str:
    return json.dumps({"at": entry.at, "until": entry.until, "done_at": entry.done_at})


def _entry_of(digest: str, text: bytes) -> ForgottenEntity:
    what = "an entry of the list of forgotten entities"
    with reading(what):
        return record_from_json(ForgottenEntity, json.dumps({**json.loads(text), "digest": digest}), what)
