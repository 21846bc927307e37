"""The queue of the worker as Celery makes it, so that it takes no request of ours."""

from __future__ import annotations

from celery import Celery
from kombu import Queue

QUEUE = "plain"


def with_its_queue(application: Celery) -> Celery:
    """Make the queue known to an application."""
    application.amqp.queues.add(Queue(QUEUE))
    return application
