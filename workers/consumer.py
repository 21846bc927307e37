"""Celery's consumers, which a forged message cannot end, and of which the real-time one tells events less often."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery.utils.log import get_logger as celery_logger
from celery.worker.consumer import Consumer

from inference.logs import get_logger

log = get_logger(__name__)

#: how late Flower may hear of a task. Telling after each one takes a fifth of a lone task's time, while the next waits
EVENTS_EVERY_S = 0.2

#: a larger message is thrown away unread; the largest of the API's holds what a request's body held, 8 MiB at most
MAX_MESSAGE_BYTES = 64 << 20

_NO_BODY = "its body is no list of arguments, named arguments and the rest"


class TaskConsumer(Consumer):  # type: ignore[misc]  # celery has no types
    """Throws messages away that are no task's, where Celery's own ends the worker and gives the message to the next."""

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Any], None]:
        """Return what is called with each message."""
        receive = super().create_task_handler(*arguments, **options)

        def on_message(message: Any) -> None:
            problem = problem_of(message)
            if problem is None:
                receive(message)
                return
            # without what it holds: that is somebody else's text
            log.warning("message.refused", reason=problem)
            message.reject_log_error(celery_logger(__name__), self.connection_errors)

        return on_message


class RealtimeConsumer(TaskConsumer):
    """Sends the events that it holds every so often, when there are many, and before it ends."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._events_due_at = 0.0
        super().__init__(*arguments, **options)

    def on_send_event_buffered(self) -> None:
        """See to it that an event just held back is sent soon."""
        now = time.monotonic()
        # a lost connection takes its timers along: what is overdue is set anew
        if self.hub and now >= self._events_due_at:
            self._events_due_at = now + EVENTS_EVERY_S
            self.hub.call_later(EVENTS_EVERY_S, self._flush_events)

    def stop(self) -> None:
        """End, with nothing left untold."""
        self._flush_events()
        super().stop()


def problem_of(message: Any) -> str | None:
    """Return why a kombu message is no task's by Celery's protocol, of version 2 or 1; None when it is one."""
    if len(message.body or b"") > MAX_MESSAGE_BYTES:
        return f"its body is over {MAX_MESSAGE_BYTES} bytes"
    try:
        body = message.payload
    except Exception as error:  # noqa: BLE001 - a decoder may raise anything, and the content is what it refuses
        return f"its body cannot be decoded ({type(error).__name__})"
    headers = message.headers
    if not isinstance(headers, dict):
        return "its headers are no object"
    if "task" not in headers and isinstance(body, dict):
        return _problem(body, body.get("args", []), body.get("kwargs", {}))
    if not isinstance(body, list | tuple) or len(body) != 3 or not isinstance(body[2], dict | None):
        return _NO_BODY
    return _problem(headers, body[0], body[1])


def _problem(named: dict[str, Any], arguments: Any, keywords: Any) -> str | None:
    if not all(isinstance(named.get(name), str) for name in ("task", "id")):
        return "it names no task, or has no id"
    limits = named.get("timelimit")
    if limits is not None and not (isinstance(limits, list | tuple) and len(limits) == 2):
        return "its time limits are no pair"
    if not isinstance(arguments, list | tuple) or not isinstance(keywords, dict):
        return _NO_BODY
    return None
