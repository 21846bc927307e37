from __future__ import annotations

from dataclasses import replace

import pytest

from inference.serving.answers import Freshness, FreshnessRules, answer_stored
from inference.settings import ModelSettings
from inference.store import Origin
from tests.support.serving_fakes import entry

RULES = FreshnessRules(batch_ttl_s=100, realtime_ttl_s=10, min_recompute_interval_s=5)


@pytest.mark.parametrize(
    ("origin", "age_s", "expected"),
    [
        (Origin.BATCH, 100, Freshness.FRESH),
        (Origin.BATCH, 101, Freshness.STALE),
        (Origin.UPSERT, 100, Freshness.FRESH),
        (Origin.REALTIME, 10, Freshness.FRESH),
        (Origin.REALTIME, 11, Freshness.STALE),
    ],
)
def test_an_entry_is_fresh_up_to_the_ttl_of_its_origin(origin: Origin, age_s: float, expected: Freshness) -> None:
    assert RULES.judge(entry(as_of=1000, origin=origin), 1000 + age_s) is expected


def test_the_requests_own_limit_wins_over_the_ttl_both_ways() -> None:
    stored = entry(as_of=1000)
    assert RULES.judge(stored, 1050, max_staleness_s=49) is Freshness.STALE
    assert RULES.judge(stored, 5000, max_staleness_s=4000) is Freshness.FRESH


def test_zero_forces_computing_even_what_was_computed_this_instant() -> None:
    assert RULES.judge(entry(as_of=1000), 1000, max_staleness_s=0) is Freshness.STALE


def test_an_entry_just_recomputed_from_old_features_does_not_miss_for_ever() -> None:
    stored = entry(as_of=10, computed_at=998, origin=Origin.REALTIME)
    assert RULES.judge(stored, 1000) is Freshness.JUST_COMPUTED
    assert RULES.judge(stored, 1003) is Freshness.STALE


def test_a_batch_row_just_retried_from_features_no_newer_does_not_miss_for_ever() -> None:
    stored = entry(as_of=10, computed_at=10)._replace(retried_at=998.0)
    assert RULES.judge(stored, 1000) is Freshness.JUST_COMPUTED
    assert RULES.judge(stored, 1003) is Freshness.STALE


@pytest.mark.parametrize(
    ("age_s", "row_age_s", "own_limit_s", "expected"),
    [
        (50, 100, None, Freshness.FRESH),  # the row would be
        (50, 101, None, Freshness.REVALIDATE),
        (10, 500, None, Freshness.FRESH),
        (50, 121, None, Freshness.STALE),
        (50, 60, 49, Freshness.STALE),
    ],
)
def test_an_answer_is_as_fresh_as_the_row_that_it_is_newer_than(
    age_s: float, row_age_s: float, own_limit_s: float | None, expected: Freshness
) -> None:
    answer = entry(as_of=1000 - age_s, origin=Origin.REALTIME)._replace(computed_at=0, row_as_of=1000 - row_age_s)
    rules = replace(RULES, stale_while_revalidate_s=20)
    assert rules.judge(answer, 1000, max_staleness_s=own_limit_s) is expected


def test_only_what_was_computed_on_demand_counts_as_a_realtime_hit() -> None:
    assert {origin: answer_stored("m", "e", entry(origin=origin)).outcome.value for origin in Origin} == {
        Origin.BATCH: "hit_batch",
        Origin.REALTIME: "hit_realtime",
        Origin.UPSERT: "hit_batch",
    }


def test_an_answer_may_be_given_while_it_is_computed_anew_but_not_when_the_request_names_its_own_limit() -> None:
    rules = replace(RULES, stale_while_revalidate_s=50)
    stored = entry(as_of=1000)
    assert rules.judge(stored, 1150) is Freshness.REVALIDATE
    assert rules.judge(stored, 1151) is Freshness.STALE
    assert rules.judge(stored, 1150, max_staleness_s=100) is Freshness.STALE


def test_what_is_older_than_the_entity_s_features_is_computed_anew_whatever_its_age() -> None:
    outdated = entry(as_of=1000)._replace(outdated=True)
    assert RULES.judge(outdated, 1000) is Freshness.STALE
    assert RULES.judge(outdated, 1000, max_staleness_s=4000) is Freshness.STALE


@pytest.mark.parametrize(
    ("age_s", "since_s", "expected"),
    [
        (100, 0, Freshness.FRESH),
        (100.001, 4.999, Freshness.JUST_COMPUTED),
        (100.001, 5, Freshness.REVALIDATE),  # the interval is over
        (150, 5, Freshness.REVALIDATE),
        (150.001, 5, Freshness.STALE),
        (150.001, 4.999, Freshness.JUST_COMPUTED),
    ],
)
@pytest.mark.parametrize("retried", [True, False])
def test_each_limit_belongs_to_the_younger_side(
    age_s: float, since_s: float, expected: Freshness, retried: bool
) -> None:
    rules, now = replace(RULES, stale_while_revalidate_s=50), 2000.0
    computed_at = now - since_s
    stored = entry(as_of=now - age_s, computed_at=now - 500 if retried else computed_at)
    assert rules.judge(stored._replace(retried_at=computed_at if retried else now - 600), now) is expected


def test_a_models_rules_are_its_settings() -> None:
    realtime = {"ttl": "7s", "min_recompute_interval": "3s", "stale_while_revalidate": "20s"}
    own = {"path": "m", "batch": {"ttl": "2h"}, "realtime": realtime}
    assert FreshnessRules.of(ModelSettings.model_validate(own)) == FreshnessRules(7200, 7, 3, 20)
    del realtime["stale_while_revalidate"]
    assert FreshnessRules.of(ModelSettings.model_validate(own)).stale_while_revalidate_s == 0
