"""Which workers are alive, by their own signs of life, and which versions of the models they hold."""

from __future__ import annotations

from collections.abc import Mapping

from app.cli.doctor.findings import Check, Finding, duration_text, error, not_checked, ok, warning
from inference.clock import Clock, system_clock
from inference.monitoring.presence import Roster, WorkerBeat
from inference.settings import BATCH_QUEUE, MAINTENANCE_QUEUE, REALTIME_QUEUE, Settings
from inference.stored_data import installed_release

#: queue → what starts a worker of it, and what does not happen without one; all others are queues of requests
_OTHERS = {
    BATCH_QUEUE: ("gpu", "no run is scored"),
    MAINTENANCE_QUEUE: ("maintenance", "no run is started or published"),
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
            there = _active_there(settings, queue, active)
            most_s = settings.workers.load_timeout
            lines.extend(_check_one(queue, worker, there, clock(), most_s) for worker in roster.alive)
        else:
            lines.append(_nobody(settings, queue, roster))
    return lines


def _active_there(settings: Settings, queue: str, active: Mapping[str, int | None]) -> Mapping[str, int | None]:
    """Return what the workers of a queue should hold; those of maintenance hold no models."""
    if queue == MAINTENANCE_QUEUE:
        return {}
    own = settings.models if queue == BATCH_QUEUE else settings.models_of([queue])
    return {model: version for model, version in active.items() if model in own}


def _check_one(queue: str, worker: WorkerBeat, active: Mapping[str, int | None], now: float, most_s: float) -> Finding:
    subject = f"{queue}: {worker.name}"
    detail = f"alive, pid {worker.pid}, for {duration_text(max(now - worker.started_at, 0.0))}"
    if worker.deaf:
        fix = "see broker, if that is an error; else restart the worker, and read its log"
        return error(Check.WORKERS, subject, f"{detail}, but deaf: it takes nothing from the broker", fix)
    if not worker.ready:
        loading = "; ".join(one.told(most_s) for one in worker.loading)
        return ok(Check.WORKERS, subject, f"{detail}, still loading its models{loading and ': '}{loading}")
    held = ", ".join(f"{model} {'/'.join(map(str, versions))}" for model, versions in sorted(worker.versions.items()))
    if held:
        detail += f", holds {held}"
    if worker.release != installed_release():
        fix = "install the same release everywhere and restart the workers"
        return warning(Check.WORKERS, subject, f"{detail}; runs Forecache {worker.release or 'from its sources'}", fix)
    behind = [
        f"version {version} of {model} answers"
        for model, version in sorted(active.items())
        if version is not None and version not in worker.versions.get(model, ())
    ]
    if behind:
        fix = "the worker loads it with its first task; restart it to have it now"
        return warning(Check.WORKERS, subject, f"{detail}, but {' and '.join(behind)}", fix)
    return ok(Check.WORKERS, subject, detail)


def _nobody(settings: Settings, queue: str, roster: Roster) -> Finding:
    lately = ", ".join(f"{name} was heard {duration_text(age)} ago" for name, age in sorted(roster.gone.items()))
    which = "" if len(settings.realtime_queues) == 1 else f" of {', '.join(settings.models_of([queue]))}"
    worker, without = _OTHERS.get(queue, ("realtime", f"no miss{which} is computed"))
    detail = f"no worker is alive ({lately or 'none was within the last hour'}): {without}"
    own = "" if queue in (*_OTHERS, REALTIME_QUEUE) else f" -Q {queue}"
    fix = f"start `forecache up`, or `python -P -m workers {worker}{own}`"
    # a model without a table has no runs
    needed = queue not in _OTHERS or any(model.features for model in settings.models.values())
    return (error if needed else warning)(Check.WORKERS, queue, detail, fix)
