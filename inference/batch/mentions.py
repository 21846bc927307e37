"""Removes an entity's id from the records of runs in Redis: examples, errors, comparisons, ids of partial runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from inference.batch.records import is_run_id
from inference.batch.selection import pack_entities, unpack_entities
from inference.errors import cut, quoted
from inference.redis.clients import Client
from inference.redis.keys import Keys

#: the word that replaces an id
GONE = "(forgotten)"
#: characters of an example in the result of a chunk
_EXAMPLE = 60
#: fields of a run's record that may name ids: texts, and JSON
_TEXTS = ("error", "last_error", "entities_note", "gates", "bad_rows")

Change = Callable[[str], str]


class Mentions:
    """The ids that the records of runs mention. Methods raise StoreUnavailable when Redis does not answer."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client: Any = client  # redis-py types every answer as every possible one
        self._keys = keys

    def runs_of(self, model: str) -> list[str]:
        """Return all runs of a model that may have records or files, those of lost records too."""
        named = self._client.zrange(self._keys.runs(model), 0, -1)
        named += [entry.partition(b" ")[0] for entry in self._client.zrange(self._keys.quarantines(model), 0, -1)]
        texts = dict.fromkeys(one.decode(errors="replace") for one in named)
        return [run_id for run_id in texts if is_run_id(run_id)]

    def remove(self, run_id: str, entity_id: str) -> int:
        """Remove an id from a run's records; return the number of values that mentioned it. May run twice."""
        change = mention_remover(entity_id)
        record, done = self._keys.run(run_id), self._keys.run_part(run_id, "done")
        values = self._client.hmget(record, _TEXTS)
        changed = sum(self._swap(record, name, text, change) for name, text in zip(_TEXTS, values, strict=True))
        changed += sum(self._swap(done, name, text, change) for name, text in self._client.hgetall(done).items())
        changed += self._change_text(run_id, "diff", lambda text: _without_movers(text, entity_id))
        return changed + self._remove_asked(run_id, entity_id)

    def _swap(self, key: str, name: str | bytes, before: bytes | None, change: Change) -> int:
        after = None if before is None else change(before.decode(errors="replace")).encode()
        if before is None or after == before:
            return 0
        return int(self._client.run_script("swap_field", [key], [name, before, after]))

    def _change_text(self, run_id: str, part: str, change: Change) -> int:
        key = self._keys.run_part(run_id, part)
        before = self._client.get(key)
        after = None if before is None else change(before.decode(errors="replace")).encode()
        if before is None or after == before:
            return 0
        return int(bool(self._client.set(key, after, xx=True, keepttl=True)))

    def _remove_asked(self, run_id: str, entity_id: str) -> int:
        """Remove an id from those of a partial run that is not planned yet; without any other id, it fails."""
        key = self._keys.run_part(run_id, "entities")
        packed = self._client.get(key)
        if packed is None:
            return 0
        ids = unpack_entities(packed)
        left = [one for one in ids if one != entity_id]
        if len(left) == len(ids):
            return 0
        if left:
            return int(bool(self._client.set(key, pack_entities(left), xx=True, keepttl=True)))
        return int(self._client.delete(key))


def mention_remover(entity_id: str) -> Change:
    """Return a function that replaces an id in a text or in JSON, where it is quoted or an example of a list.

    A text may hold the same letters for another reason: an id `7` must not change a count.
    """
    shown = {entity_id, entity_id[:_EXAMPLE], cut(entity_id)}
    quotes = {repr(one) for one in shown} | {quoted(one) for one in shown}

    def changed(value: Any) -> Any:
        if isinstance(value, str):
            for one in quotes:
                value = value.replace(one, repr(GONE))
            return value
        if isinstance(value, list):
            return [GONE if isinstance(one, str) and one in shown else changed(one) for one in value]
        return {name: changed(item) for name, item in value.items()} if isinstance(value, dict) else value

    def change(text: str) -> str:
        try:
            document = json.loads(text)
        except ValueError:
            return str(changed(text))
        after = changed(document)
        return text if after == document else json.dumps(after)

    return change


def _without_movers(text: str, entity_id: str) -> str:
    """Return a comparison without an id; unchanged if it does not name it, or is none of ours."""
    try:
        document = json.loads(text)
        outputs = document["outputs"]
        named = any(mover["id"] == entity_id for output in outputs for mover in output["movers"])
    except (ValueError, TypeError, KeyError):
        return text
    if not named:
        return text
    for output in outputs:
        output["movers"] = [mover for mover in output["movers"] if mover["id"] != entity_id]
    return json.dumps(document)
