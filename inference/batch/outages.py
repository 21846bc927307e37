"""What an outage of Redis is called where runs are kept."""

from __future__ import annotations

from contextlib import AbstractContextManager

import redis

from inference.errors import Conflict, NotFound, Unavailable, Unreadable
from inference.store.outages import outage_is_an_error


def redis_outage_is_an_error() -> AbstractContextManager[None]:
    """Turn what redis-py raises into StoreUnavailable or StoreFull, so that an outage is never taken for an answer."""
    return outage_is_an_error("runs")


def is_the_runs_fault(error: Exception) -> bool:
    """Whether what was raised while a run was moved on ends that run, so that its model is free for the next.

    It does not when the run is over or gone by now, or when a server does not answer: another look decides. What is
    unreadable in Redis stays so.
    """
    return isinstance(error, Unreadable) or not isinstance(error, Conflict | NotFound | Unavailable | redis.RedisError)
