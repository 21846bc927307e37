"""Predictions now: `/predict`."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.convertors import PathConvertor, register_url_convertor

from app.api.bodies import (
    MAX_ROWS,
    MAX_TIMEOUT_MS,
    AnswerBody,
    JsonResponse,
    PredictBody,
    PredictionsBody,
    item_of,
)
from app.api.parts import Parts, parts_of
from app.api.problems import documented
from inference.entities import check_entity_id
from inference.errors import BadEntityId, ForecacheError


class _EntityIdConvertor(PathConvertor):
    """Any text: the stock `path` stops at a line feed, and the request would end as an unknown address."""

    regex = r"[\s\S]*"


register_url_convertor("entity_id", _EntityIdConvertor())

router = APIRouter(tags=["predict"])


@router.get("/predict/{entity_id:entity_id}", response_model=AnswerBody, responses=documented(400, 404, 500, 503))
async def predict_one(
    request: Request,
    entity_id: str,
    parts: Annotated[Parts, Depends(parts_of)],
    model: str | None = None,
    max_staleness_hours: Annotated[float | None, Query(ge=0, allow_inf_nan=False)] = None,
    timeout_ms: Annotated[int | None, Query(ge=1, le=MAX_TIMEOUT_MS)] = None,
) -> Response:
    """Return one entity's prediction: stored if it is fresh, else computed within the budget."""
    _check_percent_encoding(request)
    answers = await parts.service.predict(
        model,
        [check_entity_id(entity_id)],
        max_staleness_s=None if max_staleness_hours is None else max_staleness_hours * 3600,
        timeout_s=None if timeout_ms is None else timeout_ms / 1000,
    )
    answer = answers[0]
    if isinstance(answer, ForecacheError):
        raise answer
    return JsonResponse(answer.to_json())


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


def _check_percent_encoding(request: Request) -> None:
    """Refuse a path that is no UTF-8: servers decode it with replacement marks: another entity's id."""
    try:
        unquote_to_bytes(request.scope.get("raw_path") or b"").decode()
    except UnicodeDecodeError as error:
        raise BadEntityId("entity_id is not valid UTF-8", field="entity_id") from error
