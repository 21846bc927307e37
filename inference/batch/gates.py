"""What a scored generation must pass before it may serve. Pure: facts in, verdicts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

#: how many ids a verdict or a chunk's result names as examples
MAX_EXAMPLES = 5

#: how many different reasons a verdict spells out
_MAX_REASONS = 3


@dataclass(frozen=True)
class Gate:
    """One verdict, with the numbers it rests on."""

    name: str
    passed: bool
    detail: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"name": self.name, "passed": self.passed, "detail": self.detail}


@dataclass(frozen=True)
class BadRows:
    """Rows left out for one reason. `feature`: the column at fault, None for the id or the whole row.

    `non_finite`: the model answered, but with no finite number.
    """

    feature: str | None
    reason: str
    rows: int
    examples: tuple[str, ...] = ()
    non_finite: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "feature": self.feature,
            "reason": self.reason,
            "rows": self.rows,
            "examples": list(self.examples),
            "non_finite": self.non_finite,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> BadRows:
        """Rebuild from `to_json`."""
        return cls(**{**data, "examples": tuple(data["examples"])})

    def __str__(self) -> str:
        named = f"{self.feature!r} {self.reason}" if self.feature else self.reason
        examples = ", ".join(repr(example) for example in self.examples)
        return f"{named} in {self.rows:,} rows" + (f" (such as {examples})" if examples else "")


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What was counted. `stored` is counted in Redis.

    `counted`: False when the run fills no table, and `stored` is what the workers reported; the source's ids are
    counted then. `features`: rows of the feature table that the run filled, None for none.
    `distinct`: distinct legal ids of the source, None when no recount was needed; `current`: rows of the
    generation that serves now, None for none; `held`: whether the run's model version is held back. `drift`: output
    → population stability index against the generation that serves now; empty when there is nothing to compare.
    """

    rows: int
    stored: int
    quarantined: int = 0
    non_finite: int = 0
    bad_rows: tuple[BadRows, ...] = ()
    counted: bool = True
    features: int | None = None
    distinct: int | None = None
    duplicates: tuple[str, ...] = ()
    current: int | None = None
    min_size_ratio: float = 0.5
    max_quarantined_fraction: float = 0.0
    drift: Mapping[str, float] = field(default_factory=dict)
    max_drift: float = 1.0
    model_version: int = 0
    held: bool = False

    @property
    def left_out(self) -> int:
        """Rows that were not meant to be stored."""
        return self.quarantined + self.non_finite

    @property
    def needs_recount(self) -> bool:
        """Whether the source's ids must be read again: the sums differ, or no table has counted them."""
        return not self.counted or self.stored != self.rows - self.left_out


def check_gates(facts: RunFacts) -> tuple[Gate, ...]:
    """Return every gate's verdict; the run may be published when all passed."""
    return (
        _coverage(facts),
        *([] if facts.features is None else [_features(facts, facts.features)]),
        _duplicates(facts),
        _quarantine(facts),
        _finite(facts),
        _size(facts),
        _drift(facts),
        _version(facts),
    )


def merge_bad_rows(parts: Sequence[BadRows]) -> tuple[BadRows, ...]:
    """Return one entry per feature and reason, the most frequent first, with a few examples of each."""
    merged: dict[tuple[str | None, str, bool], BadRows] = {}
    for part in parts:
        key = (part.feature, part.reason, part.non_finite)
        before = merged.get(key, replace(part, rows=0, examples=()))
        examples = (*before.examples, *part.examples)[:MAX_EXAMPLES]
        merged[key] = replace(part, rows=before.rows + part.rows, examples=examples)
    return tuple(sorted(merged.values(), key=lambda bad: -bad.rows))


def failures(gates: Sequence[Gate]) -> str:
    """Return one line naming the gates that failed; empty when all passed."""
    return "; ".join(f"{gate.name}: {gate.detail}" for gate in gates if not gate.passed)


def _coverage(facts: RunFacts) -> Gate:
    distinct = facts.rows if facts.distinct is None else facts.distinct
    expected = distinct - facts.left_out
    if facts.stored == expected:
        return Gate("coverage", True, f"all {expected:,} entities are stored")
    word = "missing" if facts.stored < expected else "too many"
    detail = f"{facts.stored:,} of {expected:,} entities are stored ({abs(expected - facts.stored):,} {word})"
    return Gate("coverage", False, detail)


def _features(facts: RunFacts, stored: int) -> Gate:
    if stored == facts.stored:
        return Gate("features", True, f"the features of all {stored:,} are stored")
    return Gate("features", False, f"the features of {stored:,} entities are stored, and {facts.stored:,} predictions")


def _duplicates(facts: RunFacts) -> Gate:
    doubles = 0 if facts.distinct is None else facts.rows - facts.distinct
    if doubles <= 0:
        return Gate("duplicates", True, "every entity id occurs once")
    examples = ", ".join(repr(example) for example in facts.duplicates)
    return Gate("duplicates", False, f"{doubles:,} rows repeat an entity id, such as {examples}: make the ids unique")


def _quarantine(facts: RunFacts) -> Gate:
    if not facts.quarantined:
        return Gate("quarantine", True, "no row was left out")
    return _left_out("quarantine", facts, f"{facts.quarantined:,} of {facts.rows:,} rows cannot be scored")


def _finite(facts: RunFacts) -> Gate:
    if not facts.non_finite:
        return Gate("finite", True, "every prediction is finite")
    told = f"{facts.non_finite:,} of {facts.rows:,} predictions are not finite"
    return _left_out("finite", facts, told, non_finite=True)


def _left_out(name: str, facts: RunFacts, told: str, *, non_finite: bool = False) -> Gate:
    """Judge a kind of rows that were left out; all kinds together must stay within the fraction allowed."""
    own = [bad for bad in facts.bad_rows if bad.non_finite == non_finite]
    reasons = "; ".join(map(str, own[:_MAX_REASONS]))
    passed = facts.left_out <= facts.max_quarantined_fraction * facts.rows
    allowed = f" (max_quarantined_fraction is {facts.max_quarantined_fraction:g})"
    return Gate(name, passed, f"{told}{allowed}: {reasons}")


def _size(facts: RunFacts) -> Gate:
    if not facts.current:
        return Gate("size", True, f"{facts.stored:,} entities, none served before")
    least = facts.current * facts.min_size_ratio
    detail = f"{facts.stored:,} entities against {facts.current:,} served now"
    if facts.stored >= least:
        return Gate("size", True, detail)
    return Gate("size", False, f"{detail}: below min_size_ratio {facts.min_size_ratio:g}, is the source truncated?")


def _drift(facts: RunFacts) -> Gate:
    if not facts.drift:
        return Gate("drift", True, "not compared: too few predictions, here or in what serves now")
    worst = max(facts.drift, key=lambda name: facts.drift[name])
    told = ", ".join(f"{name} {index:.3g}" for name, index in facts.drift.items())
    if facts.drift[worst] <= facts.max_drift:
        return Gate("drift", True, f"population stability index against what serves now: {told}")
    detail = f"output {worst!r} moved away from what serves now: population stability index {told}"
    return Gate("drift", False, f"{detail} (max_drift is {facts.max_drift:g})")


def _version(facts: RunFacts) -> Gate:
    if not facts.held:
        return Gate("version", True, f"model version {facts.model_version}")
    return Gate("version", False, f"model version {facts.model_version} is held back since a rollback")
