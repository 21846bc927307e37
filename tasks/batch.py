"""Tasks of the batch queue."""

from __future__ import annotations

from tasks.celery_app import celery_app
from tasks.runs import runs


@celery_app.task(name="forecache.score_chunk", acks_late=True, ignore_result=True)  # type: ignore[untyped-decorator]  # celery has no types
def score_chunk(run_id: str, chunk_number: int) -> None:
    """Score one chunk and stage its predictions. Safe to run twice."""
    runs().score(run_id, chunk_number)
