"""Consumes a Redis stream as a member of a consumer group.

A message that was read stays pending in Redis until it is acknowledged. A consumer that begins again under its name
first reads its own pending messages; those of a consumer that is gone go to the others after `CLAIM_AFTER_S`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from inference.errors import StoreUnavailable
from inference.logs import get_logger
from inference.redis.clients import Client, cause_of
from inference.streams.messages import MAX_MESSAGE_BYTES, Lag, Message, StreamUnavailable

log = get_logger(__name__)

#: messages of one read; with fewer, each costs more round trips
MOST_MESSAGES = 2000
#: reads grow from a few messages on as long as they stay below this: one read may meet messages of any size
_FIRST_MESSAGES, _MUCH_BYTES = 64, 4 * MAX_MESSAGE_BYTES
#: shorter than the patience of the client
_WAIT_MS = 1000
#: pending messages of a consumer that does nothing for so long go to another one
CLAIM_AFTER_S = 15.0
_LOOK_EVERY_S = 5.0
#: the name of a consumer that was silent for so long is removed, if nothing is pending
_FORGET_CONSUMER_S = 86400.0
_LOST = "the stream has lost this message: it was deleted or trimmed before it was stored"
_OTHER_FORM = "the entry has not one field with a JSON object: XADD STREAM * update '{…}'"


class RedisStream:
    """A consumer of a Redis stream; see `Stream`.

    `place`: the server for messages, without its password. `consumer`: a name that a consumer keeps when it begins
    again; two consumers at the same time have different ones.
    """

    def __init__(self, client: Client, *, stream: str, group: str, start: str, consumer: str, place: str) -> None:
        self._client = client
        self._stream, self._group, self._consumer = stream, group, consumer
        self._start = "0" if start == "earliest" else "$"
        self._place = place
        #: the last own pending message that was read again; None: all were
        self._own: str | None = "0"
        self._had_group = False
        self._looked_at = 0.0
        self._count = _FIRST_MESSAGES

    def read(self) -> Sequence[Message]:
        """See `Stream.read`."""
        now = time.monotonic()
        if self._own is not None:
            found = self._read_own(self._own)
            self._own = found[-1].id if found else None
        elif now - self._looked_at > _LOOK_EVERY_S:
            self._looked_at = now
            self._remove_consumers()
            found = self._claim()
        else:
            found = ()
        found = found or self._read_new()
        size = sum(len(message.value or b"") for message in found)
        if size > _MUCH_BYTES:
            self._count = max(1, self._count // 4)
        elif len(found) == self._count:
            self._count = min(2 * self._count, MOST_MESSAGES)
        return found

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """See `Stream.acknowledge`."""
        self._ask("XACK", self._stream, self._group, *(message.id for message in messages))

    def stay(self) -> None:
        """See `Stream.stay`. Messages stay pending; another consumer may claim them, and store the same."""

    def lag(self) -> Sequence[Lag]:
        """See `Stream.lag`."""
        groups = [_pairs(one) for one in self._ask("XINFO", "GROUPS", self._stream)]
        group = next((one for one in groups if one[b"name"] == self._group.encode()), None)
        if group is None:
            return ()
        pending, first_pending = self._ask("XPENDING", self._stream, self._group)[:2]
        after = b"(" + group[b"last-delivered-id"]
        waiting = [entry[0] for entry in self._ask("XRANGE", self._stream, after, "+", "COUNT", 1)]
        oldest = min((_written_at(one) for one in (*waiting, first_pending) if one), default=None)
        behind = group.get(b"lag")  # Redis 6.2 does not tell
        messages = None if behind is None else behind + pending
        return (Lag("stream", messages, 0.0 if oldest is None else max(0.0, self._client.now() - oldest)),)

    def close(self) -> None:
        """See `Stream.close`."""
        self._client.close()

    def _read_own(self, after: str) -> Sequence[Message]:
        return _of_stream(self._ask(*self._reading(self._count), "STREAMS", self._stream, after))

    def _read_new(self) -> Sequence[Message]:
        return _of_stream(self._ask(*self._reading(self._count), "BLOCK", _WAIT_MS, "STREAMS", self._stream, ">"))

    def _reading(self, count: int) -> tuple[Any, ...]:
        return "XREADGROUP", "GROUP", self._group, self._consumer, "COUNT", count

    def _claim(self) -> Sequence[Message]:
        """Take over messages of consumers that are gone."""
        idle_ms = int(CLAIM_AFTER_S * 1000)
        claim = ("XAUTOCLAIM", self._stream, self._group, self._consumer, idle_ms, "0", "COUNT", self._count)
        _, entries, *deleted = self._ask(*claim)
        if entries:
            log.info("stream.claimed", stream=self._stream, messages=len(entries))
            self._looked_at = 0.0  # there may be more
        if None in entries:  # Redis 6.2 claims deleted messages without naming them
            self._own = "0"
        # Redis 7 takes deleted messages off the list of pending ones by itself, and names them
        return [*map(_message, filter(None, entries)), *(_lost(one) for one in (deleted[0] if deleted else ()))]

    def _remove_consumers(self) -> None:
        for one in map(_pairs, self._ask("XINFO", "CONSUMERS", self._stream, self._group)):
            if one[b"pending"] == 0 and one[b"idle"] > _FORGET_CONSUMER_S * 1000:
                self._ask("XGROUP", "DELCONSUMER", self._stream, self._group, one[b"name"])

    def _ask(self, *command: Any) -> Any:
        """Return the reply to a command; create the group first if there is none.

        Raises:
            StreamUnavailable: there is no stream, or Redis does not answer.
        """
        try:
            try:
                return self._client.exchange([command])[0]
            except StoreUnavailable as error:
                if not str(cause_of(error)).startswith("NOGROUP"):
                    raise
                self._create_group()
                return self._client.exchange([command])[0]
        except StoreUnavailable as error:
            raise self._fault(error) from error

    def _create_group(self) -> None:
        # whoever removed the group took its position along: from the beginning nothing is lost, and event times
        # keep older values from coming back
        start = "0" if self._had_group else self._start
        try:
            self._client.exchange([("XGROUP", "CREATE", self._stream, self._group, start)])
        except StoreUnavailable as error:
            if not str(cause_of(error)).startswith("BUSYGROUP"):  # another consumer was first
                raise
        level = log.warning if self._had_group else log.info
        level("stream.group_created", stream=self._stream, group=self._group, start=start, again=self._had_group)
        self._had_group, self._own = True, "0"

    def _fault(self, error: StoreUnavailable) -> StreamUnavailable:
        cause = str(cause_of(error))
        if "requires the key to exist" in cause or "no such key" in cause:
            why = f"there is no stream {self._stream!r} in Redis at {self._place}: write to it, or correct stream"
        elif cause.startswith("WRONGTYPE"):
            why = f"the key {self._stream!r} in Redis at {self._place} is no stream: correct stream"
        else:
            why = f"stream {self._stream!r} in Redis at {self._place}: {error.message}"
        return StreamUnavailable(why, field="stream")


def _of_stream(reply: Any) -> Sequence[Message]:
    """Return the messages in the reply to XREADGROUP for one stream."""
    if not reply:
        return ()
    [entries] = reply.values() if isinstance(reply, dict) else [reply[0][1]]
    return [_message(entry) for entry in entries]


def _message(entry: Sequence[Any]) -> Message:
    entry_id, fields = entry
    if fields is None:  # Redis remembers that it is pending, and nothing else
        return _lost(entry_id)
    value = fields[1] if len(fields) == 2 else None
    return Message(entry_id.decode(), value, _written_at(entry_id), None, _OTHER_FORM)


def _lost(entry_id: bytes) -> Message:
    return Message(entry_id.decode(), None, _written_at(entry_id), fault=_LOST)


def _written_at(entry_id: bytes) -> float:
    """Return the time in a message's id; messages of one millisecond stay in order."""
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds) / 1000 + min(int(number or 0), 999) / 1e6


def _pairs(reply: Any) -> dict[bytes, Any]:
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
