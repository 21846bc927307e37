"""Time: instants are aware UTC datetimes outside and float epoch seconds inside stores and messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

#: returns epoch seconds; tests inject a fake one
Clock = Callable[[], float]

system_clock: Clock = time.time


def to_datetime(epoch_s: float) -> datetime:
    """Return the instant as an aware UTC datetime."""
    return datetime.fromtimestamp(epoch_s, UTC)


def to_iso(epoch_s: float) -> str:
    """Return the instant as ISO 8601 in UTC, to the millisecond, such as `2026-01-31T03:00:00.000Z`."""
    return to_datetime(epoch_s).isoformat(timespec="milliseconds").replace("+00:00", "Z")
