"""Histograms of latencies and ages, and what the pages are told of them."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from inference.monitoring.counters import AGE, HIT_LATENCY, MICRO_BATCH, MISS_LATENCY, Scale
from inference.monitoring.statistics import QUANTILES, Statistics


def fields_of(values, scale=HIT_LATENCY):
    fields = {}
    for value in values:
        name = scale.field_of(value)
        fields[name] = fields.get(name, 0) + 1
    return fields


@pytest.mark.parametrize("share", QUANTILES.values())
def test_a_quantile_is_off_by_less_than_a_buckets_width(share):
    drawn = random.Random(7)
    values = sorted(drawn.lognormvariate(-6, 0.8) for _ in range(5000))
    exact = values[int(share * len(values))]
    assert HIT_LATENCY.histogram(fields_of(values)).quantile(share) == pytest.approx(exact, rel=0.19)


def test_without_values_there_is_no_quantile():
    assert HIT_LATENCY.histogram({}).quantile(0.5) is None


@pytest.mark.parametrize("scale", [HIT_LATENCY, MISS_LATENCY, AGE, MICRO_BATCH])
@pytest.mark.parametrize("value", [-1.0, 0.0, 1e12])
def test_the_number_of_fields_is_bounded_whatever_the_value(scale, value):
    assert scale.field_of(value) in (scale.fields[0], scale.fields[-1])


def test_a_window_is_told_in_seconds_and_rows():
    fields = {"hit_batch": 3, "computed": 1, **fields_of([0.001] * 3), **fields_of([0.05], MISS_LATENCY)}
    fields |= fields_of([3600.0] * 4, AGE) | fields_of([16], MICRO_BATCH)
    told = Statistics.of(fields).to_json()
    assert (told["total"], told["hit_rate"]) == (4, 0.75)
    assert told["hit_latency_s"]["p50"] == pytest.approx(0.001, rel=0.19)
    assert told["miss_latency_s"]["p99"] == pytest.approx(0.05, rel=0.19)
    assert told["age_s"]["p50"] == pytest.approx(3600, rel=0.42)
    assert 8 <= told["micro_batch_rows"]["p50"] <= 16


SCALE = Scale("s", 1.0, 2.0, 5)  # up to 1, 2, 4, 8, and above


def test_a_scale_has_a_bound_less_than_fields():
    scale = Scale("t", 0.5, 3.0, 4)
    assert scale.bounds == (0.5, 1.5, 4.5)
    assert scale.fields == ("t:0", "t:1", "t:2", "t:3")


@pytest.mark.parametrize(
    ("value", "field"), [(0.5, 0), (1, 0), (1.001, 1), (2, 1), (2.001, 2), (8, 3), (8.001, 4), (1e9, 4)]
)
def test_a_bound_belongs_to_the_bucket_below_it(value, field):
    assert SCALE.field_of(value) == SCALE.fields[field]


@pytest.mark.parametrize(
    ("counts", "share", "value"),
    [
        ([2, 0, 2, 0, 0], 0.5, 1.0),  # exactly half lies in the first bucket: not the next one that holds anything
        ([2, 0, 2, 0, 0], 0.51, 2 * 2**0.02),
        ([0, 4, 0, 0, 0], 0.5, 2**0.5),
        ([0, 4, 0, 0, 0], 1.0, 2.0),
        ([0, 0, 0, 0, 3], 0.5, 8.0),  # nothing is known above the last bound
        ([0, 0, 0, 4, 0], 0.25, 4 * 2**0.25),
        ([0, 3, 0, 1, 0], 0.0, 1.0),
        ([1, 0, 0, 0, 1], 1.0, 8.0),
    ],
)
def test_a_quantile_lies_where_the_counts_say(counts, share, value):
    told = SCALE.histogram({f"s:{n}": count for n, count in enumerate(counts) if count})
    assert told.total == sum(counts)
    assert told.quantile(share) == pytest.approx(value)


def test_each_quantity_reads_its_own_fields():
    fields = {scale.fields[1]: n + 1 for n, scale in enumerate((HIT_LATENCY, MISS_LATENCY, AGE, MICRO_BATCH))}
    told = Statistics.of(fields)
    assert [one.total for one in (told.hit_latency, told.miss_latency, told.age, told.micro_batch)] == [1, 2, 3, 4]


def test_a_sum_counts_every_value_as_often_as_it_came_and_nothing_below_zero():
    counts = defaultdict(int)
    scale = Scale("t", 1.0, 2.0, 5, sum_unit=0.5)
    scale.add(counts, 3.0, 4)
    scale.add(counts, 1.5)
    scale.add(counts, -20.0, 2)  # clocks differ
    scale.add(counts, 0.0)
    assert counts["t:sum"] == (4 * 3.0 + 1.5) / 0.5
    told = scale.histogram(counts)
    assert (told.counts, told.sum) == ((3, 1, 4, 0, 0), 13.5)
