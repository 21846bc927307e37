"""The brief's "Decision Framework": its 16 "use … when" statements as named rules.

A rule looks at one or two facts about a use case and says whether its statement holds, or None when nobody knows.
The statements are the brief's; the thresholds are ours unless the rule says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from inference.economics.inputs import Figure

#: facts by name; yes and no are 1 and 0
Facts = Mapping[str, Figure]


class Approach(StrEnum):
    """How predictions come to be."""

    #: all computed ahead
    BATCH = "batch"
    #: each computed when it is asked for
    REALTIME = "realtime"
    #: computed ahead, and on demand when missing or too old
    HYBRID = "hybrid"


#: fact → what it says
FACTS: dict[str, str] = {
    "latency_ms": "milliseconds that a reader may wait for an answer",
    "coverage": "share of the entities whose predictions are asked for",
    "feature_ms": "milliseconds that computing one entity's features takes",
    "model_ms": "milliseconds that computing one answer takes",
    "cost_matters": "whether low cost is a goal",
    "performance_matters": "whether fast answers are a goal",
    "stable_hours": "hours that a prediction stays right",
    "fresh_features": "whether features of this very moment are needed",
    "immediate_feedback": "whether the reader's last action must count",
    "high_value": "whether a single answer decides much",
    "mixed_latency": "whether some readers can wait and others cannot",
    "max_staleness_hours": "hours that an answer may be old",
    "peak_ratio": "requests at the peak over the mean",
    "must_answer": "whether an answer is needed while a part is down",
    "uses_clock": "whether the model is told the present time",
    "no_table": "whether there is no table that a run could score",
}

#: "Minutes to hours acceptable" (the brief, "Non-Functional Requirements")
PATIENT_MS = 60_000
#: "Low latency required (< 100ms)" (the brief)
HURRIED_MS = 100
#: features that take half of the 100 ms leave too little for the model
EXPENSIVE_FEATURES_MS = 50
MOST_ENTITIES, FEW_ENTITIES = 0.5, 0.1
#: a run a day keeps them right
STABLE_HOURS = 24
#: a fleet for such a peak stands idle half of the time
VARIABLE_PEAK = 2


@dataclass(frozen=True)
class Rule:
    """One statement. `facts`: what it looks at; `holds`: over their values, in that order; `because`: why it matters.

    With `unless`, it does not hold where that fact is a yes.
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
         "whoever can wait a minute can wait for a run"),
    Rule("needed-for-all", _BATCH, "Predictions needed for all entities", ("coverage",), _at_least(MOST_ENTITIES),
         "what is asked for anyway is cheaper computed all at once"),
    Rule("expensive-features", _BATCH, "Features are expensive to compute", ("feature_ms",),
         _at_least(EXPENSIVE_FEATURES_MS), "a run computes them once for many requests, and nobody waits"),
    Rule("slow-model", _BATCH, "Model is large/slow", ("model_ms",), _at_least(HURRIED_MS),
         "a run pays with throughput, a request with its latency"),
    Rule("cost-first", _BATCH, "Cost optimization is priority", ("cost_matters",), _yes,
         "runs use instances fully and then let them go", unless="performance_matters"),
    Rule("changes-slowly", _BATCH, "Predictions don't change frequently", ("stable_hours",), _at_least(STABLE_HOURS),
         "what is right for a day need not be computed again within it"),
    Rule("low-latency", _REALTIME, "Low latency required (< 100ms)", ("latency_ms",), lambda ms: ms < HURRIED_MS,
         "the answer to a new question cannot wait for a run"),
    Rule("fresh-features", _REALTIME, "Fresh features critical", ("fresh_features",), _yes,
         "a precomputed answer is as old as its run"),
    Rule("small-subset", _REALTIME, "Predictions for small subset", ("coverage",), lambda share: share <= FEW_ENTITIES,
         "most of what a run computes would be read by nobody"),
    Rule("immediate-feedback", _REALTIME, "Immediate user feedback", ("immediate_feedback",), _yes,
         "the action that counts came after the last run"),
    Rule("high-value", _REALTIME, "High-value decisions", ("high_value",), _yes,
         "a decision that matters is worth computing with all that is known now"),
    Rule("mixed-latency", _HYBRID, "Mix of latency requirements", ("mixed_latency",), _yes,
         "each reader is served by the way that fits"),
    Rule("cost-and-performance", _HYBRID, "Want cost + performance", ("cost_matters", "performance_matters"), _yes,
         "hits are cheap and fast, and only misses are computed"),
    Rule("tolerates-staleness", _HYBRID, "Can tolerate some staleness", ("max_staleness_hours",), _at_least(1 / 60),
         "within that time a stored answer is as good as a new one", unless="fresh_features"),
    Rule("variable-traffic", _HYBRID, "Variable traffic patterns", ("peak_ratio",), _at_least(VARIABLE_PEAK),
         "the cache takes the peak, for which instances would stand idle"),
    Rule("graceful-degradation", _HYBRID, "Graceful degradation needed", ("must_answer",), _yes,
         "stored answers stand in for computed ones, and the other way round"),
)  # fmt: skip


@dataclass(frozen=True)
class Objection:
    """Why an approach is out of the question."""

    approach: Approach
    fact: str
    why: str


#: fact that is a yes → what it rules out
OBJECTIONS: tuple[Objection, ...] = (
    Objection(_BATCH, "fresh_features", "precomputed answers know nothing of this moment"),
    Objection(_BATCH, "uses_clock", "the model is told the present time, which a run cannot know"),
    Objection(_BATCH, "no_table", "there is no table of features that a run could score"),
    Objection(_HYBRID, "no_table", "there is no table of features that a run could score"),
    Objection(_HYBRID, "uses_clock", "the model is told the present time, so a stored answer is one of another time"),
)


@dataclass(frozen=True)
class Verdict:
    """A rule with what came of it; `seen` are the facts it looked at."""

    rule: Rule
    holds: bool | None
    seen: Facts


@dataclass(frozen=True)
class Judgement:
    """What the rules say together. `support`: share of an approach's rules that hold."""

    approach: Approach
    support: Mapping[Approach, float]
    findings: tuple[Verdict, ...]
    objections: tuple[Objection, ...]

    @property
    def known(self) -> int:
        """How many of the 16 rules could be judged."""
        return sum(finding.holds is not None for finding in self.findings)


def judge(facts: Facts) -> Judgement:
    """Return which approach fits: the one with the largest share of its rules holding that nothing rules out.

    Where batch and real time both have support and neither has twice the other's, and in a tie, it is hybrid; so it
    is when nothing is known ("Most systems use hybrid", the brief's "Key Takeaways").
    """
    findings = tuple(
        Verdict(rule, rule.judge(facts), {name: facts[name] for name in rule.facts if name in facts}) for rule in RULES
    )
    objections = tuple(each for each in OBJECTIONS if each.fact in facts and facts[each.fact].value)
    support = {approach: _support(approach, findings) for approach in Approach}
    possible = [each for each in Approach if each not in {objection.approach for objection in objections}]
    return Judgement(_choose(support, possible), support, findings, objections)


def _support(approach: Approach, findings: tuple[Verdict, ...]) -> float:
    own = [finding for finding in findings if finding.rule.approach is approach]
    return sum(finding.holds is True for finding in own) / len(own)


def _choose(support: Mapping[Approach, float], possible: list[Approach]) -> Approach:
    batch, realtime = support[_BATCH], support[_REALTIME]
    torn = min(batch, realtime) > 0 and max(batch, realtime) < 2 * min(batch, realtime)
    if _HYBRID in possible and _BATCH in possible and torn:
        return _HYBRID
    # hybrid first, so that it wins a tie
    return max(sorted(possible, key=lambda each: each is not _HYBRID), key=lambda each: support[each])
