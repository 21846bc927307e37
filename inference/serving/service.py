"""Answers requests: from the store when it can, computed when it must, degraded rather than not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from inference.clock import Clock
from inference.errors import BadInput, ForecacheError, UnknownEntity
from inference.outcomes import Outcome
from inference.serving.answers import Answer
from inference.serving.lookups import TableReader
from inference.serving.model_path import ModelPath, Submit
from inference.settings import Settings


class OutcomeRecorder(Protocol):
    """Counts what became of requests; never blocks and never fails."""

    def record(self, model: str, outcome: Outcome, count: int = 1, *, age_s: float | None = None) -> None:
        """Count `count` more of an outcome; `age_s`: of the features behind the answer, None for a default."""

    def record_latency(self, model: str, took_s: float, *, hit: bool) -> None:
        """Count one request's duration; `hit`: all of it was answered from the store, and fresh."""


class PredictionService:
    """The request side of every configured model, for one event loop.

    `clock` returns epoch seconds in Redis time; `readers` gives a model's prediction table.
    """

    def __init__(
        self,
        settings: Settings,
        readers: Callable[[str], TableReader],
        submit: Submit,
        hits: OutcomeRecorder,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._hits = hits
        self._clock = clock
        self._paths = {
            name: ModelPath(name, model, readers(name), submit, clock) for name, model in settings.models.items()
        }

    async def predict(
        self,
        model: str | None,
        entity_ids: Sequence[str],
        *,
        max_staleness_s: float | None = None,
        timeout_s: float | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> list[Answer | ForecacheError]:
        """Return an answer per id, in order and within the budget; the error of an id stands in its place.

        `max_staleness_s`: age limit; None means the `ttl` of each entry's origin, 0 forces computing.
        `timeout_s`: the budget; None means the model's. `overrides`: features to compute with instead of the
        stored ones; such answers are neither looked up nor kept. Ids must be legal (`check_entity_id`).

        Raises:
            UnknownModel: no such model, or none named and several configured.
        """
        path = self._path(model)
        started = asyncio.get_running_loop().time()
        until = started + path.budget_s(timeout_s)
        if overrides:
            answers = await path.compute_apart(entity_ids, until, overrides=overrides)
        else:
            answers = await path.predict(entity_ids, until, max_staleness_s=max_staleness_s)
        self._count(path.name, answers, started)
        return answers

    async def predict_instances(
        self, model: str | None, instances: Sequence[Any], *, timeout_s: float | None = None
    ) -> list[Answer | ForecacheError]:
        """Return an answer per instance (features brought along by the request), in order; nothing is kept.

        Raises:
            UnknownModel: no such model, or none named and several configured.
        """
        path = self._path(model)
        started = asyncio.get_running_loop().time()
        until = started + path.budget_s(timeout_s)
        answers = await path.compute_instances(instances, until)
        self._count(path.name, answers, started)
        return answers

    def workers_heard(self, models: Sequence[str], present: bool) -> None:
        """Note whether any worker of these models is alive: without one, misses go down the ladder at once."""
        for model in models:
            self._paths[model].workers_heard(present)

    async def close(self) -> None:
        """End what is in flight."""
        for path in self._paths.values():
            await path.close()

    def _path(self, model: str | None) -> ModelPath:
        name, _ = self._settings.model(model)
        return self._paths[name]

    def _count(self, model: str, answers: Sequence[Answer | ForecacheError], started: float) -> None:
        """Count answers by outcome, our own failures as shed, and the client's mistakes not at all."""
        now, counted, hits = self._clock(), 0, 0
        for answer in answers:
            if isinstance(answer, Answer):
                age_s = None if answer.as_of is None else now - answer.as_of
                self._hits.record(model, answer.outcome, age_s=age_s)
                hits += answer.outcome.is_hit
            elif not isinstance(answer, BadInput | UnknownEntity):
                self._hits.record(model, Outcome.SHED)
            else:
                continue
            counted += 1
        if counted:
            took_s = asyncio.get_running_loop().time() - started
            self._hits.record_latency(model, took_s, hit=hits == counted)
