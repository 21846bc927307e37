"""Look-ups that arrive together travel together.

Each event-loop turn of a busy process starts several look-ups. Sharing one pipeline, one task and one timer among them
costs a tenth of what each would cost alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from inference.errors import StoreUnavailable
from inference.store import Entry, Pointer


class TableReader(Protocol):
    """The reading side of a prediction table; an outage is StoreUnavailable in every method."""

    async def pointer(self) -> Pointer:
        """Return which generation and model version are served."""

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        """Return the newest entry of each id, None for a miss."""

    async def read_generation(self, ids: Sequence[str], number: int) -> list[Entry | None]:
        """Return each id's entry of one generation, None for a miss."""


#: what a look-up gives: the newest entry of each id in order, None for a miss; or why it gave nothing. An error is a
#: value here, since whoever is told may not be waiting in a coroutine
Found = list[Entry | None] | Exception


@dataclass(slots=True, eq=False)
class _Asked:
    """One caller: what it wants, until when (event-loop time), and whom to tell, once."""

    ids: Sequence[str]
    until: float
    tell: Callable[[Found], None]
    told: bool = False

    def settle(self, found: Found) -> None:
        if not self.told:
            self.told = True
            self.tell(found)


class SharedLookups:
    """Reads a table for many callers at once: one `read` for all that ask in the same event-loop turn."""

    def __init__(self, reader: TableReader) -> None:
        self._reader = reader
        self._asked: list[_Asked] = []
        self._reads: set[asyncio.Task[None]] = set()

    def ask(self, entity_ids: Sequence[str], until: float, tell: Callable[[Found], None]) -> None:
        """Have `tell` called, once and never within this call, with the newest entry of each id.

        `until`: event-loop time after which it is told StoreUnavailable; the read that it shares goes on. `tell` must
        not raise.
        """
        if not self._asked:
            # runs in the next turn of the loop: until then others join
            asyncio.get_running_loop().call_soon(self._start)
        self._asked.append(_Asked(entity_ids, until, tell))

    async def find(self, entity_ids: Sequence[str], until: float) -> list[Entry | None]:
        """Return the newest entry of each id, None for a miss.

        `until`: see `ask`. A caller that is cancelled does not cancel the read that it shares.

        Raises:
            StoreUnavailable: Redis did not answer, or not in time.
        """
        answer: asyncio.Future[list[Entry | None]] = asyncio.get_running_loop().create_future()

        def settle(found: Found) -> None:
            if answer.done():
                return
            if isinstance(found, Exception):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        self.ask(entity_ids, until, settle)
        return await answer

    def _start(self) -> None:
        asked, self._asked = self._asked, []
        read = asyncio.create_task(self._read(asked))
        self._reads.add(read)
        read.add_done_callback(self._reads.discard)

    async def _read(self, asked: list[_Asked]) -> None:
        timer = _Timer(asked)
        wanted = list(dict.fromkeys([entity_id for one in asked for entity_id in one.ids]))
        try:
            entries = await self._reader.read(wanted)
        except StoreUnavailable as error:
            for one in asked:
                # an error of its own for each: one raised in two places would gather both of their tracebacks
                one.settle(StoreUnavailable(error.message))
        except Exception as error:  # noqa: BLE001 - a defect: raised where each caller waits
            for one in asked:
                one.settle(error)
        else:
            found = dict(zip(wanted, entries, strict=True))
            for one in asked:
                one.settle([found[entity_id] for entity_id in one.ids])
        finally:
            timer.stop()


class _Timer:
    """Lets callers of one read go when their time is up: one timer for all of them, set to the next."""

    def __init__(self, asked: list[_Asked]) -> None:
        self._waiting = asked
        self._set()

    def stop(self) -> None:
        self._handle.cancel()

    def _set(self) -> None:
        loop = asyncio.get_running_loop()
        self._handle = loop.call_at(min(one.until for one in self._waiting), self._due)

    def _due(self) -> None:
        now = asyncio.get_running_loop().time()
        for one in self._waiting:
            if one.until <= now:
                one.settle(StoreUnavailable("the prediction store did not answer in time"))
        self._waiting = [one for one in self._waiting if one.until > now]
        if self._waiting:
            self._set()
