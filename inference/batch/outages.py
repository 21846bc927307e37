"""Tells errors that end a run from outages, after which another look decides."""

from __future__ import annotations

from inference.errors import Conflict, NotFound, Unavailable, Unreadable


def is_the_runs_fault(error: Exception) -> bool:
    """Whether what was raised while a run was moved on ends that run, so that its model is free for the next.

    It does not when the run is over or gone by now, or when a server does not answer: another look decides. What is
    unreadable in Redis stays so.
    """
    return isinstance(error, Unreadable) or not isinstance(error, Conflict | NotFound | Unavailable)
