"""Tells when a model's runs are due. A slot is the instant that a schedule names; each gets at most one run.

A cron line follows the wall clock. When clocks go back, some of its times come twice: a line with fixed hours takes
the first of the two, a line with `*` or a step in its hours takes both. When clocks go forward, a skipped time is due
as soon as they have gone forward.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from croniter import croniter

from inference.clock import to_iso
from inference.settings import parse_duration
from inference.settings.fields import cron_line

#: a message may arrive this early before its slot by this host's clock, since clocks differ
_SKEW_S = 10.0
#: a beat whose clock is further ahead is not believed
_MOST_AHEAD_S = 3600.0
#: slots of a cron line that are found one by one
_FOUND = 500


def slot_at(schedule: str, timezone: str, now: float) -> float:
    """Return the latest slot at or before `now`; both are epoch seconds.

    `schedule` is a cron line, read in `timezone`, or a duration such as "30s", counted from the epoch.
    """
    line = cron_line(schedule)
    if line is None:
        every_s = parse_duration(schedule)
        return math.floor(now / every_s) * every_s
    # croniter gives the slot strictly before its start, and slots lie on whole seconds
    start = _local(math.floor(now) + 1, timezone)
    if not _has_fixed_hours(line):
        return float(croniter(line, start).get_prev(datetime).timestamp())
    # in an hour that comes twice, later wall times had their turn in the first one
    again = (start.replace(fold=0).utcoffset() or _ZERO) - (start.utcoffset() or _ZERO)
    times = croniter(line, start.replace(tzinfo=None) + again)
    while (slot := _instant(times.get_prev(datetime), timezone)) > now:
        pass
    return slot


def slot_after(schedule: str, timezone: str, at: float) -> float:
    """Return the first slot after `at`; both are epoch seconds."""
    line = cron_line(schedule)
    if line is None:
        every_s = parse_duration(schedule)
        return (math.floor(at / every_s) + 1) * every_s
    start = _local(math.floor(at), timezone)
    if not _has_fixed_hours(line):
        return float(croniter(line, start).get_next(datetime).timestamp())
    times = croniter(line, start.replace(tzinfo=None))
    while (slot := _instant(times.get_next(datetime), timezone)) <= at:
        pass
    return slot


@lru_cache(maxsize=64)
def slots_between(schedule: str, timezone: str, since: float, until: float) -> tuple[float, ...]:
    """Return the slots from the last one at or before `since` to the first one after `until`; all are epoch seconds.

    Finding one of a cron line takes half a millisecond: after so many of them, the distances between them repeat.
    """
    slots = [slot_at(schedule, timezone, since)]
    if cron_line(schedule) is None:
        every_s = parse_duration(schedule)
        return tuple(slots[0] + number * every_s for number in range(int((until - slots[0]) // every_s) + 2))
    while slots[-1] <= until and len(slots) <= _FOUND:
        slots.append(slot_after(schedule, timezone, slots[-1]))
    while slots[-1] <= until:
        slots.append(slots[-_FOUND] + slots[-1] - slots[-1 - _FOUND])
    return tuple(slots)


def current_slot(schedule: str, timezone: str, now: float, sent_at: object = None) -> str:
    """Return the name (ISO 8601) of the slot that a message arriving `now` belongs to.

    `sent_at`: epoch seconds by beat's clock, if known. If that clock is ahead, it decides: otherwise the message would
    belong to the slot before, which has had its run, and the slot that beat means would get none.
    """
    if isinstance(sent_at, float) and now < sent_at < now + _MOST_AHEAD_S:
        now = sent_at
    following = slot_after(schedule, timezone, now)
    period = following - slot_at(schedule, timezone, now)
    early_s = min(_SKEW_S, period / 4)
    return to_iso(following if following - now <= early_s else slot_at(schedule, timezone, now))


_ZERO = timedelta()


def _has_fixed_hours(line: str) -> bool:
    return not {"*", "/"} & set(line.split()[1])


def _local(at: float, timezone: str) -> datetime:
    return datetime.fromtimestamp(at, UTC).astimezone(ZoneInfo(timezone))


def _instant(wall: datetime, timezone: str) -> float:
    """Return when a zone's clocks first show a wall time, in epoch seconds; if they skip it, when they skip it."""
    first, second = (wall.replace(tzinfo=ZoneInfo(timezone), fold=fold).timestamp() for fold in (0, 1))
    if first <= second:
        return first
    # the clocks skip it: they change between the two instants, on a whole second
    low, high = math.floor(second), math.ceil(first)
    before = _local(low, timezone).utcoffset()
    while high - low > 1:
        middle = (low + high) // 2
        if _local(middle, timezone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return float(high)
