"""The maintenance worker: starts runs and moves them on. It loads no model and no TensorFlow.

`celery -A workers.maintenance:celery_app worker -Q maintenance`
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from celery.signals import worker_ready, worker_shutting_down

from inference.batch import Runs
from inference.errors import ForecacheError
from inference.logs import get_logger
from tasks import celery_app as broker
from tasks.runs import runs
from workers.heartbeat import beat_while_running
from workers.pools import prepare_worker

#: how long a lost chunk or a finished run may go unnoticed
RECONCILE_EVERY_S = 2.0

log = get_logger(__name__)

celery_app = prepare_worker(broker.celery_app, process="maintenance", pool="threads", concurrency=2)
beat_while_running(broker.services, process="maintenance", versions=dict)


class ReconcileTimer:
    """Calls `reconcile` every few seconds from a thread, through outages too, until it is stopped."""

    def __init__(self, make_runs: Callable[[], Runs], *, every_s: float = RECONCILE_EVERY_S) -> None:
        self._make_runs = make_runs
        self._every_s = every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="reconciler", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end after what it is doing; it is not waited for, since each step may be cut off."""
        self._stopped.set()

    def _keep(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                self._make_runs().reconcile()
            except ForecacheError as error:
                log.warning("reconcile.failed", error=error.message)
            except Exception:  # without this thread no run ever ends
                log.exception("reconcile.failed")


_timer = ReconcileTimer(runs)


@worker_ready.connect  # type: ignore[untyped-decorator]  # celery has no types
def _start_timer(**_: Any) -> None:
    _timer.start()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]  # celery has no types
def _stop_timer(**_: Any) -> None:
    _timer.stop()
