"""Celery's consumers: neither a forged message nor a broker that refuses commands ends them.

Each tells since when its loop has stood still; the real-time one tells events less often.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

from celery.exceptions import CPendingDeprecationWarning
from celery.utils.log import get_logger as celery_logger
from celery.worker.consumer import Consumer

from inference.failures import Failures
from inference.logs import get_logger

log = get_logger(__name__)
lost_connections = Failures(__name__, "broker.close")

#: how late Flower may hear of a task. Telling after each one takes a fifth of a lone task's time, while the next waits
EVENTS_EVERY_S = 0.2

#: a larger message is thrown away unread; the largest of the API's holds what a request's body held, 8 MiB at most
MAX_MESSAGE_BYTES = 64 << 20

#: how often the loop says that it turns
TURN_EVERY_S = 1.0

#: pauses between two tries to consume, so that a broker that accepts connections but no commands is not overrun
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 4.0

# of six lines, at each lost connection: that tasks acknowledged late go on, which is what we want
warnings.filterwarnings("ignore", category=CPendingDeprecationWarning, module=r"workers\.consumer")

_NO_BODY = "its body is no list of arguments, named arguments and the rest"


class TaskConsumer(Consumer):  # type: ignore[misc]  # celery has no types
    """Throws messages away that are no task's, where Celery's own ends the worker and gives the message to the next."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._turned_at = time.monotonic()
        self._is_busy = False
        self._pause_s = FIRST_PAUSE_S
        super().__init__(*arguments, **options)

    def silent_s(self) -> float:
        """Return for how many seconds its loop has not turned; 0 while a task keeps it busy, as on the solo pool."""
        return 0.0 if self._is_busy else time.monotonic() - self._turned_at

    def register_with_event_loop(self, hub: Any) -> None:
        """Have the loop of a new connection say that it turns."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(TURN_EVERY_S, self._turn)

    def perform_pending_operations(self) -> None:
        """Do what other threads asked for; the loop of a broker without events does so in each turn."""
        self._turn()
        super().perform_pending_operations()

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Pause before the next try, longer each time."""
        super().on_connection_error_before_connected(exc)
        self._pause()

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Let go of the connection, and pause before the next try."""
        # kombu 5.7 may fail to close a lost connection with messages that nobody has confirmed, which would end the
        # worker; by then the connection is forgotten, and the messages come again
        with lost_connections.kept_here():
            super().on_connection_error_after_connected(exc)
        self._pause()

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Any], None]:
        """Return what is called with each message."""
        receive = super().create_task_handler(*arguments, **options)

        def on_message(message: Any) -> None:
            problem = problem_of(message)
            if problem is not None:
                # without what it holds: that is somebody else's text
                log.warning("message.refused", reason=problem)
                message.reject_log_error(celery_logger(__name__), self.connection_errors)
                return
            self._is_busy = True
            try:
                receive(message)  # the solo pool does the task in here
            finally:
                self._turn()
                self._is_busy = False

        return on_message

    def _turn(self) -> None:
        self._turned_at = time.monotonic()
        self._pause_s = FIRST_PAUSE_S

    def _pause(self) -> None:
        time.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)


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
