"""Hit statistics: `/hit-rate`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from app.api.bodies import HitRateBody, JsonResponse
from app.api.parts import Parts, parts_of
from app.api.problems import documented
from app.api.request_bodies import JsonRoute
from inference.monitoring.statistics import MAX_WINDOW_S

router = APIRouter(tags=["hits"], route_class=JsonRoute)


@router.get("/hit-rate", response_model=HitRateBody, responses=documented(400, 404, 503))
async def hit_rate(
    parts: Annotated[Parts, Depends(parts_of)],
    model: str | None = None,
    window_s: Annotated[int, Query(ge=1, le=MAX_WINDOW_S)] = 300,
) -> Response:
    """Return what became of a model's requests in every minute that the last `window_s` seconds touch."""
    name, _ = parts.settings.model(model)
    counts = await parts.in_thread(lambda: parts.deployment.hits.read(name, window_s))
    return JsonResponse({"model": name, "window_s": window_s, **counts.to_json()})
