"""Remembers which entities were asked for on each day, without their ids: a Bloom filter for each day.

An entity that was asked for is never missing. Of entities that were not asked for, a filter reports up to 1 % as
asked for if all entities of the serving generation were asked for that day, and far fewer if only some were.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
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
#: bytes that are read or written at once: Redis is busy with them for less than a tenth of a millisecond
PIECE_BYTES = 1 << 18
#: with more of its bits set, a filter does not tell how many entities were asked for
_FULL = 0.98
#: rows that are tested at a time
_BLOCK = 1 << 16


def filter_bytes(entities: int | None) -> int:
    """Return the size of a day's filter by the number of entities; None: not known."""
    if entities is None:
        return USUAL_BYTES
    return min(max(entities * BITS_PER_ENTITY // 64 * 8, SMALLEST_BYTES), LARGEST_BYTES)


def places_of(hashes: Words, size: int) -> npt.NDArray[np.uint32]:
    """Return the bits of each hash in a filter of `size` bytes: shape (n, PLACES), numbered as SETBIT does."""
    # of the upper 48 bits alone, which is what a sample of accesses has of an entity
    low, high = hashes >> np.uint64(16) & np.uint64(0xFFFFFFFF), hashes >> np.uint64(32)
    steps = np.arange(PLACES, dtype=np.uint64)
    # double hashing: Kirsch and Mitzenmacher, 2006
    spread = (high[:, None] + steps * (low | np.uint64(1))[:, None]) & np.uint64(0xFFFFFFFF)
    return (spread % np.uint64(size * 8)).astype(np.uint32)


@dataclass(frozen=True)
class _Bits:
    """The bits of some hashes in filters of one size: the bytes that hold them, and masks. Shapes: (PLACES, n)."""

    bytes: npt.NDArray[np.intp]
    masks: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, places: npt.NDArray[np.uint32]) -> _Bits:
        by_place = np.ascontiguousarray(places.T)
        return cls((by_place >> 3).astype(np.intp), (128 >> (by_place & 7)).astype(np.uint8))

    def take(self, rows: npt.NDArray[np.intp]) -> _Bits:
        return _Bits(self.bytes[:, rows], self.masks[:, rows])


class Filter:
    """A filter's bits in memory."""

    def __init__(self, bits: bytes | int) -> None:
        """`bits`: those of a filter in Redis, or the size in bytes of an empty one."""
        self._bytes = np.zeros(bits, np.uint8) if isinstance(bits, int) else np.frombuffer(bits, np.uint8)

    @classmethod
    def load(cls, client: Client, key: str) -> Filter | None:
        """Return the filter under a key, read in pieces; None if there is none."""
        (size,) = client.exchange([("STRLEN", key)])
        ranges = [("GETRANGE", key, at, at + PIECE_BYTES - 1) for at in range(0, size, PIECE_BYTES)]
        return cls(b"".join(client.exchange([one])[0] for one in ranges)) if size else None

    @property
    def size(self) -> int:
        """The size in bytes."""
        return len(self._bytes)

    @property
    def data(self) -> bytes:
        """The bits, as Redis holds them."""
        return self._bytes.tobytes()

    def contains(self, hashes: Words) -> npt.NDArray[np.bool_]:
        """Tell of each hash whether it was added; rarely true of one that was not."""
        found = np.empty(len(hashes), np.bool_)
        for start in range(0, len(hashes), _BLOCK):
            found[start : start + _BLOCK] = self.holds(_Bits.of(places_of(hashes[start : start + _BLOCK], self.size)))
        return found

    def holds(self, bits: _Bits) -> npt.NDArray[np.bool_]:
        """Tell of each hash, by its bits, whether it was added."""
        held = np.ones(bits.bytes.shape[1], np.bool_)
        for place, mask in zip(bits.bytes, bits.masks, strict=True):
            held &= (self._bytes[place] & mask) != 0
        return held

    def merge(self, other: Filter) -> None:
        """Add all that another filter of this size holds."""
        self._bytes |= other._bytes

    def add(self, places: npt.NDArray[np.uint32]) -> None:
        """Set bits."""
        np.bitwise_or.at(self._bytes, places.ravel() >> 3, (128 >> (places.ravel() & 7)).astype(np.uint8))


def count_asked(client: Client, keys: Keys, model: str, days: Iterable[int]) -> dict[int, float]:
    """Return how many entities were asked for on each day (days since the epoch), by the bits of its filter.

    They are right to 0.1 %. A day without a filter, or with a full one, is missing.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    names = {day: keys.asked_filter(model, day) for day in days}
    sizes = client.exchange([("STRLEN", name) for name in names.values()])
    counts = {}
    for (day, name), size in zip(names.items(), sizes, strict=True):
        pieces = [("BITCOUNT", name, at, at + PIECE_BYTES - 1) for at in range(0, size, PIECE_BYTES)]
        share = sum(client.exchange(pieces)) / (8 * size) if size else 1.0
        if share < _FULL:  # linear counting: Whang et al., 1990
            counts[day] = -math.log1p(-share) * 8 * size / PLACES
    return counts


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
        key, since = client.exchange([("GET", keys.hash_key), ("HGET", keys.access_log(model), "since")])
        filters = [(age, Filter.load(client, keys.asked_filter(model, today - age))) for age in range(days)]
        found = tuple((age, one) for age, one in filters if one is not None)
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

    def history(self, hashes: Words) -> Words:
        """Return on which days each entity was asked for: bit N is N days ago, bit 63 also all days before."""
        histories = np.zeros(len(hashes), np.uint64)
        for whole, filters in self._by_size:
            for start in range(0, len(hashes), _BLOCK):
                bits = _Bits.of(places_of(hashes[start : start + _BLOCK], whole.size))
                asked = np.flatnonzero(whole.holds(bits))  # few, in most tables
                bits = bits.take(asked)
                found = np.zeros(len(asked), np.uint64)
                for age, one in filters:
                    found |= one.holds(bits).astype(np.uint64) << np.uint64(min(age, 63))
                histories[start + asked] |= found
        return histories

    @cached_property
    def _by_size(self) -> list[tuple[Filter, list[tuple[int, Filter]]]]:
        """Return the filters of each size, with one that holds what any of them holds."""
        groups = []
        for size in {one.size for _, one in self._by_age}:
            whole, filters = Filter(size), [(age, one) for age, one in self._by_age if one.size == size]
            for _, one in filters:
                whole.merge(one)
            groups.append((whole, filters))
        return groups
