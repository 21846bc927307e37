"""Having one model's workers compute: with a breaker, in time, and few at a time what requests do not share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from inference.clock import Clock
from inference.errors import BrokerUnavailable, DeadlineExceeded, ForecacheError, Overloaded, WorkersUnavailable
from inference.serving.answers import Reply, replies_from_result
from inference.serving.breaker import Breaker, BreakerState
from inference.serving.coalescer import MAX_WAITING_BATCHES
from inference.settings import RealtimeSettings


class Submit(Protocol):
    """Has a worker do a task and brings its result."""

    async def __call__(
        self, task: str, kwargs: Mapping[str, Any], *, deadline: float, timeout_s: float
    ) -> dict[str, Any]:
        """Return the task's result. `deadline`: epoch seconds in Redis time, told to the worker.

        Raises:
            DeadlineExceeded: no result within `timeout_s`.
            BrokerUnavailable: the task could not be handed over.
        """


class WorkerClient:
    """Asks the workers of one model, in one event loop. `until` is event-loop time."""

    def __init__(self, model: str, realtime: RealtimeSettings, submit: Submit, clock: Clock) -> None:
        self._model = model
        self._max_rows = realtime.max_micro_batch
        self._submit = submit
        self._clock = clock
        self._breaker = Breaker(model, lambda: asyncio.get_running_loop().time())
        self._apart = asyncio.Semaphore(realtime.max_in_flight)
        self._waiting_apart = 0

    def heard(self, present: bool) -> None:
        """Note whether any worker that could compute is alive."""
        self._breaker.heard(present)

    @property
    def breaker_state(self) -> BreakerState:
        """Whether this process asks the model's workers."""
        return self._breaker.state

    async def ask(self, task: str, kwargs: Mapping[str, Any], until: float) -> dict[str, Any]:
        """Return what a task gives.

        Raises:
            DeadlineExceeded: no result by `until`.
            BrokerUnavailable: the task could not be handed over.
            WorkersUnavailable: the breaker is open.
        """
        timeout_s = until - asyncio.get_running_loop().time()
        if timeout_s <= 0:
            raise DeadlineExceeded("the prediction was not computed in time")
        rest_s = self._breaker.rest_s(timeout_s)
        if rest_s > 0:
            raise WorkersUnavailable(f"no worker answers for model {self._model!r}", retry_after_s=rest_s)
        self._breaker.asked()
        try:
            result = await self._submit(
                task, {"model": self._model, **kwargs}, deadline=self._clock() + timeout_s, timeout_s=timeout_s
            )
        except (DeadlineExceeded, BrokerUnavailable):
            self._breaker.missed(timeout_s)
            raise
        except asyncio.CancelledError:
            # the callers' own clock may strike a moment before that of `submit`
            if asyncio.get_running_loop().time() >= until:
                self._breaker.missed(timeout_s)
            raise
        self._breaker.answered()
        return result

    async def ask_apart(self, task: str, kwargs: Mapping[str, Any], until: float) -> dict[str, Any]:
        """Return what a task gives that no other request shares, when it is its turn.

        Raises:
            Overloaded: too many wait already.
            DeadlineExceeded, BrokerUnavailable, WorkersUnavailable: as `ask` does.
        """
        async with self._turn(until):
            return await self.ask(task, kwargs, until)

    async def ask_rows_apart(
        self, task: str, argument: str, rows: Sequence[Any], until: float, more: Mapping[str, Any]
    ) -> list[Reply]:
        """Return the reply to each row, asked in micro-batches; one that fails is an error for each of its rows.

        `argument`: by which the task takes rows; `more`: its other arguments.
        """
        parts = [list(rows[start : start + self._max_rows]) for start in range(0, len(rows), self._max_rows)]
        replies = await asyncio.gather(
            *(self._part_apart(task, {argument: part, **more}, len(part), until) for part in parts)
        )
        return [reply for part in replies for reply in part]

    async def _part_apart(self, task: str, kwargs: dict[str, Any], rows: int, until: float) -> list[Reply]:
        try:
            return replies_from_result(await self.ask_apart(task, kwargs, until), rows)
        except ForecacheError as error:
            return [error] * rows

    @asynccontextmanager
    async def _turn(self, until: float) -> AsyncIterator[None]:
        """Wait for room among the few tasks of requests that share nothing, and hold it."""
        if self._waiting_apart >= MAX_WAITING_BATCHES:
            raise Overloaded("too many requests of their own wait already")
        self._waiting_apart += 1
        try:
            async with asyncio.timeout_at(until), self._apart:
                yield
        except TimeoutError as error:
            raise DeadlineExceeded("the prediction was not computed in time") from error
        finally:
            self._waiting_apart -= 1
