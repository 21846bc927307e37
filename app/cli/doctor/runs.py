"""Checks each model's runs: do they start on schedule, end in time, and fit the broker's timeout?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from app.cli.doctor.findings import Check, Finding, Start, error, not_checked, ok, start_fix, warning
from inference.batch import Engine, RunState, slot_after, slot_at
from inference.batch.engines import look_for_engine, ray_address
from inference.batch.records import RunRecord
from inference.clock import Clock, system_clock, to_iso
from inference.economics.miss_capacity import MissCapacity
from inference.errors import BadInput
from inference.settings import BatchSettings, ModelSettings, Settings
from inference.settings.server_urls import is_amqp, is_redis
from inference.wording import counted, duration_text
from tasks.celery_app import celery_config

#: kombu's default for Redis: a message that is not acknowledged by then is delivered again
VISIBILITY_TIMEOUT_S = 3600.0
#: RabbitMQ's default `consumer_timeout`: the channel is closed, and its messages are delivered again
CONSUMER_TIMEOUT_S = 1800.0
#: slots that are compared: a day of hourly runs, or some weeks of nightly runs
_COMPARED_SLOTS = 24


def check_schedule(
    name: str,
    model: ModelSettings,
    runs: Sequence[RunRecord] | None,
    *,
    start: Start | None = None,
    clock: Clock = system_clock,
) -> list[Finding]:
    """Return the findings about one model's runs. `runs`: newest first, None if Redis does not answer."""
    batch = model.batch
    if not model.features:
        return []
    if runs is None:
        return [not_checked(Check.SCHEDULE, name)]
    runs = [run for run in runs if not run.shadow]
    now = clock()
    failed = [_failed(name, runs[0], batch, now)] if runs and runs[0].state is RunState.FAILED else []
    failed += [_held(name, run) for run in runs if run.state is RunState.HELD]
    if not batch.schedule:
        return [*failed, ok(Check.SCHEDULE, name, "no schedule: runs start by hand")]
    latest = slot_at(batch.schedule, batch.timezone, now)
    interval_s = _shortest_interval(batch.schedule, batch.timezone, latest)
    missed = _missed(name, runs, slot_at(batch.schedule, batch.timezone, latest - 1), start)
    return [*failed, *missed, _run_time(name, batch.schedule, interval_s, runs)]


def check_run_engine(name: str, model: ModelSettings) -> list[Finding]:
    """Return whether this machine can start runs on the model's engine; nothing for batch workers.

    Only the maintenance worker's machine needs to.
    """
    engine = Engine(model.batch.engine)
    if not model.features or engine is Engine.CELERY:
        return []
    subject = f"{name}, engine"
    try:
        look_for_engine(engine, model)
    except BadInput as problem:
        return [error(Check.SCHEDULE, subject, problem.message, "put it right where the maintenance worker runs")]
    address = ray_address(model) if engine is Engine.RAY else model.batch.spark.master
    return [ok(Check.SCHEDULE, subject, f"{engine} ({address or 'of each run, on this machine'})")]


def _shortest_interval(schedule: str, timezone: str, slot: float) -> float:
    """Return the shortest pause between the next slots, which is the same at any time for an uneven schedule."""
    slots = [slot]
    while len(slots) <= _COMPARED_SLOTS:
        slots.append(slot_after(schedule, timezone, slots[-1]))
    return min(following - each for each, following in pairwise(slots))


def _failed(name: str, run: RunRecord, batch: BatchSettings, now: float) -> Finding:
    fix = f"put it right, then `forecache batch run {name}`"
    # a gate gives the same result for the same rows
    if run.fingerprint and not run.gates and run.keeps_rows(now, batch.resumable):
        fix += f"; if table and model are as they were, `forecache batch resume {run.run_id}` does the rest"
    return warning(Check.SCHEDULE, f"{name}, last run", f"failed: {run.error or 'no reason is known'}", fix)


def _held(name: str, run: RunRecord) -> Finding:
    detail = f"{run.run_id} waits since {to_iso(run.finished_at or run.created_at)} before its publication"
    fix = f"`forecache batch diff {run.run_id}`, then `forecache batch publish {run.run_id}` or `batch cancel`"
    return warning(Check.SCHEDULE, f"{name}, held run", detail, fix)


def _missed(name: str, runs: Sequence[RunRecord], last_but_one: float, start: Start | None) -> list[Finding]:
    """Return a warning if two slots in a row had no run. A single late run may still come."""
    if not runs or runs[0].created_at >= last_but_one:
        return []
    detail = f"no run since {to_iso(runs[0].created_at)}, though two were due"
    fix = start_fix(start, "python -P -m beat_schedule")
    return [warning(Check.SCHEDULE, f"{name}, beat", detail, fix)]


def _run_time(name: str, schedule: str, interval_s: float, runs: Sequence[RunRecord]) -> Finding:
    last = next((run for run in runs if run.state is RunState.PUBLISHED), None)
    due = f"due every {duration_text(interval_s)} ({schedule})"
    took_s = None if last is None else last.took_s
    if took_s is None:
        return ok(Check.SCHEDULE, name, f"{due}; none has been published yet")
    detail = f"the last run took {duration_text(took_s)}, {due}"
    fix = f"add batch workers, or run less often ([models.{name}.batch] schedule)"
    if took_s > interval_s:
        return error(Check.SCHEDULE, name, f"runs overlap, so slots are left out: {detail}", fix)
    if took_s > interval_s / 2:
        return warning(Check.SCHEDULE, name, f"runs take over half of their interval: {detail}", fix)
    return ok(Check.SCHEDULE, name, detail)


# --- active sets ---


def check_active_set(
    name: str, model: ModelSettings, last: RunRecord | None, capacity: MissCapacity | None, workers: int
) -> list[Finding]:
    """Check that real time can bear the requests that a model's active set leaves to it.

    `last`: the newest published whole run, None for none; `workers`: live ones of its queue.
    """
    subject, rule = f"{name}, active set", model.batch.entities
    if model.batch.rule.is_all:
        return []
    if last is not None and last.entities_rule != rule:
        detail = f"the last run scored all rows: {last.entities_note or 'it came before the setting'}"
        return [ok(Check.SCHEDULE, subject, detail)]
    if capacity is None:
        return [ok(Check.SCHEDULE, subject, f"entities = {rule!r}; too little is known yet of what it leaves out")]
    failed = f"if a run fails, it takes {capacity.workers_if_a_run_fails}"
    needed, alive = counted(capacity.workers, "real-time worker"), counted(workers, "is", "are")
    detail = f"{capacity.text}: that takes {needed}, and {alive} alive; {failed}"
    if capacity.workers <= workers:
        return [ok(Check.SCHEDULE, subject, detail)]
    fix = f"start more real-time workers, or choose more entities ([models.{name}.batch] entities)"
    return [warning(Check.SCHEDULE, subject, detail, fix)]


# --- the broker's timeout ---


def check_patience(
    settings: Settings, model: str, runs: Sequence[RunRecord] | None, batch_workers: int
) -> list[Finding]:
    """Check that the broker waits long enough for one chunk, by the model's last published run.

    `runs`: newest first, None if Redis does not answer.
    """
    if runs is None:
        return [not_checked(Check.BROKER, f"chunks of {model}")]
    last = next((run for run in runs if run.state is RunState.PUBLISHED), None)
    patience_s, name = _patience(settings)
    if last is None or not last.chunks_total or patience_s is None:
        return []
    took_s = (last.took_s or 0.0) - ((last.started_at or last.created_at) - last.created_at)
    # the workers scored the chunks in rounds
    chunk_s = took_s / -(-last.chunks_total // max(batch_workers, 1))
    if chunk_s <= patience_s / 2:
        return [ok(Check.BROKER, f"chunks of {model}", f"about {duration_text(chunk_s)} each; {name} is longer")]
    detail = f"about {duration_text(chunk_s)} each, and after {duration_text(patience_s)} ({name}) they are sent again"
    return [warning(Check.BROKER, f"chunks of {model}", detail, f"lower [models.{model}.batch] rows_per_chunk")]


def _patience(settings: Settings) -> tuple[float | None, str]:
    if is_redis(settings.broker_url):
        options = celery_config(settings)["broker_transport_options"]
        return float(options.get("visibility_timeout", VISIBILITY_TIMEOUT_S)), "the visibility timeout"
    if is_amqp(settings.broker_url):
        return CONSUMER_TIMEOUT_S, "RabbitMQ's consumer_timeout"
    return None, ""
