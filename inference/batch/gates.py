"""Checks a scored run before it may serve: coverage, left-out rows, size, drift, version. Pure: facts in, gates out.

Drift compares histograms of predictions. Their bins are the upper bits of a float32 (sign, exponent, five bits of the
fraction), so they never depend on the data, and chunks, runs and generations can be added up and compared. Each bin is
at most 3 % wide, zero and every magnitude included.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict

from inference.schema import Block
from inference.wording import counted

#: ids that a verdict or a chunk's result names as examples
MAX_EXAMPLES = 5

#: why a run has no flips
NO_DECISIONS = "no output has decisions; numbers need flips_threshold"
#: different reasons that a verdict spells out
_MAX_REASONS = 3
#: the gates of a whole run that a partial run must pass too; the others compare with a whole source
_PARTIAL = ("coverage", "features", "quarantine", "finite")

#: bin → count; the bin of the smallest values has the smallest number
Histogram = Mapping[int, int]

#: values of one output that a window adds to a histogram; more would not change the shares
MAX_VALUES = 1 << 17
#: a histogram of fewer values scatters too much to be compared
MIN_VALUES = 1_000

_SHIFT = 18
_HALF = 1 << (31 - _SHIFT)
#: groups of about equal count into which the reference is cut
_GROUPS = 10
#: the share of an empty group, so that the logarithm stays finite
_LEAST_SHARE = 1e-4


@dataclass(frozen=True)
class Gate:
    """One check's verdict, with the numbers that it rests on."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class BadRows:
    """Rows left out for one reason. `feature`: the column at fault, None for the id or the whole row.

    `non_finite`: the model answered, but with no finite number.
    """

    __pydantic_config__ = ConfigDict(json_schema_serialization_defaults_required=True)

    feature: str | None
    reason: str
    rows: int
    examples: tuple[str, ...] = ()
    non_finite: bool = False

    def __str__(self) -> str:
        named = f"{self.feature!r} {self.reason}" if self.feature else self.reason
        examples = ", ".join(repr(example) for example in self.examples)
        return f"{named} in {counted(self.rows, 'row')}" + (f" (such as {examples})" if examples else "")


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The counts and limits that the gates compare."""

    #: rows of the plan
    rows: int
    #: rows that Redis counts in the run's table, or that workers reported when the run fills no table
    stored: int
    #: False when the run fills no table; the gates need `distinct` then
    counted: bool = True
    quarantined: int = 0
    non_finite: int = 0
    bad_rows: tuple[BadRows, ...] = ()
    #: rows that the run did not score, since their entities are outside its active set
    outside: int = 0
    #: rows that the run left out, since their entities were forgotten; and how many entities were forgotten since it
    #: was requested: their rows may have been counted before they were removed
    forgotten: int = 0
    forgotten_since: int = 0
    #: rows of the run's feature table; None for none
    features: int | None = None
    #: distinct legal ids of the source; None when no recount was needed
    distinct: int | None = None
    duplicates: tuple[str, ...] = ()
    #: rows of the generation that serves now; None for none
    current: int | None = None
    #: rows outside its run's active set
    current_outside: int = 0
    #: the rules by which this run, and the one that serves, chose their rows
    rule: str = "all"
    current_rule: str = "all"
    min_size_ratio: float = 0.5
    max_quarantined_fraction: float = 0.0
    #: output → population stability index against the generation that serves now; empty when nothing can be compared
    drift: Mapping[str, float] = field(default_factory=dict)
    max_drift: float = 1.0
    model_version: int = 0
    #: a rollback holds the run's model version back
    held: bool = False
    #: None: decisions may flip
    max_flips: float | None = None
    #: output → share of the entities whose decision flips; empty if nothing serves; a text says why it is not known
    flips: Mapping[str, float] | str = field(default_factory=dict)

    @property
    def left_out(self) -> int:
        """Rows that the run should have scored and could not."""
        return self.quarantined + self.non_finite

    @property
    def not_stored(self) -> int:
        """Rows of the plan without a prediction, on purpose."""
        return self.outside + self.forgotten + self.left_out

    @property
    def needs_recount(self) -> bool:
        """Whether the source's ids must be read again: the sums differ, or no table counted them."""
        return not self.counted or self.stored != self.rows - self.not_stored


def check_gates(facts: RunFacts) -> tuple[Gate, ...]:
    """Return the gates of a whole run; it may be published when all passed."""
    return (
        _coverage(facts),
        *([] if facts.features is None else [_features(facts, facts.features)]),
        _duplicates(facts),
        _quarantine(facts),
        _finite(facts),
        _size(facts),
        _drift(facts),
        *([] if facts.max_flips is None else [_flips(facts.flips, facts.max_flips)]),
        _version(facts),
    )


def check_partial_gates(facts: RunFacts, serving_version: int | None) -> tuple[Gate, ...]:
    """Return the gates of a partial run; `entities_gate` compared its ids with the source before."""
    return (*(gate for gate in check_gates(facts) if gate.name in _PARTIAL), _serves(facts, serving_version))


def entities_gate(requested: int, missing: int, examples: Sequence[str]) -> Gate:
    """Compare a partial run's ids with the source; the gate fails when the source has none of them."""
    if not missing:
        return Gate("entities", True, f"{_all(requested)} in the table")
    named = ", ".join(map(repr, examples))
    detail = f"{missing:,} of {requested:,} entities are not in the table, such as {named}"
    return Gate("entities", missing < requested, detail)


def merge_bad_rows(parts: Sequence[BadRows]) -> tuple[BadRows, ...]:
    """Return one entry for each feature and reason, the most frequent first, with a few examples."""
    merged: dict[tuple[str | None, str, bool], BadRows] = {}
    for part in parts:
        key = (part.feature, part.reason, part.non_finite)
        before = merged.get(key, replace(part, rows=0, examples=()))
        examples = (*before.examples, *part.examples)[:MAX_EXAMPLES]
        merged[key] = replace(part, rows=before.rows + part.rows, examples=examples)
    return tuple(sorted(merged.values(), key=lambda bad: -bad.rows))


def failed_gates(gates: Sequence[Gate]) -> str:
    """Return one line that names the gates that failed; empty when all passed."""
    return "; ".join(f"{gate.name}: {gate.detail}" for gate in gates if not gate.passed)


def _coverage(facts: RunFacts) -> Gate:
    distinct = facts.rows if facts.distinct is None else facts.distinct
    expected = distinct - facts.not_stored
    of_set = f" of the active set ({facts.rule})" if facts.outside else ""
    if facts.stored == expected:
        return Gate("coverage", True, f"{_all(expected, of_set)} stored{_but_forgotten(facts.forgotten)}")
    gone = expected - facts.stored
    if 0 < gone <= facts.forgotten_since:
        forgotten = _but_forgotten(facts.forgotten + gone)
        return Gate("coverage", True, f"{_all(facts.stored, of_set)} stored{forgotten}")
    word = "missing" if facts.stored < expected else "too many"
    detail = f"{facts.stored:,} of {expected:,} entities{of_set} are stored ({abs(expected - facts.stored):,} {word})"
    return Gate("coverage", False, detail)


def _all(entities: int, of_set: str = "") -> str:
    return f"the only entity{of_set} is" if entities == 1 else f"all {entities:,} entities{of_set} are"


def _but_forgotten(entities: int) -> str:
    return f", without {counted(entities, 'that was', 'that were')} forgotten" if entities else ""


def _features(facts: RunFacts, stored: int) -> Gate:
    # an entity that is forgotten meanwhile leaves one table before the other
    if abs(stored - facts.stored - facts.outside) <= facts.forgotten_since:
        return Gate("features", True, f"the features of all {stored:,} are stored")
    outside = f" and {counted(facts.outside, 'entity', 'entities')} outside the active set" if facts.outside else ""
    entities, predictions = counted(stored, "entity", "entities"), counted(facts.stored, "prediction")
    detail = f"the features of {entities} are stored, and {predictions}{outside}"
    return Gate("features", False, detail)


def _duplicates(facts: RunFacts) -> Gate:
    doubles = 0 if facts.distinct is None else facts.rows - facts.distinct
    if doubles <= 0:
        return Gate("duplicates", True, "every entity id occurs once")
    examples = ", ".join(repr(example) for example in facts.duplicates)
    repeat = counted(doubles, "row repeats", "rows repeat")
    return Gate("duplicates", False, f"{repeat} an entity id, such as {examples}: make the ids unique")


def _quarantine(facts: RunFacts) -> Gate:
    if not facts.quarantined:
        return Gate("quarantine", True, "no row was left out")
    return _left_out("quarantine", facts, f"{facts.quarantined:,} of {counted(facts.rows, 'row')} cannot be scored")


def _finite(facts: RunFacts) -> Gate:
    if not facts.non_finite:
        return Gate("finite", True, "every prediction is finite")
    text = f"{facts.non_finite:,} of {facts.rows:,} predictions are not finite"
    return _left_out("finite", facts, text, non_finite=True)


def _left_out(name: str, facts: RunFacts, text: str, *, non_finite: bool = False) -> Gate:
    """Return the gate of one kind of left-out rows; all kinds together must stay within the allowed fraction."""
    of_this_kind = [bad for bad in facts.bad_rows if bad.non_finite == non_finite]
    reasons = "; ".join(map(str, of_this_kind[:_MAX_REASONS]))
    passed = facts.left_out <= facts.max_quarantined_fraction * facts.rows
    allowed = f" (max_quarantined_fraction is {facts.max_quarantined_fraction:g})"
    return Gate(name, passed, f"{text}{allowed}: {reasons}")


def _size(facts: RunFacts) -> Gate:
    if not facts.current:
        return Gate("size", True, f"{counted(facts.stored, 'entity', 'entities')}, none served before")
    now, before = facts.stored, facts.current
    if facts.rule != facts.current_rule:  # other entities are chosen, on purpose: the sources are compared
        now, before = now + facts.outside, before + facts.current_outside
    detail = f"{counted(facts.stored, 'entity', 'entities')}{_and_outside(facts.outside, facts.rule)} against "
    detail += f"{facts.current:,}{_and_outside(facts.current_outside, facts.current_rule)} served now"
    if now >= before * facts.min_size_ratio:
        return Gate("size", True, detail)
    cause = "is the source truncated" + (", or was hardly anybody asked for lately?" if facts.outside else "?")
    return Gate("size", False, f"{detail}: below min_size_ratio {facts.min_size_ratio:g}, {cause}")


def _and_outside(rows: int, rule: str) -> str:
    return f" and {rows:,} outside the active set ({rule})" if rows else ""


def _drift(facts: RunFacts) -> Gate:
    if not facts.drift:
        return Gate("drift", True, "not compared: too few predictions, here or in what serves now")
    worst = max(facts.drift, key=lambda name: facts.drift[name])
    indexes = ", ".join(f"{name} {index:.3g}" for name, index in facts.drift.items())
    if facts.rule != facts.current_rule:
        changed = f"other entities are chosen ({facts.rule}) than serve now ({facts.current_rule})"
        return Gate("drift", True, f"not judged, since {changed}: population stability index {indexes}")
    if facts.drift[worst] <= facts.max_drift:
        return Gate("drift", True, f"population stability index against what serves now: {indexes}")
    detail = f"output {worst!r} moved away from what serves now: population stability index {indexes}"
    return Gate("drift", False, f"{detail} (max_drift is {facts.max_drift:g})")


def _flips(flips: Mapping[str, float] | str, most: float) -> Gate:
    if isinstance(flips, str):
        return Gate("flips", False, f"not compared: {flips}")
    if not flips:
        return Gate("flips", True, "none served before")
    worst = max(flips, key=lambda name: flips[name])
    shares = ", ".join(f"{name} {share:.4%}" for name, share in flips.items())
    if flips[worst] <= most:
        return Gate("flips", True, f"decisions that flip against what serves now: {shares}")
    return Gate("flips", False, f"too many decisions of output {worst!r} flip: {shares} (max_flips is {most:g})")


def _version(facts: RunFacts) -> Gate:
    if not facts.held:
        return Gate("version", True, f"model version {facts.model_version}")
    return Gate("version", False, f"model version {facts.model_version} is held back since a rollback")


def _serves(facts: RunFacts, serving_version: int | None) -> Gate:
    """Check that the run's version serves: look-ups read no overlay entry of another version."""
    if facts.model_version == serving_version:
        return Gate("version", True, f"model version {facts.model_version}")
    serving = "none does" if serving_version is None else f"{serving_version} does"
    return Gate("version", False, f"model version {facts.model_version} does not serve now ({serving})")


class HistogramCounter:
    """Counts the values of each numeric output; an output with several numbers a row has one histogram for all."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[int]] = {}

    def add(self, block: Block, *, times: int = 1) -> None:
        """Count the values of a window; of very many values only evenly spaced ones. Each one counts `times`."""
        for name, values in block.items():
            if values.dtype.kind in "fiub" and values.size:
                counts = {at: count * times for at, count in _count(values).items()}
                self._counts.setdefault(name, Counter()).update(counts)

    @property
    def histograms(self) -> Mapping[str, Histogram]:
        """Output → histogram."""
        return self._counts


def population_stability_index(reference: Histogram, new: Histogram) -> float:
    """Return Σ (p - q) ln(p / q) over the reference's ten groups of about equal count, and its two outsides.

    Equal shares give 0; a shift by a full standard deviation gives about 1. Neither histogram may be empty. Source of
    the index: N. Siddiqi, Credit Risk Scorecards (2006).
    """
    cuts = _cuts(reference)
    old_total, new_total = sum(reference.values()), sum(new.values())
    pairs = zip(_grouped(reference, cuts), _grouped(new, cuts), strict=True)
    shares = ((max(a / old_total, _LEAST_SHARE), max(b / new_total, _LEAST_SHARE)) for a, b in pairs)
    return sum((p - q) * math.log(p / q) for p, q in shares)


def measure_drift(reference: Mapping[str, Histogram], new: Mapping[str, Histogram]) -> dict[str, float]:
    """Return output → index, for the outputs that have enough values on both sides."""
    enough = [
        name
        for name in new
        if sum(new[name].values()) >= MIN_VALUES and sum(reference.get(name, {}).values()) >= MIN_VALUES
    ]
    return {name: round(population_stability_index(reference[name], new[name]), 4) for name in enough}


def _count(values: npt.NDArray[Any]) -> dict[int, int]:
    flat = values.reshape(-1)
    flat = flat[:: -(-flat.size // MAX_VALUES)]
    with np.errstate(over="ignore"):  # a float64 beyond the range of float32 counts as infinite
        bits = flat.astype(np.float32).view(np.uint32) >> _SHIFT
    counts = np.bincount(bits, minlength=2 * _HALF)
    # the bits of negative floats fall as the floats grow
    in_order = np.concatenate([counts[: _HALF - 1 : -1], counts[:_HALF]])
    return {int(at): int(in_order[at]) for at in np.flatnonzero(in_order)}


def _cuts(reference: Histogram) -> list[int]:
    """Return the last bin of each group: first the group below the reference, then its tenths."""
    total, seen, group, cuts = sum(reference.values()), 0, 1, [min(reference) - 1]
    for at in sorted(reference):
        seen += reference[at]
        if seen * _GROUPS >= total * group:
            cuts.append(at)
            group = seen * _GROUPS // total + 1
    return cuts


def _grouped(counts: Histogram, cuts: Sequence[int]) -> list[int]:
    groups = [0] * (len(cuts) + 1)
    for at, count in counts.items():
        groups[int(np.searchsorted(cuts, at))] += count
    return groups
