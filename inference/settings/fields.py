"""The parts of all sections of the settings: their base class, durations, sizes and schedules."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from croniter import CroniterError, croniter
from pydantic import BaseModel, BeforeValidator, ConfigDict, SecretStr

from inference.errors import shown
from inference.redaction import remember_secret

_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*$")
#: the longest sensible duration; no thread can wait for over 292 years, and dates end
_LONGEST_D = 100_000
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT])(i?)B\s*$", re.IGNORECASE)
_WORDS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
#: the five fields, and the number of values of each
_FIELDS = {"minute": 60, "hour": 24, "day of the month": 31, "month": 12, "day of the week": 7}
#: an item of a field: `*`, a value or a range, of numbers or names of three letters, and a step. Croniter itself takes
#: more: seconds, years, and random values, which differ each time
_ITEM = re.compile(r"(?:\*|(?:\d{1,2}|[a-z]{3})(?:-(?:\d{1,2}|[a-z]{3}))?)(?:/(?P<step>\d{1,2}))?", re.IGNORECASE)
#: a run needs at least the shortest interval; the longest one stays within the range of dates
_SHORTEST_S, _LONGEST_S = 1.0, 3660 * 86400.0
#: a day of a leap year, where the search for a first slot begins
_ANY_DAY = datetime(2024, 1, 1, tzinfo=UTC)


def parse_duration(value: Any) -> float:
    """Return seconds from text such as `30s`, `15m`, `24h`, `7d`, or from a number of seconds.

    Raises:
        ValueError: the text has another form, or the duration is not positive or over 100000 days.
    """
    match = _DURATION.match(value) if isinstance(value, str) else None
    if match:
        seconds = float(match[1]) * _UNIT_S[match[2]]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) < sys.float_info.max else float("inf")
    else:
        raise ValueError(f"{shown(value)} is not a duration: write a number and a unit, as in 30s, 15m, 24h or 7d")
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{shown(value)} is not a positive duration")
    if seconds > _LONGEST_D * _UNIT_S["d"]:
        raise ValueError(f"{shown(value)} is too long: at most {_LONGEST_D}d")
    return seconds


def is_duration(text: str) -> bool:
    """Tell whether a text has the form of a duration."""
    return bool(_DURATION.match(text))


def parse_list(value: Any) -> Any:
    """Return the list in a text such as `[0, 1]`, as environment variables have it; other values unchanged."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def parse_size(value: Any) -> int:
    """Return bytes from text such as `512 MB` or `8 GiB`, or from a number of bytes.

    Raises:
        ValueError: the text has another form, or the size is not positive.
    """
    match = _SIZE.match(value) if isinstance(value, str) else None
    if match:
        size = int(float(match[1]) * (1024 if match[3] else 1000) ** ("KMGT".index(match[2].upper()) + 1))
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        raise ValueError(f"{shown(value)} is not a size: write a number and a unit, as in 512 MB or 8 GB")
    if size <= 0:
        raise ValueError(f"{shown(value)} is not a positive size")
    return size


Duration = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]


class Section(BaseModel):
    """The base of all sections. Unknown keys are errors; values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def model_post_init(self, _: Any) -> None:
        """Hide the section's secrets in all logs and messages from now on."""
        for value in vars(self).values():
            if isinstance(value, SecretStr):
                remember_secret(value.get_secret_value())


def cron_line(schedule: str) -> str | None:
    """Return the five cron fields of a schedule or a word such as `@daily`; None for a duration."""
    if is_duration(schedule):
        return None
    return _WORDS.get(schedule.strip().lower(), " ".join(schedule.split()))


def parse_schedule(value: Any) -> str:
    """Return the schedule unchanged.

    Raises:
        ValueError: it is no cron line of five fields, known word or duration, or has no slot.
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


_ASKED, _HIT_RATE = "asked within ", "hit rate "
#: a smaller share would leave most requests to real time; who is asked for is kept by the day
_LEAST_HIT_RATE, _SHORTEST_WINDOW_S = 0.5, 86400.0


@dataclass(frozen=True)
class EntitiesRule:
    """Which entities a whole run scores: all, those asked for in a window, or those that most requests ask for.

    `asked_within_s`: the window, in seconds; `hit_rate`: the share of requests that the run shall answer, 0.5 to below
    1. At most one of the two is set, and neither for all entities.
    """

    asked_within_s: float | None = None
    hit_rate: float | None = None

    @property
    def is_all(self) -> bool:
        """Whether a run scores every row."""
        return self.asked_within_s is None and self.hit_rate is None

    @property
    def is_in_range(self) -> bool:
        """Whether the rule's number is legal."""
        if self.asked_within_s is not None:
            return self.asked_within_s >= _SHORTEST_WINDOW_S
        return self.hit_rate is None or _LEAST_HIT_RATE <= self.hit_rate < 1


def entities_rule(text: str) -> EntitiesRule:
    """Return the rule that a text of the settings states.

    Raises:
        ValueError: the text has none of the three forms, or its number is out of range.
    """
    words, rule = " ".join(text.split()), None
    try:
        if words.startswith(_ASKED):
            rule = EntitiesRule(asked_within_s=parse_duration(words.removeprefix(_ASKED)))
        elif words.startswith(_HIT_RATE):
            rule = EntitiesRule(hit_rate=float(words.removeprefix(_HIT_RATE)))
        else:
            rule = EntitiesRule() if words == "all" else None
    except ValueError:
        pass
    if rule is None or not rule.is_in_range:
        raise ValueError(
            f'{shown(text)} names no entities: write "all", "asked within 30d" (1d or more), or "hit rate 0.95" (from '
            f"{_LEAST_HIT_RATE:g} to below 1)"
        )
    return rule


def parse_entities(value: Any) -> str:
    """Return the text of a rule with single spaces; `entities_rule` reads it.

    Raises:
        ValueError: it is none of the three forms.
    """
    text = str(value)
    entities_rule(text)
    return " ".join(text.split())


Entities = Annotated[str, BeforeValidator(parse_entities)]
