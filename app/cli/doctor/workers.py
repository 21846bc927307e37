"""Checks that each queue has live workers with the right versions, and that they take messages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial

from celery.exceptions import NotRegistered

from app.cli.doctor.findings import (
    STARTS_WITHIN_S,
    Check,
    Finding,
    Start,
    at_once,
    error,
    not_checked,
    ok,
    start_fix,
    warning,
)
from app.local.lock import find_up
from inference.clock import Clock, system_clock
from inference.errors import DeadlineExceeded
from inference.failures import sentence_of
from inference.monitoring.presence import Roster, WorkerBeat
from inference.settings import BATCH_QUEUE, MAINTENANCE_QUEUE, REALTIME_QUEUE, Settings
from inference.stored_data import installed_release
from inference.wording import duration_text
from tasks.celery_app import make_celery
from tasks.dispatch.sender import priorities
from tasks.echo import ask_queue

#: queue → (kind of its workers, consequence of having none); all other queues carry requests
_NO_REQUESTS = {
    BATCH_QUEUE: ("gpu", "no run is scored"),
    MAINTENANCE_QUEUE: ("maintenance", "no run is started or published"),
}


def find_start(settings: Settings, rosters: Collection[Roster], *, clock: Clock = system_clock) -> Start | None:
    """Return the last start of the deployment, None if none is known.

    It is that of `forecache up` in this folder, or of processes elsewhere if none of them is older than a minute.
    `rosters`: of all kinds of processes.
    """
    up = find_up(settings.state_dir)
    if up is not None:
        return Start(f"`forecache up` (pid {up.pid})", max(clock() - up.since, 0.0))
    started = [process.started_at for roster in rosters for process in roster.alive]
    # if a process is older, others die and are restarted
    age_s = max(clock() - min(started), 0.0) if started else None
    return None if age_s is None or age_s >= STARTS_WITHIN_S else Start("the deployment", age_s)


def check_workers(
    settings: Settings,
    rosters: Mapping[str, Roster] | None,
    active: Mapping[str, int | None],
    *,
    start: Start | None = None,
    clock: Clock = system_clock,
) -> list[Finding]:
    """Return a finding for each live worker, and one for each queue without workers.

    `rosters`: by queue, None if Redis does not answer. `active`: model → the version that answers.
    """
    if rosters is None:
        return [not_checked(Check.WORKERS, "all queues")]
    findings: list[Finding] = []
    for queue, roster in rosters.items():
        if roster.alive:
            expected = _expected_versions(settings, queue, active)
            most_s = settings.workers.load_timeout
            findings.extend(_check_one(queue, worker, expected, clock(), most_s) for worker in roster.alive)
        else:
            findings.append(_no_worker(settings, queue, roster, start))
    return findings


def _expected_versions(settings: Settings, queue: str, active: Mapping[str, int | None]) -> Mapping[str, int | None]:
    """Return model → version for the workers of a queue. Maintenance workers hold no models."""
    if queue == MAINTENANCE_QUEUE:
        return {}
    models = settings.models if queue == BATCH_QUEUE else settings.models_of([queue])
    return {model: version for model, version in active.items() if model in models}


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


def _no_worker(settings: Settings, queue: str, roster: Roster, start: Start | None) -> Finding:
    lately = ", ".join(f"{name} was heard {duration_text(age)} ago" for name, age in sorted(roster.gone.items()))
    which = "" if len(settings.realtime_queues) == 1 else f" of {', '.join(settings.models_of([queue]))}"
    worker, without = _NO_REQUESTS.get(queue, ("realtime", f"no miss{which} is computed"))
    detail = f"no worker is alive ({lately or 'none was within the last hour'}): {without}"
    option = "" if queue in (*_NO_REQUESTS, REALTIME_QUEUE) else f" -Q {queue}"
    fix = start_fix(start, f"python -P -m workers {worker}{option}")
    # a model without a table has no runs
    needed = queue not in _NO_REQUESTS or any(model.features for model in settings.models.values())
    return (error if needed else warning)(Check.WORKERS, queue, detail, fix)


# --- a message and back ---

#: seconds for the answer; a worker that is not busy answers in milliseconds
ANSWER_WITHIN_S = 3.0
#: additional seconds to reach the broker
_REACH_S = 1.5


def check_queues(
    settings: Settings,
    rosters: Mapping[str, Roster],
    scored_now: Callable[[], str | None],
    *,
    ask: Callable[[str], None] | None = None,
) -> list[Finding]:
    """Send a message through each queue that has a ready worker, and wait for the answer.

    `check_workers` reports the other queues. `scored_now`: returns a run with a chunk that is being scored, or None;
    `ask`: asks one queue.
    """
    queues = [queue for queue, roster in rosters.items() if any(worker.ready for worker in roster.alive)]
    if ask is not None:
        answers = at_once({queue: partial(ask, queue) for queue in queues}, ANSWER_WITHIN_S + _REACH_S)
    else:
        urgent = priorities(settings).request
        with make_celery(settings) as application:
            calls = {
                queue: partial(ask_queue, application, queue, timeout_s=ANSWER_WITHIN_S, priority=urgent)
                for queue in queues
            }
            answers = at_once(calls, ANSWER_WITHIN_S + _REACH_S)
    return [_answer_finding(queue, answers[queue], scored_now) for queue in queues]


def _answer_finding(queue: str, answer: Exception | None, scored_now: Callable[[], str | None]) -> Finding:
    subject = f"{queue}: a message and back"
    if answer is None:
        return ok(Check.WORKERS, subject, "answered")
    if isinstance(answer, DeadlineExceeded | TimeoutError):
        run_id = scored_now() if queue == BATCH_QUEUE else None
        if run_id is not None:
            return ok(Check.WORKERS, subject, f"waits behind a chunk of run {run_id}, which is being scored")
        detail = f"no worker took it within {ANSWER_WITHIN_S:g} s, though one says that it is ready"
        return error(Check.WORKERS, subject, detail, "read the log of the queue's workers, then restart them")
    if isinstance(answer, NotRegistered):
        fix = "install the same release everywhere and restart the workers"
        return warning(Check.WORKERS, subject, "its worker runs a release that does not know this question", fix)
    return error(Check.WORKERS, subject, f"it cannot be sent: {sentence_of(answer)}", "see broker, and redis, url")
