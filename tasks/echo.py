"""Sends a message through a queue and back, to prove that a worker takes messages and that results arrive."""

from __future__ import annotations

from celery import Celery, shared_task
from celery.exceptions import TimeoutError as NoResult

from inference.errors import DeadlineExceeded

#: a late message is useless; long enough for clocks that differ
_EXPIRES_S = 60


@shared_task(name="forecache.echo")  # type: ignore[untyped-decorator]  # celery has no types
def echo(text: str) -> str:
    """Return the text that was sent."""
    return text


def ask_queue(application: Celery, queue: str, *, timeout_s: float, priority: int) -> None:
    """Send a message through a queue, and wait until it is back. `queue`: its name in routes.

    `priority`: the broker's number for requests, so that the message waits behind no job.

    Raises:
        DeadlineExceeded: nobody answered in time.
    """
    sent = application.send_task(
        "forecache.echo", args=[queue], queue=queue, priority=priority, expires=_EXPIRES_S, retry=False
    )
    try:
        sent.get(timeout=timeout_s)
    except NoResult as error:
        raise DeadlineExceeded(f"nobody answered within {timeout_s:g} s") from error
    finally:
        sent.forget()
