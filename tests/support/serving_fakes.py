"""Fakes of what serving is given: a prediction table, workers, counters."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from inference.errors import ForecacheError, StoreUnavailable
from inference.outcomes import Outcome
from inference.store import Entry, Origin, Pointer


def entry(
    value: Any = 1.5,
    *,
    as_of: float = 1000.0,
    computed_at: float | None = None,
    origin: Origin = Origin.BATCH,
    model_version: int = 1,
) -> Entry:
    """Return a stored prediction of one output."""
    return Entry(
        values=value if isinstance(value, dict) else {"prediction": value},
        as_of=as_of,
        computed_at=as_of if computed_at is None else computed_at,
        model_version=model_version,
        origin=origin,
        generation=1 if origin is Origin.BATCH else None,
    )


class FakeReader:
    """A prediction table in memory. `down`: every call fails; `delay_s`: how long each takes."""

    def __init__(self, entries: Mapping[str, Entry] | None = None) -> None:
        self.entries = dict(entries or {})
        self.previous: dict[str, Entry] = {}
        self.held_versions: frozenset[int] = frozenset()
        self.active_version: int | None = 1
        self.down = False
        self.outage = "the cache Redis does not answer"
        self.delay_s = 0.0
        self.reads: list[list[str]] = []

    @property
    def has_previous(self) -> bool:
        return bool(self.previous)

    async def pointer(self) -> Pointer:
        await self._answer()
        return Pointer(2, 1 if self.previous else None, self.active_version, self.held_versions)

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        self.reads.append(list(ids))
        await self._answer()
        return [self.entries.get(entity_id) for entity_id in ids]

    async def read_generation(self, ids: Sequence[str], number: int) -> list[Entry | None]:
        await self._answer()
        return [(self.previous if number == 1 else self.entries).get(entity_id) for entity_id in ids]

    async def _answer(self) -> None:
        await asyncio.sleep(self.delay_s)
        if self.down:
            raise StoreUnavailable(self.outage)


class FakeWorkers:
    """Computes 2.5 for all but `failing`, and what an instance `gives`.

    `delay_s`: how long a task takes; `error`: what each raises.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.deadlines: list[float] = []
        self.delay_s = 0.0
        self.error: Exception | None = None
        self.failing: dict[str, ForecacheError] = {}

    async def __call__(
        self, task: str, kwargs: Mapping[str, Any], *, deadline: float, timeout_s: float
    ) -> dict[str, Any]:
        self.calls.append((task, dict(kwargs)))
        self.deadlines.append(deadline)
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        rows = kwargs.get("entity_ids") or kwargs["instances"]
        return {
            "model": kwargs["model"],
            "model_version": 3,
            "computed_at": 1010.0,
            "predictions": [self._item(row) for row in rows],
        }

    def _item(self, row: Any) -> dict[str, Any]:
        if isinstance(row, Mapping):
            return {"entity_id": None, "prediction": row.get("gives", 2.5), "as_of": 1005.0}
        entity_id = row
        error = self.failing.get(entity_id)
        if error is None:
            return {"entity_id": entity_id, "prediction": 2.5, "as_of": 1005.0}
        problem = {"code": error.code, "message": error.message, "field": error.field}
        return {"entity_id": entity_id, "error": problem}


class FakeRecorder:
    """Counts outcomes, and keeps ages and durations with whether they were of hits."""

    def __init__(self) -> None:
        self.counts: Counter[Outcome] = Counter()
        self.ages_s: list[float | None] = []
        self.versions: Counter[int | None] = Counter()
        self.latencies: list[tuple[bool, float]] = []
        self.asked: list[str] = []
        #: version, rows and calls of each request for tensors
        self.tensors: list[tuple[int, int, int]] = []

    def record(
        self,
        model: str,
        outcome: Outcome,
        count: int = 1,
        *,
        age_s: float | None = None,
        version: int | None = None,
    ) -> None:
        self.counts[outcome] += count
        self.versions[version] += count
        self.ages_s.append(age_s)

    def record_asked(self, model: str, entity_ids: Iterable[str]) -> None:
        self.asked.extend(entity_ids)

    def record_latency(self, model: str, took_s: float, *, hit: bool) -> None:
        self.latencies.append((hit, took_s))

    def record_tensors(
        self, model: str, version: int, took_s: float, *, rows: int, calls: int, spent: Mapping[str, int]
    ) -> None:
        self.tensors.append((version, rows, calls))
