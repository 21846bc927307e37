"""Whether workers take messages: asked by a message through each queue and back, which touches no work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from celery.exceptions import NotRegistered

from app.cli.doctor.at_once import at_once
from app.cli.doctor.findings import Check, Finding, error, ok, warning
from inference.errors import DeadlineExceeded
from inference.failures import sentence_of
from inference.monitoring.presence import Roster
from inference.settings import BATCH_QUEUE, Settings
from tasks.celery_app import make_celery
from tasks.dispatch.sender import priorities
from tasks.echo import ask_queue

#: seconds for the message to come back: a worker answers in milliseconds unless it is at work
ANSWER_WITHIN_S = 3.0
#: beside that, seconds to reach the broker
_REACH_S = 1.5


def check_queues(
    settings: Settings,
    rosters: Mapping[str, Roster],
    scored_now: Callable[[], str | None],
    *,
    ask: Callable[[str], None] | None = None,
) -> list[Finding]:
    """Return a line for each queue that has a ready worker. Those that have none are told of by `check_workers`.

    `scored_now`: returns the run of which a worker holds a chunk; None for none. `ask`: asks one queue.
    """
    queues = [queue for queue, roster in rosters.items() if any(worker.ready for worker in roster.alive)]
    if ask is not None:
        answers = at_once({queue: partial(ask, queue) for queue in queues}, ANSWER_WITHIN_S + _REACH_S)
    else:
        urgent = priorities(settings).request
        with make_celery(settings) as application:
            calls = {
                queue: partial(ask_queue, application, queue, timeout_s=ANSWER_WITHIN_S, priority=urgent)
                for queue in queues
            }
            answers = at_once(calls, ANSWER_WITHIN_S + _REACH_S)
    return [_line(queue, answers[queue], scored_now) for queue in queues]


def _line(queue: str, answer: Exception | None, scored_now: Callable[[], str | None]) -> Finding:
    subject = f"{queue}: a message and back"
    if answer is None:
        return ok(Check.WORKERS, subject, "answered")
    if isinstance(answer, DeadlineExceeded | TimeoutError):
        run_id = scored_now() if queue == BATCH_QUEUE else None
        if run_id is not None:
            return ok(Check.WORKERS, subject, f"waits behind a chunk of run {run_id}, which is being scored")
        detail = f"no worker took it within {ANSWER_WITHIN_S:g} s, though one says that it is ready"
        return error(Check.WORKERS, subject, detail, "read the log of the queue's workers, then restart them")
    if isinstance(answer, NotRegistered):
        fix = "install the same release everywhere and restart the workers"
        return warning(Check.WORKERS, subject, "its worker runs a release that does not know this question", fix)
    return error(Check.WORKERS, subject, f"it cannot be sent: {sentence_of(answer)}", "see broker, and redis, url")
