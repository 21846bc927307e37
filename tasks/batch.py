"""Tasks of the batch queue."""

from __future__ import annotations

from celery import shared_task

from inference.failures import Failures
from inference.logs import get_logger
from inference.monitoring.counters import PARITY
from tasks.celery_app import DeploymentTask

log = get_logger(__name__)
failures = Failures(__name__, "parity")


@shared_task(name="forecache.score_chunk", acks_late=True, ignore_result=True, bind=True)  # type: ignore[untyped-decorator]  # celery has no types
def score_chunk(self: DeploymentTask, run_id: str, chunk_number: int) -> None:
    """Score one chunk and stage its predictions. Safe to run twice."""
    self.deployment.runs.score(run_id, chunk_number)


@shared_task(name="forecache.check_parity", ignore_result=True, bind=True)  # type: ignore[untyped-decorator]  # celery has no types
def check_parity(self: DeploymentTask, model: str) -> None:
    """Compute a sample of a model's answers again the other way, and count how many agree."""
    with failures.kept_here(model, model=model):  # beat sends the next check anyway
        counts = self.deployment.parity.check(model)
        log.info("parity.checked", model=model, **{name.replace(":", "_"): count for name, count in counts.items()})
        if counts:
            self.deployment.minute_counts.add(model, PARITY, counts)
