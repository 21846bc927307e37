"""Look-ups that arrive together travel together.

Each event-loop turn of a busy process starts several look-ups. Sharing one pipeline, one task and one timer among them
costs a tenth of what each would cost alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
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


@dataclass(slots=True, eq=False)
class _Asked:
    """One caller: what it wants, until when (event-loop time), and where it waits."""

    ids: Sequence[str]
    until: float
    answer: asyncio.Future[list[Entry | None]]


class SharedLookups:
    """Reads a table for many callers at once: one `read` for all that ask in the same event-loop turn."""

    def __init__(self, reader: TableReader) -> None:
        self._reader = reader
        self._asked: list[_Asked] = []
        self._reads: set[asyncio.Task[None]] = set()

    async def find(self, entity_ids: Sequence[str], until: float) -> list[Entry | None]:
        """Return the newest entry of each id, None for a miss.

        `until`: event-loop time after which the caller waits no longer. One that is cancelled, or has waited long
        enough, does not cancel the read that it shares.

        Raises:
            StoreUnavailable: Redis did not answer, or not in time.
        """
        loop = asyncio.get_running_loop()
        asked = _Asked(entity_ids, until, loop.create_future())
        if not self._asked:
            # runs in the next turn of the loop: until then others join
            loop.call_soon(self._start)
        self._asked.append(asked)
        return await asked.answer

    def _start(self) -> None:
        asked, self._asked = self._asked, []
        read = asyncio.create_task(self._read(asked))
        self._reads.add(read)
        read.add_done_callback(self._reads.discard)

    async def _read(self, asked: list[_Asked]) -> None:
        timer = _Timer(asked)
        wanted = list(dict.fromkeys(entity_id for one in asked for entity_id in one.ids))
        try:
            entries = await self._reader.read(wanted)
        except StoreUnavailable as error:
            for one in asked:
                _fail(one, error.message)
        except Exception as error:  # noqa: BLE001 - a defect: raised where each caller waits
            for one in asked:
                if not one.answer.done():
                    one.answer.set_exception(error)
        else:
            found = dict(zip(wanted, entries, strict=True))
            for one in asked:
                if not one.answer.done():
                    one.answer.set_result([found[entity_id] for entity_id in one.ids])
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
                _fail(one, "the prediction store did not answer in time")
        self._waiting = [one for one in self._waiting if one.until > now]
        if self._waiting:
            self._set()


def _fail(asked: _Asked, reason: str) -> None:
    """Give a caller an error of its own: one raised in two places would gather both of their tracebacks."""
    if not asked.answer.done():
        asked.answer.set_exception(StoreUnavailable(reason))
