"""Celery's consumers: neither a forged message nor a broker that refuses commands ends them.

Each tells since when its loop has stood still; the real-time one tells events less often.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.app.trace import TraceInfo, trace_ok_t
from celery.exceptions import CPendingDeprecationWarning, NotRegistered
from celery.states import FAILURE
from celery.utils.log import get_logger as celery_logger
from celery.worker.consumer import Consumer
from celery.worker.pidbox import Pidbox

from inference.errors import Defect
from inference.failures import Failures
from inference.logs import get_logger
from workers.messages import problem_of

log = get_logger(__name__)
lost_connections = Failures(__name__, "broker.close")
broken_tasks = Failures(__name__, "task")
unstored_results = Failures(__name__, "result")

OUR_TASKS = "forecache."
#: a clock of Lamport's counts events; a forged one must not take those of all processes along
_LAST_CLOCK = 1 << 53
_LONGEST_NAME = 256
_REPLY_TO = ("exchange", "routing_key")

#: how late Flower may hear of a task. Telling after each one takes a fifth of a lone task's time, while the next waits
EVENTS_EVERY_S = 0.2

#: how often the loop says that it turns
TURN_EVERY_S = 1.0

#: pauses between two tries to consume, so that a broker that accepts connections but no commands is not overrun
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 4.0

# of six lines, at each lost connection: that tasks acknowledged late go on, which is what we want
warnings.filterwarnings("ignore", category=CPendingDeprecationWarning, module=r"workers\.consumer")


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
        linked = self.app.deployment.settings.celery.linked_tasks

        def on_message(message: Any) -> None:
            problem = problem_of(message, linked)
            if problem is not None:
                self._refuse(message, problem)
                return
            self._is_busy = True
            try:
                receive(message)  # the solo pool does the task in here
            finally:
                self._turn()
                self._is_busy = False

        return on_message

    def update_strategies(self) -> None:
        """Take the tasks that are ours, none of Celery's own, which run others; none may end without an answer."""
        super().update_strategies()
        for name in [name for name in self.strategies if not name.startswith(OUR_TASKS)]:
            del self.strategies[name]
        for name in self.strategies:
            task = self.app.tasks[name]
            task.__trace__ = _always_ends(task.__trace__)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Throw away a message that cannot be unpacked."""
        log.warning("message.refused", reason=f"it cannot be unpacked ({type(exc).__name__})")
        # nor does a message of remote control, of which nobody waits to hear, take a refusal
        message.ack_log_error(celery_logger(__name__), self.connection_errors)

    def on_invalid_task(self, _body: Any, message: Any, exc: Exception) -> None:
        """Throw away a message that Celery takes for no task's."""
        self._refuse(message, f"Celery cannot read it ({type(exc).__name__})")

    def on_unknown_message(self, _body: Any, message: Any) -> None:
        """Throw away a message that names no task."""
        self._refuse(message, "it names no task")

    def on_unknown_task(self, _body: Any, message: Any, _exc: Exception) -> None:
        """Throw away a message that names a task which there is not, and tell its sender."""
        self._refuse(message, "there is no task of the name that it gives")
        headers = message.headers if "task" in message.headers else message.payload
        with unstored_results.kept_here():
            self.app.backend.mark_as_failure(headers["id"], NotRegistered(headers["task"]))

    def _refuse(self, message: Any, reason: str) -> None:
        # without what it holds: that is somebody else's text
        log.warning("message.refused", reason=reason)
        message.reject_log_error(celery_logger(__name__), self.connection_errors)

    def _turn(self) -> None:
        self._turned_at = time.monotonic()
        self._pause_s = FIRST_PAUSE_S

    def _pause(self) -> None:
        time.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)


def _always_ends(trace: Callable[..., Any]) -> Callable[..., Any]:
    """Have a task fail when Celery raises around it, such as in an outage while it sends a link.

    Else its pool forgets the task, nobody acknowledges its message, and a worker that holds one at a time is stuck.
    """

    def ends(task_id: str, args: Any, kwargs: Any, request: Any) -> Any:
        try:
            return trace(task_id, args, kwargs, request)
        except Exception as error:  # noqa: BLE001 - a boundary: `tell_each` logs it
            defect = Defect(broken_tasks.tell_each(error))
            # Celery raises a MemoryError again
            failed = ExceptionInfo((Defect, defect, error.__traceback__))
            return trace_ok_t(failed, TraceInfo(FAILURE, defect), 0.0, "")

    return ends


class CheckedPidbox(Pidbox):  # type: ignore[misc]
    """Celery's remote control, which throws away what is no command, where Celery logs it and connects anew."""

    def on_message(self, body: Any, message: Any) -> None:
        """Do a command."""
        if self._is_command(body, message.headers.get("clock")):
            super().on_message(body, message)
        else:
            log.warning("control.refused", reason="it is no command of Celery's remote control")

    def _is_command(self, body: Any, clock: Any) -> bool:
        if not isinstance(body, dict) or not isinstance(clock or 0, int) or not 0 <= (clock or 0) < _LAST_CLOCK:
            return False
        reply = body.get("reply_to")
        return (
            isinstance(body.get("method"), str)
            and body["method"] in self.node.handlers
            and isinstance(body.get("arguments"), dict | None)
            and isinstance(body.get("destination"), list | None)
            and all(isinstance(body.get(name), str | None) for name in ("pattern", "matcher", "ticket"))
            and all(map(_is_word, body.get("arguments") or ()))
            and (not reply or (isinstance(reply, dict) and all(_is_name(reply.get(name)) for name in _REPLY_TO)))
        )


def _is_word(name: str) -> bool:
    return name.isidentifier() and len(name) < _LONGEST_NAME


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) < _LONGEST_NAME


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
