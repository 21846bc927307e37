"""Locks and leases: a thread renews them while their owner works, and they expire if the owner dies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from redis.exceptions import LockError
from redis.lock import Lock

from inference.errors import StaleAttempt, StoreUnavailable
from inference.failures import Failures
from inference.logs import get_logger, in_this_context
from inference.redis.clients import Client

log = get_logger(__name__)

#: seconds after which a hold ends that is not renewed
LEASE_S = 10.0
#: three renewals may fail before a lease runs out
RENEW_EVERY_S = 3.0


class Lease:
    """Calls `renew` every few seconds within the block, and whenever the owner checks its hold.

    `renew` returns False if the hold is lost for good.
    """

    def __init__(self, renew: Callable[[], bool], *, name: str, every_s: float = RENEW_EVERY_S) -> None:
        self._renew = renew
        self._name = name
        self._every_s = every_s
        self._failures = Failures(__name__, "lease")
        self._left = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=in_this_context(self._keep), name=f"lease {name}", daemon=True)

    def check(self) -> None:
        """Renew the hold now.

        Raises:
            StaleAttempt: the hold is lost; the owner must not write any more.
            StoreUnavailable: Redis did not answer, so nobody knows whether the hold is lost.
        """
        if self._lost.is_set() or not self._renew():
            self._lost.set()
        self.ensure_held()

    def ensure_held(self) -> None:
        """Do nothing while no renewal was refused. It sends nothing to Redis, so it may be called all the time.

        Raises:
            StaleAttempt: a renewal was refused.
        """
        if self._lost.is_set():
            raise StaleAttempt(f"{self._name} is no longer this worker's")

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._left.wait(self._every_s):
            # if this thread ended by an error, the owner would not hear that it lost its hold
            with self._failures.kept_here(name=self._name):
                if not self._renew():
                    self._lost.set()
                    return


class ExpiringLock(Lock):
    """redis-py's lock. One process holds it, until it releases it or does not renew it for LEASE_S.

    Methods raise StoreUnavailable when Redis does not answer.
    """

    def __init__(self, client: Client, key: str) -> None:
        super().__init__(client, key, timeout=LEASE_S, thread_local=False)
        self._client = client

    def do_acquire(self, token: str | bytes) -> bool:
        """Take the lock if it is free, by a script that works when Redis is out of memory."""
        return bool(self._client.run_script("lock", [self.name], [token, int(LEASE_S * 1000)]))

    @contextmanager
    def holding(self, name: str, *, wait_s: float = 0.0) -> Iterator[bool]:
        """Hold the lock within the block and renew it; yield False if another process still has it after `wait_s`."""
        if not self.acquire(blocking=wait_s > 0, blocking_timeout=wait_s or None):
            yield False
            return
        try:
            with Lease(self._renew, name=name):
                yield True
        finally:
            self._let_go()

    def _renew(self) -> bool:
        try:
            return bool(self.extend(LEASE_S, replace_ttl=True))
        except LockError:  # it expired, and another process may have it
            return False

    def _let_go(self) -> None:
        try:
            self.release()
        except (LockError, StoreUnavailable) as error:  # the lock expires by itself
            log.warning("lock.not_released", lock=self.name, error=str(error))
