"""Answers requests: from the store if it can, else computed, else degraded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from inference import tracing
from inference.clock import Clock
from inference.errors import (
    BadInput,
    ContractError,
    ForecacheError,
    ModelError,
    NotFound,
    Unavailable,
    UnknownEntity,
)
from inference.outcomes import Outcome
from inference.protocols.tensors import most_rows
from inference.schema import Block
from inference.serving.answers import Answer, ModelCall, Outputs
from inference.serving.model_service import LookUp, ModelService, TableReader
from inference.serving.worker_client import Submit
from inference.settings import Settings


class OutcomeRecorder(Protocol):
    """Counts the outcomes of requests; never blocks and never fails."""

    def record(
        self,
        model: str,
        outcome: Outcome,
        count: int = 1,
        *,
        age_s: float | None = None,
        version: int | None = None,
    ) -> None:
        """Add `count` to an outcome. `age_s`: age of the features behind the answer; None for a default.

        `version`: the model version that computed the answer; None if none did.
        """

    def record_asked(self, model: str, entity_ids: Sequence[str]) -> None:
        """Remember the entities that were answered."""

    def record_latency(self, model: str, took_s: float, *, hit: bool) -> None:
        """Count one request's duration; `hit`: the store answered all of it, and fresh."""

    def record_tensors(
        self, model: str, version: int, took_s: float, *, rows: int, calls: int, spent: Mapping[str, int]
    ) -> None:
        """Count one request for tensors. `calls`: of the model, 0 if it failed. `version`: 0 for the active one.

        `spent`: microseconds of its parts, by name.
        """


class Request(LookUp):
    """A request for stored predictions: a look-up, its model, and its start (event-loop time)."""

    __slots__ = ("max_staleness_s", "path", "started")

    def __init__(
        self,
        path: ModelService,
        entity_ids: Sequence[str],
        max_staleness_s: float | None,
        timeout_s: float | None,
        tell: Callable[[], None],
    ) -> None:
        started = asyncio.get_running_loop().time()
        super().__init__(entity_ids, started + path.budget_s(timeout_s), tell)
        self.path = path
        self.max_staleness_s = max_staleness_s
        self.started = started


class PredictionService:
    """Answers requests for all configured models, on one event loop.

    `clock` returns epoch seconds in Redis time; `readers` returns the reader of a model's prediction table.
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
            name: ModelService(name, model, readers(name), submit, clock) for name, model in settings.models.items()
        }
        # the model of a request that names none
        self._only = next(iter(self._paths.values())) if len(self._paths) == 1 else None

    async def predict(
        self,
        model: str | None,
        entity_ids: Sequence[str],
        *,
        max_staleness_s: float | None = None,
        timeout_s: float | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> list[Answer | ForecacheError]:
        """Return an answer or an error per id, in order and within the budget.

        `max_staleness_s`: age limit; None means the `ttl` of each entry's origin, 0 forces computing.
        `timeout_s`: the budget; None means the model's. `overrides`: features to compute with instead of the
        stored ones; such answers are neither looked up nor stored. Ids must be legal (`check_entity_id`).

        Raises:
            UnknownModel: no such model, or none named and several configured.
        """
        if overrides:
            path = self._path(model)
            started = asyncio.get_running_loop().time()
            until = started + path.budget_s(timeout_s)
            answers = await path.compute_apart(entity_ids, until, overrides=overrides)
            self._count(path.name, answers, started, brought=True)
            return answers
        over = asyncio.Event()
        tell = tracing.look_up_span(over.set)
        request = self.look_up(model, entity_ids, tell, max_staleness_s=max_staleness_s, timeout_s=timeout_s)
        await over.wait()
        return await self.complete(request)

    def look_up(
        self,
        model: str | None,
        entity_ids: Sequence[str],
        tell: Callable[[], None],
        *,
        max_staleness_s: float | None = None,
        timeout_s: float | None = None,
    ) -> Request:
        """Begin a request like `predict`. Calls `tell` when the store has answered: once, and never within this call.

        Then ask `hits` and `answers_at_once`, which do not wait, and if both return None, `complete`. `tell` must not
        raise. The other arguments are those of `predict`.

        Raises:
            UnknownModel: no such model, or none named and several configured.
        """
        path = self._path(model)
        request = Request(path, entity_ids, max_staleness_s, timeout_s, tell)
        path.look_up(request)
        return request

    def hits(self, request: Request) -> list[Answer] | None:
        """Return the answers from the store, and count them; None if any answer is missing."""
        found, path = request.found, request.path
        if found is None or isinstance(found, Exception):
            return None
        answers = path.judge(request.entity_ids, found, request.max_staleness_s)
        if None in answers:
            return None
        hits = cast(list[Answer], answers)
        self._count(path.name, hits, request.started)
        self._hits.record_asked(path.name, request.entity_ids)
        return hits

    def answers_at_once(self, request: Request) -> list[Answer | ForecacheError] | None:
        """Return an answer per id after the look-up, and count them, if no worker could improve them in time.

        None: `complete` has to wait for a worker.
        """
        answers = request.path.answers_at_once(
            request.entity_ids, request.found or [], request.until, max_staleness_s=request.max_staleness_s
        )
        if answers is not None:
            self._count_request(request, answers)
        return answers

    async def complete(self, request: Request) -> list[Answer | ForecacheError]:
        """Return an answer per id after the look-up. Computes missing answers within the budget."""
        answers = await request.path.complete(
            request.entity_ids, request.found or [], request.until, max_staleness_s=request.max_staleness_s
        )
        self._count_request(request, answers)
        return answers

    async def explain(self, request: Request) -> tuple[Answer, dict[str, Any]]:
        """Return the answer for one entity after the look-up, and the explanation of its features.

        The explanation's `made_this_answer` is true if the answer was computed from exactly these features. It is None
        if the answer was stored: then the explanation shows the current features.

        Raises:
            ForecacheError: the entity was not computed, or its features were not explained, within the budget.
        """
        path, [entity_id] = request.path, request.entity_ids
        if isinstance(request.found, Exception):
            if isinstance(request.found, ForecacheError):
                self._count(path.name, [request.found], request.started)
            raise request.found
        hits = self.hits(request)
        if hits is not None:
            answer, explanation = hits[0], await path.explain(entity_id, request.until)
        else:
            answer, explanation = await self._explain_computed(request, entity_id)
        return answer, {"made_this_answer": None if hits else True, **(explanation or {})}

    async def _explain_computed(self, request: Request, entity_id: str) -> tuple[Answer, dict[str, Any] | None]:
        path = request.path
        try:
            answer, explanation = await path.compute_explained(entity_id, request.until)
        except ForecacheError as error:
            self._count(path.name, [error], request.started)
            raise
        self._count(path.name, [answer], request.started)
        return answer, explanation

    async def predict_instances(
        self, model: str | None, instances: Sequence[Any], *, timeout_s: float | None = None
    ) -> list[Answer | ForecacheError]:
        """Return an answer per instance (features from the request), in order; stores nothing.

        Raises:
            UnknownModel: no such model, or none named and several configured.
        """
        path = self._path(model)
        started = asyncio.get_running_loop().time()
        until = started + path.budget_s(timeout_s)
        answers = await path.compute_instances(instances, until)
        self._count(path.name, answers, started, brought=True)
        return answers

    async def predict_tensors(
        self, model: str, inputs: Block, call: ModelCall | None = None, *, timeout_s: float | None = None
    ) -> Outputs:
        """Return a model's outputs for its own input tensors.

        `call`: which version and signature; None for the active version and its own. Stores nothing, and never
        replaces an error with a default.

        Raises:
            UnknownModel: no such model.
            NotFound: the worker that was asked does not hold that version.
            BadInput: the tensors do not fit the model.
            ForecacheError: it was not computed, or not in time.
        """
        path, call = self._path(model), call or ModelCall()
        started, rows = asyncio.get_running_loop().time(), most_rows(inputs)
        try:
            outputs = await path.compute_tensors(inputs, started + path.budget_s(timeout_s), call)
        except ForecacheError as error:
            if not isinstance(error, BadInput | NotFound):
                self._hits.record(model, _outcome_of(error), rows)
                self._count_tensors(model, call.version or 0, started, rows)
            raise
        # the features come from the request, so they are new
        self._hits.record(model, Outcome.COMPUTED, rows, age_s=0.0, version=outputs.version)
        self._count_tensors(model, outputs.version, started, rows, outputs)
        return outputs

    def workers_heard(self, models: Sequence[str], present: bool) -> None:
        """Note whether any worker of these models is alive. Without one, misses get a degraded answer at once."""
        for model in models:
            self._paths[model].workers_heard(present)

    def breaker_states(self) -> dict[str, str]:
        """Return the state of each model's breaker (`BreakerState`)."""
        return {name: path.breaker_state.value for name, path in self._paths.items()}

    def forget_unknown(self, model: str, entity_ids: Sequence[str]) -> None:
        """Forget that nobody knew these entities: their features have just been stored."""
        self._paths[model].forget_unknown(entity_ids)

    async def close(self) -> None:
        """Cancel everything in flight."""
        for path in self._paths.values():
            await path.close()

    def _path(self, model: str | None) -> ModelService:
        path = self._paths.get(model) if model else self._only
        return path or self._paths[self._settings.model(model)[0]]

    def _count_tensors(
        self, model: str, version: int, started: float, rows: int, outputs: Outputs | None = None
    ) -> None:
        """Count a request for tensors. `outputs` None: it failed."""
        took_s = asyncio.get_running_loop().time() - started
        self._hits.record_latency(model, took_s, hit=False)
        spent: dict[str, int] = {}
        calls = 0
        if outputs is not None:
            # calls of one request run at the same time: what is left of the longest was waiting, and the way there
            spent = {**outputs.spent._asdict(), "queue_us": max(round(took_s * 1e6) - outputs.longest_us, 0)}
            calls = outputs.calls
        self._hits.record_tensors(model, version, took_s, rows=rows, calls=calls, spent=spent)

    def _count_request(self, request: Request, answers: Sequence[Answer | ForecacheError]) -> None:
        model, ids = request.path.name, request.entity_ids
        self._count(model, answers, request.started)
        answered = [each for each, answer in zip(ids, answers, strict=True) if isinstance(answer, Answer)]
        self._hits.record_asked(model, answered)

    def _count(
        self, model: str, answers: Sequence[Answer | ForecacheError], started: float, *, brought: bool = False
    ) -> None:
        """Count answers and errors by outcome, except the client's mistakes.

        `brought`: the features come from the request.
        """
        now, counted, hits, record = self._clock(), 0, 0, self._hits.record
        for answer in answers:
            if isinstance(answer, Answer):
                outcome, as_of = answer.outcome, answer.as_of
                age_s = None if as_of is None else now - as_of
                record(model, outcome, 1, age_s=age_s, version=answer.model_version)
                hits += outcome.is_hit
            elif _is_clients_mistake(answer, brought=brought):
                continue
            else:
                outcome = _outcome_of(answer)
                record(model, outcome)
            counted += outcome.is_rated
        if counted:
            took_s = asyncio.get_running_loop().time() - started
            self._hits.record_latency(model, took_s, hit=hits == counted)


def _is_clients_mistake(error: ForecacheError, *, brought: bool) -> bool:
    # without features in the request, the client is not at fault if stored features or the model are refused
    return isinstance(error, BadInput) and (brought or not isinstance(error, ContractError | ModelError))


def _outcome_of(error: ForecacheError) -> Outcome:
    """Return the outcome of a request that got an error."""
    if isinstance(error, UnknownEntity):
        return Outcome.UNKNOWN
    return Outcome.SHED if isinstance(error, Unavailable) else Outcome.FAILED
