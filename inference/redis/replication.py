"""Waits until a replica has what was written, so that a failover does not lose what a client was told is stored."""

from __future__ import annotations

import time
from collections.abc import Callable

from inference.logs import get_logger
from inference.redis.clients import AsyncClient

log = get_logger(__name__)

#: milliseconds to wait for a replica; a healthy one takes about one
WAIT_MS = 500
#: seconds after a wait in vain in which writes wait less: a primary without replicas must not slow down every write
PAUSE_S = 5.0
#: milliseconds to wait meanwhile: enough for a replica that was only slow for a moment, and is well again
BRIEF_WAIT_MS = 20


class Replication:
    """Waits for one replica of the server behind `client`; in a cluster, of each node. `key`: a note of ours."""

    def __init__(self, client: AsyncClient, key: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._key = key
        self._clock = clock
        self._brief_until = 0.0

    async def reach(self) -> None:
        """Wait until one replica has all writes so far. If none confirms in time, log it once and go on.

        Raises:
            StoreUnavailable: the primary does not answer any more, so a failover may have lost the writes.
        """
        is_brief = self._clock() < self._brief_until
        if await self._client.await_replicas(self._key, BRIEF_WAIT_MS if is_brief else WAIT_MS):
            if self._brief_until:
                log.info("redis.replicated_again")
            self._brief_until = 0.0
            return
        if not self._brief_until:
            log.warning("redis.not_replicated", error=f"no replica confirmed a write within {WAIT_MS} ms")
        if not is_brief:
            self._brief_until = self._clock() + PAUSE_S
