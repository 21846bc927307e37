"""Converts instants: aware UTC datetimes outside, epoch seconds (float) in stores and messages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache

#: returns epoch seconds; tests inject a fake one
Clock = Callable[[], float]

system_clock: Clock = time.time

#: the first and the last second of Python's dates
_YEAR_1, _YEAR_9999 = -62_135_596_800, 253_402_300_799


def to_datetime(epoch_s: float) -> datetime:
    """Return the instant as an aware UTC datetime."""
    return datetime.fromtimestamp(epoch_s, UTC)


def to_iso(epoch_s: float) -> str:
    """Return the instant in UTC to the millisecond, such as `2026-01-31T03:00:00.000Z`, in a year from 1 to 9999."""
    # clamped, so that every instant has a text: Python has no dates outside these years
    milliseconds = math.floor(min(max(epoch_s, _YEAR_1), _YEAR_9999) * 1000)
    return f"{_whole_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


@lru_cache(maxsize=4096)
def _whole_second(epoch_s: int) -> str:
    return to_datetime(epoch_s).isoformat(timespec="seconds")[:19]
