"""Describes the task queues: which jobs go first, how many messages wait, and how long the oldest has waited."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

#: header of every task message that we send: epoch seconds of the sender's clock
SENT_AT_HEADER = "forecache_sent_at"
_MAX_ID, _LAST_S = 200, 1e11


class JobPriority(StrEnum):
    """The order in which workers take the parts of jobs. Requests always go first."""

    #: after everything else
    LOW = "low"
    #: before low, after high
    NORMAL = "normal"
    #: right after requests
    HIGH = "high"


@dataclass(frozen=True)
class QueueState:
    """One queue. `oldest_age_s`: None if nothing waits or it is unknown. `queue`: its name without the prefix."""

    queue: str
    depth: int
    oldest_age_s: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class QueueHead:
    """The next message of a queue. `sent_at` is None if its sender did not set it."""

    task_id: str
    sent_at: float | None

    @classmethod
    def of(cls, headers: Mapping[str, Any]) -> QueueHead:
        """Read the headers of a task message."""
        sent_at = headers.get(SENT_AT_HEADER)
        if not isinstance(sent_at, int | float) or not abs(sent_at) < _LAST_S:
            sent_at = None
        # a foreign sender's id may be long
        return cls(str(headers.get("id", ""))[:_MAX_ID], None if sent_at is None else float(sent_at))

    @classmethod
    def of_envelope(cls, envelope: bytes) -> QueueHead:
        """Read a message in the form in which kombu stores it in Redis. An unreadable one has no time."""
        try:
            return cls.of(json.loads(envelope)["headers"])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return cls("", None)


class HeadAges:
    """Tells how long heads have waited. For a head without a time, counts from when it was first seen here."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first_seen: dict[str, tuple[str, float]] = {}

    def age_s(self, place: str, head: QueueHead | None) -> float | None:
        """Return the seconds that a head has waited; None without a head. `place`: its list or queue in the broker."""
        now = self._clock()
        if head is None:
            self._first_seen.pop(place, None)
            return None
        if head.sent_at is not None:
            return max(now - head.sent_at, 0.0)
        task_id, seen_at = self._first_seen.get(place, (None, now))
        if task_id != head.task_id:
            seen_at = now
        self._first_seen[place] = (head.task_id, seen_at)
        return now - seen_at
