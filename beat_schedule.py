"""Defines what celery beat sends, and when: runs and parity checks of the models that have them.

Beat keeps no state file. When it starts, it sends the latest slot of every schedule again. The receiver drops a slot
that already had its run. So a slot is not lost while beat is away, and none runs twice, even with two beats.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import BaseSchedule, schedstate
from celery.signals import setup_logging

from inference.batch.schedule import slot_after
from inference.errors import SettingsError
from inference.logs import configure_logging, get_logger
from inference.settings import Settings, load_settings
from tasks.dispatch.sender import CONFIRMED, make_sending_app

log = get_logger(__name__)

#: a message that nobody took for this long is dropped; the next start of beat sends the slot again
MESSAGE_EXPIRES_S = 3600.0


class SlotSchedule(BaseSchedule):  # type: ignore[misc]  # celery has no types
    """Is due at each slot of a cron line (in a time zone) or of a duration."""

    def __init__(self, schedule: str, timezone: str, *, nowfun: Callable[[], datetime] | None = None) -> None:
        super().__init__(nowfun=nowfun)
        self.schedule = schedule
        self.timezone = timezone

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Return whether a slot has passed since the last run, and the seconds until the next one."""
        now = self.now().timestamp()
        due = slot_after(self.schedule, self.timezone, last_run_at.timestamp()) <= now
        return schedstate(due, slot_after(self.schedule, self.timezone, now) - now)

    def remaining_estimate(self, last_run_at: datetime) -> Any:
        """Return the time until the first slot after the last run."""
        following = slot_after(self.schedule, self.timezone, last_run_at.timestamp())
        return datetime.fromtimestamp(following, UTC) - self.now()

    def __repr__(self) -> str:
        return f"<slots of {self.schedule!r} in {self.timezone}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SlotSchedule) and (self.schedule, self.timezone) == (
            other.schedule,
            other.timezone,
        )

    def __hash__(self) -> int:
        return hash((self.schedule, self.timezone))


class PatientScheduler(Scheduler):  # type: ignore[misc]  # celery has no types
    """Sends due entries. Repeats an entry until the broker accepts it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._refused: dict[str, ScheduleEntry] = {}
        super().__init__(*arguments, **options)

    def tick(self, *arguments: Any, **options: Any) -> float:
        """Send refused entries, then due ones; return the seconds until the next look."""
        for entry in list(self._refused.values()):
            self.apply_entry(entry, producer=self.producer)
        return float(super().tick(*arguments, **options))

    def apply_entry(self, entry: ScheduleEntry, producer: Any = None) -> None:
        """Send an entry, or keep it for the next look. Logs an outage once."""
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except Exception as error:  # noqa: BLE001 - each kind of broker has errors of its own
            if entry.name not in self._refused:
                log.warning("schedule.not_sent", entry=entry.name, error=str(error))
            self._refused[entry.name] = entry
        else:
            self._refused.pop(entry.name, None)
            log.info("schedule.sent", entry=entry.name)


def beat_entries(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return beat's entries: the runs of models with a schedule, and the parity checks of models with a check."""
    return _runs(settings) | _parity_checks(settings)


def _parity_checks(settings: Settings) -> dict[str, dict[str, Any]]:
    return {
        f"parity {name}": {
            "task": "forecache.check_parity",
            "kwargs": {"model": name},
            "schedule": timedelta(seconds=model.parity.every),
            # the next check is as good
            "options": {"expires": model.parity.every, "ignore_result": True, **CONFIRMED},
        }
        for name, model in settings.models.items()
        if model.parity.every is not None
    }


def _runs(settings: Settings) -> dict[str, dict[str, Any]]:
    return {
        f"run {name}": {
            "task": "forecache.start_run",
            "kwargs": {"model": name, "trigger": "beat"},
            "schedule": SlotSchedule(model.batch.schedule, model.batch.timezone),
            "options": {"expires": MESSAGE_EXPIRES_S, "ignore_result": True, **CONFIRMED},
            # long ago: the latest slot is due at once
            "last_run_at": datetime.fromtimestamp(0, UTC),
        }
        for name, model in settings.models.items()
        if model.batch.schedule
    }


def make_beat(settings: Settings) -> Any:
    """Return the Celery application that beat runs with."""
    return make_sending_app(
        settings,
        beat_schedule=beat_entries(settings),
        # otherwise beat sends a task of Celery's that removes results, which expire by themselves
        result_expires=None,
        beat_scheduler=PatientScheduler,
        # wakes often, to notice soon that the clock was set forward or that a laptop slept
        beat_max_loop_interval=5,
    )


try:
    _settings = load_settings()
except SettingsError as error:
    # one line, also where celery imports this module
    raise SystemExit(error.message) from error
celery_app = make_beat(_settings)


@setup_logging.connect  # type: ignore[untyped-decorator]  # celery has no types
def _log_to_stderr(**_: Any) -> None:
    configure_logging("beat", form=_settings.logs.format, level=_settings.logs.level)


def main() -> None:
    """Run beat in this process until it is told to stop."""
    celery_app.start(["--quiet", "beat", "--loglevel", "INFO"])


if __name__ == "__main__":
    main()
