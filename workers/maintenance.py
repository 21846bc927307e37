"""The maintenance worker: starts runs and continues them. It loads no model and no TensorFlow.

`celery -A workers.maintenance:celery_app worker -Q maintenance`
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from celery.signals import worker_ready, worker_shutting_down

from inference.deployment import Deployment
from inference.engines import driver as drivers
from inference.failures import Failures
from inference.settings import load_settings
from workers.heartbeat import beat_while_running
from workers.startup import ends_on_error, make_worker

#: for so long a lost chunk or a finished run may stay unnoticed
RECONCILE_EVERY_S = 2.0

#: the promise for tomorrow is written so often, and what came of yesterday is found out within this time
PROMISE_EVERY_S = 600.0
#: a new process begins with it soon, but after its first steps with runs
_PROMISE_AFTER_S = 10.0

#: to continue a run may take long, and must not delay the start of another model's run; idle threads cost nothing
_THREADS = 16

celery_app = make_worker(
    load_settings(), process="maintenance", pool="threads", concurrency=_THREADS, in_background=True
)
deployment: Deployment = celery_app.deployment
beat_while_running(deployment, process="maintenance", loads_models=False)


class ModelTimer:
    """Takes a step for each model every few seconds, in a thread for each. Goes on through outages.

    So a model whose predictions take long to count or to collect delays no other. `topic`: in logs of failed steps;
    `after_s`: seconds until the first step, by default `every_s`.
    """

    def __init__(
        self,
        topic: str,
        models: Callable[[], Iterable[str]],
        step: Callable[[str], None],
        *,
        every_s: float,
        after_s: float | None = None,
    ) -> None:
        self._topic = topic
        self._models = models
        self._step = step
        self._every_s = every_s
        self._after_s = every_s if after_s is None else after_s
        self._stopped = threading.Event()
        self._failures = Failures(__name__, topic)

    def start(self) -> None:
        """Start the threads."""
        for model in self._models():
            threading.Thread(target=self._keep, args=(model,), name=f"{self._topic} {model}", daemon=True).start()

    def stop(self) -> None:
        """Let the threads end after their current step. Does not wait: each step may be interrupted."""
        self._stopped.set()

    def _keep(self, model: str) -> None:
        wait_s = self._after_s
        while not self._stopped.wait(wait_s):
            # without the thread of `reconcile` no run of the model ever ends
            with self._failures.kept_here(model, model=model):
                self._step(model)
            wait_s = self._every_s


def _models() -> Iterable[str]:
    return deployment.settings.models


_timers = (
    ModelTimer("reconcile", _models, lambda model: deployment.runs.reconcile(model), every_s=RECONCILE_EVERY_S),
    ModelTimer(
        "promise",
        _models,
        lambda model: deployment.promises.keep(model, deployment.cost_report(model)),
        every_s=PROMISE_EVERY_S,
        after_s=_PROMISE_AFTER_S,
    ),
)


@ends_on_error
def _start_timer(**_: Any) -> None:
    for timer in _timers:
        timer.start()


worker_ready.connect(_start_timer)


@worker_shutting_down.connect  # type: ignore[untyped-decorator]  # celery has no types
def _stop_timer(**_: Any) -> None:
    for timer in _timers:
        timer.stop()
    drivers.ending.set()
