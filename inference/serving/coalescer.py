"""Joins what must be computed into micro-batches, without a timer.

At most K micro-batches are in flight, and what arrives meanwhile makes up the next one. At low load nothing waits;
under load the micro-batches grow. What would be answered too late, by the pace of the last micro-batches, is refused
at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from inference.errors import DeadlineExceeded, Defect, ForecacheError, Overloaded, Unavailable
from inference.failures import Failures
from inference.logs import RequestId, requests_behind, work_for

#: most micro-batches that may wait, whatever the pace: bounds the memory even if callers have minutes
MAX_WAITING_BATCHES = 64

#: weight of the newest micro-batch: old ones fade within about ten
_NEWEST = 0.2

#: what is computed: an entity's id, or a caller's own rows, which equal no others
K = TypeVar("K", bound=Hashable)
R = TypeVar("R")


@dataclass(eq=False, slots=True)
class _Flight(Generic[K, R]):
    """One key on its way, for all callers that wait for it."""

    key: K
    rows: int
    until: float
    reply: asyncio.Future[R | ForecacheError]
    waiters: int = 0
    #: the requests that asked for it before it left
    requests: list[RequestId] = field(default_factory=list)


class Coalescer(Generic[K, R]):
    """Computes keys on demand for one model: each key once for all concurrent callers.

    `compute`: returns one reply per key of a micro-batch, in order, by a deadline in event-loop time. `rows_of`: how
    many of the `max_rows` of a micro-batch a key takes.
    """

    def __init__(
        self,
        compute: Callable[[list[K], float], Awaitable[Sequence[R | ForecacheError]]],
        *,
        max_in_flight: int,
        max_rows: int,
        rows_of: Callable[[K], int] = lambda _: 1,
    ) -> None:
        self._compute = compute
        self._max_in_flight = max_in_flight
        self._max_rows = max_rows
        self._rows_of = rows_of
        self._waiting: dict[K, _Flight[K, R]] = {}
        self._waiting_rows = 0
        self._flying: dict[K, _Flight[K, R]] = {}
        self._batches: set[asyncio.Task[None]] = set()
        self._launch_is_due = False
        self._pace = BatchTimes(max_rows)
        self._failures = Failures(__name__, "coalescer")

    async def ask(self, keys: Sequence[K], *, until: float) -> list[R | ForecacheError]:
        """Return one reply per key, in order.

        The reply is DeadlineExceeded if there is none by `until` (event-loop time), and Overloaded, at once, if there
        cannot be one by then. Cancelling one caller does not disturb the others; keys that nobody waits for any more
        are not sent.
        """
        loop = asyncio.get_running_loop()
        replies: dict[K, R | ForecacheError] = {}
        left: Iterable[K] = dict.fromkeys(keys)
        while left and loop.time() < until:
            landed = await self._fly_along(left, until)
            replies |= {flight.key: flight.reply.result() for flight in landed if flight.reply.done()}
            # a caller that joined a flight with an earlier deadline may have time for another one
            left = [
                flight.key
                for flight in landed
                if flight.until < until and isinstance(replies.get(flight.key), DeadlineExceeded)
            ]
        late = DeadlineExceeded("the prediction was not computed in time")
        return [replies.get(key, late) for key in keys]

    def refusal(self, key: K, until: float) -> Overloaded | None:
        """Return the error that `ask` would give at once; None if the key may wait, or is on its way already."""
        is_on_its_way = key in self._flying or key in self._waiting
        return None if is_on_its_way else self._refusal(until)

    async def close(self) -> None:
        """Cancel everything in flight and wait for its end; callers get an error."""
        for batch in self._batches:
            batch.cancel()
        await asyncio.gather(*self._batches, return_exceptions=True)

    async def _fly_along(self, keys: Iterable[K], until: float) -> list[_Flight[K, R]]:
        flights = [self._board(key, until) for key in keys]
        try:
            pending = {flight.reply for flight in flights}
            await asyncio.wait(pending, timeout=until - asyncio.get_running_loop().time())
        finally:
            for flight in flights:
                flight.waiters -= 1
        return flights

    def _board(self, key: K, until: float) -> _Flight[K, R]:
        flight = self._flying.get(key) or self._queue(key, until)
        flight.waiters += 1
        return flight

    def _queue(self, key: K, until: float) -> _Flight[K, R]:
        """Return the key's waiting flight. A flight that would land too late is refused and does not wait."""
        flight = self._waiting.get(key)
        if flight is None:
            flight = _Flight(key, self._rows_of(key), until, asyncio.get_running_loop().create_future())
            refusal = self._refusal(until)
            if refusal is not None:
                flight.reply.set_result(refusal)
                return flight
            self._waiting[key] = flight
            self._waiting_rows += flight.rows
        flight.until = max(flight.until, until)
        flight.requests += requests_behind()
        self._plan_launch()
        return flight

    def _refusal(self, until: float) -> Overloaded | None:
        """Return the error if one more key may not wait; None if it may.

        While nothing is in flight, a few may leave although they would be late: only so can the pace get better.
        """
        ahead = self._waiting_rows // self._max_rows
        answer_s = self._pace.answer_s(ahead, self._max_in_flight)
        is_in_time = asyncio.get_running_loop().time() + answer_s <= until
        is_probe = not self._batches and self._waiting_rows < self._pace.probe_rows
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

    def _take_next(self) -> list[_Flight[K, R]]:
        """Move flights of up to `max_rows` rows, or one, from waiting to flying; late and abandoned ones end here."""
        now = asyncio.get_running_loop().time()
        taken: list[_Flight[K, R]] = []
        room = self._max_rows
        while self._waiting and room > 0:
            flight = next(iter(self._waiting.values()))  # oldest first: a dict keeps the order of arrival
            is_late = flight.until <= now or not flight.waiters
            if taken and flight.rows > room and not is_late:
                break
            del self._waiting[flight.key]
            self._waiting_rows -= flight.rows
            if is_late:
                flight.reply.set_result(DeadlineExceeded("the prediction was not computed in time"))
                continue
            self._flying[flight.key] = flight
            taken.append(flight)
            room -= flight.rows
        return taken

    async def _fly(self, flights: list[_Flight[K, R]]) -> None:
        # this task started in the context of only one of the requests
        work_for([request for flight in flights for request in flight.requests])
        replies: Sequence[R | ForecacheError] = [Unavailable("this process is shutting down")] * len(flights)
        try:
            replies = await self._compute_or_fail(flights)
        finally:
            for flight, reply in zip(flights, replies, strict=True):
                self._flying.pop(flight.key, None)
                flight.reply.set_result(reply)

    async def _compute_or_fail(self, flights: list[_Flight[K, R]]) -> Sequence[R | ForecacheError]:
        until = max(flight.until for flight in flights)
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        failed: ForecacheError
        try:
            async with asyncio.timeout_at(until):
                replies = await self._compute([flight.key for flight in flights], until)
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
