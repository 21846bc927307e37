"""Keeps a hold alive from a thread while its owner works."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from inference.errors import StaleAttempt
from inference.failures import Failures
from inference.logs import in_this_context

#: three renewals may fail before a lease of 10 s runs out
RENEW_EVERY_S = 3.0


class Lease:
    """Calls `renew` every few seconds until it is left, and whenever the owner asks whether it still holds.

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
        """Renew now.

        Raises:
            StaleAttempt: the hold is lost; whatever was about to be written must not be.
            StoreUnavailable: Redis did not answer, so nobody knows.
        """
        if self._lost.is_set() or not self._renew():
            self._lost.set()
        self.ensure_held()

    def ensure_held(self) -> None:
        """Do nothing while the hold is not known to be lost; asks nobody, so it may be called all the time.

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
            # an owner whose thread ended would never hear that it lost its hold
            with self._failures.kept_here(name=self._name):
                if not self._renew():
                    self._lost.set()
                    return
