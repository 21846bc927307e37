"""Joins misses into micro-batches, without a timer.

At most K micro-batches are in flight, and the misses that arrive meanwhile make up the next one. At low load nothing
waits; under load the micro-batches grow. A miss that would be answered too late, by the pace of the last
micro-batches, is refused at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from inference.errors import DeadlineExceeded, Defect, ForecacheError, Overloaded, Unavailable
from inference.failures import Failures
from inference.logs import RequestId, requests_behind, work_for
from inference.serving.answers import Reply

#: most micro-batches that may wait, whatever the pace: bounds the memory even if callers have minutes
MAX_WAITING_BATCHES = 64


class Compute(Protocol):
    """Computes one micro-batch."""

    async def __call__(self, entity_ids: list[str], until: float) -> list[Reply]:
        """Return one reply per id, in order. `until`: their deadline, event-loop time."""


#: weight of the newest micro-batch: old ones fade within about ten
_NEWEST = 0.2


@dataclass(eq=False, slots=True)
class _Flight:
    """One id on its way, for all callers that wait for it."""

    entity_id: str
    until: float
    reply: asyncio.Future[Reply]
    waiters: int = 0
    #: the requests that asked for it before it left
    requests: list[RequestId] = field(default_factory=list)


class Coalescer:
    """Computes ids on demand for one model: each id once for all concurrent callers."""

    def __init__(self, compute: Compute, *, max_in_flight: int, max_rows: int) -> None:
        self._compute = compute
        self._max_in_flight = max_in_flight
        self._max_rows = max_rows
        self._waiting: dict[str, _Flight] = {}
        self._flying: dict[str, _Flight] = {}
        self._batches: set[asyncio.Task[None]] = set()
        self._launch_is_due = False
        self._pace = BatchTimes(max_rows)
        self._failures = Failures(__name__, "coalescer")

    async def ask(self, entity_ids: Sequence[str], *, until: float) -> list[Reply]:
        """Return one reply per id, in order.

        The reply is DeadlineExceeded if there is none by `until` (event-loop time), and Overloaded, at once, if there
        cannot be one by then. Cancelling one caller does not disturb the others; ids that nobody waits for any more
        are not sent.
        """
        loop = asyncio.get_running_loop()
        replies: dict[str, Reply] = {}
        left: Iterable[str] = dict.fromkeys(entity_ids)
        while left and loop.time() < until:
            landed = await self._fly_along(left, until)
            replies |= {flight.entity_id: flight.reply.result() for flight in landed if flight.reply.done()}
            # a caller that joined a flight with an earlier deadline may have time for another one
            left = [
                flight.entity_id
                for flight in landed
                if flight.until < until and isinstance(replies.get(flight.entity_id), DeadlineExceeded)
            ]
        late = DeadlineExceeded("the prediction was not computed in time")
        return [replies.get(entity_id, late) for entity_id in entity_ids]

    def refusal(self, entity_id: str, until: float) -> Overloaded | None:
        """Return the error that `ask` would give at once; None if the id may wait, or is on its way already."""
        is_on_its_way = entity_id in self._flying or entity_id in self._waiting
        return None if is_on_its_way else self._refusal(until)

    async def close(self) -> None:
        """Cancel everything in flight and wait for its end; callers get an error."""
        for batch in self._batches:
            batch.cancel()
        await asyncio.gather(*self._batches, return_exceptions=True)

    async def _fly_along(self, entity_ids: Iterable[str], until: float) -> list[_Flight]:
        flights = [self._board(entity_id, until) for entity_id in entity_ids]
        try:
            pending = {flight.reply for flight in flights}
            await asyncio.wait(pending, timeout=until - asyncio.get_running_loop().time())
        finally:
            for flight in flights:
                flight.waiters -= 1
        return flights

    def _board(self, entity_id: str, until: float) -> _Flight:
        flight = self._flying.get(entity_id) or self._queue(entity_id, until)
        flight.waiters += 1
        return flight

    def _queue(self, entity_id: str, until: float) -> _Flight:
        """Return the id's waiting flight. A flight that would land too late is refused and does not wait."""
        flight = self._waiting.get(entity_id)
        if flight is None:
            flight = _Flight(entity_id, until, asyncio.get_running_loop().create_future())
            refusal = self._refusal(until)
            if refusal is not None:
                flight.reply.set_result(refusal)
                return flight
            self._waiting[entity_id] = flight
        flight.until = max(flight.until, until)
        flight.requests += requests_behind()
        self._plan_launch()
        return flight

    def _refusal(self, until: float) -> Overloaded | None:
        """Return the error if one more id may not wait; None if it may.

        While nothing is in flight, a few may leave although they would be late: only so can the pace get better.
        """
        ahead = len(self._waiting) // self._max_rows
        answer_s = self._pace.answer_s(ahead, self._max_in_flight)
        is_in_time = asyncio.get_running_loop().time() + answer_s <= until
        is_probe = not self._batches and len(self._waiting) < self._pace.probe_rows
        if is_probe or (is_in_time and ahead < MAX_WAITING_BATCHES):
            return None
        return Overloaded("too many requests wait already: the prediction would come too late", retry_after_s=answer_s)

    def _plan_launch(self) -> None:
        """Launch at the end of this turn of the event loop, so that all of its callers share the micro-batch."""
        if not self._launch_is_due and len(self._batches) < self._max_in_flight:
            self._launch_is_due = True
            asyncio.get_running_loop().call_soon(self._launch)

    def _launch(self) -> None:
        self._launch_is_due = False
        while self._waiting and len(self._batches) < self._max_in_flight:
            flights = self._take_next()
            if flights:
                batch = asyncio.create_task(self._fly(flights))
                self._batches.add(batch)
                batch.add_done_callback(self._land)

    def _take_next(self) -> list[_Flight]:
        """Move up to `max_rows` flights from waiting to flying; late and abandoned ones end here."""
        now = asyncio.get_running_loop().time()
        taken: list[_Flight] = []
        while self._waiting and len(taken) < self._max_rows:
            entity_id = next(iter(self._waiting))  # oldest first: a dict keeps the order of arrival
            flight = self._waiting.pop(entity_id)
            if flight.until <= now or not flight.waiters:
                flight.reply.set_result(DeadlineExceeded("the prediction was not computed in time"))
                continue
            self._flying[entity_id] = flight
            taken.append(flight)
        return taken

    async def _fly(self, flights: list[_Flight]) -> None:
        # this task started in the context of only one of the requests
        work_for([request for flight in flights for request in flight.requests])
        replies: list[Reply] = [Unavailable("this process is shutting down")] * len(flights)
        try:
            replies = await self._compute_or_fail(flights)
        finally:
            for flight, reply in zip(flights, replies, strict=True):
                self._flying.pop(flight.entity_id, None)
                flight.reply.set_result(reply)

    async def _compute_or_fail(self, flights: list[_Flight]) -> list[Reply]:
        until = max(flight.until for flight in flights)
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        failed: ForecacheError
        try:
            async with asyncio.timeout_at(until):
                replies = await self._compute([flight.entity_id for flight in flights], until)
            self._pace.learn(loop.time() - began_at, in_time=True)
            if len(replies) == len(flights):
                return replies
            failed = Defect(f"{len(replies)} replies came back for {len(flights)} rows")
        except (TimeoutError, DeadlineExceeded):
            self._pace.learn(loop.time() - began_at, in_time=False)
            failed = DeadlineExceeded("the prediction was not computed in time")
        except ForecacheError as error:
            failed = error
        except Exception as error:  # noqa: BLE001 - `tell_each` logs it
            # our own defect must not hang the callers or stop later micro-batches
            self._failures.tell_each(error, rows=len(flights))
            failed = Defect("the prediction could not be requested; the API's log says why")
        return [failed] * len(flights)

    def _land(self, batch: asyncio.Task[None]) -> None:
        self._batches.discard(batch)
        if not batch.cancelled():
            self._launch()


class BatchTimes:
    """The smoothed time of a micro-batch, in seconds; 0 until the first has come back.

    `probe_rows`: ids that may leave together although they would be late. Each late micro-batch halves it, so that a
    flood does not spend the process on answers that come too late; each one in time doubles it.
    """

    def __init__(self, max_rows: int) -> None:
        self.took_s = 0.0
        self.probe_rows = self._max_rows = max_rows

    def learn(self, took_s: float, *, in_time: bool) -> None:
        """Add the time of one more micro-batch. A late one would have taken even longer."""
        if in_time:
            self.probe_rows = min(self.probe_rows * 2, self._max_rows)
        else:
            self.probe_rows = max(self.probe_rows // 2, 1)
            took_s = max(took_s, self.took_s)
        self.took_s = took_s if self.took_s == 0 else self.took_s + _NEWEST * (took_s - self.took_s)

    def answer_s(self, ahead: int, lanes: int) -> float:
        """Return the expected seconds until an answer: `ahead` micro-batches wait before it, `lanes` run at a time."""
        return self.took_s * (1 + ahead // lanes)


class Revalidation:
    """Refreshes ids in the background, after stale answers, each id once at a time.

    `compute` computes and stores ids; its result is not used. After a failure, the next request for a stale entry tries
    again.
    """

    def __init__(self, compute: Callable[[Sequence[str]], Awaitable[object]]) -> None:
        self._compute = compute
        self._under_way: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures = Failures(__name__, "revalidation")

    def start(self, entity_ids: Sequence[str]) -> None:
        """Start refreshing the ids that are not under way yet; return at once."""
        new = [entity_id for entity_id in dict.fromkeys(entity_ids) if entity_id not in self._under_way]
        if new:
            self._under_way.update(new)
            task = asyncio.create_task(self._refresh(new))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancel all refreshes."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _refresh(self, entity_ids: list[str]) -> None:
        try:
            with self._failures.kept_here():  # no caller waits for it, and the next request asks again
                await self._compute(entity_ids)
        finally:
            self._under_way.difference_update(entity_ids)
