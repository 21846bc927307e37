"""Holds the settings that `init` proposes, and writes them as text."""

from __future__ import annotations

import json
import math
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

from inference.batch.schedule import slot_after
from inference.features import FeatureContract
from inference.onboarding.key_columns import Guess
from inference.settings import BatchSettings, RealtimeSettings
from inference.sources import TableName

_HOUR_S = 3600
#: predictions stay fresh a little longer than the time between two runs, since a run takes time
_SLACK = 1.1
#: the longest pause of a cron line such as "weekdays" is within so many slots
_SLOTS = 60


@dataclass(frozen=True, kw_only=True)
class Ages:
    """How long predictions are fresh and how long they are kept, in hours."""

    ttl_h: int
    keep_h: int


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """One model's settings. `path` and `features` are spelled as in the file."""

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
    """Return ages longer than the longest pause between two slots (UTC) after `now`, at least the defaults."""
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
    """Return a path as settings in the folder `root` spell it: relative if it is inside."""
    absolute = path.expanduser().absolute()
    if absolute.is_relative_to(root):
        relative = absolute.relative_to(root).as_posix()
        # a reader takes a leading ~ for a home folder
        return str(absolute) if relative.startswith("~") else relative
    return str(absolute)


def spelled_source(source: str, root: Path) -> str:
    """Return a table as settings in the folder `root` spell it."""
    table = TableName.read(source)
    if table is None:
        return spelled(Path(source), root)
    return str(replace(table, place=spelled(Path(table.place), root)) if table.kind != "iceberg" else table)


_WIDTH = 110

_FILE_START = """\
# Settings of Forecache, written by `forecache init`. Relative paths start at this file's folder.
# Settings that are not here have defaults: see docs/settings.md. An unknown name is an error.
"""

_FILE_END = """\

# This machine. Each line shows the default; remove the # to change one.
#[api]
#port = 8000
#
#[dashboard]
#port = 5555
#
# Without these two, `forecache up` starts a Redis of its own, for development. In production set both:
# the first carries tasks and results, the second keeps predictions and must not evict (noeviction).
#[redis]
#url = "redis://127.0.0.1:6379/0"
#cache_url = "redis://127.0.0.1:6379/1"
"""

_ALLOW_CODE = """\
# Loading the model runs its author's code: anybody who can write to the folder can run code on the workers.
allow_code = true
"""

_NEWEST = '\n# An entity has several rows: the newest counts.\nrows = "newest"'
_SIGNATURE = """\
# The signature of the model that is served.
signature = {name}
"""

_MODEL = """\
[models.{name}]
# The folder of a model, or of version folders 1/, 2/, …: the newest good one answers.
path = {path}
{allow_code}{signature}# The table that runs score{one_row}.
{matched}
features = {features}
# The column of entity ids, as in /predict/ID.
{entity_reason}
entity_column = {entity_column}
# The column that says how old a row's features are.
{event_reason}
{event_line}{rows_line}

[models.{name}.batch]
# When a run scores the whole table: a cron line, or a duration such as "30m". Without it: `forecache batch run`.
schedule = {schedule}
timezone = "UTC"
# A prediction up to this age is a hit; longer than the pause between two runs.
ttl = "{ttl_h}h"
# How long Redis keeps predictions. If a run is late, older ones are answered until then, marked stale.
keep = "{keep_h}h"

[models.{name}.realtime]
# An entity without a fresh prediction is computed on demand, from the features that
# `forecache features load` has loaded; its answer is a hit up to this age.
ttl = "1h"
# How long a request may take, in milliseconds.
timeout_ms = {timeout_ms}
"""


def toml_text(value: str) -> str:
    """Return a text as a basic string of TOML, which is that of JSON except for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")


def render_model(proposal: Proposal) -> str:
    """Return the tables of one model, for a settings file or to paste into one."""
    event = proposal.event_time_column
    return _MODEL.format(
        name=proposal.model,
        path=toml_text(proposal.path),
        allow_code=_ALLOW_CODE if proposal.allow_code else "",
        signature="" if proposal.signature is None else _SIGNATURE.format(name=toml_text(proposal.signature)),
        matched=_comment(f"Features: {proposal.matched}"),
        features=toml_text(proposal.features),
        entity_reason=_comment(f"Chosen: {proposal.entity_column.reason}"),
        entity_column=toml_text(proposal.entity_column.value or ""),
        event_reason=_comment(f"{'Chosen' if event.value else 'Not set'}: {event.reason}"),
        event_line=_event_line(event),
        one_row=", with one row per entity" if proposal.rows == "one" else "",
        rows_line="" if proposal.rows == "one" else _NEWEST,
        schedule=toml_text(proposal.schedule),
        ttl_h=proposal.ages.ttl_h,
        keep_h=proposal.ages.keep_h,
        timeout_ms=RealtimeSettings().timeout_ms,
    )


def render_settings(proposal: Proposal) -> str:
    """Return a whole settings file for a deployment of this one model."""
    return f"{_FILE_START}\n{render_model(proposal)}{_FILE_END}"


def render_contract(contract: FeatureContract) -> str:
    """Return the text of `features.json`, one feature a line."""
    lines = ",\n".join(f"  {json.dumps(feature.to_json(), ensure_ascii=False)}" for feature in contract.features)
    return f'{{"features": [\n{lines}\n]}}\n'


def _event_line(event: Guess) -> str:
    return f"event_time_column = {toml_text(event.value)}" if event.value else '#event_time_column = "updated_at"'


def _comment(text: str) -> str:
    """Return text as comment lines, with unprintable characters escaped."""
    printable = "".join(char if char.isprintable() else toml_text(char)[1:-1] for char in text)
    lines = textwrap.wrap(printable, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"# {line}" for line in lines)
