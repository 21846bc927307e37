"""The consumers of the workers: neither a forged message nor a broker that refuses commands ends them.

Each knows for how long its loop has stood still. The real-time consumer sends events less often. This file and
`redis_transport` replace private parts of Celery and kombu; `tests/unit/workers/test_private_parts.py` checks that a
new release still has them.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import celery.app.trace
import celery.apps.worker
import celery.worker.pidbox
from billiard.einfo import ExceptionInfo
from celery.app.trace import TraceInfo, trace_ok_t
from celery.exceptions import CPendingDeprecationWarning, NotRegistered
from celery.states import FAILURE
from celery.utils.log import get_logger as celery_logger
from celery.utils.saferepr import saferepr
from celery.worker.consumer import Consumer
from celery.worker.pidbox import Pidbox

from inference.errors import Defect
from inference.failures import Failures
from inference.logs import get_logger, write_at_once
from inference.wording import counted
from workers.messages import problem_of

log = get_logger(__name__)
lost_connections = Failures(__name__, "broker.close")
broken_tasks = Failures(__name__, "task")
unstored_results = Failures(__name__, "result")

OUR_TASKS = "forecache."
#: a Lamport clock counts events; a forged one must not push the clocks of all processes forward
_LAST_CLOCK = 1 << 53
_LONGEST_NAME = 256
_REPLY_TO = ("exchange", "routing_key")

#: how late Flower may hear of a task. An event after each task takes a fifth of its time, while the next one waits
EVENTS_EVERY_S = 0.2

#: how often the loop notes that it turns
TURN_EVERY_S = 1.0

#: pauses between two tries to consume, which spare a broker that accepts connections but no commands
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 4.0

# six lines at each lost connection, which say that tasks acknowledged late go on; that is what we want
warnings.filterwarnings("ignore", category=CPendingDeprecationWarning, module=r"workers\.consumer")


class TaskConsumer(Consumer):  # type: ignore[misc]  # celery has no types
    """Drops messages that are no task. Celery's consumer ends the worker, and the next worker gets the message."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._turned_at = time.monotonic()
        self._is_busy = False
        self._pause_s = FIRST_PAUSE_S
        super().__init__(*arguments, **options)

    def silent_s(self) -> float:
        """Return for how many seconds the loop has stood still; 0 while a task keeps it busy, as on the solo pool."""
        return 0.0 if self._is_busy else time.monotonic() - self._turned_at

    def register_with_event_loop(self, hub: Any) -> None:
        """Have the loop of a new connection note that it turns."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(TURN_EVERY_S, self._turn)

    def perform_pending_operations(self) -> None:
        """Run the calls of other threads. A loop without events does so in each turn."""
        self._turn()
        super().perform_pending_operations()

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Pause before the next try, longer each time."""
        super().on_connection_error_before_connected(exc)
        self._pause()

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Drop the connection, and pause before the next try."""
        # kombu 5.7 may fail to close a lost connection with unconfirmed messages, which would end the worker; the
        # connection is forgotten by then, and the messages come again
        with lost_connections.kept_here():
            super().on_connection_error_after_connected(exc)
        self._pause()

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Any], None]:
        """Return the handler of messages."""
        receive = super().create_task_handler(*arguments, **options)
        linked = self.app.deployment.settings.celery.linked_tasks

        def on_message(message: Any) -> None:
            problem = problem_of(message, linked)
            if problem is not None:
                self._refuse(message, problem)
                return
            self._is_busy = True
            try:
                receive(message)  # the solo pool runs the task in here
            finally:
                self._turn()
                self._is_busy = False

        return on_message

    def update_strategies(self) -> None:
        """Accept our own tasks only: Celery's built-in ones run others. Have each task end with a result."""
        super().update_strategies()
        for name in [name for name in self.strategies if not name.startswith(OUR_TASKS)]:
            del self.strategies[name]
        for name in self.strategies:
            task = self.app.tasks[name]
            task.__trace__ = _always_ends(task.__trace__)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Drop a message that cannot be unpacked."""
        log.warning("message.refused", reason=f"it cannot be unpacked ({type(exc).__name__})")
        # acknowledged, not rejected: a message of remote control takes no refusal
        message.ack_log_error(celery_logger(__name__), self.connection_errors)

    def on_invalid_task(self, _body: Any, message: Any, exc: Exception) -> None:
        """Drop a message that is no task for Celery."""
        self._refuse(message, f"Celery cannot read it ({type(exc).__name__})")

    def on_unknown_message(self, _body: Any, message: Any) -> None:
        """Drop a message that names no task."""
        self._refuse(message, "it names no task")

    def on_unknown_task(self, _body: Any, message: Any, _exc: Exception) -> None:
        """Drop a message that names an unknown task, and tell its sender."""
        self._refuse(message, "it names an unknown task")
        headers = message.headers if "task" in message.headers else message.payload
        with unstored_results.kept_here():
            self.app.backend.mark_as_failure(headers["id"], NotRegistered(headers["task"]))

    def _refuse(self, message: Any, reason: str) -> None:
        # without its content, which anybody may have written
        log.warning("message.refused", reason=reason)
        message.reject_log_error(celery_logger(__name__), self.connection_errors)

    def _turn(self) -> None:
        self._turned_at = time.monotonic()
        self._pause_s = FIRST_PAUSE_S

    def _pause(self) -> None:
        time.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)


def _always_ends(trace: Callable[..., Any]) -> Callable[..., Any]:
    """Have a task fail if Celery itself raises, such as in an outage while it sends a link.

    Otherwise the pool forgets the task, its message is never acknowledged, and a worker that takes one at a time hangs.
    """

    def ends(task_id: str, args: Any, kwargs: Any, request: Any) -> Any:
        try:
            return trace(task_id, args, kwargs, request)
        except Exception as error:  # noqa: BLE001 - a boundary: `tell_each` logs it
            defect = Defect(broken_tasks.tell_each(error))
            # not `error` itself: Celery would raise a MemoryError again
            failed = ExceptionInfo((Defect, defect, error.__traceback__))
            return trace_ok_t(failed, TraceInfo(FAILURE, defect), 0.0, "")

    return ends


class CheckedPidbox(Pidbox):  # type: ignore[misc]
    """Remote control that drops a message which is no command. Celery's own logs it and connects anew."""

    def on_message(self, body: Any, message: Any) -> None:
        """Run a command."""
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


def replace_parts_of_celery() -> None:
    """Have the worker check remote control, and log the effect of a signal. Celery has no settings for that."""
    celery.worker.pidbox.Pidbox = CheckedPidbox
    # it prints to stdout, past all logging
    celery.apps.worker.safe_say = lambda text, *_: write_at_once(text)
    celery.app.trace.saferepr = _shown


def _shown(result: Any, *limits: Any) -> str:
    """Return a result as events show it. Celery spells each of its rows, which takes as long as a small model."""
    if isinstance(result, dict) and isinstance(result.get("predictions"), list):
        return f"{counted(len(result['predictions']), 'prediction')} of version {result.get('model_version')}"
    return str(saferepr(result, *limits))


def _is_word(name: str) -> bool:
    return name.isidentifier() and len(name) < _LONGEST_NAME


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) < _LONGEST_NAME


class RealtimeConsumer(TaskConsumer):
    """Sends its events every `EVENTS_EVERY_S`, earlier if there are many, and before it ends."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._events_due_at = 0.0
        super().__init__(*arguments, **options)

    def on_send_event_buffered(self) -> None:
        """Start the timer that sends the events."""
        now = time.monotonic()
        # a lost connection loses its timers too, so an overdue one starts again
        if self.hub and now >= self._events_due_at:
            self._events_due_at = now + EVENTS_EVERY_S
            self.hub.call_later(EVENTS_EVERY_S, self._flush_events)

    def stop(self) -> None:
        """Send the last events, and end."""
        self._flush_events()
        super().stop()
