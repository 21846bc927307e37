"""Has hot entities computed anew, behind all requests, once their features have changed.

Hot is who was asked for today or yesterday, by the access log's filters. So the next request finds a fresh answer; if
workers have no time for it, that request computes it, as always.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from inference.clock import Clock
from inference.failures import Failures
from inference.monitoring.asked_filters import AskedFilters
from inference.redis.clients import Client
from inference.redis.keys import Keys

_DAYS = 2
#: between two looks at who has changed, and at the filters
_EVERY_S, _FILTERS_EVERY_S = 0.1, 30.0
_PART_ENTITIES = 256
#: entities that wait here; more are left to their next request
_MOST_WAITING = 50_000


class Recomputing:
    """Sends hot entities to the workers of the models that share their features.

    `send(model, entity_ids)`: has a model's workers compute them when they have nothing else to do; does nothing if too
    many wait there already, and raises BrokerUnavailable if the broker is away. `clock`: Redis' time.
    """

    def __init__(
        self,
        client: Client,
        keys: Keys,
        models: Sequence[str],
        send: Callable[[str, list[str]], None],
        clock: Clock,
    ) -> None:
        self._client = client
        self._keys = keys
        self._models = models
        self._send = send
        self._clock = clock
        self._waiting: dict[str, None] = {}
        self._lock = threading.Lock()
        self._filters: dict[str, AskedFilters | None] = {}
        self._read_at = float("-inf")
        self._failures = Failures(__name__, "recompute")

    def add(self, entity_ids: Sequence[str]) -> None:
        """Note that the features of entities have changed."""
        with self._lock:
            if len(self._waiting) + len(entity_ids) <= _MOST_WAITING:
                self._waiting.update(dict.fromkeys(entity_ids))

    def run(self, stopped: threading.Event) -> None:
        """Send hot entities until stopped."""
        while not stopped.wait(_EVERY_S):
            with self._failures.kept_here():
                self.send_hot()

    def send_hot(self) -> None:
        """Send the hot ones of the entities that were added since the last time.

        Raises:
            StoreUnavailable, BrokerUnavailable: the entities are left to their next requests.
        """
        with self._lock:
            entity_ids, self._waiting = list(self._waiting), {}
        if not entity_ids:
            return
        self._read_filters()
        for model in self._models:
            filters = self._filters.get(model)
            if filters is None:
                continue
            hot = np.flatnonzero(filters.history(filters.hashes(entity_ids)))
            for start in range(0, len(hot), _PART_ENTITIES):
                self._send(model, [entity_ids[row] for row in hot[start : start + _PART_ENTITIES].tolist()])

    def _read_filters(self) -> None:
        now = self._clock()
        if now - self._read_at > _FILTERS_EVERY_S:
            self._filters = {
                one: AskedFilters.load(self._client, self._keys, one, _DAYS, lambda: now) for one in self._models
            }
            self._read_at = now
