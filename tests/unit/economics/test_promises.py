"""The figures of a day that the advice promises, and those that come."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from inference.economics.advice import CostReport, cost_report
from inference.economics.inputs import Basis, Figure
from inference.economics.measured import Measured
from inference.economics.prices import read_prices
from inference.economics.promises import DayFigures, came_of, promise_of, with_requests_of
from inference.monitoring.statistics import Point, Statistics
from inference.settings import BatchSettings, ModelSettings

SETTINGS = ModelSettings(path=Path("m"), features="t", batch=BatchSettings(schedule="6h", ttl="12h"))
KNOWN = {
    "entities": 1e6,
    "rps": 50,
    "peak_rps": 200,
    "hit_rate": 0.9,
    "runs_per_day": 4,
    "throughput": 1000,
    "instance_rps": 1,
}


def report(requests: int = 1000, **known: float) -> CostReport:
    figures = {name: Figure(value, Basis.MEASURED, "counted") for name, value in (known or KNOWN).items()}
    statistics = Statistics.of({"hit_batch": requests})
    return cost_report("m", SETTINGS, Measured("m", figures, statistics), read_prices())


def day_of(*points: tuple[int, int]) -> list[Point]:
    """A day of points, hits and misses of each, filled up with silence."""
    silent = [(0, 0)] * (144 - len(points))
    return [
        Point(600 * number, Statistics.of({"hit_batch": hits, "computed": misses}))
        for number, (hits, misses) in enumerate([*points, *silent])
    ]


def cost(figures: DayFigures) -> float:
    assert figures.cost is not None
    return figures.cost


def promised() -> DayFigures:
    figures = promise_of(report())
    assert figures is not None
    return figures


def test_the_promise_is_what_the_advice_says() -> None:
    told = report()
    figures = promised()
    assert (figures.approach, figures.hit_rate, figures.peak_rps) == ("hybrid", 0.9, 200)
    assert figures.cost == told.advice.numbers["cost_per_day"].value
    assert figures.peak_misses_rps == pytest.approx(20)
    assert (figures.currency, figures.requests) == ("USD", None)


@pytest.mark.parametrize("told", [report(99), report(1000, rps=50)], ids=["few requests", "no entities"])
def test_too_little_is_known_for_a_promise(told: CostReport) -> None:
    assert promise_of(told) is None


def test_a_day_like_the_one_before_comes_as_promised() -> None:
    # 50 requests/s on average, a tenth of them misses, at the peak four times as many
    came = came_of(promised(), day_of((108_000, 12_000), *[(26_433, 2_937)] * 143), runs=4)
    assert came.hit_rate == pytest.approx(0.9)
    assert came.peak_rps == pytest.approx(200)
    assert came.peak_misses_rps == pytest.approx(20)
    assert came.cost == pytest.approx(promised().cost, rel=1e-3)
    assert came.requests == 120_000 + 143 * 29_370


def test_the_requests_of_the_same_weekday_are_promised_with_todays_hit_rate() -> None:
    quiet = with_requests_of(promised(), day_of((30_000, 30_000), *[(500, 500)] * 143))
    assert (quiet.hit_rate, quiet.peak_rps) == (0.9, 100)
    assert quiet.peak_misses_rps == pytest.approx(10)
    assert cost(quiet) < cost(promised())
    # hardly anybody asked, as on the day on which a deployment begins
    assert with_requests_of(promised(), day_of((90, 9))) == promised()


def test_misses_runs_and_peaks_of_the_day_make_its_cost() -> None:
    asked = [(40_000, 4_000)] * 144
    usual = came_of(promised(), day_of(*asked), runs=4)
    missing = came_of(promised(), day_of((0, 600_000), *asked[1:]), runs=4)
    fewer = came_of(promised(), day_of(*asked), runs=1)
    unknown = came_of(promised(), day_of(*asked), runs=None)
    assert missing.peak_misses_rps == 1000
    assert cost(missing) > cost(usual) > cost(fewer)
    assert cost(unknown) == cost(usual)
    assert cost(came_of(promised(), day_of(*asked), runs=0)) < cost(fewer)


def test_a_day_without_requests_says_so() -> None:
    came = came_of(promised(), day_of(), runs=4)
    assert came.requests == 0
    assert (came.hit_rate, came.cost, came.peak_rps, came.peak_misses_rps) == (None, None, None, None)


def test_a_promise_of_a_release_with_other_inputs_has_no_cost_to_compare_with() -> None:
    other = replace(promised(), inputs={"entities": 5.0})
    came = came_of(other, day_of((90, 10)), runs=1)
    assert came.hit_rate == pytest.approx(0.9)
    assert came.cost is None
