"""Health: whether the process lives, and which models can serve."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from app.api.bodies import JsonResponse
from app.api.cards import ModelCard
from app.api.parts import Parts, parts_of
from app.api.paths import without_folders
from app.api.problems import documented
from app.api.request_bodies import JsonRoute
from inference.errors import ModelUnavailable, StoreUnavailable

router = APIRouter(prefix="/health", tags=["health"], route_class=JsonRoute)

STORE_TIMEOUT_S = 1.0


@dataclass
class Readiness:
    """Which models serve, and by which version; which are still to come, and which cannot serve, each with the reason.

    A version is None for a model that had an active one before and has none now.
    """

    serving: dict[str, int | None] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def is_ready(self) -> bool:
        """Whether every model that can serve does; one that is alone and cannot is not ready."""
        return not self.waiting and (bool(self.serving) or not self.refused)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        refused = {"refused": self.refused} if self.refused else {}
        return {"status": "ready", "models": self.serving, **refused}


@router.get("/live")
async def live() -> Response:
    """Answer as long as the process does."""
    return JsonResponse({"status": "live"})


@router.get("/ready", responses=documented(400, 404, 503))
async def ready(
    parts: Annotated[Parts, Depends(parts_of)],
    model: Annotated[str | None, Query(description="Left out: all models.")] = None,
) -> Response:
    """Answer 200 once every model that can serve does, from then on as long as the store answers.

    A model of which every version was refused is named under `refused`, and keeps no other from being ready. With
    `model`, the answer is about that one.
    """
    names = list(parts.settings.models) if model is None else [parts.settings.model(model)[0]]
    return JsonResponse((await readiness(parts, names)).to_json())


async def readiness(parts: Parts, models: list[str]) -> Readiness:
    """Return which of the models serve, when all that can do.

    Raises:
        StoreUnavailable: the store did not answer in time.
        ModelUnavailable: a model that can serve does not yet, or none can.
    """
    found = Readiness()
    try:
        async with asyncio.timeout(STORE_TIMEOUT_S):
            for name in models:
                await _look_at(parts, name, found)
    except TimeoutError as error:
        raise StoreUnavailable("the prediction store does not answer") from error
    if not found.is_ready:
        told = [f"model {name!r} {why}" for name, why in {**found.waiting, **found.refused}.items()]
        raise ModelUnavailable("; ".join(told))
    return found


async def _look_at(parts: Parts, name: str, found: Readiness) -> None:
    version = (await parts.readers[name].pointer()).active_version
    if name in parts.were_ready:
        found.serving[name] = version
    elif version is None:
        refusal = _refusal(await parts.cards.of(name))
        if refusal is None:
            loading = await _loading(parts, name)
            found.waiting[name] = "has no version that a worker has activated yet"
            if loading:
                found.waiting[name] += f": its workers are loading {loading}"
        else:
            found.refused[name] = str(without_folders(refusal, parts.settings))
    elif loading := await _loading(parts, name):
        found.waiting[name] = f"has workers that are still loading {loading}"
    else:
        parts.were_ready.add(name)
        found.serving[name] = version


def _refusal(card: ModelCard) -> str | None:
    """Return why a model cannot serve; None when one of its versions may still come."""
    if any(record.state == "ready" for record in card.versions.values()):
        return None
    newest = max(card.versions, default=None)
    return None if newest is None else f"cannot serve: version {newest} was refused: {card.versions[newest].error}"


async def _loading(parts: Parts, name: str) -> str | None:
    """Return what the model's workers load while none takes requests; None without any, since hits are served still."""
    roster = await parts.in_thread(lambda: parts.deployment.presence.roster(parts.settings.realtime_queue(name)))
    if not roster.alive or any(worker.ready for worker in roster.alive):
        return None
    loading = {(one.model, one.version): one for worker in roster.alive for one in worker.loading}
    most_s = parts.settings.workers.load_timeout
    return "; ".join(one.told(most_s) for one in loading.values() if one.model in parts.settings.models) or "it"
