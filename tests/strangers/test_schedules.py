"""Schedules: the documented grammar and nothing else, and one run a local day on nights when clocks change."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from app.cli.doctor.runs import check_schedule
from beat_schedule import SlotSchedule
from inference.batch import RunState
from inference.batch.schedule import current_slot, slot_after, slot_at
from inference.clock import to_iso
from inference.settings import BatchSettings, ModelSettings
from tests.unit.cli.doctor.test_runs import run


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def slots(schedule: str, timezone: str, begin: str, days: int) -> list[datetime]:
    """The slots of some days, as the clocks on the wall show them."""
    found, now = [], at(begin)
    while (now := slot_after(schedule, timezone, now)) < at(begin) + days * 86400:
        found.append(datetime.fromtimestamp(now, ZoneInfo(timezone)))
    return found


@pytest.mark.parametrize(
    "schedule",
    [
        "R R * * *", "0 3 * * R", "R/5 * * * *", "0 R(1-3) * * *", "H 3 * * *",  # random
        "0 0 3 * * *", "0 3 * * * * 2020", "0 0 12 * * ?",  # seconds and years
        "0 3 L * *", "0 3 * * 5#2", "0 3 * * L5", "0 3 15W * *", "0 3 ? * *",
        "0 3 30 2 *", "0 3 31 2,4 *", "61 * * * *", "0 24 * * *", "0 0 0 * *", "0 0 * foo *", "0 0 * * 8",
        "*/90 * * * *", "0 */24 * * *", "*/0 * * * *", "5-1/70 * * * *",
        30, "0s", "0.0m", "1ms", "99999999w", "@reboot", "@every 5m", "", "* * * *", "daily at 3", "0,,3 * * * *",
    ],
)  # fmt: skip
def test_what_is_not_documented_is_refused_when_settings_are_read(schedule: object) -> None:
    with pytest.raises(ValidationError) as raised:
        BatchSettings.model_validate({"schedule": schedule})
    assert "schedule" in str(raised.value) or "interval" in str(raised.value) or "duration" in str(raised.value)


def test_the_message_says_which_fields_are_meant() -> None:
    with pytest.raises(ValidationError, match=r"five fields \(minute, hour, .*, day of the week\)"):
        BatchSettings(schedule="0 0 3 * * *")
    with pytest.raises(ValidationError, match=r"step of 90 fits into no minute; a duration such as '90m'"):
        BatchSettings(schedule="*/90 * * * *")


@pytest.mark.parametrize(
    ("schedule", "following"),
    [
        ("0 3 * * *", "2026-01-01T03:00"),
        ("*/15 * * * *", "2026-01-01T00:15"),
        ("0 3 * * mon-FRI", "2026-01-01T03:00"),
        ("0 3 1,15 jan *", "2026-01-01T03:00"),
        ("0 22-2 * * *", "2026-01-01T01:00"),
        ("0 3 29 2 *", "2028-02-29T03:00"),
        ("0 0 * * 7", "2026-01-04T00:00"),
        ("  0\t3  * * * ", "2026-01-01T03:00"),
        ("@daily", "2026-01-02T00:00"),
        ("@Weekly", "2026-01-04T00:00"),
        ("90m", "2026-01-01T01:30"),
        ("1.5h", "2026-01-01T01:30"),
    ],
)
def test_what_is_documented_comes_when_it_says(schedule: str, following: str) -> None:
    BatchSettings(schedule=schedule)
    found = slot_after(schedule, "UTC", at("2026-01-01"))
    assert to_iso(found) == to_iso(at(following))
    assert slot_at(schedule, "UTC", found) == found


NIGHTLY = [
    ("30 2 * * *", "Europe/Berlin"),
    ("0 2 * * *", "Europe/Berlin"),
    ("30 2 * * *", "Africa/Casablanca"),
    ("30 1 * * *", "America/New_York"),
    ("30 2 * * *", "America/New_York"),
    ("30 1 * * *", "Australia/Lord_Howe"),
    ("0 2 * * *", "Australia/Lord_Howe"),
    ("0 0 * * *", "America/Havana"),
    ("30 0 * * *", "Asia/Beirut"),
    ("@daily", "America/Asuncion"),
    ("30 23 * * *", "America/Santiago"),
]


@pytest.mark.parametrize(("schedule", "timezone"), NIGHTLY)
def test_a_nightly_line_runs_once_each_local_day(schedule: str, timezone: str) -> None:
    days = Counter(each.date() for each in slots(schedule, timezone, "2026-01-01", 730))
    first, last = min(days), max(days)
    assert set(days.values()) == {1}
    assert len(days) == (last - first).days + 1


@pytest.mark.parametrize(
    ("schedule", "timezone"),
    [
        *(pytest.param(*one, marks=[pytest.mark.slow] * (number > 1)) for number, one in enumerate(NIGHTLY)),
        ("0 * * * *", "Europe/Berlin"),
        ("*/20 2 * * *", "UTC"),
    ],
)
def test_all_that_is_asked_of_a_slot_agrees_around_each_change(schedule: str, timezone: str) -> None:
    for change in ("2026-03-29", "2026-10-25", "2026-03-08", "2026-11-01", "2026-04-05", "2026-10-04"):
        for minutes in range(-6 * 60, 24 * 60, 13):
            now = at(change) + minutes * 60
            latest, following = slot_at(schedule, timezone, now), slot_after(schedule, timezone, now)
            assert latest <= now < following
            assert slot_after(schedule, timezone, latest) == following
            assert slot_at(schedule, timezone, following - 1) == latest
            assert current_slot(schedule, timezone, latest + 20) == to_iso(latest)


def test_the_first_of_two_equal_times_counts_and_a_skipped_one_is_made_up_for_at_once() -> None:
    autumn = slots("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", 3)
    assert [to_iso(each.timestamp()) for each in autumn] == [
        "2026-10-25T00:30:00.000Z", "2026-10-26T01:30:00.000Z", "2026-10-27T01:30:00.000Z",
    ]  # fmt: skip
    spring = slots("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", 2)
    assert [f"{each:%d %H:%M}" for each in spring] == ["29 03:00", "30 02:30"]
    [early, *_] = slots("0 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00", 1)
    assert f"{early:%d %H:%M}" == "04 02:30"


def test_two_skipped_times_make_one_run_and_lines_by_real_time_lose_no_hour() -> None:
    assert [f"{each:%H:%M}" for each in slots("10,50 2 * * *", "Europe/Berlin", "2026-03-28T12:00", 1)] == ["03:00"]
    day = [each.date() for each in slots("0 * * * *", "Europe/Berlin", "2026-10-24T12:00", 2)]
    assert day.count(date(2026, 10, 25)) == 25
    assert len(slots("*/15 2 * * *", "Europe/Berlin", "2026-10-24T12:00", 1)) == 4
    often = [each.timestamp() for each in slots("*/5 * * * *", "Europe/Zurich", "2023-10-28T22:00", 1)]
    assert {following - each for each, following in pairwise(often)} == {300}


def test_beat_fires_once_in_the_night_that_is_an_hour_longer() -> None:
    now = datetime(2026, 10, 24, 22, tzinfo=UTC)
    schedule, last, fired = SlotSchedule("30 2 * * *", "Europe/Berlin", nowfun=lambda: now), now, 0
    for _ in range(6 * 60):
        now += timedelta(minutes=1)
        if schedule.is_due(last).is_due:
            last, fired = now, fired + 1
    assert fired == 1


@pytest.mark.parametrize("now", ["2026-10-25T00:45", "2026-10-25T02:00", "2026-03-29T01:15"])
def test_doctor_says_the_same_of_a_nightly_run_on_such_a_night(now: str) -> None:
    model = ModelSettings(
        path=Path("m"), features="t.parquet", batch=BatchSettings(schedule="30 2 * * *", timezone="Europe/Berlin")
    )
    done = run(RunState.PUBLISHED, took_s=67 * 60)
    told = check_schedule("m", model, [done], clock=lambda: at(now))
    assert [each.status.value for each in told if "due every" in each.detail] == ["ok"]


@pytest.mark.parametrize(
    "zone", ["localtime", "posixrules", "Factory", "right/Europe/Berlin", "Europe", "UTC+1", "+01:00", "", "../UTC"]
)
def test_a_zone_that_is_not_the_same_on_every_machine_is_none(zone: str) -> None:
    with pytest.raises(ValidationError, match="is no time zone: write one such as 'UTC' or 'Europe/Berlin'"):
        BatchSettings(schedule="0 3 * * *", timezone=zone)
