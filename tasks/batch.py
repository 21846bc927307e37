"""Tasks of the batch queue."""

from __future__ import annotations

from inference.engines import run_driver
from tasks.celery_app import celery_app, services
from tasks.runs import runs


@celery_app.task(name="forecache.score_chunk", acks_late=True, ignore_result=True)  # type: ignore[untyped-decorator]  # celery has no types
def score_chunk(run_id: str, chunk_number: int) -> None:
    """Score one chunk and stage its predictions. Safe to run twice."""
    runs().score(run_id, chunk_number)


# acknowledged early: it may take hours, after which a broker would deliver it again; who watches over runs asks anew
@celery_app.task(name="forecache.drive_run", acks_late=False, ignore_result=True)  # type: ignore[untyped-decorator]
def drive_run(run_id: str) -> None:
    """Have a Spark cluster score a run, and wait for it. Safe to run twice, also at the same time."""
    run_driver(services().settings, runs(), run_id)
