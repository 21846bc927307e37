"""Keeps the progress of streams in the cache Redis: counts of messages, dead letters, and the listeners' lag."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import FiniteFloat

from inference.errors import EntityForgotten, ForecacheError, Unreadable, cut
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.stored_data import record_from_json
from inference.streams.messages import Lag, Message

MOST_DEAD = 10_000
_KEEP_DEAD_MS = 7 * 86_400_000
#: characters of a message that its dead letter keeps
_MOST_TEXT = 4096
#: a report that is older says nothing: its listener is gone
_STALE_LAG_S = 30.0
_KEEP_LAG_S = 3600
OUTCOMES = ("applied", "older", "dead")


@dataclass(frozen=True)
class DeadLetter:
    """A message that cannot be applied, and why.

    `id`: in its stream. `message`: its first characters; None if it is about a forgotten entity, or was lost.
    """

    id: str
    reason: str
    code: str
    field: str | None
    message: str | None

    @classmethod
    def of(cls, message: Message, error: ForecacheError) -> DeadLetter:
        """Return the letter of a message. It holds nothing of a forgotten entity."""
        told = error.to_json()
        text = None
        if message.value is not None and not isinstance(error, EntityForgotten):
            text = cut(message.value[: 4 * _MOST_TEXT].decode(errors="backslashreplace"), _MOST_TEXT)
        return cls(message.id, str(told["message"]), str(told["code"]), told["field"], text)

    def names(self, entity_id: str) -> bool:
        """Tell whether the letter may be about an entity."""
        text = f"{self.reason} {self.message}"
        # JSON may escape any letter of an id
        return entity_id in text or "\\u" in text


@dataclass(frozen=True)
class _LagSeen:
    messages: int | None
    oldest_s: FiniteFloat
    at: FiniteFloat


class StreamProgress:
    """The progress of one stream. Every method raises StoreUnavailable when Redis does not answer."""

    def __init__(self, client: Client, keys: Keys, name: str) -> None:
        self._client: Any = client  # redis-py types every answer as any possible one
        self._counts, self._lag = keys.stream(name), keys.stream_lag(name)
        self._dead, self._dead_ids = keys.dead_letters(name), keys.dead_letter_ids(name)

    def note(self, *, applied: int = 0, older: int = 0, letters: Sequence[DeadLetter] = ()) -> None:
        """Count the messages of a batch, and keep its dead letters, each once even if its message comes again."""
        if letters:
            pairs = [part for letter in letters for part in (letter.id, json.dumps(asdict(letter)))]
            touched = [self._dead, self._dead_ids, self._counts]
            self._client.run_script("note_dead", touched, [MOST_DEAD, _KEEP_DEAD_MS, *pairs])
        counts = [("HINCRBY", self._counts, name, n) for name, n in (("applied", applied), ("older", older)) if n]
        if counts:
            self._client.send(counts)

    def counts(self) -> Mapping[str, int]:
        """Return the number of messages by `OUTCOMES`."""
        return dict(zip(OUTCOMES, (int(one or 0) for one in self._client.hmget(self._counts, OUTCOMES)), strict=True))

    def note_lag(self, lags: Sequence[Lag]) -> None:
        """Note how far the listeners are behind."""
        if lags:
            now = self._client.now()
            seen = {lag.part: json.dumps(asdict(_LagSeen(lag.messages, lag.oldest_s, now))) for lag in lags}
            self._client.send([("HSET", self._lag, *_flat(seen)), ("EXPIRE", self._lag, _KEEP_LAG_S)])

    def lag(self) -> Lag | None:
        """Return how far the listeners are behind in all parts together; None if none has told lately."""
        now = self._client.now()
        seen = [record_from_json(_LagSeen, text, "a stream's lag") for text in self._client.hvals(self._lag)]
        known = [one for one in seen if now - one.at < _STALE_LAG_S]
        if not known:
            return None
        messages = [one.messages for one in known if one.messages is not None]
        return Lag("", sum(messages) if messages else None, max(one.oldest_s for one in known))

    def dead_letters(self, most: int = MOST_DEAD) -> list[DeadLetter]:
        """Return the newest dead letters, newest first. Leaves out what is none."""
        return [letter for _, letter in self._letters(most)] if most else []

    def forget(self, entity_id: str) -> int:
        """Remove the dead letters that may be about an entity; return their number."""
        gone = [entry for entry, letter in self._letters(MOST_DEAD) if letter.names(entity_id)]
        return sum(self._client.send([("XDEL", self._dead, entry) for entry in gone]))

    def _letters(self, most: int) -> Iterator[tuple[bytes, DeadLetter]]:
        for entry, fields in self._client.xrevrange(self._dead, count=most):
            try:
                yield entry, record_from_json(DeadLetter, fields.get(b"letter", b""), "a dead letter")
            except Unreadable:
                continue


def _flat(values: Mapping[str, str]) -> list[str]:
    return [part for pair in values.items() for part in pair]
