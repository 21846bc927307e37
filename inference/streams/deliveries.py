"""Counts deliveries of messages that had no result, to find a message that ends the process.

A listener notes in the cache Redis which messages it has in hand. If the process is killed, the note stays, and whoever
gets the messages again counts on. Redis' own counter of deliveries is not used: Kafka has none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import orjson
from pydantic import FiniteFloat

from inference.errors import StoreUnavailable, Unreadable
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.stored_data import record_from_json
from inference.streams.messages import Message

#: after so many deliveries without a result, a message is tried alone, once
MOST_TOGETHER = 3
#: a note that is older says nothing any more
_KEEP_S = 86400


@dataclass(frozen=True)
class _Note:
    """What a listener had in hand: message → deliveries so far. `at`: epoch seconds."""

    at: FiniteFloat
    deliveries: dict[str, int]


_NOTHING = _Note(0.0, {})


class Turns:
    """Lets the listeners of a process work side by side, or one of them alone."""

    def __init__(self) -> None:
        self._locks: list[threading.Lock] = []

    def join(self) -> threading.Lock:
        """Return the lock of one more listener."""
        self._locks.append(threading.Lock())
        return self._locks[-1]

    @contextmanager
    def taken(self, own: threading.Lock, *, alone: bool) -> Iterator[None]:
        """Work during the block."""
        with ExitStack() as held:
            for lock in self._locks if alone else [own]:
                held.enter_context(lock)
            yield


class Deliveries:
    """The deliveries of one stream to one consumer. Methods raise StoreUnavailable when Redis does not answer.

    `consumer`: its name, which it keeps when it begins again. `turns`: those of its process; None if it is the only
    consumer there.
    """

    def __init__(self, client: Client, keys: Keys, name: str, consumer: str, turns: Turns | None = None) -> None:
        self._client = client
        self._key, self._consumer = keys.stream_in_hand(name), consumer
        self._turns = turns or Turns()
        self._lock = self._turns.join()
        #: message → deliveries without a result, of this consumer's former process; None before the first look
        self._own: dict[str, int] | None = None
        #: those, and what other listeners have or had in hand
        self._known: dict[str, int] = {}

    def look(self) -> None:
        """Read which messages other listeners, and this one before it began again, have or had in hand."""
        notes: dict[bytes, bytes] = self._client.hgetall(self._key)  # type: ignore[assignment]  # redis-py's types
        read = {name.decode(): _read(text) for name, text in notes.items()}
        old = [name for name, note in read.items() if time.time() - note.at > _KEEP_S]
        if old:
            self._client.send([("HDEL", self._key, *old)])
        own = read.pop(self._consumer, _NOTHING).deliveries
        # later notes of its own are about messages that have had their result
        self._own = own if self._own is None else self._own
        self._known = dict(self._own)
        for note in read.values():
            for one, count in note.deliveries.items():
                self._known[one] = max(count, self._known.get(one, 0))

    def of(self, message: Message) -> int:
        """Return how often a message was delivered before, without a result."""
        return self._known.get(message.id, 0)

    def parts(self, messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
        """Yield messages in order: those that must be tried alone each by itself, the others together."""
        part: list[Message] = []
        for message in messages:
            if self._known.get(message.id, 0) < MOST_TOGETHER:
                part.append(message)
                continue
            if part:
                yield part
                part = []
            yield [message]
        if part:
            yield part

    @contextmanager
    def attempt(self, messages: Sequence[Message]) -> Iterator[None]:
        """Note that messages are in hand during the block. It does not count if the block ends with an error."""
        own = self._own = self._own or {}
        known = self._known
        with self._turns.taken(self._lock, alone=self.of(messages[0]) >= MOST_TOGETHER):
            in_hand = {message.id: known.get(message.id, 0) + 1 for message in messages}
            self._note(own | in_hand)
            try:
                yield
            except Exception:
                with suppress(StoreUnavailable):
                    self._note(own)
                raise
        for one in own.keys() & in_hand.keys():
            del own[one]

    def _note(self, deliveries: dict[str, int]) -> None:
        note = orjson.dumps({"at": time.time(), "deliveries": deliveries})
        self._client.exchange([("HSET", self._key, self._consumer, note), ("EXPIRE", self._key, _KEEP_S)])


def _read(text: bytes) -> _Note:
    try:
        return record_from_json(_Note, text, "a listener's note")
    except Unreadable:
        return _NOTHING
