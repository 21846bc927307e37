"""Advises on one model: which approach fits it, and which schedule, ttl and workers follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from inference.economics.curves import break_even, cost_curve, requests_per_entity, sensitivity
from inference.economics.estimate import Estimate, estimate
from inference.economics.inputs import FIELDS, CostInputs, Figure, check_figure, complete_figures
from inference.economics.measured import Measured
from inference.economics.miss_capacity import miss_capacity
from inference.economics.prices import PriceTable
from inference.economics.rules import LEAST_REQUESTS, RULES, Approach, Facts, Judgement, gather_facts, judge
from inference.economics.traffic_curves import Advised, CurveName, TrafficCurves, duration_setting, traffic_curves
from inference.errors import SettingsError
from inference.settings import ModelSettings, parse_duration
from inference.wording import counted

#: seconds between runs, rarest first, and the schedule that says so
CADENCES = {86_400: "0 3 * * *", 43_200: "12h", 21_600: "6h", 10_800: "3h", 3_600: "1h", 1_800: "30m", 900: "15m",
            300: "5m"}  # fmt: skip
#: seconds between a run's last chunk and its publishing
_SLACK_S = 60.0
#: `doctor` warns of a run that takes more than this share of its interval
RUN_SHARE = 0.5


class Confidence(StrEnum):
    """How much evidence the advice has."""

    #: a day of traffic, several runs, and half of the rules known
    HIGH = "high"
    #: some of each
    MEDIUM = "medium"
    #: almost nothing
    LOW = "low"


@dataclass(frozen=True)
class Number:
    """One number of the advice, None if it is not known. `how`: where it comes from."""

    value: float | str | None
    how: str


@dataclass(frozen=True)
class Advice:
    """The advice about one model.

    `unknowns`: missing knowledge that would raise the confidence. `curves`: hit rates by the log of accesses.
    """

    model: str
    judgement: Judgement
    confidence: Confidence
    unknowns: tuple[str, ...]
    numbers: Mapping[str, Number]
    facts: Facts
    curves: TrafficCurves

    @property
    def approach(self) -> Approach:
        """Batch, real time or hybrid."""
        return self.judgement.approach

    @property
    def reasons(self) -> list[str]:
        """The statements that speak for the approach, and the objections to others."""
        held = [each.rule for each in self.judgement.findings if each.holds and each.rule.approach is self.approach]
        reasons = [f"{rule.statement}: {rule.because}" for rule in held]
        return reasons + [f"not {each.approach.value}: {each.why}" for each in self.judgement.objections]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "model": self.model,
            "approach": self.approach.value,
            "confidence": self.confidence.value,
            "gaps": list(self.unknowns),
            "reasons": self.reasons,
            **{name: number.value for name, number in self.numbers.items()},
            "hit_curves": self.curves.to_json(),
            "explanations": {name: number.how for name, number in self.numbers.items()},
            "facts": {name: figure.to_json() for name, figure in self.facts.items()},
            "rules": [
                {
                    "name": each.rule.name,
                    "approach": each.rule.approach.value,
                    "statement": each.rule.statement,
                    "holds": each.holds,
                }
                for each in self.judgement.findings
            ],
        }


def advise(
    model: str, settings: ModelSettings, measured: Measured, facts: Facts, figures: Mapping[str, Figure]
) -> Advice:
    """Return the advice about one model. `figures`: the known inputs of its cost.

    Raises:
        SettingsError: a figure is not legal.
    """
    judgement = judge(facts)
    confidence, unknowns = _confidence(measured, judgement)
    inputs = None
    if {"entities", "rps"} <= figures.keys():
        inputs = CostInputs.of(figures)
    else:
        unknown = [name for name in ("entities", "rps") if name not in figures]
        unknowns = (*unknowns, f"no cost: {' and '.join(unknown)} not known, neither measured nor given")
    timing, every_s = _timing(judgement.approach, settings, measured, facts, figures)
    numbers = {
        **timing,
        **_costs(judgement.approach, inputs, figures),
        "never_read": Number(measured.never_read, _never_read(measured)),
        "runs_failed": Number(measured.runs_failed, f"beside {measured.runs_published} published, of the last 20"),
    }
    numbers |= _active_set(settings, measured)
    numbers["answers_within_ttl"] = _within(str(numbers["ttl"].value), measured)
    curves = traffic_curves(
        model, settings, measured.accesses, figures, inputs, run_s=measured.run_s, oldest_s=_bound_s(facts),
        advised=_on_curves(numbers, every_s),
    )  # fmt: skip
    return Advice(model, judgement, confidence, unknowns, numbers, facts, curves)


def _on_curves(numbers: Mapping[str, Number], every_s: float | None) -> dict[CurveName, Advised]:
    """Return where the advice stands on the curves, so that they do not advise something else."""
    if every_s is None:
        batch = (CurveName.BATCH_TTL, CurveName.INTERVAL, CurveName.HOTTEST, CurveName.LATEST)
        return dict.fromkeys(batch, Advised(None, "no runs"))
    return {
        CurveName.BATCH_TTL: Advised(parse_duration(str(numbers["ttl"].value)), numbers["ttl"].how),
        CurveName.INTERVAL: Advised(every_s, numbers["schedule"].how),
    }


def _within(ttl: str, measured: Measured) -> Number:
    share = measured.share_no_older_than(parse_duration(ttl) / 3600)
    if share is None:
        return Number(None, "no answer was given within 24 h")
    return Number(round(share, 4), f"share of the answers within 24 h that were no older than {ttl}")


def _never_read(measured: Measured) -> str:
    if measured.never_read is None:
        return "nothing stored or nothing asked for yet"
    return (
        f"about so many of {measured.entities:,.0f} stored: within 7 days "
        f"{counted(measured.asked_week, 'different entity was', 'different entities were')} asked for"
    )


def _confidence(measured: Measured, judgement: Judgement) -> tuple[Confidence, tuple[str, ...]]:
    """Return the confidence, and what is missing for a higher one."""
    hours, of_rules = measured.span_s / 3600, f"of {len(RULES)} rules with known facts"
    wanted = [
        # singular, plural, number there is, number for medium, number for high
        ("prediction asked for within 24 h", "predictions asked for within 24 h", measured.requests, 1_000, 10_000),
        ("hour of traffic", "hours of traffic", round(hours, 1), 1, 20),
        ("published run", "published runs", measured.runs_published, 1, 3),
        (of_rules, of_rules, judgement.known, 5, 8),
    ]
    unknowns = tuple(
        f"{counted(there, one, many)}, {high:,} would do" for one, many, there, _, high in wanted if there < high
    )
    if any(there < medium for _, _, there, medium, _ in wanted):
        return Confidence.LOW, unknowns
    return (Confidence.MEDIUM if unknowns else Confidence.HIGH), unknowns


# --- schedule, ttl, workers ---


def _timing(
    approach: Approach, settings: ModelSettings, measured: Measured, facts: Facts, figures: Mapping[str, Figure]
) -> tuple[dict[str, Number], float | None]:
    """Return schedule, ttl and batch workers, and the seconds between runs; None for no runs."""
    if approach is Approach.REALTIME:
        without_runs = {
            "schedule": Number(None, "no runs: every answer is computed when it is asked for"),
            "ttl": Number(duration_setting(settings.realtime.ttl), "[models.M.realtime] ttl, as it is"),
            "batch_workers": Number(0, "no runs"),
        }
        return without_runs, None
    bound_s = _bound_s(facts)
    run_s = measured.run_s or 0.0
    every_s, schedule = _cadence(bound_s, run_s, settings, figures)
    numbers = {
        "schedule": schedule,
        "ttl": _ttl(every_s, run_s, bound_s),
        "batch_workers": _batch_workers(every_s, figures),
    }
    return numbers, every_s


def _bound_s(facts: Facts) -> float | None:
    """Return how old an answer may be, in seconds: the smaller of the two limits."""
    hours = [facts[name].value for name in ("max_staleness_hours", "stable_hours") if name in facts]
    return min(hours) * 3600 if hours else None


def _cadence(
    bound_s: float | None, run_s: float, settings: ModelSettings, figures: Mapping[str, Figure]
) -> tuple[float, Number]:
    """Return the seconds between runs, and their schedule: the rarest that keeps answers young enough."""
    late_s = 2 * run_s + _SLACK_S
    present, per_day = settings.batch.schedule, figures.get("runs_per_day")
    present_s = 86_400 / per_day.value if present and per_day else None
    if bound_s is None:
        if present is not None and present_s is not None:
            return present_s, Number(present, "as it is: the allowed age of an answer is not known")
        return 86_400, Number(CADENCES[86_400], "once a day: the allowed age of an answer is not known")
    fitting = [every_s for every_s in CADENCES if every_s + late_s <= bound_s]
    every_s = fitting[0] if fitting else min(CADENCES)
    how = f"answers may be {bound_s / 3600:g} h old and a run takes {run_s:.0f} s, or twice that"
    if present is not None and present_s is not None and every_s <= present_s <= bound_s - late_s:
        return present_s, Number(present, f"as it is: {how}")
    if not fitting:
        how += ": no schedule keeps that, so misses must"
    return every_s, Number(CADENCES[every_s], how)


def _ttl(every_s: float, run_s: float, bound_s: float | None) -> Number:
    """Return the age limit for reading: the tolerated age, else the interval, a slow run and a tenth to spare."""
    if bound_s is not None:
        return Number(duration_setting(max(bound_s, 1.0)), "as old as an answer may be")
    ttl_s = 1.1 * every_s + 2 * run_s
    step_s = 3600 if ttl_s > 2 * 3600 else 60
    how = f"the interval of {duration_setting(every_s)}, a run of twice {run_s:.0f} s, and a tenth to spare"
    return Number(duration_setting(math.ceil(round(ttl_s / step_s, 6)) * step_s), how)


def _batch_workers(every_s: float, figures: Mapping[str, Figure]) -> Number:
    entities, throughput = figures.get("entities"), figures.get("throughput")
    if entities is None or throughput is None:
        return Number(None, "the number of entities is not known")
    needed = max(math.ceil(entities.value / throughput.value / (every_s * RUN_SHARE)), 1)
    rate = f"{throughput.value:,.0f} predictions/s ({throughput.origin.value})"
    how = f"{counted(round(entities.value), 'entity', 'entities')} at {rate} in half the interval"
    return Number(needed, how)


# --- money ---


def _costs(approach: Approach, inputs: CostInputs | None, figures: Mapping[str, Figure]) -> dict[str, Number]:
    hit_rate = figures["hit_rate"]
    check_figure("hit_rate", hit_rate.value)
    shown = Number(hit_rate.value, f"{hit_rate.origin.value}: {hit_rate.how}")
    if inputs is None:
        unknown = Number(None, "see the gaps")
        names = ("realtime_instances", "cost_per_day", "cost_per_1000_served", "break_even", "instances_if_a_run_fails")
        return {"hit_rate": shown} | dict.fromkeys(names, unknown)
    costs, even = estimate(inputs), break_even(inputs)
    daily, served, instances = costs_of(approach, costs)
    prices = f"{inputs.instance_price:g} an instance and hour, {inputs.redis_price:g} a GB of Redis and month"
    return {
        "hit_rate": shown,
        "realtime_instances": Number(instances, f"for a peak of {inputs.peak_rps:,.3g} requests/s at this hit rate"),
        "cost_per_day": Number(daily, f"batch {costs.batch.daily:.4g}, real time {costs.realtime.daily:.4g}, hybrid "
                                      f"{costs.hybrid.daily:.4g}, at {prices}"),
        "cost_per_1000_served": Number(served, f"over {inputs.rps:.4g} requests/s"),
        "break_even": Number(even.whole, "requests per entity and day from which on batch is not dearer; "
                                         f"{even.shared:.4g} where instances are shared with other models"),
        "instances_if_a_run_fails": Number(
            costs.hybrid.if_a_run_fails, "so many answer all requests alone once the stored predictions are too old"),
    }  # fmt: skip


def _active_set(settings: ModelSettings, measured: Measured) -> dict[str, Number]:
    """Return what real time bears beside an active set; nothing if runs score all entities."""
    if settings.batch.rule.is_all:
        return {}
    capacity = miss_capacity(settings, measured)
    if capacity is None:
        unknown = "too little is known yet of the requests that the active set leaves out"
        return {"workers_beside_active_set": Number(None, unknown)}
    how = f"{capacity.text}; if a run fails, it takes {capacity.workers_if_a_run_fails}"
    return {"workers_beside_active_set": Number(capacity.workers, how)}


def costs_of(approach: Approach, costs: Estimate) -> tuple[float, float, int]:
    """Return the daily cost of an approach, its cost per 1 000 answers, and its real-time instances."""
    if approach is Approach.BATCH:
        return costs.batch.daily, costs.batch.per_1000_served, 0
    if approach is Approach.REALTIME:
        return costs.realtime.daily, costs.realtime.per_prediction * 1000, costs.realtime.instances
    return costs.hybrid.daily, costs.hybrid.per_1000_served, costs.hybrid.instances


# --- the report of the dashboard ---


@dataclass(frozen=True)
class CostReport:
    """All costs of one model, as the dashboard shows them. `inputs`: None if one is unknown; `missing` says which.

    `requests`: within the 24 hours that were measured. With too few, or without a cost, the page advises nothing.
    """

    figures: Mapping[str, Figure]
    inputs: CostInputs | None
    missing: str | None
    advice: Advice
    prices: PriceTable
    requests: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `estimate`, `curve` and the like are None when too little is known."""
        inputs = self.inputs
        return {
            "missing": self.missing,
            "is_advised": inputs is not None and self.requests >= LEAST_REQUESTS,
            "currency": self.prices.currency,
            "prices_as_of": self.prices.as_of.isoformat(),
            "advice": self.advice.to_json(),
            "inputs": [
                {"name": name, "unit": FIELDS[name].unit, **figure.to_json()} for name, figure in self.figures.items()
            ],
            "estimate": None if inputs is None else estimate(inputs).to_json(),
            "requests_per_entity_and_day": None if inputs is None else requests_per_entity(inputs),
            "break_even": None if inputs is None else break_even(inputs).to_json(),
            "curve": None if inputs is None else cost_curve(inputs).to_json(),
            "sensitivity": [] if inputs is None else [swing.to_json() for swing in sensitivity(inputs)],
        }


def cost_report(model: str, settings: ModelSettings, measured: Measured, prices: PriceTable) -> CostReport:
    """Return the costs of one model, from measurements, prices and defaults."""
    figures = complete_figures(measured.figures, prices.figures())
    advice = advise(model, settings, measured, gather_facts({}, settings, measured), figures)
    try:
        return CostReport(figures, CostInputs.of(figures), None, advice, prices, measured.requests)
    except SettingsError as error:
        return CostReport(figures, None, error.message, advice, prices, measured.requests)
