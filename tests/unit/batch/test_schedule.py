from __future__ import annotations

from datetime import UTC, datetime

import pytest

from inference.batch.schedule import current_slot, slot_after, slot_at, slots_between


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("now", "slot", "following"),
    [
        ("2026-03-10T03:00:00", "2026-03-10T03:00:00", "2026-03-11T03:00:00"),
        ("2026-03-10T02:59:59.9", "2026-03-09T03:00:00", "2026-03-10T03:00:00"),
        ("2026-03-10T03:00:00.1", "2026-03-10T03:00:00", "2026-03-11T03:00:00"),
    ],
)
def test_a_cron_slot_begins_exactly_on_time(now: str, slot: str, following: str) -> None:
    assert slot_at("0 3 * * *", "UTC", at(now)) == at(slot)
    assert slot_after("0 3 * * *", "UTC", at(now)) == at(following)


def test_a_cron_line_is_read_in_its_zone_before_and_after_the_clock_changes() -> None:
    # Berlin goes from UTC+1 to UTC+2 on 2026-03-29
    assert slot_at("0 3 * * *", "Europe/Berlin", at("2026-03-28T12:00")) == at("2026-03-28T02:00")
    assert slot_at("0 3 * * *", "Europe/Berlin", at("2026-03-30T12:00")) == at("2026-03-30T01:00")
    assert slot_after("0 3 * * *", "Europe/Berlin", at("2026-03-28T12:00")) == at("2026-03-29T01:00")


def test_a_duration_is_counted_from_the_epoch() -> None:
    assert slot_at("30s", "UTC", 95.0) == 90.0
    assert slot_at("30s", "UTC", 90.0) == 90.0
    assert slot_after("30s", "UTC", 90.0) == 120.0


def test_a_message_from_a_clock_that_is_ahead_belongs_to_the_slot_it_was_sent_for() -> None:
    assert current_slot("0 3 * * *", "UTC", at("2026-03-10T02:59:58")) == "2026-03-10T03:00:00.000Z"
    assert current_slot("0 3 * * *", "UTC", at("2026-03-10T02:59:00")) == "2026-03-09T03:00:00.000Z"


def test_a_beat_whose_clock_is_two_minutes_ahead_means_the_slot_that_it_names() -> None:
    arrived, meant = at("2026-03-10T02:58:01"), "2026-03-10T03:00:00.000Z"
    assert current_slot("0 3 * * *", "UTC", arrived, arrived + 120) == meant
    # the same slot by another beat, in time or behind
    assert current_slot("0 3 * * *", "UTC", at("2026-03-10T03:00:01"), at("2026-03-10T03:00:00")) == meant
    assert current_slot("0 3 * * *", "UTC", at("2026-03-10T03:02:00"), at("2026-03-10T03:00:00")) == meant
    # years ahead, or no time at all: this host's clock decides
    for wrong in (arrived + 1e9, float("nan"), "soon", None):
        assert current_slot("0 3 * * *", "UTC", arrived, wrong) == "2026-03-09T03:00:00.000Z"


def test_a_late_message_still_belongs_to_its_slot() -> None:
    assert current_slot("20s", "UTC", 40.2) == current_slot("20s", "UTC", 54.0) == "1970-01-01T00:00:40.000Z"
    assert current_slot("20s", "UTC", 55.0) == "1970-01-01T00:01:00.000Z"


@pytest.mark.parametrize(
    ("schedule", "seconds_before", "of_the_next"),
    [
        ("0 3 * * *", 10, True),
        ("0 3 * * *", 10.001, False),
        ("20s", 5, True),
        ("20s", 5.001, False),
        ("20s", 20, False),
    ],
)
def test_how_early_a_message_may_be(schedule: str, seconds_before: float, of_the_next: bool) -> None:
    following = at("2026-03-10T03:00:00")
    told = current_slot(schedule, "UTC", following - seconds_before)
    before = "2026-03-09T03:00:00.000Z" if schedule.startswith("0") else "2026-03-10T02:59:40.000Z"
    assert told == ("2026-03-10T03:00:00.000Z" if of_the_next else before)


@pytest.mark.parametrize("schedule", ["7m", "0 3,9 * * mon-fri", "*/5 * * * *"])
def test_slots_between_are_all_from_the_last_one_before_to_the_first_one_after(schedule: str) -> None:
    since, until = 1_700_000_000.0, 1_700_000_000.0 + 4 * 86_400
    slots = slots_between(schedule, "Europe/Berlin", since, until)
    assert slots[0] == slot_at(schedule, "Europe/Berlin", since)
    assert slots[-2] <= until < slots[-1]
    # after 500 of them their distances repeat
    assert [slot_after(schedule, "Europe/Berlin", one) for one in slots[:-1:97]] == list(slots[1::97])
