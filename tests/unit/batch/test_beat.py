from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from celery.beat import PersistentScheduler

import beat_schedule
from beat_schedule import SlotSchedule, beat_entries, make_beat
from inference.settings import BatchSettings, ModelSettings, Settings


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def settings(schedule: str | None) -> Settings:
    return Settings(models={"m": ModelSettings(path=Path("m"), batch=BatchSettings(schedule=schedule))})


def test_a_model_without_a_schedule_gets_no_entry_and_beat_still_works() -> None:
    assert beat_entries(settings(None)) == {}
    assert make_beat(settings(None)).conf.beat_schedule == {}


def test_an_entry_starts_a_run_that_beat_triggered_and_is_due_at_once() -> None:
    entry = beat_entries(settings("0 3 * * *"))["run m"]

    assert (entry["task"], entry["kwargs"]) == ("forecache.start_run", {"model": "m", "trigger": "beat"})
    assert entry["options"]["expires"] > 0
    assert entry["schedule"].is_due(entry["last_run_at"]).is_due


def test_a_slot_is_due_once_and_the_next_is_waited_for() -> None:
    schedule = SlotSchedule("0 3 * * *", "Europe/Berlin", nowfun=lambda: at("2026-07-01T01:00:10"))

    assert tuple(schedule.is_due(at("2026-07-01T00:59:00"))) == (True, 24 * 3600 - 10)
    assert tuple(schedule.is_due(at("2026-07-01T01:00:05"))) == (False, 24 * 3600 - 10)
    assert schedule.remaining_estimate(at("2026-07-01T01:00:05")).total_seconds() == 24 * 3600 - 10


def test_beat_keeps_no_state_file() -> None:
    # Celery's own keeps one
    assert beat_schedule.make_beat(settings("30s")).conf.beat_scheduler is beat_schedule.PatientScheduler
    assert not issubclass(beat_schedule.PatientScheduler, PersistentScheduler)


def test_beat_sends_nothing_but_what_the_settings_ask_for() -> None:
    beat = beat_schedule.PatientScheduler(make_beat(settings("30s")))
    assert list(beat.schedule) == ["run m"]


def test_parity_is_checked_only_where_it_is_asked_for() -> None:
    models = {"m": {"path": "m", "parity": {"every": "15m"}}, "other": {"path": "o"}}
    entries = beat_entries(Settings.model_validate({"models": models}))
    assert list(entries) == ["parity m"]
    assert entries["parity m"]["task"] == "forecache.check_parity"
    assert entries["parity m"]["schedule"].total_seconds() == 900
