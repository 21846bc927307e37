"""The Celery application: JSON only, a queue for each kind of worker, results that expire in minutes.

Every name on the broker starts with the deployment's prefix, so that other applications and deployments can use the
same broker. Making an application connects to nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from celery import Celery, Task
from celery.signals import before_task_publish
from kombu import Exchange, Queue

from inference import tracing
from inference.clock import system_clock
from inference.deployment import Deployment
from inference.errors import BadInput, BrokerUnavailable
from inference.logs import REQUEST_IDS_HEADER, bound, from_message, work_for
from inference.monitoring.queues import SENT_AT_HEADER
from inference.redis.sentinels import sentinel_options
from inference.settings import BATCH_QUEUE, MAINTENANCE_QUEUE, REALTIME_QUEUE, Settings
from inference.settings.sentinel_urls import SCHEMES as SENTINEL_SCHEMES
from inference.settings.sentinel_urls import read_sentinel_url
from inference.settings.server_urls import celery_url, is_redis, tls_options

#: prefix of the names of real-time tasks
REALTIME_TASKS = "forecache.predict_"

#: seconds that a result waits for its reader
RESULT_EXPIRES_S = 600

#: seconds of silence after which a connection to Redis is given up. A process may have several dead ones, and
#: notices them one after another
SILENCE_S = 3

#: TCP's probes of idle connections, which notice within 14 s that a host is gone
KEEPALIVE = {
    getattr(socket, name): seconds
    for name, seconds in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)  # not on every system
}

#: seconds; RabbitMQ and its clients give up a connection after two of these in silence
AMQP_HEARTBEAT_S = 8

#: for about a second: a real-time worker has one thread, and does nothing else meanwhile
RESULT_RETRIES = {"max_retries": 4, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5}

#: `x-max-priority` of all queues on AMQP brokers, where a higher number goes first; Redis has no such maximum
AMQP_PRIORITIES = 9

TASK_MODULES = ("tasks.batch", "tasks.realtime", "tasks.maintenance", "tasks.echo")


def celery_config(settings: Settings) -> dict[str, Any]:
    """Return Celery's configuration. Task messages are JSON, so a forged one can run no code."""
    prefix = settings.redis.prefix
    return {
        "broker_url": celery_url(settings.broker_url),
        "result_backend": celery_url(settings.redis_url),
        "result_backend_transport_options": {
            "global_keyprefix": f"{prefix}:",
            # a server that refuses (it is a replica, out of memory, not writable) counts as away
            "additional_connection_errors": ("redis.exceptions.ResponseError",),
            "retry_policy": RESULT_RETRIES,
            **_sentinel_options(settings.redis_url),
        },
        "redis_backend_use_ssl": _tls_to_primary(settings.redis_url),
        **_broker_config(settings),
        # remote control and events reach the workers of this deployment only
        "control_exchange": prefix,
        "event_exchange": f"{prefix}.events",
        "broker_connection_retry_on_startup": True,
        # without a limit, Celery gives up after 100 tries and the worker ends
        "broker_connection_max_retries": None,
        "redis_socket_timeout": SILENCE_S,
        "redis_socket_connect_timeout": SILENCE_S,
        # Unix sockets have no keepalive
        "redis_socket_keepalive": not settings.redis_url.startswith("unix:"),
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "result_expires": RESULT_EXPIRES_S,
        "task_queues": [_queue(prefix, name) for name in dict.fromkeys((*settings.queues, REALTIME_QUEUE))],
        "task_queue_max_priority": AMQP_PRIORITIES,
        "task_default_queue": MAINTENANCE_QUEUE,
        "task_create_missing_queues": False,
        "task_routes": {
            "forecache.score_chunk": {"queue": BATCH_QUEUE},
            # batch workers load models
            "forecache.check_parity": {"queue": BATCH_QUEUE},
            f"{REALTIME_TASKS}*": {"queue": REALTIME_QUEUE},
        },
        "worker_prefetch_multiplier": 1,
        "worker_send_task_events": True,
        "task_send_sent_event": False,
        "worker_hijack_root_logger": False,
        "imports": TASK_MODULES,
        "enable_utc": True,
        "timezone": "UTC",
    }


def make_celery(settings: Settings, **overrides: Any) -> Celery:
    """Return an application for these settings. Nothing connects until it is used."""
    application = Celery("forecache", task_cls=DeploymentTask, set_as_current=False)
    application.conf.update(celery_config(settings), **overrides)
    return application


def make_worker_app(deployment: Deployment) -> Celery:
    """Return an application whose tasks find their deployment as `self.deployment`."""
    application = make_celery(deployment.settings)
    application.deployment = deployment
    return application


@contextmanager
def broker_errors(what: str) -> Iterator[None]:
    """Turn any error in sending `what` to the broker into BrokerUnavailable.

    Catches every exception, since each kind of broker has its own client library with its own errors.
    """
    try:
        yield
    except Exception as error:
        raise BrokerUnavailable(f"the broker did not take {what}: {str(error) or type(error).__name__}") from error


def _broker_config(settings: Settings) -> dict[str, Any]:
    """Return the settings that depend on the kind of broker."""
    if not is_redis(settings.broker_url):
        return {"broker_transport_options": {}, "broker_heartbeat": AMQP_HEARTBEAT_S}
    return {
        "broker_transport_options": {
            # also for kombu's own keys, such as the hash of unacknowledged messages: in a shared hash, an application
            # with a shorter visibility timeout would send our messages again too early
            "global_keyprefix": f"{settings.redis.prefix}:",
            "socket_timeout": SILENCE_S,
            "socket_connect_timeout": SILENCE_S,
            "socket_keepalive": True,
            "socket_keepalive_options": KEEPALIVE,
            # how often kombu checks that the connections that it listens on are alive
            "health_check_interval": SILENCE_S,
            **_sentinel_options(settings.broker_url),
        },
        "broker_use_ssl": _tls_to_primary(settings.broker_url),
        # Celery takes error replies for channel errors, which end a worker; on Redis they mean "not now"
        "broker_channel_error_retry": True,
    }


def _sentinel_options(url: str) -> dict[str, Any]:
    """Return what Celery and kombu need beside the addresses of Sentinels; nothing for other URLs."""
    if not _names_sentinels(url):
        return {}
    parts = read_sentinel_url(url)
    return {"master_name": parts.service, "sentinel_kwargs": sentinel_options(parts, SILENCE_S / 3)}


def _tls_to_primary(url: str) -> dict[str, Any] | None:
    """Return the options of TLS, which other URLs hold themselves."""
    parts = read_sentinel_url(url) if _names_sentinels(url) else None
    return tls_options(parts.options) if parts and parts.tls else None


def _names_sentinels(url: str) -> bool:
    return url.startswith(tuple(f"{scheme}:" for scheme in SENTINEL_SCHEMES))


def _queue(prefix: str, name: str) -> Queue:
    # `-Q` and routes use the alias. The queue is bound under its own name, since a broker that routes by key
    # must not deliver one queue's tasks to another
    full = f"{prefix}.{name}"
    return Queue(full, Exchange(full, type="direct"), routing_key=full, alias=name)


@before_task_publish.connect  # type: ignore[untyped-decorator]  # celery has no types
def _say_when(headers: Mapping[str, Any] | None = None, **_: Any) -> None:
    """Write the time of sending into our messages, since Celery does not."""
    if isinstance(headers, dict) and str(headers.get("task", "")).startswith("forecache."):
        headers[SENT_AT_HEADER] = system_clock()


class DeploymentTask(Task):  # type: ignore[misc]  # celery has no types
    """A task of an application that `make_worker_app` made."""

    abstract = True
    #: other applications send it too: its arguments have names, whose order may change
    named_only = False

    @property
    def deployment(self) -> Deployment:
        """The deployment of the task's application, even if this process has several."""
        deployment: Deployment = self.app.deployment
        return deployment

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task's function. All its log lines have `task_id` and the ids of its requests."""
        if args and self.named_only:
            raise BadInput(
                f"{self.name} takes no positional arguments: send kwargs={{'entity_ids': [...]}}. It must be the first "
                "task of a chain, since Celery puts the result of the task before into the first position"
            )
        work_for(from_message(self.request.get(REQUEST_IDS_HEADER)))
        try:
            with bound(task_id=self.request.id), self._traced():
                return self.run(*args, **kwargs)
        finally:
            work_for(())

    def _traced(self) -> AbstractContextManager[object]:
        if tracing.tracer is None:
            return nullcontext()
        request = self.request
        carrier = {name: request.get(name) for name in (tracing.TRACEPARENT, tracing.TRACESTATE)}
        prefix = self.deployment.settings.redis.prefix
        queue = ((request.delivery_info or {}).get("routing_key") or "").removeprefix(f"{prefix}.")
        return tracing.task_span(self.name, queue, request.id, carrier, is_ours=request.get(SENT_AT_HEADER) is not None)
