"""Evaluates the alerting rules of `docker/prometheus` over scrapes of a real deployment, as Prometheus would.

Knows what the rules and Grafana's panels use: selectors with an offset, `rate`, `increase` and `histogram_quantile`,
`min`, `max` and `sum`, arithmetic, and comparisons. Anything else raises.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import promql_parser
import yaml
from prometheus_client.parser import text_string_to_metric_families

RULES = Path(__file__).resolve().parents[2] / "docker" / "prometheus" / "alerts.yml"
#: as Prometheus: the newest sample within this time is the value of a moment
LOOKBACK_S = 300.0

Labels = tuple[tuple[str, str], ...]
Vector = dict[Labels, float]
_ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip
_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le,
}  # fmt: skip
_AGGREGATIONS: Mapping[str, Callable[[list[float]], float]] = {"sum": sum, "min": min, "max": max}
_NEGATED = (promql_parser.MatchOp.NotEqual, promql_parser.MatchOp.NotRe)
_REGULAR = (promql_parser.MatchOp.Re, promql_parser.MatchOp.NotRe)


@dataclass
class Scrapes:
    """The samples of one target: (time, name → series). `at`: seconds of any clock."""

    taken: list[tuple[float, dict[str, Vector]]] = field(default_factory=list)

    def add(self, at: float, text: str | None) -> None:
        """Add the answer of `/metrics`; None: there was none."""
        found: dict[str, Vector] = {"up": {(("job", "forecache"),): 0.0 if text is None else 1.0}}
        for family in text_string_to_metric_families(text or ""):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        self.taken.append((at, found))

    def value(self, expression: str, at: float) -> Vector:
        """Return the series that a rule's expression leaves over at a time; none: the alert is quiet."""
        found = _evaluate(promql_parser.parse(expression), self, at)
        assert isinstance(found, dict)
        return found

    def newest(self, selector: Any, at: float) -> Vector:
        """Return the series that a selector selects."""
        at -= selector.offset.total_seconds() if selector.offset else 0.0
        for taken_at, samples in reversed(self.taken):
            if at - LOOKBACK_S < taken_at <= at:
                return {
                    labels: value for labels, value in samples.get(selector.name, {}).items() if _fits(selector, labels)
                }
        return {}

    def increase(self, selector: Any, at: float, range_s: float) -> Vector:
        """Return how much counters grew within the range; one that begins there has no growth, as in Prometheus."""
        within = [samples.get(selector.name, {}) for taken_at, samples in self.taken if at - range_s <= taken_at <= at]
        grown: Vector = {}
        for before, after in itertools.pairwise(within):
            for labels, value in after.items():
                if labels in before and _fits(selector, labels):
                    grown[labels] = grown.get(labels, 0.0) + (
                        value - before[labels] if value >= before[labels] else value
                    )
        return grown


def rules() -> dict[str, str]:
    """Return the expression of each alert."""
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {one["alert"]: one["expr"] for one in group["rules"]}


def _fits(selector: Any, labels: Labels) -> bool:
    values = dict(labels)
    return all(_matches(one, values.get(one.name, "")) for one in selector.matchers.matchers)


def _matches(matcher: Any, value: str) -> bool:
    held = re.fullmatch(matcher.value, value) is not None if matcher.op in _REGULAR else matcher.value == value
    return held is not (matcher.op in _NEGATED)


def _evaluate(node: Any, scrapes: Scrapes, at: float) -> Vector | float:
    if isinstance(node, promql_parser.NumberLiteral):
        return float(node.val)
    if isinstance(node, promql_parser.ParenExpr):
        return _evaluate(node.expr, scrapes, at)
    if isinstance(node, promql_parser.VectorSelector):
        return scrapes.newest(node, at)
    if isinstance(node, promql_parser.Call):
        return _call(node, scrapes, at)
    if isinstance(node, promql_parser.AggregateExpr):
        return _aggregate(node, scrapes, at)
    assert isinstance(node, promql_parser.BinaryExpr), node
    return _combine(str(node.op), _evaluate(node.lhs, scrapes, at), _evaluate(node.rhs, scrapes, at))


def _call(node: Any, scrapes: Scrapes, at: float) -> Vector | float:
    name = node.func.name
    if name == "time":
        return at
    if name == "histogram_quantile":
        share, buckets = (_evaluate(one, scrapes, at) for one in node.args)
        assert isinstance(share, float)
        assert isinstance(buckets, dict)
        return _quantiles(share, buckets)
    assert name in ("rate", "increase"), name
    (matrix,) = node.args
    range_s = matrix.range.total_seconds()
    grown = scrapes.increase(matrix.vector_selector, at, range_s)
    return {labels: value / (range_s if name == "rate" else 1.0) for labels, value in grown.items()}


def _quantiles(share: float, buckets: Vector) -> Vector:
    """Return the upper bound of the bucket that holds the quantile, for each group of buckets with any counts."""
    groups: dict[Labels, list[tuple[float, float]]] = {}
    for labels, count in buckets.items():
        bound = float(dict(labels)["le"])
        groups.setdefault(tuple(pair for pair in labels if pair[0] != "le"), []).append((bound, count))
    found: Vector = {}
    for labels, counts in groups.items():
        counts.sort()
        whole = counts[-1][1]
        if whole:
            found[labels] = next(bound for bound, count in counts if count >= share * whole)
    return found


def _aggregate(node: Any, scrapes: Scrapes, at: float) -> Vector:
    kept = set(node.modifier.labels) if node.modifier else set()
    groups: dict[Labels, list[float]] = {}
    inner = _evaluate(node.expr, scrapes, at)
    assert isinstance(inner, dict)
    for labels, value in inner.items():
        groups.setdefault(tuple(pair for pair in labels if pair[0] in kept), []).append(value)
    return {labels: _AGGREGATIONS[str(node.op)](values) for labels, values in groups.items()}


def _combine(op: str, left: Vector | float, right: Vector | float) -> Vector | float:
    if not isinstance(left, dict) and not isinstance(right, dict):
        return _ARITHMETIC[op](left, right)
    sides = [set(side) for side in (left, right) if isinstance(side, dict)]
    pairs = {labels: (_of(left, labels), _of(right, labels)) for labels in set.intersection(*sides)}
    if op in _COMPARISONS:
        return {one: pair[0] for one, pair in pairs.items() if _COMPARISONS[op](*pair)}
    return {one: _ARITHMETIC[op](*pair) for one, pair in pairs.items()}


def _of(side: Vector | float, labels: Labels) -> float:
    return side[labels] if isinstance(side, dict) else side
