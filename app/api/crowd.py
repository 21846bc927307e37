"""Bounds the connections that a process holds at a time: those go first whose clients have been silent for longest."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Collection
from typing import Protocol

from inference.logs import get_logger

log = get_logger(__name__)

#: a search frees one place, and one more for each so many connections, which makes it cheap for each newcomer
_SEARCHED_FOR_ONE = 256
#: while every client waits for an answer, it is looked for silent ones this rarely
_SEARCH_EVERY_S = 0.1
_TOLD_EVERY_S = 60.0


class Evictable(Protocol):
    """A connection that may have to make way for another."""

    loop: asyncio.AbstractEventLoop

    def silent_since(self) -> tuple[bool, float] | None:
        """Return whether the client ever had an answer, and since when it has to do something; None: it waits."""

    def make_way(self) -> None:
        """End the connection."""


class Crowd:
    """The connections of one process. `most`: how many it holds; `spare`: descriptors that it has beyond those.

    Half of the spare ones take newcomers that find no place, long enough to answer probes of health, and others 503.
    """

    def __init__(self, most: int, spare: int) -> None:
        self.most = most
        self._most_at_all = most + spare // 2
        self._next_search = 0.0
        self._told_at = -_TOLD_EVERY_S

    def make_place(self, connections: Collection[Evictable], newcomer: Evictable) -> bool:
        """Return whether there is a place for a newcomer, after the connections of silent clients were ended."""
        now = newcomer.loop.time()
        if now - self._told_at >= _TOLD_EVERY_S:
            self._told_at = now
            log.warning("api.full", connections=self.most, advice="those of silent clients are ended")
        if now < self._next_search:
            return False
        silent = ((since, each) for each in connections if each is not newcomer and (since := each.silent_since()))
        leaving = heapq.nsmallest(self.most // _SEARCHED_FOR_ONE + 1, silent, key=lambda pair: pair[0])
        for _, each in leaving:
            each.make_way()
        if not leaving:
            self._next_search = now + _SEARCH_EVERY_S
        return bool(leaving)

    def is_over_all(self, count: int) -> bool:
        """Whether so many connections would use the descriptors that the process keeps for itself."""
        return count > self._most_at_all
