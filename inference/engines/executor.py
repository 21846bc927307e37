"""What a Spark executor's Python worker does: the same chunk work as a batch worker, under the same claims.

A task that Spark repeats, or starts a second time because the first is slow, finds the chunk claimed or finished, so
nothing is written or counted twice. Settings come from this machine's file and environment, never from Spark.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import cache

import pyarrow as pa

from inference.batch.ledger import Ledger
from inference.batch.tables import RunTables
from inference.batch.work import ChunkWork
from inference.deployment import Deployment
from inference.errors import Unavailable
from inference.logs import configure_logging, get_logger
from inference.models import MicroBatches
from inference.redis.clients import WORKER
from inference.settings import load_settings

log = get_logger(__name__)

#: how often a task looks whether the chunk that another holds is done, or free again
_LOOK_EVERY_S = 0.5


@cache
def _work() -> tuple[Ledger, ChunkWork]:
    """Return this Python worker's parts; its host keeps the model for all later tasks."""
    deployment = Deployment(load_settings(), WORKER)
    settings, ledger = deployment.settings, deployment.ledger
    configure_logging("spark", form=settings.logs.format, level=settings.logs.level)
    tables, micro_batches = RunTables(deployment.table), MicroBatches(deployment.registry)
    # the reconciler looks every two seconds; it cannot be woken without the broker
    return ledger, ChunkWork(settings, ledger, lambda: deployment.host, tables, lambda: None, micro_batches)


def score_chunks(run_id: str, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Score the chunks whose numbers stand in the column `chunk`, and yield each number once it is settled."""
    ledger, work = _work()
    for batch in batches:
        for number in batch.column("chunk").to_pylist():
            _settle(ledger, work, run_id, number)
        yield batch


def _settle(ledger: Ledger, work: ChunkWork, run_id: str, number: int) -> None:
    """Return when the chunk is done or its run is over.

    Not when another has claimed it: Spark ends the slower attempts as soon as one returns.
    """
    while True:
        try:
            if not ledger.is_open(run_id, number):
                return
            work.score(run_id, number)
            if not ledger.is_open(run_id, number):
                return
        except Unavailable as error:
            log.warning("chunk.waits_for_store", run_id=run_id, chunk=number, error=error.message)
        time.sleep(_LOOK_EVERY_S)
