"""Predictions now: `/predict`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from app.api.bodies import (
    MAX_ROWS,
    JsonResponse,
    PredictBody,
    PredictionsBody,
    item_of,
)
from app.api.disconnects import ClientWatch
from app.api.parts import Parts, parts_of
from app.api.problems import documented
from app.api.request_bodies import JsonRoute
from inference.serving import PredictionService

router = APIRouter(tags=["predict"], route_class=JsonRoute)


@router.post("/predict", response_model=PredictionsBody, responses=documented(400, 404, 413, 500, 503))
async def predict_many(body: PredictBody, parts: Annotated[Parts, Depends(parts_of)], request: Request) -> Response:
    """Return predictions of up to 1 000 entities or instances, in order; a failed item has an `error`."""
    body.check_rows(MAX_ROWS)
    _, model = parts.settings.model(body.model)
    body.check_overrides(model.realtime.max_micro_batch)
    items: list[Any] = []
    with ClientWatch(request.receive):
        items = await _predict(body, parts.service)
    return JsonResponse({"predictions": items})


async def _predict(body: PredictBody, service: PredictionService) -> list[Any]:
    if body.instances is not None:
        answers = await service.predict_instances(body.model, body.instances, timeout_s=body.timeout_s)
        return [item_of(None, answer) for answer in answers]
    ids = body.entity_ids or []
    answers = await service.predict(
        body.model,
        ids,
        max_staleness_s=body.max_staleness_s,
        timeout_s=body.timeout_s,
        overrides=body.overrides,
    )
    return [item_of(entity_id, answer) for entity_id, answer in zip(ids, answers, strict=True)]
