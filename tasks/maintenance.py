"""Tasks of the maintenance queue."""

from __future__ import annotations

from typing import Any

from celery import shared_task

from inference.batch import DiffOptions, Trigger, current_slot
from inference.batch.records import is_run_id
from inference.clock import system_clock
from inference.engines.driver import DriverProcess
from inference.errors import BadInput, Conflict, Defect, NotFound, StoreUnavailable, quoted
from inference.failures import Failures
from inference.logs import get_logger
from inference.monitoring.queues import SENT_AT_HEADER
from inference.serving.answering import check_model, illegal_ids
from inference.settings import Settings
from tasks.celery_app import DeploymentTask

log = get_logger(__name__)
failures = Failures(__name__, "maintenance")


@shared_task(  # type: ignore[untyped-decorator]  # celery has no types
    name="forecache.start_run",
    bind=True,
    # an outage must not lose a slot
    autoretry_for=(StoreUnavailable,),
    retry_backoff=2,
    retry_kwargs={"max_retries": 8},
)
def start_run(self: DeploymentTask, model: str | None = None, trigger: str = "api") -> dict[str, Any]:
    """Open a model's run and return it, or `{"error": …}` if it cannot start now.

    Beat opens at most one run for each slot of the schedule, so its message may arrive twice. Other applications
    send this task too: `docs/existing.md` is the contract.
    """
    try:
        check_model(model)
        scheduled = trigger == "beat"
        slot = _slot(self.deployment.settings, model, self.request.get(SENT_AT_HEADER)) if scheduled else None
        delta = scheduled and self.deployment.settings.model(model)[1].batch.delta
        run = self.deployment.runs.request(model, trigger=_trigger(trigger), slot=slot, delta=delta)
    except (BadInput, Conflict) as error:
        log.info("run.not_started", model=model, trigger=trigger, reason=error.message)
        return {"error": error.to_json()}
    except StoreUnavailable:  # Celery tries again
        raise
    except Exception as error:  # noqa: BLE001 - `tell` logs it; the next slot is another try
        said = failures.tell(error, f"start {model}", model=model, trigger=trigger)
        return {"error": Defect(f"the run could not be started: {said}").to_json()}
    failures.over(f"start {model}", model=model)
    self.deployment.broker.hurry()
    return run.to_json()


@shared_task(name="forecache.prepare_run", ignore_result=True, bind=True)  # type: ignore[untyped-decorator]  # celery has no types
def prepare_run(self: DeploymentTask, run_id: str) -> None:
    """Plan a queued run and send its first chunks. Safe to run twice."""
    with failures.kept_here("prepare"):  # the reconciler repeats it within seconds
        self.deployment.runs.prepare(run_id)


@shared_task(name="forecache.reconcile", ignore_result=True, bind=True)  # type: ignore[untyped-decorator]  # celery has no types
def reconcile(self: DeploymentTask) -> None:
    """Take the due steps of every run. Safe to run twice."""
    with failures.kept_here("reconcile"):  # the timer repeats it every few seconds
        self.deployment.runs.reconcile()


@shared_task(name="forecache.compare_run", ignore_result=True, bind=True)  # type: ignore[untyped-decorator]  # celery has no types
def compare_run(self: DeploymentTask, run_id: str, options: dict[str, Any] | None = None) -> None:
    """Compare a run with what serves, and keep the result. Safe to run twice.

    The API and the dashboard do not compare by themselves: it takes seconds of a processor.
    """
    try:
        self.deployment.runs.diff(run_id, DiffOptions.from_json(options or {}))
    except (BadInput, Conflict, NotFound) as error:  # the sender has checked it; something changed meanwhile
        log.info("run.not_compared", run_id=run_id if is_run_id(run_id) else None, reason=error.message)
    except Exception as error:  # noqa: BLE001 - `tell` logs it; whoever asked may ask again
        failures.tell(error, "compare a run")
    else:
        failures.over("compare a run")


@shared_task(name="forecache.forget_entity", ignore_result=True, bind=True)  # type: ignore[untyped-decorator]  # celery has no types
def forget_entity(self: DeploymentTask, model: str, entity_id: str) -> None:
    """Remove what the deployment holds of an entity that is on its model's list. Safe to run twice.

    The API may neither change rows of generations nor reach the files of runs. A message alone forgets nobody.
    """
    if illegal_ids([entity_id]):  # a forged message
        log.info("entity.not_forgotten", reason="no entity has such an id")
        return
    try:
        check_model(model)
        self.deployment.forgetting.remove(model, entity_id)
    except (BadInput, NotFound) as error:  # lifted meanwhile
        log.info("entity.not_forgotten", model=model, reason=error.message)
    except Exception as error:  # noqa: BLE001 - `tell` logs it; whoever asked may ask again
        failures.tell(error, "forget an entity")
    else:
        failures.over("forget an entity")


@shared_task(name="forecache.drive_run", ignore_result=True, bind=True)  # type: ignore[untyped-decorator]  # celery has no types
def drive_run(self: DeploymentTask, run_id: str) -> None:
    """Keep a run's Spark or Ray driver going until it ends. Safe to run twice: a second one sees the first and ends."""
    with failures.kept_here("drive a run"):  # the reconciler asks for a driver as long as one is missing
        DriverProcess(self.deployment.ledger).drive(run_id)
        self.deployment.broker.hurry()


def _trigger(name: str) -> Trigger:
    try:
        return Trigger(name)
    except ValueError as error:
        known = ", ".join(Trigger)
        raise BadInput(f"trigger {quoted(name)} is not one of {known}: leave it out", field="trigger") from error


def _slot(settings: Settings, model: str | None, sent_at: Any) -> str | None:
    batch = settings.model(model)[1].batch
    return current_slot(batch.schedule, batch.timezone, system_clock(), sent_at) if batch.schedule else None
