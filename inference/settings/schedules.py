"""The grammar of schedules: five cron fields, a word such as `@daily`, or a duration."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from croniter import CroniterError, croniter
from pydantic import BeforeValidator

from inference.errors import shown
from inference.settings.fields import is_duration, parse_duration

_WORDS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
#: the five fields with how many values each has
_FIELDS = {"minute": 60, "hour": 24, "day of the month": 31, "month": 12, "day of the week": 7}
#: one of a field's items: `*`, a value or a range, of numbers or names of three letters, and a step. Croniter itself
#: takes more: random values, which differ from look to look, seconds and years
_ITEM = re.compile(r"(?:\*|(?:\d{1,2}|[a-z]{3})(?:-(?:\d{1,2}|[a-z]{3}))?)(?:/(?P<step>\d{1,2}))?", re.IGNORECASE)
#: shorter ones would be over before they are sent; beyond the longest, instants end
_SHORTEST_S, _LONGEST_S = 1.0, 3660 * 86400.0
#: a leap year, where the search for a first slot begins
_ANY_DAY = datetime(2024, 1, 1, tzinfo=UTC)


def cron_line(schedule: str) -> str | None:
    """Return a schedule's five cron fields, spelled out where it is a word; None for a duration."""
    if is_duration(schedule):
        return None
    return _WORDS.get(schedule.strip().lower(), " ".join(schedule.split()))


def parse_schedule(value: Any) -> str:
    """Return the schedule unchanged.

    Raises:
        ValueError: it is neither a cron line of five fields, nor a known word, nor a duration, or never comes.
    """
    line = cron_line(value) if isinstance(value, str) else ""
    if line is not None:
        _check_line(value, line)
    elif not _SHORTEST_S <= parse_duration(value) <= _LONGEST_S:
        raise ValueError(f"{shown(value)} is no interval between runs: write one from 1s to 3660d")
    return str(value)


def _check_line(schedule: Any, line: str) -> None:
    fields = line.split()
    if len(fields) != len(_FIELDS):
        raise ValueError(
            f"{shown(schedule)} is no schedule: write a cron line of five fields (minute, hour, day of the month, "
            "month, day of the week) such as '0 3 * * *', a word such as '@daily', or a duration such as '30s'"
        )
    for (name, size), field in zip(_FIELDS.items(), fields, strict=True):
        for item in field.split(","):
            _check_item(schedule, name, size, item)
    try:
        croniter(line, _ANY_DAY).get_next(datetime)
    except CroniterError as error:
        raise ValueError(f"{shown(schedule)} is no schedule, or never comes: {error}") from error


def _check_item(schedule: str, name: str, size: int, item: str) -> None:
    found = _ITEM.fullmatch(item)
    if not found:
        raise ValueError(
            f"{shown(schedule)} is no schedule: {shown(item)} is no {name}; write *, numbers, ranges such as 1-5, "
            "lists such as 1,15, steps such as */10, and names such as mon or jan"
        )
    if found["step"] and not 0 < int(found["step"]) < size:
        raise ValueError(
            f"{shown(schedule)} is no schedule: a step of {int(found['step'])} fits into no {name}; a duration such as "
            "'90m' counts on from one run to the next"
        )


Schedule = Annotated[str, BeforeValidator(parse_schedule)]
