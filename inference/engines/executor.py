"""Scores chunks in a process of a Spark or Ray cluster, as a batch worker does and under the same claims.

If a cluster repeats a task, or starts a second one because the first is slow, that task finds its chunk claimed or
finished, so nothing is written or counted twice. Settings come from this machine's file and environment, never from
the cluster.
"""

from __future__ import annotations

import os
import time
from functools import cache

from inference import tracing
from inference.batch.ledger import Ledger
from inference.batch.publishing import RunTables
from inference.batch.worker import ChunkWorker
from inference.batch.yielding import Yielding
from inference.deployment import Deployment
from inference.errors import Unavailable
from inference.logs import configure_logging, get_logger
from inference.models import MicroBatches
from inference.redis.clients import WORKER
from inference.settings import Settings, load_settings
from inference.settings.loading import ENV_CONFIG
from inference.stored_data import installed_release

log = get_logger(__name__)

#: how often a process looks whether a chunk that another one holds is done, or free again
_LOOK_EVERY_S = 0.5


@cache
def chunk_worker(process: str) -> tuple[Ledger, ChunkWorker]:
    """Return this process's ledger and chunk worker, built once: the model stays loaded for later tasks.

    `process`: its name in the logs.

    Raises:
        SettingsError: this machine has no legal settings.
    """
    deployment = Deployment(load_settings(), WORKER)
    settings, ledger = deployment.settings, deployment.ledger
    configure_logging(process, form=settings.logs.format, level=settings.logs.level)
    tracing.start(process, installed_release())
    tables, micro_batches = RunTables(deployment.table), MicroBatches(deployment.registry)
    yielding = Yielding(deployment.cache, deployment.keys, settings.realtime_queues)
    # without a broker nothing wakes the reconciler; it looks every two seconds anyway
    return ledger, ChunkWorker(
        settings, ledger, lambda: deployment.host, tables, lambda: None, micro_batches, give_way=yielding.give_way
    )


def settle(process: str, run_id: str, number: int) -> bool:
    """Score a chunk; return whether it is done or its run is over. If not, rests a moment before it returns.

    A chunk is not settled while another process holds it, after a failed attempt, and while Redis does not answer.
    """
    ledger, worker = chunk_worker(process)
    try:
        if not ledger.is_open(run_id, number):
            return True
        worker.score(run_id, number)
        tracing.flush()  # a cluster ends its processes without a word
        if not ledger.is_open(run_id, number):
            return True
    except Unavailable as error:
        log.warning("chunk.waits_for_store", run_id=run_id, chunk=number, error=error.message)
    time.sleep(_LOOK_EVERY_S)
    return False


def settings_file(settings: Settings) -> str | None:
    """Return the path of the settings file, for processes on machines that have it at the same place; None for none."""
    named = os.environ.get(ENV_CONFIG)
    file = settings.path(named) if named else settings.root / "forecache.toml"
    return str(file) if file.is_file() else None
