"""Feature groups: features with one source and one age."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from inference.errors import ContractError, quoted
from inference.settings import parse_duration

#: the group of features that name none
DEFAULT_GROUP = "features"
#: built-in functions of the time; each fills a group of one feature
CLOCK_FUNCTIONS = ("hour_of_day", "day_of_week", "weekend")

_NAME = re.compile(r"^[A-Za-z0-9_-]{1,64}$")
_DOTTED = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")


class GroupSource(StrEnum):
    """The source of a group's values."""

    #: the feature table, which loads, runs and single updates fill
    TABLE = "table"
    #: a function, which computes them on demand from the entity's other features and the time
    FUNCTION = "function"
    #: the request, its instances or overrides; in a run, the run's table. Never stored
    REQUEST = "request"


class GroupStatus(StrEnum):
    """What is known of one group of one entity."""

    #: values that are young enough
    PRESENT = "present"
    #: no values
    NOT_FOUND = "not found"
    #: values that are older than the group's `max_age`, and so are not used
    OUTSIDE_MAX_AGE = "outside maximum age"


@dataclass(frozen=True)
class FeatureGroup:
    """One group.

    `max_age_s`: older values are not used; None for no limit. `event_time_column`: a column of the source table; None
    for the model's. `function`: one of CLOCK_FUNCTIONS, or `package.module:function`. `timezone`: of its clock; None
    for UTC.
    """

    name: str = DEFAULT_GROUP
    source: GroupSource = GroupSource.TABLE
    max_age_s: float | None = None
    event_time_column: str | None = None
    function: str | None = None
    timezone: str | None = None

    @property
    def runs_code(self) -> bool:
        """Whether its function is the user's code."""
        return self.function is not None and self.function not in CLOCK_FUNCTIONS

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, in the form of `features.json`."""
        optional = {
            "max_age": self.max_age_s,
            "event_time_column": self.event_time_column,
            "function": self.function,
            "timezone": self.timezone,
        }
        return {"source": self.source.value, **{key: value for key, value in optional.items() if value is not None}}

    @classmethod
    def from_json(cls, name: str, data: Any) -> FeatureGroup:
        """Read the JSON values of one group in `features.json`, or of `to_json`.

        Raises:
            ContractError: a key is unknown, of the wrong kind, or does not fit the group's source.
        """
        if not _NAME.match(name):
            raise _wrong(name, "the name must be 1 to 64 of A-Z, a-z, 0-9, _ and -")
        if not isinstance(data, dict):
            raise _wrong(name, 'write an object, as in {"source": "table", "max_age": "24h"}')
        try:
            source = GroupSource(data.get("source", GroupSource.TABLE))
        except ValueError:
            raise _wrong(name, f"source {quoted(str(data['source']))} is not one of {', '.join(GroupSource)}") from None
        known = _KEYS[source]
        for key, value in data.items():
            if key not in known:
                message = f"a group whose source is {source} takes no {quoted(key)}"
                raise _wrong(name, f"{message}; it takes: {', '.join(known)}")
            if key != "max_age" and not (isinstance(value, str) and value):
                raise _wrong(name, f"{key} must be text")
        group = cls(
            name,
            source,
            _max_age(name, data),
            data.get("event_time_column"),
            data.get("function"),
            data.get("timezone"),
        )
        _check_function(group)
        return group


_KEYS = {
    GroupSource.TABLE: ("source", "max_age", "event_time_column"),
    GroupSource.FUNCTION: ("source", "function", "timezone"),
    GroupSource.REQUEST: ("source",),
}


def _max_age(name: str, data: dict[str, Any]) -> float | None:
    if data.get("max_age") is None:
        return None
    try:
        return parse_duration(data["max_age"])
    except ValueError as error:
        raise _wrong(name, f"max_age: {error}") from None


def _check_function(group: FeatureGroup) -> None:
    if group.source is not GroupSource.FUNCTION:
        return
    if group.function is None:
        raise _wrong(group.name, 'name its "function"')
    if group.runs_code and not _DOTTED.match(group.function):
        raise _wrong(
            group.name,
            f"function {quoted(group.function)} is neither one of {', '.join(CLOCK_FUNCTIONS)} "
            "nor a path such as package.module:function",
        )
    if group.timezone is not None:
        try:
            ZoneInfo(group.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise _wrong(group.name, f"timezone {quoted(group.timezone)} is not known, as Europe/Berlin is") from None


def _wrong(name: str, what: str) -> ContractError:
    return ContractError(f"group {quoted(name)}: {what}", field=name)
