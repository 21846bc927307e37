"""Models of the JSON bodies: they check requests, and document responses in OpenAPI.

Instants are ISO 8601 UTC. Null in a response means: not known yet.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import orjson
from fastapi import Response
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    field_validator,
    model_validator,
)

from app.api.limits import MAX_BODY_BYTES
from app.api.problems import Problem, problem_of
from inference.batch.comparison.differences import MAX_TOP
from inference.entities import check_entity_id
from inference.errors import BadEntityId, BadInput, ForecacheError
from inference.monitoring.queues import JobPriority
from inference.protocols.tensors import MAX_ANSWER_BYTES
from inference.serving import Answer

MAX_ROWS = 1_000
MAX_JOB_ROWS = 100_000
MAX_TIMEOUT_MS = 600_000

#: the rules of `check_entity_id`, as far as a schema can say them: its limit of 512 counts bytes
ENTITY_ID_SCHEMA = {"type": "string", "minLength": 1, "maxLength": 512, "pattern": r"^[^\u0000-\u001f\u007f-\u009f]+$"}

#: limit of the feature names in an object
MAX_NAMES = 10_000


def object_as_sent(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Check the number of names in an object; the feature contract checks the values later."""
    if isinstance(value, dict) and len(value) > MAX_NAMES:
        raise ValueError(f"holds {len(value)} names: at most {MAX_NAMES}")
    return value if isinstance(value, dict) and value else check(value)


def list_as_sent(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Take a list without a check: pydantic would only copy its millions of values."""
    return value if isinstance(value, list) and value else check(value)


def _if_so_few(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Skip the ids of a list that is too long: `check_rows` refuses it."""
    return value if isinstance(value, list) and len(value) > MAX_JOB_ROWS else check(value)


class Body(BaseModel):
    """Base of request bodies: refuses unknown fields."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, sent: Any) -> Any:
        """Keep only one of many unknown fields: the answer names one, and pydantic would make an error of each."""
        if not isinstance(sent, dict) or len(sent) <= len(cls.model_fields):
            return sent
        unknown = next((name for name in sent if name not in cls.model_fields), None)
        return {name: sent[name] for name in (*cls.model_fields, unknown) if name in sent}


EntityIds = Annotated[
    Annotated[list[str], Field(fail_fast=True)] | None,
    WrapValidator(_if_so_few),
    WithJsonSchema({"anyOf": [{"type": "array", "items": ENTITY_ID_SCHEMA, "minItems": 1}, {"type": "null"}]}),
]
Hours = Annotated[float, Field(ge=0, allow_inf_nan=False)]
TimeoutMs = Annotated[int, Field(ge=1, le=MAX_TIMEOUT_MS)]


class Terms(BaseModel):
    """Optional limits of a request for predictions; the model's settings replace those left out."""

    model: str | None = None
    max_staleness_hours: Annotated[
        Hours | None, Field(description="age limit of a stored answer; 0 forces computing")
    ] = None
    timeout_ms: Annotated[TimeoutMs | None, Field(description="the budget; else the model's own")] = None

    @property
    def max_staleness_s(self) -> float | None:
        """The age limit in seconds."""
        return None if self.max_staleness_hours is None else self.max_staleness_hours * 3600

    @property
    def timeout_s(self) -> float | None:
        """The budget in seconds."""
        return None if self.timeout_ms is None else self.timeout_ms / 1000


class ExplainableTerms(Terms):
    """The terms of a request for one entity. `explain`: what the answer should explain."""

    explain: Annotated[
        Literal["features"] | None, Field(description="features: with what they are, where from, and how old")
    ] = None


class PredictBody(Terms, Body):
    """What to predict: entities (`overrides` replace features of theirs), or instances with all of their features."""

    entity_ids: EntityIds = None
    instances: Annotated[list[Any] | None, WrapValidator(list_as_sent)] = None
    overrides: Annotated[dict[str, Any] | None, WrapValidator(object_as_sent)] = None

    @field_validator("max_staleness_hours", "timeout_ms", mode="before")
    @classmethod
    def _a_number(cls, value: Any) -> Any:
        # in a query everything is text; in JSON, text or a boolean instead of a number is a mistake
        if isinstance(value, str | bool):
            raise ValueError("send a number")  # noqa: TRY004 - pydantic only handles a ValueError
        return value

    @model_validator(mode="after")
    def _one_of_two(self) -> PredictBody:
        if (self.entity_ids is None) == (self.instances is None):
            raise ValueError("give either entity_ids or instances")
        if self.instances is not None and self.overrides:
            raise ValueError("overrides go with entity_ids: instances bring all of their features")
        return self

    def check_rows(self, limit: int) -> None:
        """Check the number of rows and the entity ids.

        Raises:
            BadInput: there are too many rows or none, or an id is illegal; it names the field.
        """
        field = "instances" if self.entity_ids is None else "entity_ids"
        rows = self.instances if self.entity_ids is None else self.entity_ids
        if not rows:
            raise BadInput(f"{field} is empty: give at least one", field=field)
        if len(rows) > limit:
            raise BadInput(f"{field} holds {len(rows)}: at most {limit}", field=field)
        for number, entity_id in enumerate(self.entity_ids or ()):
            try:
                check_entity_id(entity_id)
            except BadEntityId as error:
                raise BadEntityId(error.message, field=f"entity_ids.{number}") from error

    def check_overrides(self, rows_at_once: int) -> None:
        """Check the size of overrides: each message to a worker carries them. `rows_at_once`: rows of one message.

        Raises:
            BadInput: they are too large; the message has their size and the limit.
        """
        if not self.overrides or self.entity_ids is None:
            return
        most = MAX_BODY_BYTES // math.ceil(len(self.entity_ids) / rows_at_once)
        size = sum(len(orjson.dumps(value)) for value in self.overrides.values())
        if size > most:
            raise BadInput(
                f"overrides of {size} bytes are too large for {len(self.entity_ids)} entities: at most {most}",
                field="overrides",
            )


class EnqueueBody(PredictBody):
    """What to predict later, and its priority."""

    priority: Annotated[
        JobPriority, Field(description="which waiting jobs go first; requests go before all of them")
    ] = JobPriority.NORMAL


class RunBody(Body):
    """Which run to start. `source`: a table below the folder of the model's own, which it replaces.

    `entities` (ids) or `since` (an ISO 8601 instant, or a duration such as `6h`): only those rows, served at once.
    `engine`: `celery`, `spark` or `ray` scores the chunks, instead of the engine in the model's settings. `delta`:
    score only the rows whose features changed since the run that serves; if that is impossible, all rows
    (`full_reason` says why). `hold`: the run waits before its publication. `shadow`: it only compares the predictions
    of `model_version` with what serves.
    """

    model: str | None = None
    source: str | None = None
    entities: Annotated[list[str], Field(max_length=MAX_JOB_ROWS, fail_fast=True)] | None = None
    since: str | None = None
    engine: str | None = None
    delta: Annotated[bool, Field(strict=True)] = False
    hold: Annotated[bool, Field(strict=True)] = False
    model_version: Annotated[int, Field(strict=True, ge=1, le=2**63 - 1)] | None = None
    shadow: Annotated[bool, Field(strict=True)] = False


class DiffBody(Body):
    """What to compare. `threshold`: where decisions flip, by default the settings' `flips_threshold`.

    `tolerance`: the change up to which a prediction counts as unmoved. `segment`: a column of the run's source. `top`:
    the number of ids that moved most. `features`: compare the features too.
    """

    threshold: Annotated[float, Field(allow_inf_nan=False)] | None = None
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    segment: str | None = None
    top: Annotated[int, Field(strict=True, ge=1, le=MAX_TOP)] = 10
    features: Annotated[bool, Field(strict=True)] = True


class PublishBody(Body):
    """How to publish a run: a held one, or with `force` one that its gates refused."""

    force: Annotated[bool, Field(strict=True)] = False


class RollbackBody(Body):
    """The generation to roll back from, if it still serves; left out: the one that serves."""

    generation: Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)] | None = None


class AnswerBody(BaseModel):
    """One prediction."""

    entity_id: str | None
    model: str
    model_version: int | None
    prediction: Any
    source: str
    outcome: str
    cache_hit: bool
    stale: bool
    degraded: bool
    as_of: str | None
    computed_at: str
    timestamp: float
    imputed_features: Annotated[
        list[str], Field(description="left out if no default replaced a missing feature, or the answer was stored")
    ] = []


class ExplainedBody(AnswerBody):
    """One prediction and the features behind it."""

    explanation: Annotated[dict[str, Any] | None, Field(description="with explain=features only")] = None


class FailedBody(BaseModel):
    """One entity or instance without a prediction."""

    entity_id: str | None
    error: Problem


class PredictionsBody(BaseModel):
    """Predictions in the order of the request."""

    predictions: list[AnswerBody | FailedBody]


class JobAcceptedBody(BaseModel):
    """The id and URL of an enqueued job."""

    task_id: str
    status_url: str


class JobBody(BaseModel):
    """The state of a job, with `result` when it is done, or `error` when it has failed."""

    task_id: str
    state: str
    result: PredictionsBody | None = None
    error: Problem | None = None


class HitCountsBody(BaseModel):
    """Outcomes of requests; `hit_rate` is null if there were none.

    `total`: the sum of all outcomes except `unknown` (404), which is the divisor of the hit rate.
    """

    total: int
    hit_rate: float | None
    outcomes: dict[str, int]


class VersionCountsBody(HitCountsBody):
    """Outcomes of the answers that one model version computed."""

    version: int


class HitRateBody(HitCountsBody):
    """Outcomes of the requests of the last `window_s` seconds, and of the answers of each model version.

    Errors and defaults are of no version.
    """

    model: str
    window_s: int
    versions: list[VersionCountsBody]


class JsonResponse(Response):
    """JSON by orjson: several times faster than the standard library; NaN becomes null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body.

        Raises:
            BadInput: the body is over the limit of an answer.
        """
        body = orjson.dumps(content)
        if len(body) > MAX_ANSWER_BYTES:
            raise BadInput(f"the answer takes {len(body)} bytes: at most {MAX_ANSWER_BYTES}, ask for fewer rows")
        return body


def item_of(entity_id: str | None, answer: Answer | ForecacheError) -> orjson.Fragment | dict[str, Any]:
    """Return one item for a list of predictions in a `JsonResponse`."""
    if isinstance(answer, Answer):
        return orjson.Fragment(answer.to_json_text())
    return {"entity_id": entity_id, "error": problem_of(answer)}
