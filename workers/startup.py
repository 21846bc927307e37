"""The start of every worker: its pool, its logging, its GPUs, and the load of its models."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial, wraps
from typing import Any, NoReturn

from celery import Celery
from celery.signals import celeryd_init, setup_logging, worker_init, worker_shutdown
from kombu import Exchange, Queue

from inference import tracing
from inference.deployment import Deployment
from inference.errors import ForecacheError, StoreUnavailable
from inference.logs import configure_logging, get_logger
from inference.models.runtimes import keras_environment
from inference.processors import work_in_background
from inference.redis.clients import WORKER
from inference.settings import LogSettings, Settings
from inference.settings.server_urls import is_redis
from inference.stored_data import installed_release
from tasks.broker import CeleryBroker
from tasks.celery_app import make_worker_app
from workers.consumer import replace_parts_of_celery
from workers.redis_transport import bound_compression, drop_rubbish

log = get_logger(__name__)

#: TensorFlow, CUDA and our timers use threads; a fork does not copy them, and gevent replaces them
_SAFE_POOLS = ("threads", "solo")
#: they log the arguments and the result of every task: people's data, and half a millisecond each
_TALKATIVE = ("celery.worker.strategy", "celery.app.trace")
_RETRY_FIRST_S = 0.5
_RETRY_MOST_S = 5.0


def make_worker(
    settings: Settings, *, process: str, pool: str, concurrency: int, in_background: bool = False
) -> Celery:
    """Return the application of this process's worker, with its deployment, its pool and its logging.

    It refuses an unsafe pool when the worker starts. `in_background`: no request waits for this worker, so processes
    that requests wait for go first.
    """
    application = make_worker_app(Deployment(settings, WORKER, CeleryBroker))
    application.conf.worker_pool = pool
    application.conf.worker_concurrency = concurrency
    application.conf.worker_consumer = "workers.consumer:TaskConsumer"
    replace_parts_of_celery()
    bound_compression()
    if is_redis(application.conf.broker_url):
        drop_rubbish()
    _route_linked_tasks(application, settings.celery.linked_tasks)

    def prepare_process(options: dict[str, Any], **_: Any) -> None:
        check_pool(process, pool, options.get("pool_cls"), sys.argv)
        # warnings of Celery and Python at the start go to the same log
        _log_to_stderr(process, settings.logs)
        if in_background:
            work_in_background()
        tracing.start(process, installed_release())

    def end_traces(**_: Any) -> None:
        tracing.stop()

    def set_up_logging(**_: Any) -> None:
        _log_to_stderr(process, settings.logs)

    # weak=False: nothing else holds these functions
    celeryd_init.connect(prepare_process, weak=False)
    setup_logging.connect(set_up_logging, weak=False)
    worker_shutdown.connect(end_traces, weak=False)
    return application


def _route_linked_tasks(application: Celery, linked: Mapping[str, str]) -> None:
    """Route the tasks of other applications that follow ours to their queues, which those applications declare."""
    routes = {task: {"queue": queue} for task, queue in linked.items()}
    application.conf.task_routes = {**application.conf.task_routes, **routes}
    for queue in {*linked.values()} - application.amqp.queues.keys():
        exchange = Exchange("", type="direct", no_declare=True)
        # a queue that is added after the first ones is only sent to, never consumed
        application.amqp.queues.add(Queue(queue, exchange, routing_key=queue, no_declare=True))


def load_models_on_start(
    deployment: Deployment,
    *,
    process: str,
    models: Callable[[Celery], Collection[str] | None] = lambda _: None,
) -> None:
    """Have the worker load its models before it takes a task. Waits for Redis during an outage.

    `models` returns the models to load; None for all.
    """

    def load(sender: Any, **_: Any) -> None:
        # Celery asks for logging only after this hook
        _log_to_stderr(process, deployment.settings.logs)
        prepare_gpus(deployment.settings)
        wait_for_store(partial(deployment.host.start, models(sender.app)))

    worker_init.connect(ends_on_error(load), weak=False)


def ends_on_error(hook: Callable[..., None]) -> Callable[..., None]:
    """Have an error in a hook of the start end the process with status 1.

    Celery would log it and go on, with a worker that has no models or no heartbeat.
    """

    @wraps(hook)
    def call(**arguments: Any) -> None:
        try:
            hook(**arguments)
        except ForecacheError as error:
            log.critical("worker.cannot_start", error=error.message)
            raise SystemExit(1) from error
        except Exception as error:
            log.critical("worker.cannot_start", error=str(error), exc_info=True)
            raise SystemExit(1) from error

    return call


def _log_to_stderr(process: str, logs: LogSettings) -> None:
    configure_logging(process, form=logs.format, level=logs.level)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)


def check_pool(process: str, pool: str, pool_class: Any, argv: Sequence[str]) -> None:
    """End the process with one sentence if the command line or the settings name an unsafe pool."""
    named = named_pool(argv) or _pool_of(pool_class)
    if named is not None and named not in _SAFE_POOLS:
        _exit(
            f"the {process} worker cannot run on the {named} pool, which its libraries do not survive: "
            f"leave -P out, or use -P {pool}"
        )


def named_pool(argv: Sequence[str]) -> str | None:
    """Return the pool that a command line names; None if it names none.

    Celery itself does not distinguish `-P prefork` from its default.
    """
    for position, word in enumerate(argv):
        if word in ("-P", "--pool") and position + 1 < len(argv):
            return argv[position + 1]
        if word.startswith("--pool="):
            return word.removeprefix("--pool=")
        if word.startswith("-P") and len(word) > 2:
            return word[2:]
    return None


def wait_for_store(start: Callable[[], None], *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Call `start` until Redis answers, with longer and longer pauses."""
    pause_s = _RETRY_FIRST_S
    while True:
        try:
            start()
        except StoreUnavailable as error:
            log.warning("worker.waiting_for_store", error=error.message, again_in_s=pause_s)
            sleep(pause_s)
            pause_s = min(pause_s * 2, _RETRY_MOST_S)
        else:
            return


def _pool_of(pool_class: Any) -> str | None:
    """Return a pool's usual name by its class, or by the name in its place."""
    if pool_class is None or isinstance(pool_class, str):
        return pool_class
    # celery.concurrency.thread, .solo, .prefork, .gevent, .eventlet
    module = str(pool_class.__module__).rsplit(".", 1)[-1]
    return "threads" if module == "thread" else module


def _exit(sentence: str) -> NoReturn:
    print(sentence, file=sys.stderr)  # noqa: T201 - Celery's logging is not set up yet
    raise SystemExit(2)


def prepare_gpus(settings: Settings) -> None:
    """Hide the GPUs from every library if the settings say so, and choose the backend of Keras.

    `CUDA_VISIBLE_DEVICES` pins this process to a GPU; its parent sets it. A runtime bounds the memory of the GPU when
    it loads its first model: no library is imported for a format that no model has.
    """
    if settings.workers.gpus == "none":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ.update(keras_environment(settings.workers.keras_backend))
