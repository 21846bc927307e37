"""Gathers facts about the use of a model, and judges them by the 16 rules of the design article.

The article's "Decision Framework" has 16 "use … when" statements; each is a named rule here. A rule looks at one or two
facts and says whether its statement holds, or None when a fact is not known. The thresholds are ours unless a comment
says otherwise. The options of `forecache advise` are made from the facts, so this module imports nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from inference.economics.inputs import Basis, Figure, option_of
from inference.errors import SettingsError

if TYPE_CHECKING:
    from inference.economics.measured import Measured
    from inference.settings import ModelSettings

#: facts by name; yes and no are 1 and 0
Facts = Mapping[str, Figure]


class Approach(StrEnum):
    """How predictions are made."""

    #: all computed ahead
    BATCH = "batch"
    #: each computed on demand
    REALTIME = "realtime"
    #: computed ahead, and on demand when missing or too old
    HYBRID = "hybrid"


# --- facts ---


class Fact(NamedTuple):
    """One fact. `help`: of its option, None for a fact that only settings tell; `is_flag`: yes or no."""

    help: str | None
    is_flag: bool = False
    least: float = 0.0
    most: float = math.inf
    range: str = "0 or more"


FACTS: dict[str, Fact] = {
    "latency_ms": Fact("How long a caller may wait."),
    "max_staleness_hours": Fact("How old an answer may be."),
    "stable_hours": Fact("How long a prediction stays right."),
    "feature_ms": Fact("What one entity's features take to compute."),
    "model_ms": Fact("What one answer takes to compute."),
    "coverage": Fact("Share of entities that are asked for, 0 to 1.", most=1.0, range="from 0 to 1"),
    "peak_ratio": Fact("Requests at the peak over the mean, from 1.", least=1.0, range="1 or more"),
    "fresh_features": Fact("Features of this very moment are needed.", is_flag=True),
    "immediate_feedback": Fact("The user's last action must count.", is_flag=True),
    "high_value": Fact("A single answer decides much.", is_flag=True),
    "mixed_latency": Fact("Some callers can wait, others cannot.", is_flag=True),
    "cost_matters": Fact("Low cost is a goal.", is_flag=True),
    "performance_matters": Fact("Fast answers are a goal.", is_flag=True),
    "must_answer": Fact("An answer is needed while a part is down.", is_flag=True),
    "uses_clock": Fact("The model is told the present time.", is_flag=True),
    "no_table": Fact(None, is_flag=True),
}
#: with fewer requests, a measured rate says little
LEAST_REQUESTS = 100


def check_fact(name: str, value: float) -> float:
    """Return the value if it is legal for that fact.

    Raises:
        SettingsError: it is not finite, or out of range; `field` names it.
    """
    fact = FACTS[name]
    if not math.isfinite(value) or not fact.least <= value <= fact.most:
        raise SettingsError(f"{name}: {value:g} cannot be used: {option_of(name)} is {fact.range}", field=name)
    return value


def gather_facts(given: Mapping[str, Figure], settings: ModelSettings, measured: Measured) -> dict[str, Figure]:
    """Return the known facts. The caller comes first, then the settings, then the measurements."""
    facts = {**_measured(measured), **_settings(settings), **given}
    for name in ("max_staleness_hours", "stable_hours"):
        if name in facts and not facts[name].value:
            facts.setdefault("fresh_features", Figure(1, facts[name].origin, f"{name} is 0"))
    return facts


def _settings(settings: ModelSettings) -> dict[str, Figure]:
    """Return the facts that the settings state. A default of the settings states nothing about a use case."""
    facts = {}
    if settings.features is None:
        facts["no_table"] = Figure(1, Basis.SETTINGS, "[models.M] features is not set")
    if "timeout_ms" in settings.realtime.model_fields_set:
        facts["latency_ms"] = Figure(settings.realtime.timeout_ms, Basis.SETTINGS, "[models.M.realtime] timeout_ms")
    if "ttl" in settings.batch.model_fields_set:
        facts["max_staleness_hours"] = Figure(settings.batch.ttl / 3600, Basis.SETTINGS, "[models.M.batch] ttl")
    if settings.realtime.default is not None:
        facts["must_answer"] = Figure(1, Basis.SETTINGS, "[models.M.realtime] default is set")
    return facts


def _measured(measured: Measured) -> dict[str, Figure]:
    facts: dict[str, Figure] = {}
    if measured.clock_groups:
        how = f"features.json: group {measured.clock_groups[0]} is computed from the present time"
        facts["uses_clock"] = Figure(1, Basis.MEASURED, how)
    if measured.requests < LEAST_REQUESTS:
        return facts
    if measured.entities and measured.asked_week:
        there = measured.entities + measured.rows_outside
        share = min(measured.asked_week / there, 1.0)
        how = f"{measured.asked_week} of {there:g} entities were asked for within 7 days"
        facts["coverage"] = Figure(share, Basis.MEASURED, how)
    if measured.statistics.miss_latency.total >= LEAST_REQUESTS:
        median_s = measured.statistics.miss_latency.quantile(0.5)
        if median_s is not None:
            facts["model_ms"] = Figure(round(median_s * 1000, 2), Basis.MEASURED, "median of misses within 24 h")
    rps, peak = measured.figures.get("rps"), measured.figures.get("peak_rps")
    if rps and peak:
        facts["peak_ratio"] = Figure(round(peak.value / rps.value, 3), Basis.MEASURED, peak.how)
    return facts


# --- rules ---

#: "Minutes to hours acceptable" (the article, "Non-Functional Requirements")
PATIENT_MS = 60_000
#: "Low latency required (< 100ms)" (the article)
HURRIED_MS = 100
#: features that take half of the 100 ms leave too little for the model
EXPENSIVE_FEATURES_MS = 50
MOST_ENTITIES, FEW_ENTITIES = 0.5, 0.1
#: one run a day keeps such predictions right
STABLE_HOURS = 24
#: instances for such a peak are idle half of the time
VARIABLE_PEAK = 2


@dataclass(frozen=True)
class Rule:
    """One statement of the article.

    `facts`: the names of its facts; `holds`: takes their values in that order; `because`: why the statement matters;
    `unless`: a fact that, as a yes, makes the statement false.
    """

    name: str
    approach: Approach
    statement: str
    facts: tuple[str, ...]
    holds: Callable[..., bool]
    because: str
    unless: str | None = None

    def judge(self, facts: Facts) -> bool | None:
        """Return whether the statement holds; None when a fact is not known."""
        if any(name not in facts for name in self.facts):
            return None
        if self.unless is not None and self.unless in facts and facts[self.unless].value:
            return False
        return self.holds(*(facts[name].value for name in self.facts))


def _at_least(limit: float) -> Callable[[float], bool]:
    return lambda value: value >= limit


def _yes(*values: float) -> bool:
    return all(values)


_BATCH, _REALTIME, _HYBRID = Approach.BATCH, Approach.REALTIME, Approach.HYBRID

RULES: tuple[Rule, ...] = (
    Rule("latency-not-critical", _BATCH, "Latency is not critical", ("latency_ms",), _at_least(PATIENT_MS),
         "a caller that can wait a minute can wait for a run"),
    Rule("needed-for-all", _BATCH, "Predictions needed for all entities", ("coverage",), _at_least(MOST_ENTITIES),
         "predictions that are needed anyway are cheaper in one run"),
    Rule("expensive-features", _BATCH, "Features are expensive to compute", ("feature_ms",),
         _at_least(EXPENSIVE_FEATURES_MS), "a run computes them once for many requests, and nobody waits"),
    Rule("slow-model", _BATCH, "Model is large/slow", ("model_ms",), _at_least(HURRIED_MS),
         "a run pays with throughput, a request with its latency"),
    Rule("cost-first", _BATCH, "Cost optimization is priority", ("cost_matters",), _yes,
         "runs use instances fully and then let them go", unless="performance_matters"),
    Rule("changes-slowly", _BATCH, "Predictions don't change frequently", ("stable_hours",), _at_least(STABLE_HOURS),
         "a prediction that stays right for a day is computed once a day"),
    Rule("low-latency", _REALTIME, "Low latency required (< 100ms)", ("latency_ms",), lambda ms: ms < HURRIED_MS,
         "the answer to a new question cannot wait for a run"),
    Rule("fresh-features", _REALTIME, "Fresh features critical", ("fresh_features",), _yes,
         "a precomputed answer is as old as its run"),
    Rule("small-subset", _REALTIME, "Predictions for small subset", ("coverage",), lambda share: share <= FEW_ENTITIES,
         "most predictions of a run would not be read"),
    Rule("immediate-feedback", _REALTIME, "Immediate user feedback", ("immediate_feedback",), _yes,
         "the action that counts came after the last run"),
    Rule("high-value", _REALTIME, "High-value decisions", ("high_value",), _yes,
         "an important decision deserves the newest data"),
    Rule("mixed-latency", _HYBRID, "Mix of latency requirements", ("mixed_latency",), _yes,
         "each caller is served by the way that fits"),
    Rule("cost-and-performance", _HYBRID, "Want cost + performance", ("cost_matters", "performance_matters"), _yes,
         "hits are cheap and fast, and only misses are computed"),
    Rule("tolerates-staleness", _HYBRID, "Can tolerate some staleness", ("max_staleness_hours",), _at_least(1 / 60),
         "within that time a stored answer is as good as a new one", unless="fresh_features"),
    Rule("variable-traffic", _HYBRID, "Variable traffic patterns", ("peak_ratio",), _at_least(VARIABLE_PEAK),
         "the cache takes the peak, so no instances stand idle between peaks"),
    Rule("graceful-degradation", _HYBRID, "Graceful degradation needed", ("must_answer",), _yes,
         "stored answers stand in for computed ones, and the other way round"),
)  # fmt: skip


@dataclass(frozen=True)
class Objection:
    """Why an approach cannot be used."""

    approach: Approach
    fact: str
    why: str


#: fact that is a yes → what it rules out
OBJECTIONS: tuple[Objection, ...] = (
    Objection(_BATCH, "fresh_features", "precomputed answers know nothing of this moment"),
    Objection(_BATCH, "uses_clock", "the model is told the present time, which a run cannot know"),
    Objection(_BATCH, "no_table", "there is no table of features that a run could score"),
    Objection(_HYBRID, "no_table", "there is no table of features that a run could score"),
    Objection(_HYBRID, "uses_clock", "the model is told the present time, so a stored answer belongs to another time"),
)


@dataclass(frozen=True)
class Verdict:
    """A rule, whether it holds (None: unknown), and the facts that it looked at."""

    rule: Rule
    holds: bool | None
    seen: Facts


@dataclass(frozen=True)
class Judgement:
    """The result of all rules. `support`: the share of an approach's rules that hold."""

    approach: Approach
    support: Mapping[Approach, float]
    findings: tuple[Verdict, ...]
    objections: tuple[Objection, ...]

    @property
    def known(self) -> int:
        """How many of the 16 rules could be judged."""
        return sum(finding.holds is not None for finding in self.findings)


def judge(facts: Facts) -> Judgement:
    """Return which approach fits: of those that no objection rules out, the one with the most support.

    It is hybrid in a tie, when batch and real time both have support and neither has twice the other's, and when
    nothing is known ("Most systems use hybrid", the article's "Key Takeaways").
    """
    findings = tuple(
        Verdict(rule, rule.judge(facts), {name: facts[name] for name in rule.facts if name in facts}) for rule in RULES
    )
    objections = tuple(each for each in OBJECTIONS if each.fact in facts and facts[each.fact].value)
    support = {approach: _support(approach, findings) for approach in Approach}
    possible = [each for each in Approach if each not in {objection.approach for objection in objections}]
    return Judgement(_choose(support, possible), support, findings, objections)


def _support(approach: Approach, findings: tuple[Verdict, ...]) -> float:
    held = [finding.holds is True for finding in findings if finding.rule.approach is approach]
    return sum(held) / len(held)


def _choose(support: Mapping[Approach, float], possible: list[Approach]) -> Approach:
    batch, realtime = support[_BATCH], support[_REALTIME]
    torn = min(batch, realtime) > 0 and max(batch, realtime) < 2 * min(batch, realtime)
    if _HYBRID in possible and _BATCH in possible and torn:
        return _HYBRID
    # hybrid first, so that it wins a tie
    return max(sorted(possible, key=lambda each: each is not _HYBRID), key=lambda each: support[each])
