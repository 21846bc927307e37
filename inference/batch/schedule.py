"""When a model's runs are due. A slot is the instant that a schedule names; each gets at most one run."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from croniter import croniter

from inference.clock import to_iso
from inference.settings import parse_duration

#: how early a message may arrive before its slot by this host's clock (clocks differ) and still be of it
_SKEW_S = 10.0


def slot_at(schedule: str, timezone: str, now: float) -> float:
    """Return the latest slot at or before `now`, both in epoch seconds.

    `schedule` is a cron line, read in `timezone`, or a duration such as "30s", counted from the epoch.
    """
    if croniter.is_valid(schedule):
        # croniter gives the slot strictly before its start, and slots lie on whole seconds
        return float(_cron(schedule, timezone, math.floor(now) + 1).get_prev(datetime).timestamp())
    every_s = parse_duration(schedule)
    return math.floor(now / every_s) * every_s


def slot_after(schedule: str, timezone: str, at: float) -> float:
    """Return the first slot later than `at`, both in epoch seconds."""
    if croniter.is_valid(schedule):
        return float(_cron(schedule, timezone, math.floor(at)).get_next(datetime).timestamp())
    every_s = parse_duration(schedule)
    return (math.floor(at / every_s) + 1) * every_s


def current_slot(schedule: str, timezone: str, now: float) -> str:
    """Return the name (ISO 8601) of the slot that a message arriving `now` belongs to.

    A message that this host's clock sees a little before its slot still belongs to it, so that a beat on a
    host whose clock is ahead loses no slot.
    """
    following = slot_after(schedule, timezone, now)
    period = following - slot_at(schedule, timezone, now)
    early_s = min(_SKEW_S, period / 4)
    return to_iso(following if following - now <= early_s else slot_at(schedule, timezone, now))


def _cron(schedule: str, timezone: str, start: float) -> croniter:
    return croniter(schedule, datetime.fromtimestamp(start, UTC).astimezone(ZoneInfo(timezone)))
