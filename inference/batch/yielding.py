"""Has processes that work on runs give way to requests: on the machine's processors, and on a GPU."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection
from pathlib import Path

from inference import host_locks
from inference.errors import StoreUnavailable
from inference.gpus import lock_of_gpu
from inference.monitoring.counters import RequestsNote
from inference.monitoring.presence import API_PROCESSES, Presence
from inference.processors import Processors, usable_processors
from inference.redis.clients import Client
from inference.redis.keys import Keys

#: seconds between two looks for processes on this machine
NEIGHBOURS_EVERY_S = 10.0
#: seconds between two looks at a GPU on which requests are computed. It is free if two in a row find nothing: requests
#: of one moment follow each other
GPU_LOOK_EVERY_S, _FREE_LOOKS = 0.0005, 2
#: the share of its time that a worker waits for a GPU at most, so that a run goes on under any load; the longest wait
MOST_WAITED, LONGEST_WAIT_S = 0.25, 0.1


class Yielding:
    """Leaves one processor of this machine to others while requests come, and takes it back as soon as they end.

    API processes note in Redis that they answer requests. `queues`: the queues whose workers answer them. A note that
    is missing, or an outage, never stops a run: the process uses all processors then. Several threads may share it.
    """

    def __init__(
        self,
        client: Client,
        keys: Keys,
        queues: Collection[str],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        leave_room: Callable[[bool], None] | None = None,
    ) -> None:
        self._requests = RequestsNote(client, keys, clock)
        self._presence = Presence(client, keys)
        self._queues = (API_PROCESSES, *queues)
        self._clock = clock
        self._sleep = sleep
        self._leave_room = leave_room or Processors(usable_processors()).leave_room
        self._is_leaving = False
        self._neighbours_at = self._went_on_at = clock()
        self._has_neighbours = False
        self._may_wait_s = LONGEST_WAIT_S

    def give_way(self, device: str | None = None) -> None:
        """Leave room if requests come. Cheap enough to be called before each step of the work.

        `device`: the `Runtime.device` that computes the step. If it is a GPU, waits a moment while real-time workers of
        this machine compute on it.
        """
        leaves = self._requests.is_there() and self._shares_this_machine()
        if leaves is not self._is_leaving:
            self._is_leaving = leaves
            self._leave_room(leaves)
        gpu = lock_of_gpu(device) if device else None
        if gpu:
            self._wait_for(gpu)

    def _wait_for(self, gpu: Path) -> None:
        came = self._clock()
        # time without a wait pays for later waits
        self._may_wait_s = min(LONGEST_WAIT_S, self._may_wait_s + MOST_WAITED * (came - self._went_on_at))
        free_looks = 0 if host_locks.is_held(gpu) else _FREE_LOOKS
        while free_looks < _FREE_LOOKS and self._clock() < came + self._may_wait_s:
            self._sleep(GPU_LOOK_EVERY_S)
            free_looks = 0 if host_locks.is_held(gpu) else free_looks + 1
        self._went_on_at = self._clock()
        self._may_wait_s -= self._went_on_at - came

    def _shares_this_machine(self) -> bool:
        if self._clock() >= self._neighbours_at:
            here = socket.gethostname()
            try:
                rosters = map(self._presence.roster, self._queues)
                self._has_neighbours = any(beat.host == here for roster in rosters for beat in roster.alive)
            except StoreUnavailable:
                return False
            self._neighbours_at = self._clock() + NEIGHBOURS_EVERY_S
        return self._has_neighbours
