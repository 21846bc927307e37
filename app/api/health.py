"""Health: whether the process lives, and whether it can serve."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from app.api.bodies import JsonResponse
from app.api.parts import Parts, parts_of
from app.api.problems import documented
from inference.errors import ModelUnavailable, StoreUnavailable

router = APIRouter(prefix="/health", tags=["health"])

STORE_TIMEOUT_S = 1.0


@router.get("/live")
async def live() -> Response:
    """Answer as long as the process does."""
    return JsonResponse({"status": "live"})


@router.get("/ready", responses=documented(503))
async def ready(parts: Annotated[Parts, Depends(parts_of)]) -> Response:
    """Answer 200 once every model has been activated, from then on as long as the store answers."""
    return JsonResponse({"status": "ready", "models": await active_versions(parts)})


async def active_versions(parts: Parts) -> dict[str, int | None]:
    """Return the active version of each model; None for one that was active before and is not now.

    Raises:
        StoreUnavailable: the store did not answer in time.
        ModelUnavailable: a model has never been activated yet.
    """
    try:
        async with asyncio.timeout(STORE_TIMEOUT_S):
            versions = {name: (await reader.pointer()).active_version for name, reader in parts.readers.items()}
    except TimeoutError as error:
        raise StoreUnavailable("the prediction store does not answer") from error
    parts.activated.update(name for name, version in versions.items() if version is not None)
    missing = sorted(versions.keys() - parts.activated)
    if missing:
        raise ModelUnavailable(f"no worker has activated a version yet of: {', '.join(missing)}")
    return versions
