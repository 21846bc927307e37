"""What an outage of Redis is called where runs are kept."""

from __future__ import annotations

from contextlib import AbstractContextManager

from inference.store.outages import outage_is_an_error


def redis_outage_is_an_error() -> AbstractContextManager[None]:
    """Turn what redis-py raises into StoreUnavailable or StoreFull, so that an outage is never taken for an answer."""
    return outage_is_an_error("runs")
