"""What a deployment's first settings will be, once everything is decided."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from inference.batch.schedule import slot_after
from inference.onboarding.guesses import Guess
from inference.settings import BatchSettings

_HOUR_S = 3600
#: a run takes a while itself: predictions live this much longer than the time between two
_SLACK = 1.1
#: of a cron line such as "weekdays", the longest pause comes within so many slots
_SLOTS = 60


@dataclass(frozen=True, kw_only=True)
class Ages:
    """How long predictions count as fresh, and how long they are kept, in hours."""

    ttl_h: int
    keep_h: int


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """One model's settings. `path` and `features` are spelled as they will stand in the file."""

    model: str
    path: str
    features: str
    entity_column: Guess
    event_time_column: Guess
    matched: str
    schedule: str
    ages: Ages
    allow_code: bool = False
    rows: str = "one"
    signature: str | None = None


def ages_for(schedule: str, now: float) -> Ages:
    """Return ages that bridge the longest pause between two slots (UTC) after `now`, at least the defaults."""
    defaults = BatchSettings()
    pause_s, at = 0.0, now
    for _ in range(_SLOTS):
        following = slot_after(schedule, "UTC", at)
        if at != now:
            pause_s = max(pause_s, following - at)
        at = following
    ttl_h = max(math.ceil(pause_s * _SLACK / _HOUR_S), round(defaults.ttl / _HOUR_S))
    return Ages(ttl_h=ttl_h, keep_h=max(round(defaults.keep / _HOUR_S), 3 * ttl_h))


def spelled(path: Path, root: Path) -> str:
    """Return a path as it should stand in the settings of the folder `root`: relative when it lies inside."""
    absolute = path.expanduser().absolute()
    if absolute.is_relative_to(root):
        relative = absolute.relative_to(root).as_posix()
        # a leading ~ would be taken for a home folder when it is read
        return str(absolute) if relative.startswith("~") else relative
    return str(absolute)
