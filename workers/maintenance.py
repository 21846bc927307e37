"""The maintenance worker: starts runs and continues them. It loads no model and no TensorFlow.

`celery -A workers.maintenance:celery_app worker -Q maintenance`
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from celery.signals import worker_ready, worker_shutting_down

from inference.batch import Runs
from inference.deployment import Deployment
from inference.engines import spark as spark_drivers
from inference.failures import Failures
from inference.settings import load_settings
from workers.heartbeat import beat_while_running
from workers.startup import ends_on_error, make_worker

#: for so long a lost chunk or a finished run may stay unnoticed
RECONCILE_EVERY_S = 2.0

#: to continue a run may take long, and must not delay the start of another model's run; idle threads cost nothing
_THREADS = 16

celery_app = make_worker(load_settings(), process="maintenance", pool="threads", concurrency=_THREADS)
deployment: Deployment = celery_app.deployment
beat_while_running(deployment, process="maintenance", loads_models=False)


class ReconcileTimer:
    """Calls `reconcile` for each model every few seconds, in a thread for each. Goes on through outages.

    So a model whose predictions take long to count or to collect delays no other.
    """

    def __init__(
        self, models: Callable[[], Iterable[str]], make_runs: Callable[[], Runs], *, every_s: float = RECONCILE_EVERY_S
    ) -> None:
        self._models = models
        self._make_runs = make_runs
        self._every_s = every_s
        self._stopped = threading.Event()
        self._failures = Failures(__name__, "reconcile")

    def start(self) -> None:
        """Start the threads."""
        for model in self._models():
            threading.Thread(target=self._keep, args=(model,), name=f"reconciler {model}", daemon=True).start()

    def stop(self) -> None:
        """Let the threads end after their current step. Does not wait: each step may be interrupted."""
        self._stopped.set()

    def _keep(self, model: str) -> None:
        while not self._stopped.wait(self._every_s):
            # without this thread no run of the model ever ends
            with self._failures.kept_here(model, model=model):
                self._make_runs().reconcile(model)


_timer = ReconcileTimer(lambda: deployment.settings.models, lambda: deployment.runs)


@ends_on_error
def _start_timer(**_: Any) -> None:
    _timer.start()


worker_ready.connect(_start_timer)


@worker_shutting_down.connect  # type: ignore[untyped-decorator]  # celery has no types
def _stop_timer(**_: Any) -> None:
    _timer.stop()
    spark_drivers.ending.set()
