"""Advice about one model, and the settings file with it in."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.cli.advise import diff, with_advice
from inference.economics.advice import Advice, Confidence, advise, duration_setting
from inference.economics.inputs import Basis, Figure, complete_figures
from inference.economics.measured import Measured, slots_a_week
from inference.economics.miss_capacity import miss_capacity
from inference.economics.prices import read_prices
from inference.economics.rules import Approach, check_fact, gather_facts
from inference.errors import SettingsError
from inference.monitoring.statistics import Statistics
from inference.settings import ModelSettings

SETTINGS = ModelSettings(path=Path("m"), features="t.parquet")


def figures(**values: float) -> dict[str, Figure]:
    return {name: Figure(value, Basis.MEASURED, "counted") for name, value in values.items()}


BUSY = Measured(
    "delay",
    figures(entities=1_000_000, throughput=1_000, rps=10, peak_rps=30, hit_rate=0.8, bytes=27),
    Statistics.of({"hit_batch": 16_000, "computed": 4_000, "miss_s:36": 4_000, "age_s:10": 10_000, "age_s:30": 10_000}),
    span_s=24 * 3600,
    runs_published=5,
    run_s=1_000.0,
    asked_week=300_000,
)


def advice(
    measured: Measured = BUSY, settings: ModelSettings = SETTINGS, said: Mapping[str, float] | None = None
) -> Advice:
    spoken = {name: Figure(value, Basis.OPTION, "--" + name) for name, value in (said or {}).items()}
    facts = gather_facts(spoken, settings, measured)
    costs = complete_figures(measured.figures, read_prices().figures())
    return advise("delay", settings, measured, facts, costs)


def test_an_empty_history_is_said_and_never_costs_anything_made_up() -> None:
    told = advice(Measured("delay"))
    assert told.confidence is Confidence.LOW
    assert told.numbers["cost_per_day"].value is None
    assert told.numbers["never_read"].value is None
    assert "0 predictions asked for within 24 h, 10,000 would do" in told.unknowns
    assert any("no cost: entities and rps" in gap for gap in told.unknowns)


def test_a_day_of_traffic_and_answers_make_it_sure() -> None:
    said = {"latency_ms": 50, "max_staleness_hours": 24, "cost_matters": 1, "performance_matters": 1}
    told = advice(said={**said, "must_answer": 1, "stable_hours": 12})
    assert (told.confidence, told.unknowns) == (Confidence.HIGH, ())
    assert told.approach is Approach.HYBRID


def test_predictions_nobody_read_are_those_stored_less_those_asked_for() -> None:
    number = advice().numbers["never_read"]
    assert number.value == 700_000
    assert "300,000 different entities" in number.how


def test_the_share_of_answers_that_a_ttl_would_allow_is_told() -> None:
    # half are at most 32 s old, the others at most 9.1 h
    within = [advice(said={"max_staleness_hours": hours}).numbers["answers_within_ttl"].value for hours in (1, 12)]
    assert within == [0.5, 1]
    assert advice(Measured("delay")).numbers["answers_within_ttl"].value is None


def test_runs_that_failed_are_told_beside_those_that_did_not() -> None:
    failed = advice(Measured(**{**vars(BUSY), "runs_failed": 2})).numbers["runs_failed"]
    assert (failed.value, failed.how) == (2, "beside 5 published, of the last 20")


def test_the_schedule_is_the_rarest_that_keeps_answers_within_what_is_tolerated() -> None:
    # runs take 1 000 s: twice that and a minute must fit in
    assert [advice(said={"max_staleness_hours": hours}).numbers["schedule"].value for hours in (25, 24, 3.6, 3.5)] == [
        "0 3 * * *", "12h", "3h", "1h",
    ]  # fmt: skip
    assert advice(said={"max_staleness_hours": 24}).numbers["ttl"].value == "24h"
    late = advice(said={"max_staleness_hours": 0.1}).numbers["schedule"]
    assert (late.value, "no schedule keeps that" in late.how) == ("5m", True)


def test_without_a_bound_schedule_stays_and_ttl_lasts_over_the_next_run() -> None:
    settings = SETTINGS.model_copy(update={"batch": SETTINGS.batch.model_copy(update={"schedule": "6h"})})
    measured = Measured(**{**vars(BUSY), "figures": {**BUSY.figures, **figures(runs_per_day=4)}})
    told = advice(measured, settings)
    # 6 h x 1.1 + 2 000 s = 7.16 h
    assert (told.numbers["schedule"].value, told.numbers["ttl"].value) == ("6h", "8h")


def test_workers_finish_within_half_the_interval() -> None:
    # 1e6 at 1 000/s = 1 000 s; half of an hour is 1 800 s, half of 15 minutes 450 s
    assert advice(said={"max_staleness_hours": 3.5}).numbers["batch_workers"].value == 1
    assert advice(said={"max_staleness_hours": 0.83}).numbers["batch_workers"].value == 3


def test_cost_and_break_even_and_capacity_follow_from_the_figures() -> None:
    told = advice(said={"max_staleness_hours": 24, "cost_matters": 1, "performance_matters": 1, "must_answer": 1})
    numbers = told.numbers
    # peak 30/s x 1.5 / 100 = 1 instance at 5 an hour; with 3 copies of 27 MB at 61.32, and 1 000 s at 3
    memory, compute = 0.081 * 61.32 * 24 / 730, 1_000 / 3600 * 3
    assert told.approach is Approach.HYBRID
    assert numbers["cost_per_day"].value == pytest.approx(120 + min(memory + compute, memory))
    assert numbers["cost_per_1000_served"].value == pytest.approx((120 + memory) / 864_000 * 1000)
    assert (numbers["realtime_instances"].value, numbers["instances_if_a_run_fails"].value) == (1, 1)
    assert numbers["hit_rate"].value == 0.8


def test_what_was_measured_speaks_where_nobody_did() -> None:
    facts = gather_facts({}, SETTINGS, BUSY)
    assert facts["coverage"].value == 0.3
    assert facts["peak_ratio"].value == 3
    assert facts["model_ms"].value == pytest.approx(0.25 * 2**9, rel=0.2)
    said = {"coverage": Figure(1, Basis.OPTION)}
    assert gather_facts(said, SETTINGS, BUSY)["coverage"].value == 1


def test_settings_speak_only_where_they_were_written() -> None:
    assert "latency_ms" not in gather_facts({}, SETTINGS, BUSY)
    written = ModelSettings.model_validate(
        {"path": "m", "batch": {"ttl": "12h"}, "realtime": {"timeout_ms": 40, "default": 0.0}}
    )
    facts = gather_facts({}, written, BUSY)
    assert (facts["latency_ms"].value, facts["max_staleness_hours"].value, facts["must_answer"].value) == (40, 12, 1)
    assert facts["no_table"].origin is Basis.SETTINGS


def test_a_model_without_a_table_is_left_to_real_time() -> None:
    assert advice(settings=ModelSettings(path=Path("m")), said={"stable_hours": 24}).approach is Approach.REALTIME


def test_where_no_age_is_tolerated_features_must_be_fresh() -> None:
    told = advice(said={"max_staleness_hours": 0, "latency_ms": 50})
    assert told.approach is Approach.REALTIME
    assert told.facts["fresh_features"].how == "max_staleness_hours is 0"
    mixed = advice(said={"max_staleness_hours": 0, "mixed_latency": 1, "must_answer": 1})
    assert (mixed.approach, mixed.numbers["ttl"].value) == (Approach.HYBRID, "1s")


def test_how_old_answers_are_is_told_by_whole_buckets() -> None:
    # buckets of age grow by 41 %: number 10 ends at 32 s, number 30 at 9.1 h
    assert BUSY.share_no_older_than(1) == 0.5
    assert BUSY.share_no_older_than(10) == 1
    assert Measured("delay").share_no_older_than(1) is None


@pytest.mark.parametrize(
    ("schedule", "a_week"),
    [("0 3 * * *", 7), ("0 */6 * * *", 28), ("0 3 * * 1", 1), ("12h", 14), ("30s", 20_160), ("* * * * *", 10_080)],
)
def test_runs_are_counted_from_the_schedule(schedule: str, a_week: float) -> None:
    assert slots_a_week(schedule, "UTC") == pytest.approx(a_week)


@pytest.mark.parametrize(("name", "value"), [("coverage", 1.1), ("peak_ratio", 0.9), ("latency_ms", -1)])
@pytest.mark.parametrize("broken", [None, float("nan"), float("inf")])
def test_a_fact_that_cannot_be_is_named(name: str, value: float, broken: float | None) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: .*--{name.replace('_', '-')} is"):
        check_fact(name, value if broken is None else broken)


def test_durations_are_spelled_as_settings_are() -> None:
    assert [duration_setting(seconds) for seconds in (86_400, 5_400, 90, 0.5)] == ["24h", "90m", "90s", "1s"]


# --- the settings file ---

FILE = """\
# ours
[models.delay]
path = "m"   # here
features = 't.parquet'

[models.delay.batch]   # runs
schedule = '0 4 * * *'  # at night
rows_per_chunk = 1_000

[models.price]
path = "p"
"""


def test_comments_and_spelling_stay_and_only_the_two_values_change() -> None:
    after = with_advice(FILE, [advice(said={"max_staleness_hours": 6})])
    assert after == FILE.replace("'0 4 * * *'", '"3h"').replace("1_000\n", '1_000\nttl = "6h"\n')
    assert diff(FILE, after, "forecache.toml").count("\n+") == 3
    assert with_advice(after, [advice(said={"max_staleness_hours": 6})]) == after


def test_a_section_that_is_missing_is_made() -> None:
    plain = '[models.delay]\npath = "m"\n[models.price]\npath = "p"\n'
    data = tomllib.loads(with_advice(plain, [advice(said={"max_staleness_hours": 6})]))
    assert data["models"]["delay"]["batch"] == {"schedule": "3h", "ttl": "6h"}
    assert data["models"]["price"] == {"path": "p"}


@pytest.mark.parametrize(
    "text",
    [
        'models.delay.path = "m"\n',
        '[models]\ndelay.path = "m"\n',
        '[models.delay]\npath = "m"\nbatch.rows_per_chunk = 5\n',
        '[models.delay]\npath = "m"\n[redis]\nprefix = "p"\n[models.delay.batch]\nrows_per_chunk = 5\n',
        '[models.delay]\npath = "m"\n[redis]\nprefix = "p"\n[models.delay.realtime]\ntimeout_ms = 5\n',
        '[models.delay]\r\npath = "m"\r\n',
    ],
)
def test_however_a_section_is_spelled_only_the_two_values_come_in(text: str) -> None:
    before, after = tomllib.loads(text), tomllib.loads(with_advice(text, [advice(said={"max_staleness_hours": 6})]))
    batch = after["models"]["delay"].pop("batch")
    rest = before["models"]["delay"].pop("batch", {})
    assert batch == {**rest, "schedule": "3h", "ttl": "6h"}
    assert after == before


def test_a_new_section_keeps_its_distance_from_the_next() -> None:
    spaced = '[models.delay]\npath = "m"\n\n[redis]\nprefix = "p"\n'
    after = with_advice(spaced, [advice(said={"max_staleness_hours": 6})])
    assert after == (
        '[models.delay]\npath = "m"\n\n[models.delay.batch]\nschedule = "3h"\nttl = "6h"\n\n[redis]\nprefix = "p"\n'
    )


def test_a_section_in_one_line_stays_in_one_line() -> None:
    inline = 'models = { delay = { path = "m" } }\n'
    after = with_advice(inline, [advice(said={"max_staleness_hours": 6})])
    assert tomllib.loads(after)["models"]["delay"]["batch"] == {"schedule": "3h", "ttl": "6h"}
    assert after.count("\n") == 1


def test_real_time_takes_the_schedule_out_and_nothing_else() -> None:
    told = advice(said={"fresh_features": 1, "latency_ms": 20, "immediate_feedback": 1, "high_value": 1})
    assert told.approach is Approach.REALTIME
    data: dict[str, Any] = tomllib.loads(with_advice(FILE, [told]))
    assert data["models"]["delay"]["batch"] == {"rows_per_chunk": 1000}


def test_real_time_leaves_a_file_without_runs_as_it_is() -> None:
    told = advice(said={"fresh_features": 1, "latency_ms": 20, "immediate_feedback": 1, "high_value": 1})
    for text in ('[models.delay]\npath = "m"\n', '[models.delay]\npath = "m"\n[models.delay.batch]\nttl = "9h"\n'):
        assert with_advice(text, [told]) == text


def test_a_model_that_is_set_elsewhere_is_named() -> None:
    with pytest.raises(SettingsError, match=r"no section \[models\.delay\]"):
        with_advice('[models.price]\npath = "p"\n', [advice()])
    with pytest.raises(SettingsError, match="not TOML"):
        with_advice("[nonsense", [])


def test_a_model_that_is_told_the_time_is_a_poor_one_to_precompute() -> None:
    told = advice(Measured(**{**vars(BUSY), "clock_groups": ("hour",)}))
    assert any("is told the present time" in each for each in told.reasons), told.reasons
    assert not any("is told the present time" in each for each in advice(BUSY).reasons)
    assert told.approach is Approach.REALTIME


# --- the value itself ---

SURE = {"latency_ms": 50, "max_staleness_hours": 24, "cost_matters": 1, "performance_matters": 1, "must_answer": 1,
        "stable_hours": 12}  # fmt: skip


def busy(**facts: Any) -> Measured:
    return Measured(**{**vars(BUSY), **facts})


def asked_for(count: int) -> Statistics:
    return Statistics.of({"hit_batch": count, "miss_s:36": count})


@pytest.mark.parametrize(
    ("facts", "confidence", "gaps"),
    [
        ({"statistics": asked_for(10_000)}, Confidence.HIGH, 0),
        ({"statistics": asked_for(9_999)}, Confidence.MEDIUM, 1),
        ({"statistics": asked_for(1_000)}, Confidence.MEDIUM, 1),
        ({"statistics": asked_for(999)}, Confidence.LOW, 1),
        ({"span_s": 20 * 3600}, Confidence.HIGH, 0),
        ({"span_s": 19.9 * 3600}, Confidence.MEDIUM, 1),
        ({"span_s": 3600}, Confidence.MEDIUM, 1),
        ({"span_s": 0.9 * 3600}, Confidence.LOW, 1),
        ({"runs_published": 3}, Confidence.HIGH, 0),
        ({"runs_published": 2}, Confidence.MEDIUM, 1),
        ({"runs_published": 1}, Confidence.MEDIUM, 1),
        ({"runs_published": 0}, Confidence.LOW, 1),
        ({"runs_published": 2, "span_s": 7200}, Confidence.MEDIUM, 2),
    ],
)
def test_each_thing_that_is_missing_makes_it_less_sure(
    facts: dict[str, Any], confidence: Confidence, gaps: int
) -> None:
    told = advice(busy(**facts), said=SURE)
    assert (told.confidence, len(told.unknowns)) == (confidence, gaps)


@pytest.mark.parametrize(
    ("hours", "schedule"),
    [
        # a run takes 1 000 s: 2 060 s beside the interval itself
        ((86_400 + 2_060) / 3600, "0 3 * * *"), ((86_400 + 2_059) / 3600, "12h"), ((300 + 2_060) / 3600, "5m"),
    ],
)  # fmt: skip
def test_a_schedule_fits_to_the_second(hours: float, schedule: str) -> None:
    assert advice(said={"max_staleness_hours": hours}).numbers["schedule"].value == schedule


@pytest.mark.parametrize(
    ("present", "hours", "schedule"),
    [
        ("6h", 6 + 2_060 / 3600, "6h"),  # as it is: exactly often enough
        ("6h", 6 + 2_059 / 3600, "3h"),
        ("6h", 25, "0 3 * * *"),  # more often than needed
        ("1d", 25, "1d"),
    ],
)
def test_a_schedule_that_fits_stays(present: str, hours: float, schedule: str) -> None:
    settings = SETTINGS.model_copy(update={"batch": SETTINGS.batch.model_copy(update={"schedule": present})})
    per_day = 1 if present == "1d" else 4
    measured = busy(figures={**BUSY.figures, **figures(runs_per_day=per_day)})
    assert advice(measured, settings, {"max_staleness_hours": hours}).numbers["schedule"].value == schedule


@pytest.mark.parametrize(("said", "ttl"), [({"max_staleness_hours": 9, "stable_hours": 7}, "7h"), ({"stable_hours": 7}, "7h"), ({"max_staleness_hours": 0.5}, "30m")])  # fmt: skip  # noqa: E501
def test_the_smaller_bound_decides(said: dict[str, float], ttl: str) -> None:
    assert advice(said=said).numbers["ttl"].value == ttl


@pytest.mark.parametrize(("seconds", "text"), [(3600, "1h"), (3601, "3601s"), (60, "1m"), (59, "59s"), (5400, "90m"), (7200, "2h")])  # fmt: skip  # noqa: E501
def test_a_duration_is_spelled_in_its_largest_whole_unit(seconds: float, text: str) -> None:
    assert duration_setting(seconds) == text


@pytest.mark.parametrize(("requests", "known"), [(99, False), (100, True)])
def test_a_rate_of_few_requests_is_no_fact(requests: int, known: bool) -> None:
    facts = gather_facts({}, SETTINGS, busy(statistics=asked_for(requests)))
    assert [name in facts for name in ("coverage", "model_ms", "peak_ratio")] == [known] * 3
    mostly_hits = Statistics.of({"hit_batch": 1_000, "miss_s:36": 99})
    assert "model_ms" not in gather_facts({}, SETTINGS, busy(statistics=mostly_hits))


def test_a_share_of_entities_is_at_most_all_and_none_is_left_unread_then() -> None:
    measured = busy(asked_week=1_200_000)
    assert gather_facts({}, SETTINGS, measured)["coverage"].value == 1.0
    assert measured.never_read == 0
    assert busy(asked_week=0).never_read is None
    assert gather_facts({}, SETTINGS, BUSY)["coverage"].value == 0.3
    assert gather_facts({}, SETTINGS, BUSY)["peak_ratio"].value == 3


@pytest.mark.parametrize(
    ("name", "legal", "illegal"),
    [
        ("coverage", (0.0, 1.0), (-0.001, 1.001)), ("peak_ratio", (1.0, 50.0), (0.999,)),
        ("latency_ms", (0.0, 1e9), (-1.0,)),
    ],
)  # fmt: skip
def test_a_facts_range_includes_its_ends(name: str, legal: tuple[float, ...], illegal: tuple[float, ...]) -> None:
    assert [check_fact(name, value) for value in legal] == list(legal)
    for value in illegal:
        with pytest.raises(SettingsError, match=f"--{name.replace('_', '-')} is"):
            check_fact(name, value)


def test_answers_of_exactly_that_age_count() -> None:
    measured = busy(statistics=Statistics.of({"age_s:0": 1, "age_s:2": 1, "age_s:4": 2}))  # up to 1, 2 and 4 s
    assert [measured.share_no_older_than(seconds / 3600) for seconds in (0.999, 1, 1.999, 2.001, 3.999, 4.001)] == [
        0.0, 0.25, 0.25, 0.5, 0.5, 1.0,
    ]  # fmt: skip


# --- active sets ---

WITH_SET = ModelSettings.model_validate(
    {"path": "m", "features": "t.parquet", "batch": {"entities": "hit rate 0.9", "feature_table": True}}
)


def test_the_workers_beside_an_active_set_follow_from_what_it_leaves_out() -> None:
    told = advice(settings=WITH_SET).numbers["workers_beside_active_set"]

    assert told.value == 1  # a tenth of 30/s, and half as much again, at 100/s
    assert "90.0% of requests; at the peak 3 of 30/s are computed" in told.how
    assert told.how.endswith("if a run fails, it takes 1")
    assert "workers_beside_active_set" not in advice().numbers


def test_a_worker_is_as_fast_as_it_was_measured_to_be() -> None:
    slow = replace(
        BUSY, statistics=Statistics.of({"computed": 20_000, "miss_s:41": 4_000, "rows:1": 100, "rows:sum": 200})
    )

    capacity = miss_capacity(WITH_SET, slow)

    assert capacity is not None
    assert capacity.worker_rps == pytest.approx(2 / 0.28, rel=0.1)
    assert (capacity.workers, capacity.workers_if_a_run_fails) == (1, 7)
    measured_set = miss_capacity(WITH_SET, replace(slow, entities_share=0.5))
    assert measured_set is not None
    assert measured_set.workers == 4


def test_nobody_can_tell_the_workers_without_traffic_or_before_the_first_run_of_a_window() -> None:
    window = ModelSettings.model_validate(
        {"path": "m", "features": "t", "batch": {"entities": "asked within 3d", "feature_table": True}}
    )
    assert miss_capacity(window, BUSY) is None
    assert miss_capacity(window, replace(BUSY, entities_share=0.8)) is not None
    assert advice(Measured("delay"), WITH_SET).numbers["workers_beside_active_set"].value is None


def test_the_entities_that_are_asked_for_are_a_share_of_all_also_of_those_outside_the_set() -> None:
    facts = gather_facts({}, WITH_SET, replace(BUSY, rows_outside=2_000_000))

    assert facts["coverage"].value == pytest.approx(0.1)
