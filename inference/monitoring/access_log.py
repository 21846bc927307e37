"""Logs which entities were asked for, without their ids: distinct ones and a filter for each day.

A request only appends its ids to a list; hashing and sending happen once a second, for all of them together.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inference.clock import Clock, system_clock
from inference.errors import StoreUnavailable, Unreadable
from inference.logs import get_logger
from inference.monitoring.asked_filters import DAY_S, Filter, filter_bytes, places_of
from inference.monitoring.id_hashes import KEY_BYTES, Words, id_hashes
from inference.redis.clients import AsyncClient
from inference.redis.keys import Keys, TableKind
from inference.settings import AccessLogSettings, ModelSettings
from inference.store.reading import AsyncTableReader
from inference.store.records import Manifest

log = get_logger(__name__)

#: longer than the longest window of which distinct entities are counted, a week
DISTINCT_KEPT_S = 8 * DAY_S
#: most accesses of a model that wait for the next flush; a process drops further ones
MOST_WAITING = 50_000
#: hashing 1 000 ids, or packing 200, holds the event loop for less than a millisecond
_HASHED_AT_ONCE, _SENT_AT_ONCE = 1_000, 200


@dataclass
class _Day:
    """What this process knows of a model's day: the filter with all entities that it has sent."""

    number: int
    sent: Filter


class AccessLog:
    """Keeps accesses in memory; `flush` adds them to Redis. `models`: their settings; others have the defaults."""

    def __init__(
        self,
        client: AsyncClient,
        keys: Keys,
        models: Mapping[str, ModelSettings] | None = None,
        clock: Clock = system_clock,
    ) -> None:
        self._client = client
        self._keys = keys
        self._settings = {name: of_model.access_log for name, of_model in (models or {}).items()}
        self._clock = clock
        self._waiting: defaultdict[str, list[str]] = defaultdict(list)
        self._dropped: defaultdict[str, int] = defaultdict(int)
        self._key = b""
        self._days: dict[str, _Day] = {}

    def add(self, model: str, entity_ids: Sequence[str]) -> None:
        """Remember accesses for the next `flush`. Another thread may call this."""
        waiting = self._waiting[model]
        if len(waiting) < MOST_WAITING:
            waiting.extend(entity_ids)
        else:
            self._dropped[model] += len(entity_ids)

    async def flush(self) -> None:
        """Send what waits. If Redis does not answer, drops it and logs the loss."""
        taken = {model: self._take(model) for model in list(self._waiting)}
        lost = sum(self._dropped.values()) + sum(map(len, taken.values()))
        self._dropped.clear()
        try:
            if any(taken.values()):
                await self._renew_key()
            for model, ids in taken.items():
                while ids:
                    await self._send(model, ids[:_HASHED_AT_ONCE])
                    lost -= len(ids[:_HASHED_AT_ONCE])
                    del ids[:_HASHED_AT_ONCE]
                    await asyncio.sleep(0)  # requests first
        except StoreUnavailable as error:
            log.warning("hits.entities_dropped", count=lost, error=error.message)
        else:
            if lost:
                log.warning("hits.entities_dropped", count=lost, error="more came than one process logs")

    def _take(self, model: str) -> list[str]:
        waiting = self._waiting[model]
        taken = waiting[:]
        del waiting[: len(taken)]  # `add` may have appended meanwhile, from another thread
        return taken

    async def _renew_key(self) -> None:
        """Read the key of the hashes, or make it. A new one says that Redis has lost everything that was sent."""
        name = self._keys.hash_key
        await self._client.set(name, secrets.token_bytes(KEY_BYTES), nx=True)
        (key,) = await self._client.exchange([("GET", name)])
        if key != self._key:
            self._key = key
            self._days.clear()

    async def _send(self, model: str, ids: list[str]) -> None:
        hashes = id_hashes(ids, self._key)
        settings = self._settings.get(model) or AccessLogSettings()
        day = await self._day(model, settings)
        distinct, first = np.unique(hashes, return_index=True)
        new = ~day.sent.contains(distinct)
        distinct, first = distinct[new], first[new]
        for start in range(0, len(distinct), _SENT_AT_ONCE):
            part = slice(start, start + _SENT_AT_ONCE)
            await self._send_new(model, settings, day, [ids[i] for i in first[part].tolist()], distinct[part])

    async def _send_new(
        self, model: str, settings: AccessLogSettings, day: _Day, ids: list[str], hashes: Words
    ) -> None:
        """Add entities that this process has not sent today."""
        count = self._keys.asked(model, day.number)
        await self._client.exchange([("PFADD", count, *ids), ("EXPIRE", count, DISTINCT_KEPT_S)])
        places = places_of(hashes, day.sent.size)
        if settings.enabled:
            size = await self._ask_filter(model, settings, day, places.astype("<u4").tobytes())
            if size != day.sent.size:  # it was lost, and another process made it anew with another size
                day.sent = Filter(size)
                places = places_of(hashes, size)
                await self._ask_filter(model, settings, day, places.astype("<u4").tobytes())
        day.sent.add(places)

    async def _day(self, model: str, settings: AccessLogSettings) -> _Day:
        """Return today's state; opens the filter in Redis for a new day."""
        today = int(self._clock() // DAY_S)
        day = self._days.get(model)
        if day is None or day.number != today:
            day = _Day(today, Filter(filter_bytes(await self._entities(model))))
            if settings.enabled:
                day.sent = Filter(await self._ask_filter(model, settings, day, b""))
                await self._client.hsetnx(self._keys.access_log(model), "since", str(self._clock()))
            else:
                await self._client.delete(self._keys.access_log(model))
            self._days[model] = day
        return day

    async def _ask_filter(self, model: str, settings: AccessLogSettings, day: _Day, places: bytes) -> int:
        """Set bits of the day's filter in Redis, if it has the size of ours; return its size."""
        keep_s = (settings.asked_days + 1) * DAY_S
        name = self._keys.asked_filter(model, day.number)
        return int(await self._client.run_script("asked", [name], [day.sent.size, keep_s, places]))

    async def _entities(self, model: str) -> int | None:
        """Return the number of entities in the serving generation; None if there is none."""
        keys = self._keys.table(TableKind.PREDICTIONS, model)
        try:
            pointer = await AsyncTableReader(self._client, keys).pointer()
            if pointer.current is None:
                return None
            text = await self._client.hget(keys.generation(pointer.current), "manifest")
            return Manifest.from_json(text).rows_expected if text else None
        except Unreadable:  # another release's; the usual size will do
            return None
