"""The Celery application: JSON only, three queues, results that expire in minutes.

Building the settings is the one thing done at import; nothing connects.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from celery import Celery
from kombu import Exchange, Queue

from inference.services import Services
from inference.settings import Settings, load_settings

BATCH_QUEUE = "batch"
REALTIME_QUEUE = "realtime"
MAINTENANCE_QUEUE = "maintenance"

#: seconds that a result waits for its reader
RESULT_EXPIRES_S = 600

TASK_MODULES = ("tasks.batch", "tasks.realtime", "tasks.maintenance")


def celery_config(settings: Settings) -> dict[str, Any]:
    """Return Celery's configuration. Task messages are JSON, so a forged one can run no code."""
    prefix = f"{settings.redis.prefix}:"
    return {
        "broker_url": settings.broker_url,
        "result_backend": settings.redis_url,
        "result_backend_transport_options": {"global_keyprefix": prefix},
        # the broker's keys carry the prefix too, so deployments can share one Redis
        "broker_transport_options": {"global_keyprefix": prefix} if _is_redis(settings.broker_url) else {},
        "broker_connection_retry_on_startup": True,
        # without a limit, Celery gives up after 100 tries and the worker ends
        "broker_connection_max_retries": None,
        "redis_socket_timeout": 10,
        "redis_socket_connect_timeout": 5,
        "redis_socket_keepalive": True,
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "result_expires": RESULT_EXPIRES_S,
        "task_queues": [_queue(name) for name in (BATCH_QUEUE, REALTIME_QUEUE, MAINTENANCE_QUEUE)],
        "task_default_queue": MAINTENANCE_QUEUE,
        "task_create_missing_queues": False,
        "task_routes": {
            "forecache.score_chunk": {"queue": BATCH_QUEUE},
            "forecache.predict_*": {"queue": REALTIME_QUEUE},
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
    application = Celery("forecache", set_as_current=False)
    application.conf.update(celery_config(settings), **overrides)
    return application


def _queue(name: str) -> Queue:
    # bound under its own name: a broker that routes by key must not deliver one queue's tasks to another
    return Queue(name, Exchange(name, type="direct"), routing_key=name)


def _is_redis(url: str) -> bool:
    return url.startswith(("redis://", "rediss://"))


@cache
def services() -> Services:
    """Return this process's services, built on first use."""
    return Services(load_settings())


celery_app = make_celery(load_settings())
