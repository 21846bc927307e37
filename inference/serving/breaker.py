"""Stops asking workers that do not answer, and finds out cheaply when they do again.

A queue that nobody drains only grows, and each message that expired on it costs a worker 1.7 ms once it is back. So
after a few micro-batches without an answer nothing more is sent but one probe at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from inference.logs import get_logger

log = get_logger(__name__)

#: micro-batches in a row that got no answer
OPENS_AFTER = 5
#: rest before the first probe; it doubles with each probe that fails, up to the second
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 2.0
#: who brings so many times the patience of all who got no answer is let through: a budget that is too small for the
#: model says nothing about a larger one
MORE_PATIENT = 2.0
#: a worker that is started loads its models for so long; whoever waits no longer than that need not ask for one
#: while none is there
WORKER_START_S = 10.0


class BreakerState(StrEnum):
    """What a breaker does with the next miss."""

    #: the workers answer, and are asked
    CLOSED = "closed"
    #: the pause is over: the next miss is the probe
    HALF_OPEN = "half_open"
    #: nobody is asked until the pause is over
    OPEN = "open"


class Breaker:
    """Whether the workers of one model are worth asking. `clock`: seconds of a steady clock."""

    def __init__(self, model: str, clock: Callable[[], float]) -> None:
        self._model = model
        self._clock = clock
        self._missed = 0
        self._longest_missed_s = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._probe_at: float | None = None
        self._present = True
        self._opened_by_silence = False

    @property
    def state(self) -> BreakerState:
        """What would become of a miss now."""
        if self._probe_at is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._clock() >= self._probe_at else BreakerState.OPEN

    @property
    def is_open(self) -> bool:
        """Whether the workers count as gone."""
        return self._probe_at is not None

    def rest_s(self, timeout_s: float) -> float:
        """Return for how many seconds nothing with a budget of `timeout_s` should be asked; 0 means ask now."""
        if self._probe_at is None or timeout_s > MORE_PATIENT * self._longest_missed_s:
            return 0.0
        return max(self._probe_at - self._clock(), 0.0)

    def asked(self) -> None:
        """Note that a micro-batch is on its way. While open it is the probe, and nothing follows for a pause."""
        if self._probe_at is not None:
            self._probe_at = self._clock() + self._pause_s

    def answered(self) -> None:
        """Note that a worker answered, whatever it said: all is asked again."""
        if self._probe_at is not None:
            log.info("breaker.closed", model=self._model)
        self._missed, self._longest_missed_s, self._pause_s, self._probe_at = 0, 0.0, FIRST_PAUSE_S, None
        self._opened_by_silence = False

    def heard(self, present: bool) -> None:
        """Note whether the workers' own signs of life say that any is there, ready for work.

        A hint that is acted on when it changes: what the workers answer, or not, counts for more, so that a worker
        whose signs are lost is still used.
        """
        if present is not self._present:
            self._present = present
            if not present:
                self._miss_all()
            elif self._opened_by_silence:
                self.answered()  # nothing speaks against them: what comes next need not wait for a probe
            elif self._probe_at is not None:
                # the first probe may go at once
                self._pause_s, self._probe_at = FIRST_PAUSE_S, self._clock()

    def _miss_all(self) -> None:
        self._longest_missed_s = max(self._longest_missed_s, WORKER_START_S)
        if self._probe_at is None:
            log.warning("breaker.opened", model=self._model, missed="every sign of life")
            self._opened_by_silence = True
            self._probe_at = self._clock() + self._pause_s

    def missed(self, timeout_s: float) -> None:
        """Note that nobody answered within `timeout_s`."""
        self._missed += 1
        self._longest_missed_s = max(self._longest_missed_s, timeout_s)
        if self._probe_at is not None:
            self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
        elif self._missed < OPENS_AFTER:
            return
        else:
            log.warning("breaker.opened", model=self._model, missed=self._missed)
        self._probe_at = self._clock() + self._pause_s
