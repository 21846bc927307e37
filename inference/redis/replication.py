"""Waits until a replica has what was written, so that a failover does not lose what a client was told is stored."""

from __future__ import annotations

import time
from collections.abc import Callable

from inference.logs import get_logger
from inference.redis.clients import AsyncClient

log = get_logger(__name__)

#: milliseconds to wait for a replica; a healthy one takes about one
WAIT_MS = 500
#: seconds without waiting after a wait in vain: a primary without replicas must not slow down every write
PAUSE_S = 5.0


class Replication:
    """Waits for one replica of the server behind `client`; in a cluster, of each node. `key`: a note of ours."""

    def __init__(self, client: AsyncClient, key: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._key = key
        self._clock = clock
        self._not_before = 0.0

    async def reach(self) -> None:
        """Wait until one replica has all writes so far. If none confirms in time, log it once and go on.

        Raises:
            StoreUnavailable: the primary does not answer any more, so a failover may have lost the writes.
        """
        if self._clock() < self._not_before:
            return
        if await self._client.await_replicas(self._key, WAIT_MS):
            if self._not_before:
                log.info("redis.replicated_again")
            self._not_before = 0.0
            return
        if not self._not_before:
            log.warning("redis.not_replicated", error=f"no replica confirmed a write within {WAIT_MS} ms")
        self._not_before = self._clock() + PAUSE_S
