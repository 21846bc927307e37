from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from inference.economics.inputs import Basis, CostInputs, Figure, complete_figures
from inference.economics.prices import read_prices
from inference.economics.traffic_curves import Advised, CurveName, TrafficCurves, traffic_curves
from inference.monitoring.access_sample import AccessSample
from inference.monitoring.asked_filters import DAY_S
from inference.settings import AccessLogSettings, BatchSettings, ModelSettings

FIRST_DAY = 20_000


def model(**batch: object) -> ModelSettings:
    made = BatchSettings(**{"schedule": "0 3 * * *", "ttl": "30h", **batch})  # type: ignore[arg-type]
    return ModelSettings(path=Path("m"), batch=made)


def sample_of(accesses: int, entities: int, days: int = 4) -> AccessSample:
    """Return everything that Zipf's law has asked for."""
    rng = np.random.default_rng(2)
    chances = np.cumsum(1 / np.arange(1, entities + 1))
    entity = np.searchsorted(chances, rng.random(accesses) * chances[-1]).astype(np.uint64)
    at = FIRST_DAY * DAY_S + rng.random(accesses) * days * DAY_S
    order = np.lexsort((at, entity))
    numbers, counts = np.unique((at // DAY_S).astype(int), return_counts=True)
    return AccessSample(
        entity[order],
        at[order],
        at[order],
        np.ones(accesses, np.int64),
        np.zeros(accesses, np.bool_),
        1.0,
        dict(zip(numbers.tolist(), counts.tolist(), strict=True)),
        {},
        {},
        float(len(np.unique(entity))),
        float(FIRST_DAY * DAY_S),
        float((FIRST_DAY + days) * DAY_S),
    )


FIGURES = complete_figures(
    {
        "entities": Figure(5_000, Basis.MEASURED),
        "rps": Figure(500, Basis.MEASURED),
        "peak_rps": Figure(2_000, Basis.MEASURED),
        "runs_per_day": Figure(1, Basis.SETTINGS),
        "hit_rate": Figure(0.97, Basis.MEASURED),
    },
    read_prices().figures(),
)


def curves_of(
    sample: AccessSample, settings: ModelSettings | None = None, oldest_s: float | None = None
) -> TrafficCurves:
    return traffic_curves(
        "m", settings or model(), sample, FIGURES, CostInputs.of(FIGURES), run_s=600.0, oldest_s=oldest_s
    )


def test_every_curve_has_the_point_of_today_and_an_advised_one() -> None:
    found = curves_of(sample_of(20_000, 5_000))
    assert found.too_little is None
    assert [curve.name for curve in found.curves] == list(CurveName)
    todays = {curve.name: curve.label(curve.today) for curve in found.curves}
    assert todays == {
        CurveName.BATCH_TTL: "30h",
        CurveName.HOTTEST: "100 %",
        CurveName.LATEST: "100 %",
        CurveName.INTERVAL: "24h",
        CurveName.REALTIME_TTL: "1h",
    }
    for curve in found.curves:
        assert curve.advised in curve.points
        assert all(point.cost_per_day is not None for point in curve.points)
        if curve.name is not CurveName.INTERVAL:
            assert all(less.hit_rate.value <= more.hit_rate.value for less, more in pairwise(curve.points))
    assert found.to_json()["measured_hit_rate"] == 0.97


def test_no_longer_ttl_or_interval_is_advised_than_an_answer_may_be_old() -> None:
    found = curves_of(sample_of(20_000, 5_000), oldest_s=7200.0)
    for curve in found.curves:
        if not curve.name.is_share:
            assert curve.advised is not None
            assert curve.advised.at <= 7200


def test_fewer_misses_cost_fewer_instances() -> None:
    found = {curve.name: curve for curve in curves_of(sample_of(20_000, 5_000)).curves}
    first, *_, last = found[CurveName.HOTTEST].points
    assert first.cost_per_day is not None
    assert last.cost_per_day is not None
    assert last.cost_per_day < first.cost_per_day
    advised = found[CurveName.HOTTEST].advised
    assert advised is not None
    assert advised.hit_rate.value >= 0.99


@pytest.mark.parametrize(("accesses", "entities", "days"), [(900, 400, 4), (5_000, 20, 4)])
def test_too_little_traffic_is_shown_with_its_bounds_and_advises_nothing(
    accesses: int, entities: int, days: int
) -> None:
    found = curves_of(sample_of(accesses, entities, days))
    assert found.too_little is not None
    assert f"{accesses:,} accesses within" in found.too_little
    assert found.curves
    assert all(curve.advised is None for curve in found.curves)


def test_a_sample_that_says_little_advises_nothing() -> None:
    whole = sample_of(9_000, 6_000)
    kept = whole.entity % 60 == 0
    part = replace(
        whole,
        entity=whole.entity[kept],
        begun=whole.begun[kept],
        ended=whole.ended[kept],
        accesses=whole.accesses[kept],
        popular=whole.popular[kept],
        rate=1 / 60,
    )
    assert part.entities >= 30
    found = {curve.name: curve for curve in curves_of(part, model(ttl="1h")).curves}
    assert found[CurveName.REALTIME_TTL].advised is None
    assert "too uncertain" in found[CurveName.REALTIME_TTL].why


def test_without_a_log_nothing_is_shown() -> None:
    off = model().model_copy(update={"access_log": AccessLogSettings(enabled=False)})
    found = curves_of(AccessSample.empty(), off)
    assert (list(found.curves), found.too_little) == (
        [],
        "the access log is off: set enabled = true in [models.M.access_log]",
    )


def test_without_a_schedule_there_is_no_curve_of_the_batch_ttl() -> None:
    found = curves_of(sample_of(20_000, 5_000), model(schedule=None))
    assert CurveName.BATCH_TTL not in [curve.name for curve in found.curves]
    shares = next(curve for curve in found.curves if curve.name is CurveName.HOTTEST)
    assert shares.label(shares.today) == "0 %"


def test_a_point_that_the_advice_has_chosen_is_the_advised_one() -> None:
    sample, settings = sample_of(20_000, 5_000), model()
    given = {
        CurveName.BATCH_TTL: Advised(100_000.0, "as old as an answer may be"),
        CurveName.INTERVAL: Advised(None, "no runs"),
    }
    found = traffic_curves("m", settings, sample, FIGURES, CostInputs.of(FIGURES), run_s=600.0, advised=given)
    curves = {curve.name: curve for curve in found.curves}
    ttl = curves[CurveName.BATCH_TTL]
    assert ttl.advised is not None
    assert ttl.advised.at == 100_000
    assert ttl.advised in ttl.points
    assert ttl.why.startswith("as old as an answer may be")
    assert (curves[CurveName.INTERVAL].advised, curves[CurveName.INTERVAL].why[:7]) == (None, "no runs")


def test_an_assumed_hit_rate_is_not_called_measured() -> None:
    assumed = FIGURES | {"hit_rate": Figure(0.9, Basis.DEFAULT, "an assumption")}
    found = traffic_curves("m", model(), sample_of(900, 400), assumed, None)
    assert found.to_json()["measured_hit_rate"] is None
