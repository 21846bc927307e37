"""Health: `/health/live` and `/health/ready`, which says which models serve."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from app.api.models import ModelCard
from app.api.problems import documented, without_folders
from app.api.process import ApiProcess, Process
from app.api.request_bodies import JsonRoute, operation_id
from app.api.schemas import JsonResponse
from inference.errors import ModelUnavailable, StoreUnavailable

router = APIRouter(prefix="/health", tags=["health"], route_class=JsonRoute, generate_unique_id_function=operation_id)

STORE_TIMEOUT_S = 1.0


@dataclass
class Readiness:
    """State of models: `serving` with their versions, `waiting` and `refused` with the reasons.

    A version is None if the model had an active one before and has none now.
    """

    serving: dict[str, int | None] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def is_ready(self) -> bool:
        """Whether every model serves, refused ones aside; not ready if all are refused."""
        return not self.waiting and (bool(self.serving) or not self.refused)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        refused = {"refused": self.refused} if self.refused else {}
        return {"status": "ready", "models": self.serving, **refused}


@router.get("/live")
async def health_live() -> Response:
    """Answer as long as the process lives."""
    return JsonResponse({"status": "live"})


@router.get("/ready", responses=documented(400, 404, 503))
async def health_ready(
    process: Process,
    model: Annotated[str | None, Query(description="Left out: all models.")] = None,
) -> Response:
    """Answer 200 once every model serves, and from then on as long as the store answers and nobody stops the process.

    A model with only refused versions stands under `refused`; the others can be ready without it. With `model`, the
    answer is about that one.
    """
    names = list(process.settings.models) if model is None else [process.settings.model(model)[0]]
    return JsonResponse((await readiness(process, names)).to_json())


async def readiness(process: ApiProcess, models: list[str]) -> Readiness:
    """Return the state of the models when all of them serve, refused ones aside.

    Raises:
        StoreUnavailable: the store did not answer in time.
        ModelUnavailable: a model does not serve yet, or all are refused.
        Unavailable: the process was told to stop.
    """
    process.drain.require_none()
    found = Readiness()
    try:
        async with asyncio.timeout(STORE_TIMEOUT_S):
            for name in models:
                await _look_at(process, name, found)
    except TimeoutError as error:
        raise StoreUnavailable("the prediction store does not answer") from error
    if not found.is_ready:
        told = [f"model {name!r} {why}" for name, why in {**found.waiting, **found.refused}.items()]
        raise ModelUnavailable("; ".join(told))
    return found


async def _look_at(process: ApiProcess, name: str, found: Readiness) -> None:
    version = (await process.readers[name].pointer()).active_version
    if name in process.were_ready:
        found.serving[name] = version
    elif version is None:
        refusal = _refusal(await process.cards.of(name))
        if refusal is None:
            loading = await _loading(process, name)
            found.waiting[name] = "has no version that a worker has activated yet"
            if loading:
                found.waiting[name] += f": its workers are loading {loading}"
            elif process.settings.models[name].activate == "by-label":
                found.waiting[name] += ': its activate is "by-label", so label one stable'
        else:
            found.refused[name] = str(without_folders(refusal, process.settings))
    elif loading := await _loading(process, name):
        found.waiting[name] = f"has workers that are still loading {loading}"
    else:
        process.were_ready.add(name)
        found.serving[name] = version


def _refusal(card: ModelCard) -> str | None:
    """Return why a model cannot serve; None if one of its versions may still serve."""
    if any(record.state == "ready" for record in card.versions.values()):
        return None
    newest = max(card.versions, default=None)
    return None if newest is None else f"cannot serve: version {newest} was refused: {card.versions[newest].error}"


async def _loading(process: ApiProcess, name: str) -> str | None:
    """Return what a model's workers load while none of them takes requests; None without workers: hits still work."""
    roster = await process.in_thread(lambda: process.deployment.presence.roster(process.settings.realtime_queue(name)))
    if not roster.alive or any(worker.ready for worker in roster.alive):
        return None
    loading = {(one.model, one.version): one for worker in roster.alive for one in worker.loading}
    most_s = process.settings.workers.load_timeout
    return "; ".join(one.told(most_s) for one in loading.values() if one.model in process.settings.models) or "it"
