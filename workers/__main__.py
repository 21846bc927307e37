"""Starts a worker: `python -P -m workers gpu|realtime|maintenance [celery worker options]`.

Celery's `-A` puts the working directory first on the module path, so that Python would import a user's `tasks.py` in
place of ours.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery
from celery.exceptions import ImproperlyConfigured
from celery.signals import worker_init
from click import ClickException

from inference.errors import ForecacheError
from inference.settings import BATCH_QUEUE, MAINTENANCE_QUEUE, Settings

#: worker → the queues that it serves by default
QUEUES: dict[str, Callable[[Settings], Sequence[str]]] = {
    "gpu": lambda _: [BATCH_QUEUE],
    "realtime": lambda settings: settings.realtime_queues,
    "maintenance": lambda _: [MAINTENANCE_QUEUE],
}


def main(argv: Sequence[str]) -> int:
    """Run one worker until it is told to stop. Returns the exit status: 1 for an error, 2 for a wrong call."""
    if not argv or argv[0] not in QUEUES:
        print(f"usage: python -P -m workers {'|'.join(QUEUES)} [celery worker options]", file=sys.stderr)  # noqa: T201
        return 2
    name, *options = argv
    try:
        module = importlib.import_module(f"workers.{name}")
    except ForecacheError as error:
        print(error.message, file=sys.stderr)  # noqa: T201 - no logging yet
        return 2
    queues = QUEUES[name](module.celery_app.deployment.settings)
    return run_worker(module.celery_app, worker_arguments(name, queues, options))


def run_worker(application: Celery, arguments: list[str]) -> int:
    """Run a worker by Celery's arguments. Returns its exit status, which Celery keeps in the worker object."""
    started: list[Any] = []

    def keep(sender: Any, **_: Any) -> None:
        started.append(sender)

    worker_init.connect(keep)
    try:
        application.worker_main(arguments)
    except (ClickException, ImproperlyConfigured) as error:
        print(getattr(error, "message", error), file=sys.stderr)  # noqa: T201 - no logging yet
        return 2
    return int(started[0].exitcode or 0) if started else 0  # no worker started: it only printed help


def worker_arguments(name: str, queues: Sequence[str], options: Sequence[str]) -> list[str]:
    """Return Celery's arguments: `options`, and by default the worker's queues, a unique name and the log level."""
    # quiet: no banner of thirty lines in the log
    # gossip and mingle: no worker needs news of others, which are half of what it reads, and a second at each start
    arguments = ["--quiet", "worker", "--without-gossip", "--without-mingle", *options]
    if not _given(options, "-Q", "--queues"):
        arguments += ["-Q", ",".join(queues)]
    if not _given(options, "-n", "--hostname"):
        # two workers of one kind on one host must not share a name
        arguments += ["-n", f"{name}-{os.getpid()}@%h"]
    if not _given(options, "-l", "--loglevel"):
        arguments += ["-l", "INFO"]
    return arguments


def _given(options: Sequence[str], short: str, long: str) -> bool:
    return any((word.startswith(short) and not word.startswith("--")) or word.split("=")[0] == long for word in options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
