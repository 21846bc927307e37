"""Sends one model's tasks to its workers: with deadlines, a circuit breaker, and a limit on unshared tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any, Protocol

from inference.clock import Clock
from inference.errors import BrokerUnavailable, DeadlineExceeded, ForecacheError, Overloaded, WorkersUnavailable
from inference.logs import get_logger
from inference.serving.answers import Reply, replies_from_result
from inference.serving.coalescer import MAX_WAITING_BATCHES
from inference.settings import RealtimeSettings


class Submit(Protocol):
    """Sends a task to a worker and returns its result."""

    async def __call__(
        self, task: str, kwargs: Mapping[str, Any], *, deadline: float, timeout_s: float
    ) -> dict[str, Any]:
        """Return the task's result. `deadline`: epoch seconds in Redis time, for the worker.

        Raises:
            DeadlineExceeded: no result within `timeout_s`.
            BrokerUnavailable: the broker did not accept the task.
        """


class WorkerClient:
    """Sends tasks to the workers of one model, from one event loop. `until` is event-loop time."""

    def __init__(self, model: str, realtime: RealtimeSettings, submit: Submit, clock: Clock) -> None:
        self._model = model
        self._max_rows = realtime.max_micro_batch
        self._submit = submit
        self._clock = clock
        self._breaker = Breaker(model, lambda: asyncio.get_running_loop().time())
        self._apart = asyncio.Semaphore(realtime.max_in_flight)
        self._waiting_apart = 0

    def heard(self, present: bool) -> None:
        """Note whether any worker of the model is alive."""
        self._breaker.heard(present)

    @property
    def breaker_state(self) -> BreakerState:
        """The state of the model's breaker in this process."""
        return self._breaker.state

    def refusal(self, until: float) -> WorkersUnavailable | None:
        """Return the error that `ask` would raise at once because the breaker is open; None if it would send."""
        rest_s = self._breaker.rest_s(until - asyncio.get_running_loop().time())
        if rest_s <= 0:
            return None
        return WorkersUnavailable(f"no worker answers for model {self._model!r}", retry_after_s=rest_s)

    async def ask(self, task: str, kwargs: Mapping[str, Any], until: float) -> dict[str, Any]:
        """Send a task and return its result.

        Raises:
            DeadlineExceeded: no result by `until`.
            BrokerUnavailable: the broker did not accept the task.
            WorkersUnavailable: the breaker is open.
        """
        timeout_s = until - asyncio.get_running_loop().time()
        if timeout_s <= 0:
            raise DeadlineExceeded("the prediction was not computed in time")
        refusal = self.refusal(until)
        if refusal is not None:
            raise refusal
        self._breaker.asked()
        try:
            result = await self._submit(
                task, {"model": self._model, **kwargs}, deadline=self._clock() + timeout_s, timeout_s=timeout_s
            )
        except (DeadlineExceeded, BrokerUnavailable):
            self._breaker.missed(timeout_s)
            raise
        except asyncio.CancelledError:
            # the caller's deadline may pass a moment before that of `submit`
            if asyncio.get_running_loop().time() >= until:
                self._breaker.missed(timeout_s)
            raise
        self._breaker.answered()
        return result

    async def ask_apart(self, task: str, kwargs: Mapping[str, Any], until: float) -> dict[str, Any]:
        """Send a task that no other request shares, when it is its turn, and return its result.

        Raises:
            Overloaded: too many wait already.
            DeadlineExceeded, BrokerUnavailable, WorkersUnavailable: as `ask` does.
        """
        async with self._turn(until):
            return await self.ask(task, kwargs, until)

    async def ask_with_overrides(
        self, task: str, entity_ids: Sequence[str], overrides: Mapping[str, Any], until: float
    ) -> list[Reply]:
        """Return the reply to each entity. If a micro-batch fails, each of its entities gets the error."""
        size = self._max_rows
        parts = [list(entity_ids[start : start + size]) for start in range(0, len(entity_ids), size)]
        more = {"overrides": dict(overrides)}
        replies = await asyncio.gather(
            *(self._part_apart(task, {"entity_ids": part, **more}, len(part), until) for part in parts)
        )
        return [reply for part in replies for reply in part]

    async def _part_apart(self, task: str, kwargs: dict[str, Any], rows: int, until: float) -> list[Reply]:
        try:
            return replies_from_result(await self.ask_apart(task, kwargs, until), rows)
        except ForecacheError as error:
            return [error] * rows

    @asynccontextmanager
    async def _turn(self, until: float) -> AsyncIterator[None]:
        """Wait for a place among the unshared tasks in flight, and hold it."""
        if self._waiting_apart >= MAX_WAITING_BATCHES:
            raise Overloaded("too many unshared requests wait already")
        self._waiting_apart += 1
        try:
            async with asyncio.timeout_at(until), self._apart:
                yield
        except TimeoutError as error:
            raise DeadlineExceeded("the prediction was not computed in time") from error
        finally:
            self._waiting_apart -= 1


log = get_logger(__name__)

#: unanswered micro-batches in a row that open the breaker
OPENS_AFTER = 5
#: pause before the first probe; it doubles with each failed probe, up to the longest pause
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 2.0
#: a request whose budget is this many times the longest unanswered budget is sent: a budget that is too small for the
#: model says nothing about a larger one
MORE_PATIENT = 2.0
#: seconds in which a new worker loads its models: while no worker is there, they count as the longest unanswered
#: budget
WORKER_START_S = 10.0
#: seconds in which the first worker comes up after a start, on a busy machine too: until then its absence is no news
FIRST_WORKER_WITHIN_S = 60.0


class BreakerState(StrEnum):
    """What a breaker does with the next miss."""

    #: the workers answer: the miss is sent
    CLOSED = "closed"
    #: the pause is over: the next miss is the probe
    HALF_OPEN = "half_open"
    #: nothing is sent until the pause is over
    OPEN = "open"


class Breaker:
    """Decides whether the workers of one model are worth asking. `clock`: seconds of a monotonic clock."""

    def __init__(self, model: str, clock: Callable[[], float]) -> None:
        self._model = model
        self._clock = clock
        self._missed = 0
        self._longest_missed_s = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._probe_at: float | None = None
        self._present = True
        self._was_present = False
        self._opened_by_silence = False
        self._opened_at = 0.0
        # whether the log says that it is open
        self._is_told = False

    @property
    def state(self) -> BreakerState:
        """The state for a miss now."""
        if self._probe_at is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._clock() >= self._probe_at else BreakerState.OPEN

    @property
    def is_open(self) -> bool:
        """Whether the workers count as gone."""
        return self._probe_at is not None

    def rest_s(self, timeout_s: float) -> float:
        """Return how many seconds a request with a budget of `timeout_s` should not be sent; 0 means send now."""
        if self._probe_at is None or timeout_s > MORE_PATIENT * self._longest_missed_s:
            return 0.0
        return max(self._probe_at - self._clock(), 0.0)

    def asked(self) -> None:
        """Note that a micro-batch was sent. While open, it is the probe, and nothing follows for a pause."""
        if self._probe_at is not None:
            self._probe_at = self._clock() + self._pause_s

    def answered(self) -> None:
        """Note that a worker answered, even with an error: the breaker closes."""
        if self._is_told:
            log.info("breaker.closed", model=self._model)
        self._missed, self._longest_missed_s, self._pause_s, self._probe_at = 0, 0.0, FIRST_PAUSE_S, None
        self._opened_by_silence = self._is_told = False

    def heard(self, present: bool) -> None:
        """Note whether the workers' heartbeats show one that is ready.

        Acts only if this changes. Answers, or missing ones, count for more, so that a worker whose heartbeats are lost
        is still used. Call it repeatedly while no worker is there: the log says so only once the first worker has had
        its time to start.
        """
        self._was_present = self._was_present or present
        if present is not self._present:
            self._present = present
            if not present:
                self._miss_all()
            elif self._opened_by_silence:
                self.answered()  # no request went unanswered: the next one need not wait for a probe
            elif self._probe_at is not None:
                # the first probe may go at once
                self._pause_s, self._probe_at = FIRST_PAUSE_S, self._clock()
        if self._opened_by_silence and not self._is_told:
            self._tell_silence()

    def _miss_all(self) -> None:
        self._longest_missed_s = max(self._longest_missed_s, WORKER_START_S)
        if self._probe_at is None:
            self._opened_by_silence, self._opened_at = True, self._clock()
            self._probe_at = self._opened_at + self._pause_s

    def _tell_silence(self) -> None:
        """Log that no worker is there, unless the first one may still be starting."""
        if self._was_present or self._clock() >= self._opened_at + FIRST_WORKER_WITHIN_S:
            log.warning("breaker.opened", model=self._model, missed="every heartbeat")
            self._is_told = True

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
            self._is_told = True
        self._probe_at = self._clock() + self._pause_s
