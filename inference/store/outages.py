"""What redis-py raises, as errors of ours: an outage is never taken for an answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis

from inference.errors import store_error


@contextmanager
def outage_is_an_error(what: str) -> Iterator[None]:
    """Turn what redis-py raises within the block into StoreUnavailable or StoreFull; `what`: was being worked on."""
    try:
        yield
    except redis.RedisError as error:
        raise store_error(what, error) from error
