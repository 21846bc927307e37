"""Counts of workers, added at once to the same minutes and totals that API processes fill."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from inference.clock import Clock, system_clock
from inference.errors import StoreUnavailable
from inference.hits.recorder import KEEP_S
from inference.logs import get_logger
from inference.redis.clients import Client
from inference.redis.keys import Keys

log = get_logger(__name__)

#: what starts the fields of what fallbacks said of entities; NAME:OUTCOME follows
FALLBACKS = "fallback"
#: what starts the fields of what became of answers that were computed again; PATH:RESULT follows
PARITY = "parity"


class ParityResult(StrEnum):
    """What became of one answer that was computed again."""

    #: the same vector, and the same answer but for rounding
    AGREED = "agreed"
    #: the same vector, and another answer: a defect
    DISAGREED = "disagreed"
    #: another vector, or none any more: nothing can be said
    DRIFTED = "drifted"


class MinuteCounts:
    """Adds counts. Synchronous, for work that waits for other things anyway."""

    def __init__(self, client: Client, keys: Keys, clock: Clock = system_clock) -> None:
        self._client: Any = client
        self._keys = keys
        self._clock = clock

    def add(self, model: str, kind: str, counts: Mapping[str, int]) -> None:
        """Add counts of a kind. When Redis does not answer, they are dropped and the loss is logged."""
        minute = self._keys.hits(model, int(self._clock() // 60))
        pipeline = self._client.pipeline(transaction=False)
        for name, count in counts.items():
            for key in (minute, self._keys.hit_totals(model)):
                pipeline.hincrby(key, f"{kind}:{name}", count)
        pipeline.expire(minute, KEEP_S)
        try:
            pipeline.execute()
        except StoreUnavailable as error:
            log.warning("counts.dropped", kind=kind, error=error.message)


def counted(fields: Mapping[str, int], kind: str) -> dict[tuple[str, str], int]:
    """Return a kind's counts out of summed fields of minutes, by (name, outcome)."""
    found = {}
    for field, count in fields.items():
        start, _, rest = field.partition(":")
        name, separator, outcome = rest.rpartition(":")
        if start == kind and separator:
            found[name, outcome] = count
    return found
