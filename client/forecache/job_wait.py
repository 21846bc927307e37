"""How long the clients wait for a job."""

from __future__ import annotations

import time

from forecache.errors import DeadlineExceeded, ForecacheError
from forecache.requests import ASK_S, is_worth_waiting


class JobWait:
    """The time that is left to wait for a job."""

    def __init__(self, job_id: str, timeout_s: float | None) -> None:
        self._job_id = job_id
        self._timeout_s = timeout_s
        self._end = None if timeout_s is None else time.monotonic() + timeout_s
        self._asked = False

    def next_s(self) -> float:
        """Return the seconds that the next question may wait; the first one may wait none.

        Raises:
            DeadlineExceeded: the time is up.
        """
        left = ASK_S if self._end is None else self._end - time.monotonic()
        if left <= 0 and self._asked:
            raise _TimeIsUp(f"job {self._job_id} is not over within {self._timeout_s:g} s", code="deadline-exceeded")
        self._asked = True
        return max(0.0, min(left, ASK_S))

    def pause_after(self, error: ForecacheError) -> float:
        """Return the seconds before the next question after an outage; raise any other error."""
        if isinstance(error, _TimeIsUp) or not is_worth_waiting(error):
            raise error
        left = ASK_S if self._end is None else self._end - time.monotonic()
        if left <= 0:
            raise error
        return min(left, error.retry_after_s or 1.0)


class _TimeIsUp(DeadlineExceeded):
    """Raised when the caller's own time for a job is up."""
