"""The messages of streams: what one looks like, and how it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import orjson

from inference.errors import BadInput, Unavailable, quoted
from inference.features import FeatureUpdate

#: larger messages are dead letters
MAX_MESSAGE_BYTES = 1 << 20
_FIELDS = frozenset({"entity_id", "features", "event_time"})
_VALUES = (dict, list)


class StreamUnavailable(Unavailable):
    """Raised when a stream does not answer, does not exist, or is none."""

    code = "stream-unavailable"


class Message(NamedTuple):
    """A message as it came. `id` distinguishes it from all others of the stream.

    `value`: None if the stream has lost it, or it has another form; `fault` says which. `written_at`: epoch seconds, by
    the clock of the stream or of its writer. `key`: of Kafka.
    """

    id: str
    value: bytes | None
    written_at: float
    key: bytes | None = None
    fault: str = "the message is empty"


@dataclass(frozen=True)
class Lag:
    """How far the listeners are behind, in one part of a stream.

    `part`: of Kafka, the partition. `messages`: those that are not stored yet; None if the stream does not tell.
    `oldest_s`: for how many seconds the oldest of them has waited, 0 for none.
    """

    part: str
    messages: int | None
    oldest_s: float


class Stream(Protocol):
    """One consumer of a stream. One thread uses it. Methods raise StreamUnavailable when the stream cannot be read."""

    def read(self) -> Sequence[Message]:
        """Return the next messages, first those that were read before and not acknowledged; wait a second for some."""

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """Note that the messages of the last read are stored, so that no consumer of the group reads them again."""

    def stay(self) -> None:
        """Remain a member of the group while messages cannot be stored. Reads nothing."""

    def lag(self) -> Sequence[Lag]:
        """Return how far the group is behind, in the parts that this consumer knows of."""

    def close(self) -> None:
        """Leave the group and close the connections."""


def read_update(message: Message) -> FeatureUpdate:
    """Return the update in a message. Without an event time, its values hold since it was written.

    Raises:
        BadInput: it is no such update; names the field.
    """
    value = message.value
    if not value:
        raise BadInput(message.fault)
    if len(value) > MAX_MESSAGE_BYTES:
        raise BadInput(f"the message has {len(value)} bytes: at most {MAX_MESSAGE_BYTES}")
    try:
        read: Any = orjson.loads(value)
    except ValueError as error:
        raise BadInput(f"the message is no JSON: {error}") from error
    if not isinstance(read, dict):
        raise BadInput('the message is no object: write {"entity_id": …, "features": {…}, "event_time": …}')
    if not read.keys() <= _FIELDS:
        unknown, names = min(read.keys() - _FIELDS), "entity_id, features and event_time"
        raise BadInput(f"unknown field {quoted(unknown)}: a message has {names}", field=unknown)
    features, event_time = read.get("features"), read.get("event_time")
    if not isinstance(features, _VALUES):
        raise BadInput("features is missing: give an object of features by name, or a list of them", field="features")
    return FeatureUpdate(
        _entity_id(read, message), features, message.written_at if event_time is None else _seconds(event_time)
    )


def _entity_id(read: dict[str, Any], message: Message) -> str:
    given = read.get("entity_id")
    if given is None and message.key is not None:
        try:
            return message.key.decode()
        except UnicodeDecodeError as error:
            raise BadInput("entity_id is missing, and the message's key is not UTF-8", field="entity_id") from error
    if not isinstance(given, str):
        raise BadInput("entity_id is missing, or no text: give the entity's id", field="entity_id")
    return given


def _seconds(event_time: object) -> float:
    try:
        at = datetime.fromisoformat(event_time) if isinstance(event_time, str) else None
        if at is not None and at.tzinfo is not None:
            return at.timestamp()
    except (ValueError, OverflowError):
        pass
    raise BadInput("event_time is no time with an offset: write it as in 2026-01-31T03:00:00Z", field="event_time")
