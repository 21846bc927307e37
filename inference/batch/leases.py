"""Holds on chunks, models and runs that end by themselves when their owner dies, and that a thread keeps alive."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from inference.errors import StaleAttempt
from inference.failures import Failures
from inference.logs import in_this_context
from inference.redis.locks import ExpiringLock

#: a hold that nobody renews ends after this long
LEASE_S = 10.0
#: three renewals may fail before a lease runs out
RENEW_EVERY_S = 3.0


class Lease:
    """Calls `renew` every few seconds within the block, and whenever the owner asks whether it still holds.

    `renew` returns False when the hold is lost for good.
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


@contextmanager
def holding(lock: ExpiringLock, name: str, *, wait_s: float = 0.0) -> Iterator[bool]:
    """Hold a lock within the block and keep it alive; yields False when another process has it after `wait_s`."""
    if not lock.acquire(blocking=wait_s > 0, blocking_timeout=wait_s or None):
        yield False
        return
    try:
        with Lease(lock.renew, name=name):
            yield True
    finally:
        lock.let_go()
