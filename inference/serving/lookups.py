"""Look-ups that arrive together travel together.

A busy process starts several look-ups in each turn of its event loop. Sharing one pipeline, one task and one timer
costs a tenth of what each would cost alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from inference.errors import StoreUnavailable, Unreadable
from inference.store import Entry, Pointer


class TableReader(Protocol):
    """The reading side of a prediction table; an outage is StoreUnavailable in every method."""

    async def pointer(self) -> Pointer:
        """Return which generation and model version are served."""

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        """Return the newest entry of each id, None for a miss."""

    async def read_generation(self, ids: Sequence[str], number: int) -> list[Entry | None]:
        """Return each id's entry of one generation, None for a miss."""


#: how long a read that is on its way holds up the next one: ten times what one takes, so that a connection that hangs
#: costs nobody else more
PATIENCE_S = 0.002

#: what a look-up gives: the newest entry of each id in order, None for a miss; or why it gave nothing. An error is a
#: value here, since whoever is told may not be waiting in a coroutine
Found = list[Entry | None] | Exception


class LookUp:
    """One caller's look-up: what it asks for, until when (event-loop time), and, once it is over, what was found.

    `tell` is called then, once and never within `SharedLookups.ask`; it must not raise.
    """

    __slots__ = ("entity_ids", "found", "tell", "until")

    def __init__(self, entity_ids: Sequence[str], until: float, tell: Callable[[], None]) -> None:
        self.entity_ids = entity_ids
        self.until = until
        self.tell = tell
        self.found: Found | None = None

    def settle(self, found: Found) -> None:
        """Take what was found, unless it is over already."""
        if self.found is None:
            self.found = found
            tell, self.tell = self.tell, _told
            tell()


def _told() -> None:
    """Stand where the listener was: it knows the look-up, and a ring of references would wait for the collector."""


class SharedLookups:
    """Reads a table for many callers at once.

    One `read` serves all that asked while the one before it was on its way, or, when none was, in the same turn of the
    event loop: larger reads exactly when there is much to read.
    """

    def __init__(self, reader: TableReader) -> None:
        self._reader = reader
        self._asked: list[LookUp] = []
        self._reads: set[asyncio.Task[None]] = set()
        self._start_soon: asyncio.Handle | None = None

    def ask(self, look_up: LookUp) -> None:
        """Have a look-up settled with the newest entry of each id, None for a miss.

        After its `until` it is settled with StoreUnavailable; the read that it shares goes on.
        """
        if not self._asked:
            loop = asyncio.get_running_loop()
            # the next turn of the loop, or a read that is on its way: until then others join
            wait_s = PATIENCE_S if self._reads else 0
            self._start_soon = loop.call_later(wait_s, self._start) if wait_s else loop.call_soon(self._start)
        self._asked.append(look_up)

    def _start(self) -> None:
        asked, self._asked = self._asked, []
        read = asyncio.create_task(self._read(asked))
        self._reads.add(read)
        read.add_done_callback(self._over)

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
            if isinstance(error, Unreadable) and len(asked) > 1:  # a damaged row is the trouble of one of them
                await asyncio.gather(*(self._read([one]) for one in asked))
            for one in asked:
                # an error of its own for each: one raised in two places would gather both of their tracebacks
                one.settle(StoreUnavailable(error.message))
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
    """Lets callers of one read go when their time is up: one timer for all of them, set to the next."""

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
