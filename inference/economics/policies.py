"""Defines what hit-rate curves and the simulator compare: a schedule, age limits, precomputed entities, and workers."""

from __future__ import annotations

import difflib
import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from inference.errors import SettingsError, quoted
from inference.serving.answers import FreshnessRules
from inference.settings import ModelSettings, parse_duration
from inference.settings.fields import parse_schedule

_WITHIN = re.compile(r"asked within (?P<within>\S+)")
#: a word for a setting that is turned off
_NEVER = "never"
#: at its limit, an age is still fresh, but an interval between two computations is over; instants are milliseconds
_MOMENT_S = 0.001


class Precomputed(NamedTuple):
    """Which entities a run computes: those asked for within some seconds, a share of the hottest ones, or all."""

    within_s: float | None = None
    share: float | None = None


ALL = Precomputed()


@dataclass(frozen=True)
class Policy:
    """One way to serve a model; durations in seconds.

    `keep_s`, `realtime_keep_s`: when Redis forgets a generation and an answer. `schedule`: None for no runs.
    `features_now`: an answer on demand is computed from features of this moment, else from those of the last published
    run. `run_s`: how long a run takes; None for its rows at the measured rate. `failed_runs`: numbers of the trace's
    runs, from 1. `workers`: real-time workers; None for as many as are needed.
    """

    name: str
    rules: FreshnessRules
    keep_s: float
    realtime_keep_s: float
    schedule: str | None
    timezone: str = "UTC"
    precomputed: Precomputed = ALL
    features_now: bool = True
    has_default: bool = False
    run_s: float | None = None
    failed_runs: frozenset[int] = frozenset()
    workers: int | None = None
    batch_workers: int = 1

    @classmethod
    def of(cls, name: str, model: ModelSettings) -> Policy:
        """Return a model's settings as a policy."""
        return cls(
            name=name,
            rules=FreshnessRules.of(model),
            keep_s=model.batch.keep,
            realtime_keep_s=model.realtime.keep,
            schedule=model.batch.schedule,
            timezone=model.batch.timezone,
            # a run that fills the feature table too is where answers on demand get their features
            features_now=not model.batch.feature_table,
            has_default=model.realtime.default is not None,
        )

    @property
    def batch_fresh_s(self) -> float:
        """How long a run's answers count as fresh, from its start."""
        return min(max(self.rules.batch_ttl_s, self.rules.min_recompute_interval_s - _MOMENT_S), self.keep_s)

    @property
    def realtime_fresh_s(self) -> float:
        """How long an answer on demand counts as fresh, if it is computed from features of its moment."""
        return min(
            max(self.rules.realtime_ttl_s, self.rules.min_recompute_interval_s - _MOMENT_S), self.realtime_keep_s
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, by the names that `parse_policy` takes; durations in seconds."""
        within_s, share = self.precomputed
        return {
            "ttl": self.rules.batch_ttl_s,
            "keep": self.keep_s,
            "every": self.schedule,
            "entities": "all" if within_s is None else f"asked within {within_s:g}s",
            "share": share,
            "realtime_ttl": self.rules.realtime_ttl_s,
            "realtime_keep": self.realtime_keep_s,
            "stale_while_revalidate": self.rules.stale_while_revalidate_s,
            "min_recompute_interval": self.rules.min_recompute_interval_s,
            "features": "now" if self.features_now else "run",
            "run": self.run_s,
            "failed_runs": sorted(self.failed_runs),
            "workers": self.workers,
            "batch_workers": self.batch_workers,
        }


#: the settings without a file
DEFAULTS = ModelSettings(path=Path("model"))


def parse_policy(text: str, base: Policy) -> Policy:
    """Return `base` with the changes of a text such as `ttl=24h every=6h share=0.2`; its name is the text, or `name=`.

    Raises:
        SettingsError: a word is not `KEY=VALUE`, the key is not known, or its value is not legal.
    """
    changed = replace(base, name=" ".join(text.split()) or base.name)
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise SettingsError(f"--policy {quoted(text)}: {error}", field="policy") from error
    for word in words:
        key, separator, value = word.partition("=")
        change = _KEYS.get(key)
        if change is None or not separator:
            raise SettingsError(f"--policy: {_unknown(word, key)}", field="policy")
        try:
            changed = change(changed, value)
        except ValueError as error:
            raise SettingsError(f"--policy: {key}: {error}", field="policy") from error
    return changed


def _unknown(word: str, key: str) -> str:
    near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.0)[0]
    return f"{quoted(word)} is not known: write {near}=VALUE, or another of {', '.join(_KEYS)}"


Change = Callable[[Policy, str], Policy]


def _sets(name: str, parse: Callable[[str], Any]) -> Change:
    return lambda policy, value: replace(policy, **{name: parse(value)})


def _rule(name: str, parse: Callable[[str], float] = parse_duration) -> Change:
    return lambda policy, value: replace(policy, rules=replace(policy.rules, **{name: parse(value)}))


def _or_0(value: str) -> float:
    return 0.0 if value in (_NEVER, "0") else parse_duration(value)


def _schedule(value: str) -> str | None:
    return None if value == _NEVER else str(parse_schedule(value))


def _entities(value: str) -> Precomputed:
    if value == "all":
        return ALL
    match = _WITHIN.fullmatch(value)
    if match is None:
        raise ValueError(
            f"""{quoted(value)} is neither all nor, in quotes, "asked within 30d": for a share write share=0.2"""
        )
    return Precomputed(within_s=parse_duration(match["within"]))


def _share(value: str) -> Precomputed:
    return Precomputed(share=_number(value, 0, 1))


def _number(value: str, least: float, most: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise ValueError(f"{quoted(value)} is no number from {least:g} to {most:g}")
    return number


def _whole(least: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not value.isdecimal() or int(value) < least:
            raise ValueError(f"{quoted(value)} is no whole number from {least}")
        return int(value)

    return parse


def _numbers(value: str) -> frozenset[int]:
    return frozenset(_whole(1)(each) for each in value.split(","))


def _features(value: str) -> bool:
    if value not in ("now", "run"):
        raise ValueError(f"{quoted(value)} is neither now nor run")
    return value == "now"


_KEYS: Mapping[str, Change] = {
    "ttl": _rule("batch_ttl_s"),
    "keep": _sets("keep_s", parse_duration),
    "every": _sets("schedule", _schedule),
    "entities": _sets("precomputed", _entities),
    "share": _sets("precomputed", _share),
    "realtime_ttl": _rule("realtime_ttl_s"),
    "realtime_keep": _sets("realtime_keep_s", parse_duration),
    "stale_while_revalidate": _rule("stale_while_revalidate_s", _or_0),
    "min_recompute_interval": _rule("min_recompute_interval_s", _or_0),
    "features": _sets("features_now", _features),
    "run": _sets("run_s", parse_duration),
    "failed_runs": _sets("failed_runs", _numbers),
    "workers": _sets("workers", _whole(0)),
    "batch_workers": _sets("batch_workers", _whole(1)),
    "name": _sets("name", str),
}
