"""Has a batch worker leave room for requests on a machine where API processes or real-time workers run too."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from inference.errors import StoreUnavailable
from inference.monitoring.presence import API_PROCESSES, Presence
from inference.redis.clients import Client
from inference.redis.keys import Keys

#: seconds between two looks for requests, and between two looks for processes on this machine
LOOK_EVERY_S, NEIGHBOURS_EVERY_S = 0.1, 10.0


class Yielding:
    """Leaves one processor of this machine to others while requests come, and takes it back as soon as they end.

    API processes note in Redis that they answer requests. `queues`: the queues whose workers answer them. A note that
    is missing, or an outage, never stops a run: the worker uses all processors then.
    """

    def __init__(
        self,
        client: Client,
        keys: Keys,
        queues: Collection[str],
        *,
        clock: Callable[[], float] = time.monotonic,
        leave_room: Callable[[bool], None] | None = None,
    ) -> None:
        self._client = client
        self._note = keys.requests
        self._presence = Presence(client, keys)
        self._queues = (API_PROCESSES, *queues)
        self._clock = clock
        self._leave_room = leave_room or Processors(usable_processors()).leave_room
        self._is_leaving = False
        self._look_at = self._neighbours_at = clock()
        self._has_neighbours = False

    def between_calls(self) -> None:
        """Look for requests if the last look is a while ago. Cheap enough to be called before each model call."""
        if self._clock() < self._look_at:
            return
        try:
            leaves = bool(self._client.exchange([("EXISTS", self._note)])[0]) and self._shares_this_machine()
        except StoreUnavailable:
            leaves = False
        self._look_at = self._clock() + LOOK_EVERY_S
        if leaves is not self._is_leaving:
            self._is_leaving = leaves
            self._leave_room(leaves)

    def _shares_this_machine(self) -> bool:
        if self._clock() >= self._neighbours_at:
            rosters = map(self._presence.roster, self._queues)
            here = socket.gethostname()
            self._has_neighbours = any(beat.host == here for roster in rosters for beat in roster.alive)
            self._neighbours_at = self._clock() + NEIGHBOURS_EVERY_S
        return self._has_neighbours


def usable_processors() -> set[int]:
    """Return the processors that this process may use; none where the system does not let it choose."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


class Processors:
    """The processors that the threads of this process use."""

    def __init__(self, usable: set[int]) -> None:
        self._usable = usable

    def leave_room(self, leaves: bool) -> None:
        """Keep every thread off the first processor, or let it back. Does nothing if there is only one.

        All libraries of models compute in threads of this process, but few can change their number later. All batch
        workers of a machine leave the same processor free.
        """
        if len(self._usable) < 2:
            return
        kept = self._usable - {min(self._usable)} if leaves else self._usable
        for thread in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError):  # it has just ended
                os.sched_setaffinity(int(thread.name), kept)
