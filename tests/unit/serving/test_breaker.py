from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from inference.serving.worker_client import (
    FIRST_PAUSE_S,
    FIRST_WORKER_WITHIN_S,
    LONGEST_PAUSE_S,
    OPENS_AFTER,
    WORKER_START_S,
    Breaker,
    BreakerState,
)


@dataclass
class Watch:
    now: float = 100.0
    breaker: Breaker = field(init=False)

    def __post_init__(self) -> None:
        self.breaker = Breaker("delay", lambda: self.now)

    def open(self) -> Breaker:
        for _ in range(OPENS_AFTER):
            self.breaker.missed(0.1)
        return self.breaker


def test_a_few_misses_with_answers_between_them_open_nothing() -> None:
    breaker = Watch().breaker
    for _ in range(3):
        for _ in range(OPENS_AFTER - 1):
            breaker.missed(0.1)
        breaker.answered()
    assert (breaker.is_open, breaker.rest_s(0.1)) == (False, 0.0)


def test_misses_in_a_row_open_it_until_the_first_probe_is_due() -> None:
    watch = Watch()
    breaker = watch.open()
    assert (breaker.is_open, breaker.rest_s(0.1)) == (True, FIRST_PAUSE_S)
    watch.now += FIRST_PAUSE_S
    assert (breaker.is_open, breaker.rest_s(0.1)) == (True, 0.0)


def test_nothing_follows_a_probe_until_it_is_answered() -> None:
    watch = Watch()
    breaker = watch.open()
    watch.now += FIRST_PAUSE_S
    breaker.asked()
    assert breaker.rest_s(0.1) == FIRST_PAUSE_S
    breaker.answered()
    assert (breaker.is_open, breaker.rest_s(0.1)) == (False, 0.0)


def test_a_probe_that_is_never_reported_on_does_not_keep_it_open() -> None:
    watch = Watch()
    breaker = watch.open()
    watch.now += FIRST_PAUSE_S
    breaker.asked()
    watch.now += FIRST_PAUSE_S
    assert breaker.rest_s(0.1) == 0.0


def test_each_failed_probe_is_followed_by_a_longer_rest_up_to_a_limit() -> None:
    watch = Watch()
    breaker = watch.open()
    rests = []
    for _ in range(6):
        watch.now += breaker.rest_s(0.1)
        breaker.asked()
        breaker.missed(0.1)
        rests.append(breaker.rest_s(0.1))
    assert rests == [0.5, 1.0, 2.0, 2.0, 2.0, LONGEST_PAUSE_S]


def test_an_answer_makes_the_next_outage_start_from_scratch() -> None:
    watch = Watch()
    breaker = watch.open()
    breaker.missed(0.1)
    breaker.answered()
    assert watch.open().rest_s(0.1) == FIRST_PAUSE_S


def test_tiny_budgets_that_are_missed_stop_nobody_who_brings_more_patience() -> None:
    watch = Watch()
    for _ in range(OPENS_AFTER):
        watch.breaker.missed(0.001)
    assert watch.breaker.rest_s(0.001) > 0
    assert watch.breaker.rest_s(0.1) == 0.0


def test_without_a_living_worker_it_opens_at_once_and_closes_when_one_is_there() -> None:
    breaker = Watch().breaker
    breaker.heard(False)
    assert (breaker.is_open, breaker.rest_s(1.0)) == (True, FIRST_PAUSE_S)
    breaker.heard(True)
    assert (breaker.is_open, breaker.rest_s(1.0)) == (False, 0.0)


def test_workers_that_answered_nothing_are_tried_by_one_request_when_they_are_back() -> None:
    breaker = Watch().breaker
    for _ in range(OPENS_AFTER):
        breaker.missed(1.0)
    breaker.heard(False)
    breaker.heard(True)
    assert (breaker.is_open, breaker.rest_s(1.0)) == (True, 0.0)
    breaker.asked()
    assert breaker.rest_s(1.0) == FIRST_PAUSE_S
    breaker.answered()
    assert not breaker.is_open


def test_a_worker_that_answers_is_used_though_nobody_hears_its_signs_of_life() -> None:
    watch = Watch()
    breaker = watch.breaker
    breaker.heard(False)
    watch.now += FIRST_PAUSE_S
    breaker.asked()
    breaker.answered()
    breaker.heard(False)
    assert not breaker.is_open


def test_who_can_wait_for_a_worker_to_start_is_let_through() -> None:
    breaker = Watch().breaker
    breaker.heard(False)
    assert breaker.rest_s(2 * WORKER_START_S) > 0
    assert breaker.rest_s(3 * WORKER_START_S) == 0.0


def test_its_state_is_half_open_from_the_end_of_the_pause_until_the_probe_is_on_its_way() -> None:
    watch = Watch()
    assert watch.breaker.state is BreakerState.CLOSED
    breaker = watch.open()
    assert breaker.state is BreakerState.OPEN
    watch.now += FIRST_PAUSE_S
    assert breaker.state is BreakerState.HALF_OPEN
    breaker.asked()
    assert breaker.state is BreakerState.OPEN
    breaker.answered()
    assert breaker.state is BreakerState.CLOSED


def test_its_state_changes_at_the_very_instant() -> None:
    watch = Watch()
    assert watch.breaker.state is BreakerState.CLOSED
    breaker = watch.open()
    watch.now += FIRST_PAUSE_S - 0.001
    assert breaker.state is BreakerState.OPEN
    assert breaker.rest_s(0.1) == pytest.approx(0.001)
    watch.now += 0.001
    assert (breaker.state, breaker.rest_s(0.1)) == (BreakerState.HALF_OPEN, 0.0)
    breaker.asked()
    assert breaker.state is BreakerState.OPEN
    breaker.answered()
    assert breaker.state is BreakerState.CLOSED


def test_only_more_than_twice_the_patience_of_the_longest_miss_is_let_through() -> None:
    breaker = Watch().breaker
    for timeout_s in (0.1, 0.3, 0.2, 0.1, 0.1):
        breaker.missed(timeout_s)
    assert breaker.rest_s(0.6) == FIRST_PAUSE_S
    assert breaker.rest_s(0.601) == 0.0
    breaker.answered()
    for _ in range(OPENS_AFTER):
        breaker.missed(0.1)
    assert breaker.rest_s(0.201) == 0.0, "what was missed before an answer is forgotten"


def test_the_pause_starts_anew_after_an_answer() -> None:
    watch = Watch()
    breaker = watch.open()
    for _ in range(5):
        breaker.missed(0.1)
    assert breaker.rest_s(0.1) == LONGEST_PAUSE_S
    breaker.answered()
    watch.open()
    assert breaker.rest_s(0.1) == FIRST_PAUSE_S


def test_a_first_sign_of_life_says_nothing_new_of_workers_that_do_not_answer() -> None:
    breaker = Watch().open()
    breaker.heard(True)
    assert (breaker.is_open, breaker.rest_s(0.1)) == (True, FIRST_PAUSE_S)


def test_a_start_before_its_workers_is_open_and_quiet() -> None:
    watch = Watch()
    breaker = watch.breaker
    with capture_logs() as logs:
        for _ in range(2):
            breaker.heard(False)
            assert (breaker.is_open, breaker.rest_s(1.0)) == (True, FIRST_PAUSE_S)
        watch.now += FIRST_WORKER_WITHIN_S - 0.1
        breaker.heard(False)
        breaker.heard(True)
    assert (logs, breaker.is_open) == ([], False)


def test_a_first_worker_that_never_comes_is_told_once_and_so_is_its_late_arrival() -> None:
    watch = Watch()
    with capture_logs() as logs:
        watch.breaker.heard(False)
        for _ in range(3):
            watch.now += FIRST_WORKER_WITHIN_S
            watch.breaker.heard(False)
        watch.breaker.heard(True)
    assert [(one["event"], one["log_level"]) for one in logs] == [
        ("breaker.opened", "warning"),
        ("breaker.closed", "info"),
    ]
    assert logs[0]["missed"] == "every heartbeat"


def test_a_worker_that_was_there_is_missed_in_the_log_at_once() -> None:
    breaker = Watch().breaker
    breaker.heard(True)
    with capture_logs() as logs:
        breaker.heard(False)
        breaker.heard(False)
    assert [one["event"] for one in logs] == ["breaker.opened"]
