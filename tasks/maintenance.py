"""Tasks of the maintenance queue."""

from __future__ import annotations

from inference.batch import Trigger, current_slot
from inference.clock import system_clock
from inference.errors import BadInput, Conflict, StoreUnavailable
from inference.logs import get_logger
from tasks.celery_app import celery_app, services
from tasks.runs import runs

log = get_logger(__name__)


@celery_app.task(  # type: ignore[untyped-decorator]  # celery has no types
    name="forecache.start_run",
    ignore_result=True,
    # a slot whose message fell into an outage is not lost
    autoretry_for=(StoreUnavailable,),
    retry_backoff=2,
    retry_kwargs={"max_retries": 8},
)
def start_run(model: str, trigger: str = "beat") -> None:
    """Start a model's run, from beat at most one for each slot of its schedule. Safe to run twice."""
    try:
        run = runs().request(model, trigger=Trigger(trigger), slot=_slot(model) if trigger == "beat" else None)
    except (BadInput, Conflict) as error:
        log.info("run.not_started", model=model, trigger=trigger, reason=error.message)
        return
    runs().prepare(run.run_id)


@celery_app.task(name="forecache.prepare_run", ignore_result=True)  # type: ignore[untyped-decorator]  # celery has no types
def prepare_run(run_id: str) -> None:
    """Plan a queued run and send its first chunks. Safe to run twice."""
    runs().prepare(run_id)


@celery_app.task(name="forecache.reconcile", ignore_result=True)  # type: ignore[untyped-decorator]  # celery has no types
def reconcile() -> None:
    """Move every run on by what is due. Safe to run twice."""
    runs().reconcile()


def _slot(model: str) -> str | None:
    batch = services().settings.model(model)[1].batch
    return current_slot(batch.schedule, batch.timezone, system_clock()) if batch.schedule else None
