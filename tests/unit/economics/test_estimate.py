"""The cost formulas against tables worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.economics.curves import break_even, cost_curve, sensitivity, with_requests
from inference.economics.estimate import (
    ARTICLE_FIGURES,
    article_estimate,
    batch_compute_cost,
    estimate,
    instances_needed,
    stored_cost,
)
from inference.economics.inputs import Basis, CostInputs, Figure, complete_figures
from inference.errors import SettingsError

ARTICLE = CostInputs.of(complete_figures(ARTICLE_FIGURES))


@pytest.mark.parametrize(
    ("inputs", "by_hand"),
    [
        # 4 runs x (60 s + 3 600 000 / 1 000 s) = 14 640 s = 4.0667 h, at 3 an hour
        ({"runs_per_day": 4, "startup_s": 60}, 12.2),
        # the same at 70 % off, with a tenth done twice: 12.2 x 0.3 x 1.1
        ({"runs_per_day": 4, "startup_s": 60, "spot_discount": 0.7, "retry_factor": 0.1}, 4.026),
        # one hour
        ({}, 3.0),
    ],
)
def test_what_runs_cost_to_compute(inputs: dict[str, float], by_hand: float) -> None:
    plain = {"entities": 3_600_000, "runs_per_day": 1, "throughput": 1_000, "startup_s": 0, "price_per_hour": 3}
    told: Any = {**plain, "spot_discount": 0, "retry_factor": 0, **inputs}
    assert batch_compute_cost(**told) == pytest.approx(by_hand)


def test_what_predictions_cost_to_keep_is_a_monthly_price_by_the_day() -> None:
    # 1e9 predictions x 20 bytes x 3 copies = 60 GB, at 7.30 a GB and month = 438 a month = 0.6 an hour
    assert stored_cost(entities=1e9, bytes_each=20, copies=3, price_per_gb_month=7.3) == pytest.approx(14.4)


@pytest.mark.parametrize(
    ("peak", "hit", "headroom", "rate", "utilisation", "least", "by_hand"),
    [
        (100, 0, 0.5, 100, 1, 1, 2),  # the article: 1.5
        (1_000, 0.9, 0.2, 50, 0.6, 1, 4),  # 100 misses x 1.2 = 120, over 30 each
        (1_000, 1, 0.5, 100, 1, 2, 2),  # nothing left but the least
        (100, 0, 0.1, 110, 1, 1, 1),  # exactly one, though 100 x 1.1 is a hair more than 110 in binary
        (100, 0, 0, 100, 1, 1, 1),
        (100.1, 0, 0, 100, 1, 1, 2),
    ],
)
def test_how_many_instances_a_peak_needs(
    peak: float, hit: float, headroom: float, rate: float, utilisation: float, least: float, by_hand: int
) -> None:
    needed = instances_needed(
        peak_rps=peak, hit_rate=hit, headroom=headroom, instance_rps=rate, utilisation=utilisation, min_replicas=least
    )
    assert needed == by_hand


def test_the_articles_example_comes_out_to_the_cent_and_its_slip_is_told() -> None:
    both = article_estimate(ARTICLE)
    told = both.as_written
    assert told.batch.compute == pytest.approx(0.083333, abs=1e-6)
    assert told.batch.memory == pytest.approx(0.025)
    assert told.batch.daily == pytest.approx(0.108333, abs=1e-6)
    assert told.batch.per_prediction == pytest.approx(1.08333e-7, rel=1e-5)
    assert (told.realtime.instances, told.realtime.daily) == (2, 240)
    assert told.realtime.per_prediction == pytest.approx(240 / 8_640_000)
    assert told.savings_percent == pytest.approx(99.95486, abs=1e-5)
    # 0.1 GB at 0.25 a month, of which a day is 24 of 730 hours
    assert both.corrected.batch.memory == pytest.approx(0.025 * 24 / 730)
    assert both.corrected.batch.daily == pytest.approx(0.084155, abs=1e-6)
    assert "0.084155" in both.slip
    assert "0.108333" in both.slip


def test_the_articles_storage_counts_each_of_a_days_runs() -> None:
    # the article: total_preds is entities x predictions a day
    twice = article_estimate(replace(ARTICLE, runs_per_day=2)).as_written.batch
    assert (twice.compute, twice.memory) == (pytest.approx(2 * 0.083333, abs=1e-6), pytest.approx(0.05))
    assert twice.per_prediction == pytest.approx(1.08333e-7, rel=1e-5)


def test_hybrid_is_batch_and_cache_and_the_instances_for_the_misses() -> None:
    inputs = replace(ARTICLE, rps=1_000, peak_rps=2_000, hit_rate=0.95, redis_price=73)
    told = estimate(inputs)
    # 2 000 x 0.05 x 1.5 / 100 = 1.5; 0.1 GB x 73 x 24 / 730 = 0.24
    assert told.hybrid.instances == 2
    assert told.hybrid.daily == pytest.approx(0.083333 + 0.24 + 240, abs=1e-6)
    assert told.hybrid.per_1000_served == pytest.approx(told.hybrid.daily / 86_400)
    assert (told.hybrid.if_a_run_fails, told.realtime.instances) == (30, 30)
    assert told.hybrid.precomputes


def test_where_runs_cost_more_than_they_spare_the_cheapest_hybrid_only_caches() -> None:
    told = estimate(replace(ARTICLE, throughput=1))  # 278 hours of computing a day
    assert not told.hybrid.precomputes
    assert told.hybrid.daily == pytest.approx(240 + 0.000822, abs=1e-6)
    assert told.hybrid.everything > told.hybrid.daily
    # what no run answers is no miss of an hour, but all there is
    assert (told.hybrid.instances, told.realtime.instances) == (2, 2)
    assert told.hybrid.per_1000_served == pytest.approx(told.hybrid.daily / 8_640)


@pytest.mark.parametrize(("price", "precomputes", "instances"), [(120, True, 1), (120.001, False, 2)])
def test_runs_that_cost_what_they_spare_are_worth_it_and_dearer_ones_not(
    price: float, precomputes: bool, instances: int
) -> None:
    # one hour of computing a day, in the place of one of two instances at 5 an hour
    inputs = replace(ARTICLE, entities=3_600, throughput=1, batch_instance_price=price, redis_price=0, hit_rate=0.5)
    told = estimate(replace(inputs, instance_price=5)).hybrid
    assert (told.precomputes, told.instances) == (precomputes, instances)


@pytest.mark.parametrize(("generations", "replicas"), [(1, 1), (1, 2), (3, 1), (2, 3)])
def test_each_generation_is_kept_on_each_replica(generations: float, replicas: float) -> None:
    # 1e6 x 100 bytes = 0.1 GB a copy, at 73 a GB and month = 0.24 a day
    kept = estimate(replace(ARTICLE, generations=generations, replicas=replicas, redis_price=73, bytes=100))
    assert kept.batch.memory == pytest.approx(0.24 * generations * replicas)
    assert kept.batch.daily == pytest.approx(0.083333 + kept.batch.memory, abs=1e-6)


def test_files_are_kept_for_every_run_and_day() -> None:
    kept = estimate(replace(ARTICLE, runs_per_day=2, storage_bytes=50, storage_days=30, storage_price=7.3))
    # 2 x 1e6 x 50 bytes x 30 days = 3 GB
    assert kept.batch.storage == pytest.approx(3 * 7.3 * 24 / 730)


# --- properties ---

amounts = st.floats(min_value=1e-3, max_value=1e6)
shares = st.floats(min_value=0, max_value=1)


@st.composite
def inputs_of_any_kind(draw: st.DrawFn) -> CostInputs:
    rps = draw(amounts)
    return CostInputs(
        entities=draw(st.floats(1, 1e9)), runs_per_day=draw(st.floats(0.1, 1000)), throughput=draw(amounts),
        startup_s=draw(st.floats(0, 1e4)), batch_instance_price=draw(amounts),
        spot_discount=draw(st.floats(0, 0.99)), retry_factor=draw(st.floats(0, 2)),
        rps=rps, peak_rps=rps * draw(st.floats(1, 50)), instance_price=draw(amounts), instance_rps=draw(amounts),
        headroom=draw(st.floats(0, 3)), utilisation=draw(st.floats(0.05, 1)),
        min_replicas=float(draw(st.integers(1, 20))), hit_rate=draw(shares), redis_price=draw(st.floats(0, 1e3)),
        bytes=draw(st.floats(1, 1e5)), generations=draw(st.floats(1, 5)), replicas=draw(st.floats(1, 5)),
        storage_price=draw(st.floats(0, 10)), storage_bytes=draw(st.floats(0, 1e5)),
        storage_days=draw(st.floats(0, 400)),
    )  # fmt: skip


@given(inputs_of_any_kind(), st.floats(1, 100))
def test_more_traffic_never_lowers_any_total(inputs: CostInputs, factor: float) -> None:
    less = estimate(inputs)
    more = estimate(replace(inputs, rps=inputs.rps * factor, peak_rps=inputs.peak_rps * factor))
    assert more.batch.daily >= less.batch.daily
    assert more.realtime.daily >= less.realtime.daily
    assert more.hybrid.daily >= less.hybrid.daily


@given(inputs_of_any_kind())
def test_hybrid_is_never_dearer_than_the_dearer_of_the_two_plus_the_cache(inputs: CostInputs) -> None:
    told = estimate(inputs)
    assert told.hybrid.daily <= (max(told.batch.daily, told.realtime.daily) + told.batch.memory) * (1 + 1e-12)


@given(inputs_of_any_kind(), shares)
def test_a_better_hit_rate_never_makes_hybrid_dearer(inputs: CostInputs, hit_rate: float) -> None:
    low, high = sorted((inputs.hit_rate, hit_rate))
    worse, better = estimate(replace(inputs, hit_rate=low)), estimate(replace(inputs, hit_rate=high))
    assert better.hybrid.daily <= worse.hybrid.daily


@given(inputs_of_any_kind())
def test_at_the_break_even_the_two_cost_the_same(inputs: CostInputs) -> None:
    even = break_even(inputs)
    if even.whole > 0:
        below = estimate(with_requests(inputs, even.whole * 0.999))
        above = estimate(with_requests(inputs, even.whole * 1.001))
        assert below.realtime.daily < below.batch.daily * (1 + 1e-9)
        assert above.realtime.daily >= above.batch.daily * (1 - 1e-9)
    else:
        assert inputs.min_replicas * inputs.instance_price * 24 >= estimate(inputs).batch.daily * (1 - 1e-9)


@given(inputs_of_any_kind())
def test_the_curve_shows_today_and_the_break_even(inputs: CostInputs) -> None:
    curve, even = cost_curve(inputs), break_even(inputs)
    assert curve.requests[0] < curve.now < curve.requests[-1]
    for mark in (even.whole, even.shared):
        assert mark == 0 or curve.requests[0] < mark < curve.requests[-1]
    assert list(curve.realtime) == sorted(curve.realtime)


def test_what_moves_the_total_most_comes_first() -> None:
    swings = sensitivity(ARTICLE)
    assert swings[0].name == "instance_price"
    assert (swings[0].at_low, swings[0].at_high) == (pytest.approx(90.08, abs=0.01), pytest.approx(150.08, abs=0.01))
    assert [each.span for each in swings] == sorted((each.span for each in swings), reverse=True)


def test_a_share_that_swings_stops_at_the_end_of_its_range() -> None:
    hit = next(each for each in sensitivity(replace(ARTICLE, rps=1_000, peak_rps=1_000)) if each.name == "hit_rate")
    assert (hit.low, hit.high) == (pytest.approx(0.675), 1.0)


def test_a_discount_that_swings_stops_short_of_all() -> None:
    spot = next(each for each in sensitivity(replace(ARTICLE, spot_discount=0.9)) if each.name == "spot_discount")
    assert (spot.low, spot.high) == (pytest.approx(0.675), 0.999)


# --- bad input ---


@pytest.mark.parametrize("name", sorted(ARTICLE_FIGURES))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -1.0])
def test_an_input_that_cannot_be_is_named(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: .*--{name.replace('_', '-')} is") as refused:
        replace(ARTICLE, **{name: value})
    assert refused.value.field == name


ABOVE_ZERO = ["entities", "throughput", "rps", "instance_price", "instance_rps", "utilisation", "bytes", "runs_per_day"]


@pytest.mark.parametrize("name", [*ABOVE_ZERO, "min_replicas", "batch_instance_price", "generations", "replicas"])
def test_a_zero_that_cannot_be_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: 0 "):
        replace(ARTICLE, **{name: 0.0})


def test_a_missing_input_is_named_with_its_option() -> None:
    rest = {name: figure for name, figure in ARTICLE_FIGURES.items() if name != "entities"}
    with pytest.raises(SettingsError, match="--entities"):
        CostInputs.of(complete_figures(rest))


def test_a_peak_below_the_mean_is_refused() -> None:
    with pytest.raises(SettingsError, match="no peak is below the mean"):
        replace(ARTICLE, peak_rps=50)


@pytest.mark.parametrize("ends", [(1e15, 1e-15), (1e-15, 1e15)])
def test_the_largest_and_smallest_inputs_have_a_cost_and_a_picture(ends: tuple[float, float]) -> None:
    said = dict(zip(("entities", "throughput"), ends, strict=True)) | {"rps": ends[1], "instance_rps": ends[0]}
    figures = complete_figures({name: Figure(value, Basis.OPTION) for name, value in said.items()}, ARTICLE_FIGURES)
    inputs = CostInputs.of(figures)
    told = estimate(inputs)
    assert all(math.isfinite(value) for value in (told.batch.daily, told.hybrid.daily, told.savings_percent))
    assert all(map(math.isfinite, cost_curve(inputs).hybrid))


def test_the_first_source_that_knows_a_figure_wins() -> None:
    said = {"entities": Figure(5, Basis.OPTION)}
    figures = complete_figures(said, ARTICLE_FIGURES)
    assert figures["entities"] == said["entities"]
    assert figures["throughput"].origin is Basis.ARTICLE
    assert figures["hit_rate"].origin is Basis.DEFAULT
