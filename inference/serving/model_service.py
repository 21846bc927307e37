"""Answers requests for one model: looks up, judges freshness, computes missing answers, else degrades."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from cachetools import TTLCache

from inference.clock import Clock
from inference.errors import ForecacheError, Overloaded, StoreUnavailable, Unavailable, UnknownEntity, Unreadable
from inference.outcomes import Outcome
from inference.schema import Block
from inference.serving.answers import (
    Answer,
    Computed,
    Freshness,
    FreshnessRules,
    ModelCall,
    Outputs,
    Reply,
    answer_computed,
    answer_stored,
    explanation_from_result,
    may_serve_previous,
    replies_from_result,
    step_down,
)
from inference.serving.coalescer import Coalescer, Revalidation
from inference.serving.own_rows import OwnRows
from inference.serving.worker_client import BreakerState, Submit, WorkerClient
from inference.settings import ModelSettings
from inference.store import Entry, Pointer

PREDICT_ENTITIES = "forecache.predict_entities"
PREDICT_EXPLAINED = "forecache.predict_explained"

#: seconds past the budget in which the previous generation may still be read, by one read of Redis
PREVIOUS_GRACE_S = 0.03

#: most unknown entities that are remembered
MAX_UNKNOWN = 10_000


_FRESH = Freshness.FRESH


class ModelService:
    """Serves one model in one event loop."""

    def __init__(self, name: str, model: ModelSettings, reader: TableReader, submit: Submit, clock: Clock) -> None:
        self.name = name
        self._realtime = model.realtime
        self._rules = FreshnessRules.of(model)
        self._reader = reader
        self._lookups = SharedLookups(reader)
        self._workers = WorkerClient(name, model.realtime, submit, clock)
        self._clock = clock
        self._own_rows = OwnRows(self._workers, model.realtime)
        self._coalescer: Coalescer[str, Computed] = Coalescer(
            self._compute, max_in_flight=model.realtime.max_in_flight, max_rows=model.realtime.max_micro_batch
        )
        self._revalidation = Revalidation(self._compute_behind)
        # ids that nobody knows: a client that repeats one must not cost a task each time
        self._unknown: TTLCache[str, UnknownEntity] = TTLCache(
            MAX_UNKNOWN, model.realtime.unknown_ttl, timer=lambda: asyncio.get_running_loop().time()
        )

    def workers_heard(self, present: bool) -> None:
        """Note whether any worker of the model is alive."""
        self._workers.heard(present)

    def forget_unknown(self, entity_ids: Sequence[str]) -> None:
        """Forget that nobody knew these ids."""
        for entity_id in entity_ids:
            self._unknown.pop(entity_id, None)

    @property
    def breaker_state(self) -> BreakerState:
        """The state of the model's breaker in this process."""
        return self._workers.breaker_state

    def budget_s(self, timeout_s: float | None) -> float:
        """Return a request's budget in seconds: its own, else the model's."""
        return self._realtime.timeout_ms / 1000 if timeout_s is None else timeout_s

    def look_up(self, look_up: LookUp) -> None:
        """Begin a look-up in the prediction table; see `SharedLookups.ask`."""
        self._lookups.ask(look_up)

    def judge(
        self, entity_ids: Sequence[str], entries: Sequence[Entry | None], max_staleness_s: float | None
    ) -> list[Answer | None]:
        """Return answers from stored entries; None where an answer must be computed."""
        now = self._clock()
        if len(entries) == 1:
            return [self._from_store(entity_ids[0], entries[0], now, max_staleness_s)]
        return [self._from_store(*pair, now, max_staleness_s) for pair in zip(entity_ids, entries, strict=True)]

    def answers_at_once(
        self, entity_ids: Sequence[str], found: Found, until: float, *, max_staleness_s: float | None = None
    ) -> list[Answer | ForecacheError] | None:
        """Return each id's answer, from the look-up or refused; None if one has to be computed or looked up again."""
        if isinstance(found, Unavailable):
            return [self._step_down(entity_id, found) for entity_id in entity_ids]
        if isinstance(found, Exception):
            raise found
        answers: list[Answer | ForecacheError] = []
        stored = self.judge(entity_ids, found, max_staleness_s)
        for entity_id, entry, answer in zip(entity_ids, found, stored, strict=True):
            if answer is not None:
                answers.append(answer)
                continue
            refusal = self._refusal(entity_id, entry, until, max_staleness_s)
            if refusal is None:
                return None
            answers.append(self._step_down(entity_id, refusal, entry))
        return answers

    async def complete(
        self, entity_ids: Sequence[str], found: Found, until: float, *, max_staleness_s: float | None = None
    ) -> list[Answer | ForecacheError]:
        """Return each id's answer, from the look-up or computed by `until` (event-loop time)."""
        at_once = self.answers_at_once(entity_ids, found, until, max_staleness_s=max_staleness_s)
        if at_once is not None:
            return at_once
        assert not isinstance(found, Exception)  # noqa: S101 - tells mypy what `answers_at_once` promises
        stored = self.judge(entity_ids, found, max_staleness_s)
        missing = {
            entity_id: entry
            for entity_id, entry, answer in zip(entity_ids, found, stored, strict=True)
            if answer is None
        }
        known = {} if max_staleness_s == 0 else self._known_unknown(missing)
        computed = known | await self._compute_missing(
            {entity_id: entry for entity_id, entry in missing.items() if entity_id not in known}, until
        )
        return [
            computed[entity_id] if answer is None else answer
            for entity_id, answer in zip(entity_ids, stored, strict=True)
        ]

    async def compute_apart(
        self, entity_ids: Sequence[str], until: float, *, overrides: Mapping[str, Any]
    ) -> list[Answer | ForecacheError]:
        """Compute ids with some features replaced. Shares nothing with other requests, and stores nothing."""
        replies = await self._workers.ask_with_overrides(PREDICT_ENTITIES, entity_ids, overrides, until)
        return [self._conclude(*pair) for pair in zip(entity_ids, replies, strict=True)]

    async def compute_instances(self, instances: Sequence[Any], until: float) -> list[Answer | ForecacheError]:
        """Compute the request's own feature rows; stores nothing."""
        return [self._conclude(None, reply) for reply in await self._own_rows.instances(instances, until)]

    async def compute_tensors(self, inputs: Block, until: float, call: ModelCall) -> Outputs:
        """Compute the model's own input tensors; see `OwnRows.tensors`. An error is never replaced with a default."""
        return await self._own_rows.tensors(inputs, until, call)

    async def explain(self, entity_id: str, until: float) -> dict[str, Any] | None:
        """Return the entity's current features and their sources; None if the entity gets an error.

        Raises:
            ForecacheError: there was no explanation, or not in time.
        """
        kwargs = {"entity_ids": [entity_id], "predict": False}
        return explanation_from_result(await self._workers.ask_apart(PREDICT_EXPLAINED, kwargs, until))

    async def compute_explained(self, entity_id: str, until: float) -> tuple[Answer, dict[str, Any] | None]:
        """Compute an entity and store the answer; return it with the explanation of its features.

        Raises:
            ForecacheError: it was not computed, or not in time; there is no degraded answer.
        """
        kwargs = {"entity_ids": [entity_id], "predict": True}
        result = await self._workers.ask_apart(PREDICT_EXPLAINED, kwargs, until)
        [reply] = replies_from_result(result, 1)
        if not isinstance(reply, Computed):
            raise reply
        return answer_computed(self.name, entity_id, reply), explanation_from_result(result)

    async def close(self) -> None:
        """Cancel everything in flight."""
        await self._revalidation.close()
        await self._coalescer.close()
        await self._own_rows.close()

    def _from_store(
        self, entity_id: str, entry: Entry | None, now: float, max_staleness_s: float | None
    ) -> Answer | None:
        """Return the answer from the stored entry; None if one must be computed."""
        if entry is None:
            return None
        freshness = self._rules.judge(entry, now, max_staleness_s)
        if freshness is _FRESH:
            return answer_stored(self.name, entity_id, entry)
        if freshness is Freshness.STALE:
            return None
        if freshness is Freshness.REVALIDATE:
            self._revalidation.start([entity_id])
        return answer_stored(self.name, entity_id, entry, Outcome.STALE)

    async def _compute_missing(
        self, missing: Mapping[str, Entry | None], until: float
    ) -> dict[str, Answer | ForecacheError]:
        """Return an answer for each id; `missing` holds the stale entry to fall back on, or None."""
        if not missing:
            return {}
        replies = dict(zip(missing, await self._coalescer.ask(list(missing), until=until), strict=True))
        bare = [
            entity_id
            for entity_id, reply in replies.items()
            if missing[entity_id] is None and not isinstance(reply, Computed)
        ]
        previous = await self._find_previous(bare) if bare else {}
        self._unknown.update({key: reply for key, reply in replies.items() if isinstance(reply, UnknownEntity)})
        return {
            entity_id: self._conclude(entity_id, reply, missing[entity_id], previous.get(entity_id))
            for entity_id, reply in replies.items()
        }

    def _refusal(
        self, entity_id: str, entry: Entry | None, until: float, max_staleness_s: float | None
    ) -> ForecacheError | None:
        """Return the error of an id that no worker would compute in time; None if one may.

        None also if the previous generation has to be read first.
        """
        if entry is None and max_staleness_s != 0 and entity_id in self._unknown:
            return self._unknown[entity_id]
        if entry is None and self._reader.has_previous:
            return None
        return self._coalescer.refusal(entity_id, until) or self._workers.refusal(until)

    def _known_unknown(self, missing: Mapping[str, Entry | None]) -> dict[str, Answer | ForecacheError]:
        """Return the errors of ids that a worker has recently reported as unknown."""
        return {key: self._unknown[key] for key, entry in missing.items() if entry is None and key in self._unknown}

    async def _compute_behind(self, entity_ids: Sequence[str]) -> object:
        until = asyncio.get_running_loop().time() + self.budget_s(None)
        return await self._coalescer.ask(entity_ids, until=until)

    async def _find_previous(self, entity_ids: list[str]) -> dict[str, Entry]:
        """Return the entries of the previous generation; nothing if the store does not answer at once."""
        try:
            async with asyncio.timeout(PREVIOUS_GRACE_S):
                pointer = await self._reader.pointer()
                if pointer.previous is None:
                    return {}
                entries = await self._reader.read_generation(entity_ids, pointer.previous)
        except (TimeoutError, StoreUnavailable):
            return {}  # there is no previous answer then; the caller still has the original error
        return {
            entity_id: entry
            for entity_id, entry in zip(entity_ids, entries, strict=True)
            if entry is not None and may_serve_previous(entry, pointer)
        }

    async def _compute(self, entity_ids: list[str], until: float) -> list[Reply]:
        """Compute one micro-batch of the coalescer."""
        result = await self._workers.ask(PREDICT_ENTITIES, {"entity_ids": entity_ids}, until)
        return replies_from_result(result, len(entity_ids))

    def _conclude(
        self, entity_id: str | None, reply: Reply, stale: Entry | None = None, previous: Entry | None = None
    ) -> Answer | ForecacheError:
        if isinstance(reply, Computed):
            return answer_computed(self.name, entity_id, reply)
        return self._step_down(entity_id, reply, stale, previous)

    def _step_down(
        self,
        entity_id: str | None,
        error: ForecacheError,
        stale: Entry | None = None,
        previous: Entry | None = None,
    ) -> Answer | ForecacheError:
        return step_down(
            self.name,
            entity_id,
            error,
            stale=stale,
            previous=previous,
            default=self._realtime.default,
            now=self._clock(),
        )


class TableReader(Protocol):
    """Reads a prediction table. Every method raises StoreUnavailable in an outage."""

    @property
    def has_previous(self) -> bool:
        """Whether there was a previous generation at the last read."""

    async def pointer(self) -> Pointer:
        """Return which generation and model version are served."""

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        """Return the newest entry of each id, None for a miss."""

    async def read_generation(self, ids: Sequence[str], number: int) -> list[Entry | None]:
        """Return each id's entry of one generation, None for a miss."""


#: seconds that the next read waits for a read that is on its way: ten times the usual, so that a connection that hangs
#: costs others no more
PATIENCE_S = 0.002
#: look-ups of one read: in a flood, workers' results and new connections wait for the answers of one read only
READ_AT_ONCE = 64

#: the result of a look-up: the newest entry of each id in order, None for a miss; or an error. An error is a value
#: here, since the caller may not be waiting in a coroutine
Found = list[Entry | None] | Exception


class LookUp:
    """One caller's look-up: its ids, its deadline (event-loop time), and, once it is over, its result.

    Calls `tell` then: once, and never within `SharedLookups.ask`. `tell` must not raise.
    """

    __slots__ = ("entity_ids", "found", "tell", "until")

    def __init__(self, entity_ids: Sequence[str], until: float, tell: Callable[[], None]) -> None:
        self.entity_ids = entity_ids
        self.until = until
        self.tell = tell
        self.found: Found | None = None

    def settle(self, found: Found) -> None:
        """Store the result and call `tell`, unless the look-up is over already."""
        if self.found is None:
            self.found = found
            tell, self.tell = self.tell, _do_nothing
            tell()


def _do_nothing() -> None:
    """Do nothing. Replaces the listener, so that it and the look-up do not reference each other."""


class SharedLookups:
    """Reads a table for many callers at once.

    One `read` serves all callers that came while the previous read was on its way or, without one, in the same turn of
    the event loop. So reads are large only if there is much to read.
    """

    def __init__(self, reader: TableReader) -> None:
        self._reader = reader
        self._asked: list[LookUp] = []
        self._reads: set[asyncio.Task[None]] = set()
        self._start_soon: asyncio.Handle | None = None

    def ask(self, look_up: LookUp) -> None:
        """Settle a look-up with the newest entry of each id, None for a miss.

        At its `until` it is settled with StoreUnavailable, in a flood with Overloaded; the shared read goes on.
        """
        if not self._asked:
            loop = asyncio.get_running_loop()
            # others can join until the next turn of the loop, or while a read is on its way
            wait_s = PATIENCE_S if self._reads else 0
            self._start_soon = loop.call_later(wait_s, self._start) if wait_s else loop.call_soon(self._start)
        self._asked.append(look_up)

    def _start(self) -> None:
        asked, late = self._take_next()
        if asked:
            read = asyncio.create_task(self._read(asked))
            self._reads.add(read)
            read.add_done_callback(self._over)
        if self._asked:
            self._start_soon = asyncio.get_running_loop().call_later(PATIENCE_S, self._start)
        for one in late:
            one.settle(Overloaded("too many requests wait already: this one waited for all of its time"))

    def _take_next(self) -> tuple[list[LookUp], list[LookUp]]:
        """Take the oldest look-ups for one read, and in a flood those before them whose time ran out."""
        asked: list[LookUp] = []
        late: list[LookUp] = []
        if len(self._asked) <= READ_AT_ONCE:
            asked, self._asked = self._asked, asked
            return asked, late
        now = asyncio.get_running_loop().time()
        for one in self._asked:
            if len(asked) == READ_AT_ONCE:
                break
            (asked if one.until > now else late).append(one)
        del self._asked[: len(asked) + len(late)]
        return asked, late

    def _over(self, read: asyncio.Task[None]) -> None:
        self._reads.discard(read)
        if self._asked and self._start_soon is not None:
            self._start_soon.cancel()
            self._start()

    async def _read(self, asked: list[LookUp]) -> None:
        timer = _Timer(asked)
        wanted = list(dict.fromkeys([entity_id for one in asked for entity_id in one.entity_ids]))
        try:
            entries = await self._reader.read(wanted)
        except StoreUnavailable as error:
            if isinstance(error, Unreadable) and len(asked) > 1:  # a damaged row must fail only its own look-up
                await asyncio.gather(*(self._read([one]) for one in asked))
            for one in asked:
                # a new error for each: one that is raised in two places would collect both tracebacks
                one.settle(type(error)(error.message))
        except Exception as error:  # noqa: BLE001 - a defect: raised where each caller waits
            for one in asked:
                one.settle(error)
        else:
            found = dict(zip(wanted, entries, strict=True))
            for one in asked:
                ids = one.entity_ids
                one.settle([found[ids[0]]] if len(ids) == 1 else [found[entity_id] for entity_id in ids])
        finally:
            timer.stop()


class _Timer:
    """Ends the look-ups of one read whose time is up. One timer serves all of them: it is set to the next deadline."""

    def __init__(self, asked: list[LookUp]) -> None:
        self._waiting = asked
        self._set()

    def stop(self) -> None:
        self._handle.cancel()

    def _set(self) -> None:
        loop = asyncio.get_running_loop()
        self._handle = loop.call_at(min([one.until for one in self._waiting]), self._due)

    def _due(self) -> None:
        now = asyncio.get_running_loop().time()
        for one in self._waiting:
            if one.until <= now:
                one.settle(StoreUnavailable("the prediction store did not answer in time"))
        self._waiting = [one for one in self._waiting if one.until > now]
        if self._waiting:
            self._set()
