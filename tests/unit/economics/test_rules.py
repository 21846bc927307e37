"""The article's decision framework, on the article's own examples."""

from __future__ import annotations

from collections import Counter

import pytest

from inference.economics.estimate import ARTICLE_FIGURES, estimate
from inference.economics.inputs import Basis, CostInputs, Figure, complete_figures
from inference.economics.rules import FACTS, OBJECTIONS, RULES, Approach, Rule, _choose, judge

BATCH, REALTIME, HYBRID = Approach.BATCH, Approach.REALTIME, Approach.HYBRID

# The article lists 11 lines of examples (4, 4 and 3); each hybrid one is a pair. Its twelfth example is the one with
# figures, a million users predicted for once a day. Beside each stands what a reader of the article would answer.
EXAMPLES: dict[str, tuple[Approach, dict[str, float]]] = {
    "daily email recommendations": (
        BATCH, {"latency_ms": 3_600_000, "coverage": 1, "stable_hours": 24, "cost_matters": 1}),
    "product catalog rankings": (
        BATCH, {"coverage": 1, "stable_hours": 24, "feature_ms": 80, "fresh_features": 0}),
    "weekly personalized content": (
        BATCH, {"latency_ms": 86_400_000, "coverage": 0.8, "stable_hours": 168}),
    "batch fraud scoring": (
        BATCH, {"latency_ms": 3_600_000, "coverage": 1, "model_ms": 300, "high_value": 1}),
    "search ranking": (
        REALTIME, {"latency_ms": 50, "immediate_feedback": 1, "fresh_features": 1, "coverage": 0.05}),
    "ad serving": (
        REALTIME, {"latency_ms": 50, "immediate_feedback": 1, "fresh_features": 1, "cost_matters": 1}),
    "real-time fraud detection": (
        REALTIME, {"latency_ms": 80, "high_value": 1, "fresh_features": 1, "coverage": 0.1}),
    "live recommendation widgets": (
        REALTIME, {"latency_ms": 80, "immediate_feedback": 1, "fresh_features": 1, "peak_ratio": 3}),
    "homepage recommendations (batch) + search (real-time)": (
        HYBRID, {"mixed_latency": 1, "max_staleness_hours": 24, "cost_matters": 1, "performance_matters": 1,
                 "latency_ms": 50}),
    "social feed (batch) + stories (real-time)": (
        HYBRID, {"mixed_latency": 1, "max_staleness_hours": 1, "peak_ratio": 4, "coverage": 0.6}),
    "product pages (batch) + checkout (real-time)": (
        HYBRID, {"mixed_latency": 1, "must_answer": 1, "max_staleness_hours": 12, "high_value": 1}),
    "a million users predicted for once a day": (
        BATCH, {"coverage": 1, "stable_hours": 24, "cost_matters": 1}),
}  # fmt: skip


def facts_of(values: dict[str, float]) -> dict[str, Figure]:
    return {name: Figure(value, Basis.OPTION) for name, value in values.items()}


def test_there_are_the_articles_sixteen_statements_and_twelve_examples() -> None:
    assert Counter(rule.approach for rule in RULES) == {BATCH: 6, REALTIME: 5, HYBRID: 5}
    assert len({rule.name for rule in RULES}) == len({rule.statement for rule in RULES}) == 16
    assert len(EXAMPLES) == 12
    assert all(rule.because for rule in RULES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_of_the_articles_examples_gets_the_articles_answer(name: str) -> None:
    approach, values = EXAMPLES[name]
    assert judge(facts_of(values)).approach is approach


def test_the_worked_example_is_cheaper_in_batch_too() -> None:
    assert estimate(CostInputs.of(complete_figures(ARTICLE_FIGURES))).savings_percent > 99


#: a value of each rule's facts for which it holds, and one for which it does not
HELD: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "latency-not-critical": ({"latency_ms": 60_000}, {"latency_ms": 59_999}),
    "needed-for-all": ({"coverage": 0.5}, {"coverage": 0.49}),
    "expensive-features": ({"feature_ms": 50}, {"feature_ms": 49}),
    "slow-model": ({"model_ms": 100}, {"model_ms": 99}),
    "cost-first": ({"cost_matters": 1}, {"cost_matters": 1, "performance_matters": 1}),
    "changes-slowly": ({"stable_hours": 24}, {"stable_hours": 23}),
    "low-latency": ({"latency_ms": 99}, {"latency_ms": 100}),
    "fresh-features": ({"fresh_features": 1}, {"fresh_features": 0}),
    "small-subset": ({"coverage": 0.1}, {"coverage": 0.11}),
    "immediate-feedback": ({"immediate_feedback": 1}, {"immediate_feedback": 0}),
    "high-value": ({"high_value": 1}, {"high_value": 0}),
    "mixed-latency": ({"mixed_latency": 1}, {"mixed_latency": 0}),
    "cost-and-performance": ({"cost_matters": 1, "performance_matters": 1},
                             {"cost_matters": 1, "performance_matters": 0}),
    "tolerates-staleness": ({"max_staleness_hours": 1}, {"max_staleness_hours": 1, "fresh_features": 1}),
    "variable-traffic": ({"peak_ratio": 2}, {"peak_ratio": 1.9}),
    "graceful-degradation": ({"must_answer": 1}, {"must_answer": 0}),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_holds_or_not_and_says_nothing_without_its_facts(rule: Rule) -> None:
    holding, failing = HELD[rule.name]
    assert rule.judge(facts_of(holding)) is True
    assert rule.judge(facts_of(failing)) is False
    assert rule.judge({}) is None
    assert set(rule.facts) <= set(FACTS)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.unless is not None], ids=lambda rule: rule.name)
def test_what_would_stand_against_a_rule_does_not_when_it_is_known_to_be_no(rule: Rule) -> None:
    holding = facts_of(HELD[rule.name][0])
    assert rule.unless is not None
    assert [rule.judge({**holding, **facts_of({rule.unless: value})}) for value in (0, 1)] == [True, False]


def test_a_model_that_uses_the_clock_is_not_precomputed() -> None:
    values = EXAMPLES["daily email recommendations"][1]
    judged = judge(facts_of({**values, "uses_clock": 1}))
    assert judged.approach is REALTIME
    assert {each.approach for each in judged.objections} == {BATCH, HYBRID}


def test_fresh_features_rule_batch_out_however_much_speaks_for_it() -> None:
    values = EXAMPLES["daily email recommendations"][1]
    judged = judge(facts_of({**values, "fresh_features": 1}))
    assert judged.approach is not BATCH
    assert all(each.fact in FACTS for each in OBJECTIONS)


def test_when_nothing_is_known_it_is_hybrid_and_no_rule_is_judged() -> None:
    judged = judge({})
    assert (judged.approach, judged.known) == (HYBRID, 0)


def test_where_batch_and_real_time_pull_alike_it_is_hybrid() -> None:
    judged = judge(facts_of({"model_ms": 300, "stable_hours": 24, "latency_ms": 50}))
    assert judged.approach is HYBRID


@pytest.mark.parametrize(
    ("holding", "approach"),
    [
        # batch has twice the support of real time: 2 of 6 against 1 of 5 is less than that, 2 of 6 against none is not
        ({"model_ms": 300, "stable_hours": 24, "latency_ms": 50}, HYBRID),
        ({"model_ms": 300, "stable_hours": 24}, BATCH),
        ({"latency_ms": 50, "high_value": 1, "model_ms": 300}, REALTIME),
    ],
)
def test_how_much_support_decides(holding: dict[str, float], approach: Approach) -> None:
    assert judge(facts_of(holding)).approach is approach


@pytest.mark.parametrize(
    ("batch", "realtime", "approach"),
    [
        (0.4, 0.2, BATCH),  # exactly twice the other's: not torn
        (0.39, 0.2, HYBRID),
        (0.2, 0.4, REALTIME),
        (0.2, 0.39, HYBRID),
        (0.3, 0.3, HYBRID),
        (0.3, 0.0, BATCH),
        (0.0, 0.3, REALTIME),
        (0.0, 0.0, HYBRID),  # a tie
    ],
)
def test_neither_has_twice_the_others_support_is_hybrid(batch: float, realtime: float, approach: Approach) -> None:
    assert _choose({BATCH: batch, REALTIME: realtime, HYBRID: 0.0}, list(Approach)) is approach


def test_what_is_ruled_out_is_not_chosen_though_both_pull_alike() -> None:
    support = {BATCH: 0.3, REALTIME: 0.3, HYBRID: 0.2}
    assert _choose(support, [REALTIME, HYBRID]) is REALTIME
    assert _choose(support, [BATCH, REALTIME]) in (BATCH, REALTIME)
    assert _choose(support | {HYBRID: 0.9}, list(Approach)) is HYBRID
