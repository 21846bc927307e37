"""What an outage of Redis is called where runs are kept."""

from __future__ import annotations

from contextlib import AbstractContextManager

import redis

from inference.errors import Conflict, NotFound, Unavailable
from inference.store.outages import outage_is_an_error


def redis_outage_is_an_error() -> AbstractContextManager[None]:
    """Turn what redis-py raises into StoreUnavailable or StoreFull, so that an outage is never taken for an answer."""
    return outage_is_an_error("runs")


#: what is raised when the run is over or gone by now, or when a server does not answer: another look decides. Whatever
#: else is raised while a run is moved on ends that run, so that its model is free for the next
NOT_THE_RUNS_FAULT = (Conflict, NotFound, Unavailable, redis.RedisError)
