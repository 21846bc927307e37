"""Logs accesses of entities, without their ids: for each day the number of distinct ones, a filter, and a sample."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inference.clock import Clock, system_clock
from inference.errors import StoreUnavailable, Unreadable
from inference.logs import get_logger
from inference.monitoring.access_sample import EVERYBODY, VISITS, cut, day_bytes, merged, visits_at
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
#: hashing 1 000 ids, or packing 200, holds the event loop for less than a millisecond
_HASHED_AT_ONCE, _SENT_AT_ONCE = 1_000, 200


@dataclass
class _Day:
    """What this process knows of a model's day: the entities that it has sent, and which ones are in the sample."""

    number: int
    sent: Filter
    threshold: int = EVERYBODY


class AccessLog:
    """Writes accesses to Redis. `models`: their settings; others have the defaults."""

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
        self._key = b""
        self._days: dict[str, _Day] = {}

    async def write(self, accesses: Mapping[str, Sequence[str]]) -> None:
        """Write the accesses of this second: model → the ids of its entities, as often as they were asked for.

        If Redis does not answer, drops them and logs the loss.
        """
        left = sum(map(len, accesses.values()))
        try:
            if left:
                await self._renew_key()
            for model, ids in accesses.items():
                if ids:
                    await self._write_model(model, ids)
                left -= len(ids)
        except StoreUnavailable as error:
            log.warning("hits.entities_dropped", count=left, error=error.message)

    async def _renew_key(self) -> None:
        """Read the key of the hashes, or make it. A new one says that Redis has lost everything that was sent."""
        name = self._keys.hash_key
        _, key = await self._client.exchange([("SET", name, secrets.token_bytes(KEY_BYTES), "NX"), ("GET", name)])
        if key != self._key:
            self._key = key
            self._days.clear()

    async def _write_model(self, model: str, ids: Sequence[str]) -> None:
        settings, now = self._settings.get(model) or AccessLogSettings(), self._clock()
        day = await self._day(model, settings, now)
        sampled = []
        for start in range(0, len(ids), _HASHED_AT_ONCE):
            part = ids[start : start + _HASHED_AT_ONCE]
            hashes = id_hashes(part, self._key)
            sampled.append(visits_at(hashes, now, day.threshold))
            await self._send_new(model, settings, day, part, hashes)
            await asyncio.sleep(0)  # requests first
        if settings.enabled:
            await self._send_sample(model, settings, day, len(ids), merged(np.concatenate(sampled)).tobytes())

    async def _send_new(
        self, model: str, settings: AccessLogSettings, day: _Day, ids: Sequence[str], hashes: Words
    ) -> None:
        """Send the entities that this process has not sent today."""
        distinct, first = np.unique(hashes, return_index=True)
        new = ~day.sent.contains(distinct)
        distinct, first = distinct[new], first[new]
        for start in range(0, len(distinct), _SENT_AT_ONCE):
            part = slice(start, start + _SENT_AT_ONCE)
            await self._send_part(model, settings, day, [ids[i] for i in first[part].tolist()], distinct[part])

    async def _send_part(
        self, model: str, settings: AccessLogSettings, day: _Day, ids: list[str], hashes: Words
    ) -> None:
        count = self._keys.asked(model, day.number)
        await self._client.exchange(
            [("PFADD", count, *ids), ("EXPIRE", count, max(DISTINCT_KEPT_S, _kept_s(settings.days)))]
        )
        places = places_of(hashes, day.sent.size)
        if settings.enabled:
            size = await self._ask_filter(model, settings, day, places.astype("<u4").tobytes())
            if size != day.sent.size:  # it was lost, and another process made it anew with another size
                day.sent = Filter(size)
                places = places_of(hashes, size)
                await self._ask_filter(model, settings, day, places.astype("<u4").tobytes())
        day.sent.add(places)

    async def _send_sample(
        self, model: str, settings: AccessLogSettings, day: _Day, accesses: int, visits: bytes
    ) -> None:
        about, sample = self._keys.accesses(model, day.number), self._keys.access_sample(model, day.number)
        pipeline = self._client.pipeline(transaction=False)
        pipeline.hincrby(about, "total", accesses)
        pipeline.append(sample, visits)
        pipeline.expire(sample, _kept_s(settings.days))
        length, most = (await pipeline.execute())[1], day_bytes(settings.days)
        if length <= most:
            return
        # in this order: if another process cuts it meanwhile, `cuts` is old, and the script does nothing
        (cuts, threshold), stored = await self._client.exchange(
            [("HMGET", about, "cuts", "threshold"), ("GET", sample)]
        )
        kept, day.threshold = cut(np.frombuffer(stored, VISITS), int(threshold), most)
        arguments = [cuts or b"0", len(stored), kept.tobytes(), day.threshold, _kept_s(settings.days)]
        await self._client.run_script("cut", [about, sample], arguments)

    async def _day(self, model: str, settings: AccessLogSettings, now: float) -> _Day:
        """Return today's state, with the sample's threshold; opens the filter in Redis for a new day."""
        today = int(now // DAY_S)
        day = self._days.get(model)
        if day is None or day.number != today:
            day = _Day(today, Filter(filter_bytes(await self._entities(model))))
            if settings.enabled:
                day.sent = Filter(await self._ask_filter(model, settings, day, b""))
                await self._client.hsetnx(self._keys.access_log(model), "since", str(now))
                await self._begin_sample(model, settings, today)
            else:
                await self._client.delete(self._keys.access_log(model))
            self._days[model] = day
        if settings.enabled:
            (threshold,) = await self._client.exchange([("HGET", self._keys.accesses(model, today), "threshold")])
            day.threshold = int(threshold or EVERYBODY)
        return day

    async def _begin_sample(self, model: str, settings: AccessLogSettings, today: int) -> None:
        """Let the day begin with yesterday's threshold, or twice that if yesterday's sample was small."""
        about = self._keys.accesses(model, today)
        threshold, length = await self._client.exchange(
            [
                ("HGET", self._keys.accesses(model, today - 1), "threshold"),
                ("STRLEN", self._keys.access_sample(model, today - 1)),
            ]
        )
        is_small = 3 * length < day_bytes(settings.days)
        await self._client.hsetnx(about, "threshold", str(min(int(threshold or EVERYBODY) * (1 + is_small), EVERYBODY)))
        await self._client.expire(about, _kept_s(settings.days))

    async def _ask_filter(self, model: str, settings: AccessLogSettings, day: _Day, places: bytes) -> int:
        """Set bits of the day's filter in Redis, if it has the size of ours; return its size."""
        name = self._keys.asked_filter(model, day.number)
        return int(
            await self._client.run_script("asked", [name], [day.sent.size, _kept_s(settings.asked_days), places])
        )

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


def _kept_s(days: int) -> int:
    """Return for how many seconds a day's data is kept, if so many days are read, today included."""
    return (days + 1) * DAY_S
