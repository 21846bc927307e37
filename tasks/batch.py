"""Tasks of the batch queue."""

from __future__ import annotations

from inference.failures import Failures
from inference.hits import PARITY, MinuteCounts
from inference.logs import get_logger
from inference.parity import Parity
from tasks.celery_app import celery_app, services
from tasks.runs import runs

log = get_logger(__name__)
failures = Failures(__name__, "parity")


@celery_app.task(name="forecache.score_chunk", acks_late=True, ignore_result=True)  # type: ignore[untyped-decorator]  # celery has no types
def score_chunk(run_id: str, chunk_number: int) -> None:
    """Score one chunk and stage its predictions. Safe to run twice."""
    runs().score(run_id, chunk_number)


@celery_app.task(name="forecache.check_parity", ignore_result=True)  # type: ignore[untyped-decorator]  # celery has no types
def check_parity(model: str) -> None:
    """Compute a sample of a model's answers again the other way, and count those that are not the same."""
    own = services()
    parity = Parity(own.settings, own.cache, own.keys, lambda: own.host, own.table, own.fallback)
    with failures.kept_here(model, model=model):  # the next one comes by itself
        counts = parity.check(model)
        log.info("parity.checked", model=model, **{name.replace(":", "_"): count for name, count in counts.items()})
        if counts:
            MinuteCounts(own.cache, own.keys).add(model, PARITY, counts)
