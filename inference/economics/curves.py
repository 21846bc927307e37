"""Computes cost curves over traffic, the break-even of batch and real time, and the sensitivity to each input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from inference.economics.estimate import HOURS_PER_DAY, SECONDS_PER_DAY, Estimate, estimate
from inference.economics.inputs import FIELDS, CostInputs
from inference.errors import SettingsError

#: the share by which `sensitivity` moves each input by default
SWING = 0.25
_POINTS = 240


@dataclass(frozen=True)
class BreakEven:
    """Requests per entity and day from which batch costs no more than real time.

    `whole`: instances are bought whole; 0 if batch is cheaper at any traffic. `shared`: many models share instances,
    and each pays for its use.
    """

    whole: float
    shared: float

    def to_json(self) -> dict[str, float]:
        """Return plain JSON values."""
        return vars(self).copy()


def break_even(inputs: CostInputs) -> BreakEven:
    """Return the traffic at which batch and real time cost the same. The ratio of peak to mean stays the same.

    Solves `instances_needed` for the traffic: n instances are enough up to n · rate · utilisation / (1 + headroom)
    requests a second at the peak.
    """
    batch_daily = estimate(inputs).batch.daily
    instance_daily = inputs.instance_price * HOURS_PER_DAY
    peak_of_one = inputs.instance_rps * inputs.utilisation / (1 + inputs.headroom)
    # one instance is enough for so many requests per entity and day
    requests_of_one = peak_of_one * inputs.rps / inputs.peak_rps * SECONDS_PER_DAY / inputs.entities
    needed = math.ceil(round(batch_daily / instance_daily, 9))
    whole = 0.0 if needed <= inputs.min_replicas else (needed - 1) * requests_of_one
    return BreakEven(whole, batch_daily / instance_daily * requests_of_one)


def with_requests(inputs: CostInputs, per_entity_and_day: float) -> CostInputs:
    """Return the inputs with another traffic. The ratio of peak to mean stays the same."""
    rps = per_entity_and_day * inputs.entities / SECONDS_PER_DAY
    # max: a rounding error must not put the peak below the mean
    return replace(inputs, rps=rps, peak_rps=max(rps, rps * inputs.peak_rps / inputs.rps))


def requests_per_entity(inputs: CostInputs) -> float:
    """Return the mean number of requests per entity and day."""
    return inputs.rps * SECONDS_PER_DAY / inputs.entities


@dataclass(frozen=True)
class Curve:
    """The daily cost at each traffic (sequences of equal length). `now`: the traffic of the inputs."""

    requests: Sequence[float]
    batch: Sequence[float]
    realtime: Sequence[float]
    hybrid: Sequence[float]
    now: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: list(values) if isinstance(values, Sequence) else values for name, values in vars(self).items()}


def cost_curve(inputs: CostInputs) -> Curve:
    """Return the costs from 1/100 to 100 times today's traffic, in even steps of its logarithm.

    The range is wider if the break-even is outside.
    """
    now, even = requests_per_entity(inputs), break_even(inputs)
    marks = [now, *(mark for mark in (even.whole, even.shared) if mark > 0)]
    low, high = math.log(min(now / 100, min(marks) / 3)), math.log(max(now * 100, max(marks) * 3))
    requests = [math.exp(low + (high - low) * step / (_POINTS - 1)) for step in range(_POINTS)]
    at: list[Estimate] = [estimate(with_requests(inputs, each)) for each in requests]
    return Curve(
        requests,
        [each.batch.daily for each in at],
        [each.realtime.daily for each in at],
        [each.hybrid.daily for each in at],
        now,
    )


@dataclass(frozen=True)
class Swing:
    """The hybrid total if one input is lower or higher."""

    name: str
    low: float
    high: float
    at_low: float
    at_high: float

    @property
    def span(self) -> float:
        """The difference between both totals."""
        return abs(self.at_high - self.at_low)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return vars(self).copy()


def sensitivity(inputs: CostInputs, swing: float = SWING) -> list[Swing]:
    """Return how the hybrid total changes if one input changes by the share `swing`, the largest change first.

    Leaves out inputs without effect. The mean and the peak of the traffic move together. A share stops at the end of
    its range.
    """
    swings = []
    for name in FIELDS:
        # the peak moves with the mean; there is no quarter of an instance
        if name in ("peak_rps", "min_replicas") or not getattr(inputs, name):
            continue
        low, high = _moved(inputs, name, 1 - swing), _moved(inputs, name, 1 + swing)
        ends = [(getattr(end, name), estimate(end).hybrid.daily) for end in (low, high)]
        swings.append(Swing(name, ends[0][0], ends[1][0], ends[0][1], ends[1][1]))
    return sorted((each for each in swings if each.span > 0), key=lambda each: -each.span)


def _moved(inputs: CostInputs, name: str, factor: float) -> CostInputs:
    if name == "rps":
        return replace(inputs, rps=inputs.rps * factor, peak_rps=inputs.peak_rps * factor)
    value = getattr(inputs, name) * factor
    try:
        return replace(inputs, **{name: value})
    except SettingsError:  # beyond the range of a share
        return replace(inputs, **{name: 0.999 if name == "spot_discount" else 1.0})
