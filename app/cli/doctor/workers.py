"""Which workers are alive, by their own signs of life, and which versions of the models they hold."""

from __future__ import annotations

from collections.abc import Mapping

from app.cli.doctor.findings import Check, Finding, duration_text, error, not_checked, ok, warning
from inference.clock import Clock, system_clock
from inference.presence import Roster, WorkerBeat
from inference.release import installed_release
from inference.settings import Settings

#: queue → what starts a worker of it
STARTED_BY = {
    "batch": "python -P -m workers gpu",
    "realtime": "python -P -m workers realtime",
    "maintenance": "python -P -m workers maintenance",
}
_WITHOUT = {
    "batch": "no run is scored",
    "realtime": "no miss is computed",
    "maintenance": "no run is started or published",
}


def check_workers(
    settings: Settings,
    rosters: Mapping[str, Roster] | None,
    active: Mapping[str, int | None],
    *,
    clock: Clock = system_clock,
) -> list[Finding]:
    """Return a line for each living worker, and one for each queue that has none.

    `rosters`: by queue; None when they cannot be read. `active`: model → the version that answers.
    """
    if rosters is None:
        return [not_checked(Check.WORKERS, "all queues")]
    lines: list[Finding] = []
    for queue, roster in rosters.items():
        if roster.alive:
            lines.extend(_check_one(queue, worker, active, clock()) for worker in roster.alive)
        else:
            lines.append(_nobody(settings, queue, roster))
    return lines


def _check_one(queue: str, worker: WorkerBeat, active: Mapping[str, int | None], now: float) -> Finding:
    subject = f"{queue}: {worker.name}"
    detail = f"alive, pid {worker.pid}, for {duration_text(max(now - worker.started_at, 0.0))}"
    if not worker.ready:
        return ok(Check.WORKERS, subject, f"{detail}, still loading its models")
    held = ", ".join(f"{model} {'/'.join(map(str, versions))}" for model, versions in sorted(worker.versions.items()))
    if held:
        detail += f", holds {held}"
    if worker.release != installed_release():
        fix = "install the same release everywhere and restart the workers"
        return warning(Check.WORKERS, subject, f"{detail}; runs Forecache {worker.release or 'from its sources'}", fix)
    # the maintenance worker holds no models
    behind = [
        f"version {version} of {model} answers"
        for model, version in sorted(active.items())
        if queue != "maintenance" and version is not None and version not in worker.versions.get(model, ())
    ]
    if behind:
        fix = "the worker loads it with its first task; restart it to have it now"
        return warning(Check.WORKERS, subject, f"{detail}, but {' and '.join(behind)}", fix)
    return ok(Check.WORKERS, subject, detail)


def _nobody(settings: Settings, queue: str, roster: Roster) -> Finding:
    lately = ", ".join(f"{name} was heard {duration_text(age)} ago" for name, age in sorted(roster.gone.items()))
    detail = f"no worker is alive ({lately or 'none was within the last hour'}): {_WITHOUT[queue]}"
    fix = f"start `forecache up`, or `{STARTED_BY[queue]}`"
    # a model without a table has no runs
    needed = queue == "realtime" or any(model.features for model in settings.models.values())
    return (error if needed else warning)(Check.WORKERS, queue, detail, fix)
