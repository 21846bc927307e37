"""Predictions now: `/predict`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from app.api.bodies import (
    MAX_ROWS,
    JsonResponse,
    PredictBody,
    PredictionsBody,
    item_of,
)
from app.api.parts import Parts, parts_of
from app.api.problems import documented

router = APIRouter(tags=["predict"])


@router.post("/predict", response_model=PredictionsBody, responses=documented(400, 404, 413, 500, 503))
async def predict_many(body: PredictBody, parts: Annotated[Parts, Depends(parts_of)]) -> Response:
    """Return predictions of up to 1 000 entities or instances, in order; a failed item has an `error`."""
    body.check_rows(MAX_ROWS)
    if body.instances is not None:
        ids: list[str] | list[None] = [None] * len(body.instances)
        answers = await parts.service.predict_instances(body.model, body.instances, timeout_s=body.timeout_s)
    else:
        ids = body.entity_ids or []
        answers = await parts.service.predict(
            body.model,
            ids,
            max_staleness_s=body.max_staleness_s,
            timeout_s=body.timeout_s,
            overrides=body.overrides,
        )
    items = [item_of(entity_id, answer) for entity_id, answer in zip(ids, answers, strict=True)]
    return JsonResponse({"predictions": items})
