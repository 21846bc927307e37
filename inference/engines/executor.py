"""Scores chunks in a Spark executor's Python worker, as a batch worker does and under the same claims.

If Spark repeats a task, or starts a second one because the first is slow, that task finds its chunk claimed or
finished, so nothing is written or counted twice. Settings come from this machine's file and environment, never from
Spark.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import cache

import pyarrow as pa

from inference.batch.ledger import Ledger
from inference.batch.publishing import RunTables
from inference.batch.worker import ChunkWorker
from inference.batch.yielding import Yielding
from inference.deployment import Deployment
from inference.errors import Unavailable
from inference.logs import configure_logging, get_logger
from inference.models import MicroBatches
from inference.redis.clients import WORKER
from inference.settings import load_settings

log = get_logger(__name__)

#: how often a task looks whether a chunk that another worker holds is done, or free again
_LOOK_EVERY_S = 0.5


@cache
def _worker() -> tuple[Ledger, ChunkWorker]:
    """Return this process's ledger and chunk worker, built once: the model stays loaded for later tasks."""
    deployment = Deployment(load_settings(), WORKER)
    settings, ledger = deployment.settings, deployment.ledger
    configure_logging("spark", form=settings.logs.format, level=settings.logs.level)
    tables, micro_batches = RunTables(deployment.table), MicroBatches(deployment.registry)
    yielding = Yielding(deployment.cache, deployment.keys, settings.realtime_queues)
    # without a broker nothing wakes the reconciler; it looks every two seconds anyway
    return ledger, ChunkWorker(
        settings, ledger, lambda: deployment.host, tables, lambda: None, micro_batches, give_way=yielding.give_way
    )


def score_chunks(run_id: str, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Score the chunks of the column `chunk`, and yield each batch of numbers when its chunks are done."""
    ledger, worker = _worker()
    for batch in batches:
        for number in batch.column("chunk").to_pylist():
            _settle(ledger, worker, run_id, number)
        yield batch


def _settle(ledger: Ledger, worker: ChunkWorker, run_id: str, number: int) -> None:
    """Return when the chunk is done or its run is over.

    A claim of another worker is no reason to return: Spark ends the slower attempts as soon as one returns.
    """
    while True:
        try:
            if not ledger.is_open(run_id, number):
                return
            worker.score(run_id, number)
            if not ledger.is_open(run_id, number):
                return
        except Unavailable as error:
            log.warning("chunk.waits_for_store", run_id=run_id, chunk=number, error=error.message)
        time.sleep(_LOOK_EVERY_S)
