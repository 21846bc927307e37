"""Feature groups: features that come from one place and are of one age."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

#: the group of features that name none
DEFAULT_GROUP = "features"


class GroupSource(StrEnum):
    """Where a group's values come from."""

    #: the feature table, filled by loads, runs and single updates
    TABLE = "table"
    #: computed when they are needed, from the entity's other features and the instant
    FUNCTION = "function"
    #: the request: its instances or overrides; in a run, the run's table
    REQUEST = "request"


class GroupStatus(StrEnum):
    """What became of one group for one entity."""

    #: there are values, young enough
    PRESENT = "present"
    #: neither the feature table nor a fallback has any
    NOT_FOUND = "not found"
    #: there are values, but older than the group's `max_age`; they are not used
    OUTSIDE_MAX_AGE = "outside maximum age"


@dataclass(frozen=True)
class FeatureGroup:
    """One group. `max_age_s`: older values are not used; None for no limit."""

    name: str = DEFAULT_GROUP
    source: GroupSource = GroupSource.TABLE
    max_age_s: float | None = None
