"""Logs accesses of entities, without their ids: for each day the number of distinct ones, a filter, and a sample."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.clock import Clock, system_clock
from inference.errors import StoreUnavailable, Unreadable
from inference.logs import get_logger
from inference.monitoring.access_sample import (
    EVERYBODY,
    VISIT_GAP_TICKS,
    VISITS,
    Visits,
    counts_of,
    cut,
    day_bytes,
    hottest,
    joined,
    merged,
    most_asked,
    most_counted,
    most_popular,
    sample_bytes,
    visits_at,
)
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
#: accesses of each flush that are counted to find hot entities
_COUNTED_AT_ONCE = 50
#: hashing 2 000 ids holds the event loop for less than a millisecond; setting the bits of 100 holds Redis for about one
_HASHED_AT_ONCE, _SENT_AT_ONCE = 2_000, 100


@dataclass
class _Day:
    """What this process knows of a model's day: the entities that it has sent, and which ones are in the sample."""

    number: int
    sent: Filter
    threshold: int = EVERYBODY
    #: the popular entities, by the upper 48 bits of their hashes in order, and the hour in which they were chosen
    popular: Words = field(default_factory=lambda: np.zeros(0, np.uint64))
    chosen_at: int | None = None

    def is_popular(self, hashes: Words) -> npt.NDArray[np.bool_]:
        """Tell of each hash whether its entity is popular."""
        if not len(self.popular):
            return np.zeros(len(hashes), np.bool_)
        ranks = hashes >> np.uint64(16)
        found: npt.NDArray[np.bool_] = self.popular.take(self.popular.searchsorted(ranks), mode="clip") == ranks
        return found


@dataclass
class _New:
    """Entities that have to be sent, with their hashes."""

    ids: list[str] = field(default_factory=list)
    hashes: Words = field(default_factory=lambda: np.zeros(0, np.uint64))

    def add(self, ids: Sequence[str], hashes: Words, sent: Filter) -> None:
        """Add those that were not sent today, each once."""
        distinct, first = np.unique(hashes, return_index=True)
        new = ~sent.contains(distinct)
        self.hashes = np.concatenate([self.hashes, distinct[new]])
        self.ids += [ids[i] for i in first[new].tolist()]

    def take(self) -> tuple[list[str], Words]:
        """Take out as many as are sent at once."""
        ids, hashes = self.ids[:_SENT_AT_ONCE], self.hashes[:_SENT_AT_ONCE]
        self.ids, self.hashes = self.ids[_SENT_AT_ONCE:], self.hashes[_SENT_AT_ONCE:]
        return ids, hashes


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
        self._rng = np.random.default_rng()

    async def write(self, accesses: Mapping[str, list[str]]) -> None:
        """Write the accesses of this second: model → the ids of its entities, as often as they were asked for.

        Empties the lists: to free tens of thousands of ids at once would hold the event loop.
        If Redis does not answer, drops them and logs the loss.
        """
        left = sum(map(len, accesses.values()))
        try:
            if left:
                await self._renew_key()
            for model, ids in accesses.items():
                count = len(ids)
                if ids:
                    await self._write_model(model, ids)
                left -= count
        except StoreUnavailable as error:
            log.warning("hits.entities_dropped", count=left, error=error.message)

    async def _renew_key(self) -> None:
        """Read the key of the hashes, or make it. A new one says that Redis has lost everything that was sent."""
        name = self._keys.hash_key
        _, key = await self._client.exchange([("SET", name, secrets.token_bytes(KEY_BYTES), "NX"), ("GET", name)])
        if key != self._key:
            self._key = key
            self._days.clear()

    async def _write_model(self, model: str, ids: list[str]) -> None:
        count, settings, now = len(ids), self._settings.get(model) or AccessLogSettings(), self._clock()
        day = await self._day(model, settings, now)
        sampled, popular, others, new = [], [], 0, _New()
        while ids:
            part = ids[-_HASHED_AT_ONCE:]
            del ids[-_HASHED_AT_ONCE:]
            hashes = id_hashes(part, self._key)
            is_popular = day.is_popular(hashes)
            sampled.append(visits_at(hashes[~is_popular], now, day.threshold))
            popular.append(visits_at(hashes[is_popular], now, EVERYBODY))
            rest, others = hashes[~is_popular], others + int(np.count_nonzero(~is_popular))
            await asyncio.sleep(0)  # requests first
            new.add(part, hashes, day.sent)
            await asyncio.sleep(0)
            while len(new.ids) >= _SENT_AT_ONCE or (new.ids and not ids):
                await self._send_part(model, settings, day, *new.take())
        if settings.enabled:
            some = self._rng.choice(rest, min(len(rest), _COUNTED_AT_ONCE), replace=False) if len(rest) else rest
            # in a thread, because sorting tens of thousands of visits takes milliseconds; it lets other threads run
            parts = [await asyncio.to_thread(merged, np.concatenate(visits)) for visits in (sampled, popular)]
            await self._send_visits(model, settings, day, count, parts[0], parts[1], counts_of(some, others))

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

    async def _send_visits(
        self,
        model: str,
        settings: AccessLogSettings,
        day: _Day,
        accesses: int,
        sampled: Visits,
        popular: Visits,
        counted: Visits,
    ) -> None:
        keys = (self._keys.access_sample, self._keys.popular_accesses, self._keys.hottest)
        names = [key(model, day.number) for key in keys]
        about = self._keys.accesses(model, day.number)
        pipeline = self._client.pipeline(transaction=False)
        pipeline.hincrby(about, "total", accesses)
        pipeline.hincrby(about, "popular", int(popular["accesses"].sum()))
        for name, visits in zip(names, (sampled, popular, counted), strict=True):
            pipeline.append(name, visits.tobytes())
            pipeline.expire(name, _kept_s(settings.days))
        _, _, sampled_bytes, _, popular_bytes, _, counted_bytes, _ = await pipeline.execute()
        most = day_bytes(settings.days)
        room = sample_bytes(settings.days, popular_bytes)
        if sampled_bytes > room:
            await self._cut(about, names[0], "sample_cuts", "threshold", partial(cut, most_bytes=room), settings)
        if popular_bytes > most:
            await self._cut(about, names[1], "popular_cuts", "gap", partial(joined, most_bytes=most), settings)
        if counted_bytes > 2 * most_counted(settings.days) * VISITS.itemsize:
            fewer = partial(_hottest, most=most_counted(settings.days))
            await self._cut(about, names[2], "hottest_cuts", "least", fewer, settings)

    async def _cut(
        self,
        about: str,
        name: str,
        counter: str,
        limit: str,
        fewer: Callable[[Visits, int], tuple[Visits, int]],
        settings: AccessLogSettings,
    ) -> None:
        """Make a day's visits fewer; `limit`: the field of the day that says how."""
        # in this order: if another process cuts them meanwhile, the counter is old, and the script does nothing
        (cuts, value), stored = await self._client.exchange([("HMGET", about, counter, limit), ("GET", name)])
        kept, changed = await asyncio.to_thread(fewer, np.frombuffer(stored, VISITS), int(value or 0))
        arguments: list[Any] = [
            counter,
            cuts or b"0",
            len(stored),
            kept.tobytes(),
            _kept_s(settings.days),
            limit,
            changed,
        ]
        await self._client.run_script("cut", [about, name], arguments)

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
            await self._choose_popular(model, day, int(now // 3600), most_popular(settings.days))
        return day

    async def _choose_popular(self, model: str, day: _Day, hour: int, most: int) -> None:
        """Choose the popular entities: once a day those of the day before, or each hour on the first day of a log."""
        if day.chosen_at is not None and (len(day.popular) or day.chosen_at == hour):
            return
        keys = (self._keys.popular_accesses, self._keys.hottest)
        for number in (day.number - 1, *([day.number] if day.chosen_at is not None else [])):
            stored = await self._client.exchange([("GET", key(model, number)) for key in keys])
            day.popular = most_asked(np.frombuffer(b"".join(each or b"" for each in stored), VISITS), most)
            if len(day.popular):
                break
        day.chosen_at = hour

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
        await self._client.hsetnx(about, "gap", str(VISIT_GAP_TICKS))
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


def _hottest(visits: Visits, least: int, most: int) -> tuple[Visits, int]:
    """Return the hottest entities; `least`: how many accesses the last one had before."""
    kept, fewest = hottest(visits, most)
    return kept, max(least, fewest)


def _kept_s(days: int) -> int:
    """Return for how many seconds a day's data is kept, if so many days are read, today included."""
    return (days + 1) * DAY_S
