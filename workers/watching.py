"""Looks for new versions of a worker's models, in a thread beside its tasks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from celery import Celery
from celery.signals import worker_ready, worker_shutting_down

from inference.deployment import Deployment
from inference.errors import ForecacheError
from inference.failures import Failures
from inference.models import ModelRegistry, Rollout
from inference.monitoring.presence import identity_of
from workers.startup import ends_on_error

#: for so long a request to reload, or a version that waits for another worker, may stay unnoticed
TICK_S = 1.0
#: the pause after a look that failed by a bug or a broken disk: the next look would fail too
PAUSE_S = 15.0


class Watch:
    """Looks at one model's folder every `poll_every` seconds; sooner on request, or while a version is under way."""

    def __init__(
        self,
        model: str,
        rollout: Rollout,
        registry: ModelRegistry,
        *,
        worker: str,
        poll_every: float | None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._rollout = rollout
        self._registry = registry
        self._worker = worker
        self._poll_every = poll_every
        self._monotonic = monotonic
        self._due_at: float | None = 0.0
        self._paused_until = 0.0
        self._done = 0

    def tick(self) -> bool:
        """Look if it is time, and tell whether it was. A request to reload is done when no version is under way.

        Raises:
            StoreUnavailable: Redis did not answer in time; may be called again.
        """
        requested = self._registry.reloads(self._model).requested
        is_requested = requested != self._done
        now = self._monotonic()
        if now < self._paused_until or not (is_requested or (self._due_at is not None and now >= self._due_at)):
            return False
        try:
            settled = self._rollout.look(again=is_requested)
        except ForecacheError:
            raise
        except Exception:
            self._paused_until = self._monotonic() + PAUSE_S
            raise
        if not settled:
            self._due_at = 0.0
            return True
        if is_requested:
            self._registry.put_reloaded(self._model, self._worker, requested)
            self._done = requested
        self._due_at = None if self._poll_every is None else self._monotonic() + self._poll_every
        return True


class Watcher:
    """Ticks all watches until it is stopped. Goes on through outages."""

    def __init__(self, watches: Iterable[tuple[str, Watch]]) -> None:
        self._watches = list(watches)
        self._stopped = threading.Event()
        self._failures = Failures(__name__, "model.watch")

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._keep, name="versions", daemon=True).start()

    def stop(self) -> None:
        """Let the thread end after its current step. Does not wait: each step may be interrupted."""
        self._stopped.set()

    def tick(self) -> None:
        """Tick each watch, even if others fail. Logs a failure once while it goes on."""
        for model, watch in self._watches:
            try:
                if watch.tick():
                    self._failures.over(model, model=model)
            except Exception as error:  # noqa: BLE001 - without this thread no new version ever comes
                self._failures.tell(error, model, model=model)

    def _keep(self) -> None:
        while not self._stopped.wait(TICK_S):
            self.tick()


def watch_versions(
    deployment: Deployment, *, answers: bool, models: Callable[[Celery], Iterable[str]] | None = None
) -> None:
    """Have the worker of this process look for new versions from when it is ready until it ends.

    `answers`: whether it answers requests. `models` returns the models to watch; None for all.
    """
    watching: list[Watcher] = []

    def begin(sender: Any, **_: Any) -> None:
        worker = identity_of(sender.hostname, os.getpid())
        watched = deployment.settings.models if models is None else models(sender.app)
        watching.append(Watcher((model, _watch(deployment, model, worker, answers)) for model in watched))
        watching[0].start()

    def end(**_: Any) -> None:
        for watcher in watching:
            watcher.stop()

    # weak=False: nothing else holds these functions
    worker_ready.connect(ends_on_error(begin), weak=False)
    worker_shutting_down.connect(end, weak=False)


def _watch(deployment: Deployment, model: str, worker: str, answers: bool) -> Watch:
    def others() -> list[Any]:
        alive = deployment.presence.roster(deployment.settings.realtime_queue(model)).alive
        return [one.versions for one in alive if one.ready and one.identity != worker]

    rollout = Rollout(deployment.settings, deployment.host, deployment.registry, model, answers=answers, others=others)
    poll_every = deployment.settings.models[model].poll_every
    return Watch(model, rollout, deployment.registry, worker=worker, poll_every=poll_every)
