"""Updates of features: `PUT /features/{entity_id}` for one entity, `PUT /features` for many."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import AwareDatetime, BaseModel, Field, WithJsonSchema, WrapValidator, field_validator

from app.api.problems import documented
from app.api.process import ApiProcess, NamedEntity, NamedModel, Process
from app.api.request_bodies import JsonRoute, operation_id
from app.api.schemas import ENTITY_ID_SCHEMA, MAX_ROWS, Body, JsonResponse, list_as_sent, object_as_sent
from inference.errors import ModelUnavailable
from inference.features.updates import FeatureUpdate, UpdateResult

router = APIRouter(
    prefix="/features", tags=["features"], route_class=JsonRoute, generate_unique_id_function=operation_id
)

EntityId = Annotated[str, WithJsonSchema(ENTITY_ID_SCHEMA)]


class FeaturesBody(Body):
    """New values of features: by name, or all of them as a list in the contract's order.

    `event_time`: the values hold since then; ISO 8601 with an offset. Left out: now.
    """

    features: Annotated[
        Annotated[dict[str, Any], Field(min_length=1)] | Annotated[list[Any], Field(min_length=1)],
        WrapValidator(list_as_sent),
        WrapValidator(object_as_sent),
    ]
    event_time: AwareDatetime | None = None

    @field_validator("event_time", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        # pydantic would take a number, even as text, for seconds or milliseconds, depending on its size
        is_number = _is_number(value) if isinstance(value, str) else not isinstance(value, datetime | None)
        if is_number:
            raise ValueError("write it as ISO 8601 with an offset")
        return value

    def update(self, entity_id: str) -> FeatureUpdate:
        """Return the update of an entity."""
        return FeatureUpdate(entity_id, self.features, self.event_time.timestamp() if self.event_time else None)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class ItemBody(FeaturesBody):
    """New values of one entity's features."""

    entity_id: EntityId


class ItemsBody(Body):
    """Updates of up to 1 000 different entities."""

    items: Annotated[list[ItemBody], Field(min_length=1, max_length=MAX_ROWS, fail_fast=True)]


class UpdatedBody(BaseModel):
    """Result of an update. `applied` is false if some groups hold newer features: these are `not_applied`.

    `as_of`: time of the values that are stored now; the oldest one among the update's groups.
    """

    entity_id: str
    applied: bool
    as_of: str
    not_applied: list[str]


class UpdatedItemsBody(BaseModel):
    """Results of updates, in the order of the request."""

    model: str
    items: list[UpdatedBody]


@router.put("", response_model=UpdatedItemsBody, responses=documented(400, 404, 409, 413, 503))
async def put_features_of_many(body: ItemsBody, model: NamedModel, process: Process) -> Response:
    """Store features of up to 1 000 entities, all or none, except where newer ones are stored."""
    results = await _write(process, model, [item.update(item.entity_id) for item in body.items], "items.{}.")
    return JsonResponse({"model": model, "items": [result.to_json() for result in results]})


@router.put("/{entity_id:path}", response_model=UpdatedBody, responses=documented(400, 404, 409, 413, 503))
async def put_features(entity_id: NamedEntity, model: NamedModel, body: FeaturesBody, process: Process) -> Response:
    """Store some or all features of an entity, except where newer ones are stored. The next answer uses them."""
    [result] = await _write(process, model, [body.update(entity_id)], "")
    return JsonResponse(result.to_json())


async def _write(process: ApiProcess, name: str, updates: Sequence[FeatureUpdate], place: str) -> list[UpdateResult]:
    model = process.settings.features_owner(name)
    record = (await process.cards.of(model)).ready(None)
    if record is None:
        raise ModelUnavailable(f"model {model!r} has no active version yet: its features are not known")
    writer = process.deployment.feature_writer(model, record.contract)
    results = await process.in_thread(lambda: writer.write(updates, place=place))
    for one in process.settings.sharing_features(model):
        process.service.forget_unknown(one, [update.entity_id for update in updates])
    return results
