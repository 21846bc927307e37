"""Remembers which entities were asked for on each day, without their ids: a Bloom filter for each day.

An entity that was asked for is never missing. Of entities that were not asked for, a filter reports up to 1 % as
asked for if all entities of the serving generation were asked for that day, and far fewer if only some were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.clock import Clock, system_clock
from inference.monitoring.id_hashes import Words, id_hashes
from inference.redis.clients import Client
from inference.redis.keys import Keys

DAY_S = 24 * 3600
#: bits that each entity sets, and the size in bits for each entity: 0.6 % false positives in a full filter
PLACES, BITS_PER_ENTITY = 4, 12
SMALLEST_BYTES, LARGEST_BYTES = 64 << 10, 16 << 20
#: the size while nobody knows how many entities there are
USUAL_BYTES = 1 << 20
#: rows that are tested at a time
_BLOCK = 1 << 16


def filter_bytes(entities: int | None) -> int:
    """Return the size of a day's filter by the number of entities; None: not known."""
    if entities is None:
        return USUAL_BYTES
    return min(max(entities * BITS_PER_ENTITY // 64 * 8, SMALLEST_BYTES), LARGEST_BYTES)


def places_of(hashes: Words, size: int) -> npt.NDArray[np.uint32]:
    """Return the bits of each hash in a filter of `size` bytes: shape (n, PLACES), numbered as SETBIT does."""
    low, high = hashes & np.uint64(0xFFFFFFFF), hashes >> np.uint64(32)
    steps = np.arange(PLACES, dtype=np.uint64)
    # double hashing: Kirsch and Mitzenmacher, 2006
    spread = (high[:, None] + steps * (low | np.uint64(1))[:, None]) & np.uint64(0xFFFFFFFF)
    return (spread % np.uint64(size * 8)).astype(np.uint32)


class Filter:
    """A filter's bits in memory."""

    def __init__(self, bits: bytes | int) -> None:
        """`bits`: those of a filter in Redis, or the size in bytes of an empty one."""
        self._bytes = np.zeros(bits, np.uint8) if isinstance(bits, int) else np.frombuffer(bits, np.uint8)

    @property
    def size(self) -> int:
        """The size in bytes."""
        return len(self._bytes)

    def contains(self, hashes: Words) -> npt.NDArray[np.bool_]:
        """Tell of each hash whether it was added; rarely true of one that was not."""
        found = np.empty(len(hashes), np.bool_)
        for start in range(0, len(hashes), _BLOCK):
            places = places_of(hashes[start : start + _BLOCK], self.size)
            bits = self._bytes[places >> 3] >> (7 - (places & 7)).astype(np.uint8)
            found[start : start + _BLOCK] = (bits & 1).all(axis=1)
        return found

    def add(self, places: npt.NDArray[np.uint32]) -> None:
        """Set bits."""
        np.bitwise_or.at(self._bytes, places.ravel() >> 3, (128 >> (places.ravel() & 7)).astype(np.uint8))


@dataclass(frozen=True)
class AskedFilters:
    """Tells which entities of a model were asked for in the last days.

    `key`: hashes ids, as in `id_hashes(ids, key)`. `since`: all accesses from this instant (epoch seconds) on are in
    the filters, unless Redis was away; it is later than the first day if the log is younger, was off, or was lost.
    """

    key: bytes
    since: float
    days: int
    #: the instant of reading, epoch seconds
    at: float
    _by_age: tuple[tuple[int, Filter], ...]

    @classmethod
    def load(
        cls, client: Client, keys: Keys, model: str, days: int, clock: Clock = system_clock
    ) -> AskedFilters | None:
        """Return the filters of today and the `days` - 1 days before (UTC); None if there are none, or they were lost.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        now = clock()
        today = int(now // DAY_S)
        commands: list[Any] = [("GET", keys.hash_key), ("HGET", keys.access_log(model), "since")]
        commands += [("GET", keys.asked_filter(model, today - age)) for age in range(days)]
        key, since, *filters = client.exchange(commands)
        found = tuple((age, Filter(bits)) for age, bits in enumerate(filters) if bits)
        if key is None or since is None or not found:
            return None
        return cls(bytes(key), float(since), days, now, found)

    @property
    def whole(self) -> bool:
        """Whether the filters cover all of the days before today."""
        return self.since <= (int(self.at // DAY_S) - self.days + 1) * DAY_S

    def hashes(self, ids: Any) -> Words:
        """Return the hashes of ids (see `id_hashes`)."""
        return id_hashes(ids, self.key)

    def days_asked(self, hashes: Words) -> npt.NDArray[np.uint8]:
        """Return on how many of the days each entity was asked for."""
        counts = np.zeros(len(hashes), np.uint8)
        for _, one in self._by_age:
            counts += one.contains(hashes)
        return counts

    def last_asked(self, hashes: Words) -> npt.NDArray[np.int16]:
        """Return how many days ago each entity was last asked for: 0 today, -1 on none of the days."""
        ages = np.full(len(hashes), -1, np.int16)
        for age, one in reversed(self._by_age):
            ages[one.contains(hashes)] = age
        return ages
