"""Forgets entities: `DELETE /entities/{entity_id}`, what became of it, and `PUT`, which lifts it."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import AwareDatetime, BaseModel

from app.api.problems import documented
from app.api.process import ApiProcess, NamedEntity, NamedModel, Process
from app.api.request_bodies import JsonRoute, operation_id
from app.api.schemas import JsonResponse
from inference.clock import to_iso
from inference.forgetting import ForgetReport
from inference.store import ForgottenEntity

router = APIRouter(tags=["entities"], route_class=JsonRoute, generate_unique_id_function=operation_id)

FORGET_ENTITY = "forecache.forget_entity"
MAX_WAIT_S = 60
_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.05, 1.0

WaitS = Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="seconds to wait until all is removed")]


class ForgetItemBody(BaseModel):
    """One place that was looked at. `removed`: rows, entries or values. `left`: why something may be left there."""

    place: str
    removed: int
    left: str


class ForgottenBody(BaseModel):
    """Whether an entity is forgotten, since when and until when, and what was removed of it in the last day.

    `done`: all was removed that could be found. `stays`: what is not removed, and why.
    """

    entity_id: str
    model: str
    forgotten: bool
    at: str | None
    until: str | None
    done: bool
    items: list[ForgetItemBody]
    stays: list[str]


class ListedEntityBody(BaseModel):
    """An entry of the list: a keyed digest in place of the id."""

    digest: str
    at: str
    until: str | None
    done: bool


class ForgottenListBody(BaseModel):
    """The entities that a model must not know."""

    model: str
    entities: list[ListedEntityBody]


@router.delete(
    "/entities/{entity_id:path}",
    response_model=ForgottenBody,
    responses={202: {"model": ForgottenBody}, **documented(400, 404, 503)},
)
async def forget_entity(
    entity_id: NamedEntity,
    model: NamedModel,
    process: Process,
    until: AwareDatetime | None = None,
    wait_s: WaitS = 5.0,
) -> Response:
    """Forget an entity: the maintenance worker removes what is held of it, and the model leaves it out from now on.

    202: not all is removed yet, or something is left; ask GET, or send it again.
    """
    ends = None if until is None else until.timestamp()
    await process.in_thread(lambda: process.deployment.forgetting.add(model, entity_id, until=ends))
    asked_at = await process.in_thread(process.deployment.cache.now)
    await process.enqueue(FORGET_ENTITY, [{"model": model, "entity_id": entity_id}])
    entry, report = await _wait(process, model, entity_id, asked_at, wait_s)
    body = _body(model, entity_id, entry, report)
    return JsonResponse(body, 200 if body["done"] else 202)


@router.put("/entities/{entity_id:path}", response_model=ForgottenBody, responses=documented(400, 404, 503))
async def allow_entity(entity_id: NamedEntity, model: NamedModel, process: Process) -> Response:
    """Take an entity off the list of forgotten ones. What was removed comes back with the next run and update."""
    await process.in_thread(lambda: process.deployment.forgetting.lift(model, entity_id))
    process.service.forget_unknown(model, [entity_id])
    return JsonResponse(_body(model, entity_id, None, None))


@router.get("/entities", response_model=ForgottenListBody, responses=documented(400, 404, 503))
async def list_forgotten(process: Process, model: NamedModel) -> Response:
    """Return the list of forgotten entities, the oldest first. It has no ids, but keyed digests."""
    listed = await process.in_thread(lambda: process.deployment.forgetting.listed(model))
    entities = [_shown(entry) for entry in listed.entries if entry.holds(listed.now)]
    return JsonResponse({"model": model, "entities": entities})


@router.get("/entities/{entity_id:path}", response_model=ForgottenBody, responses=documented(400, 404, 503))
async def get_forgotten(entity_id: NamedEntity, model: NamedModel, process: Process) -> Response:
    """Return whether an entity is forgotten, and what was removed of it in the last day."""
    found = await process.in_thread(lambda: process.deployment.forgetting.find(model, entity_id))
    return JsonResponse(_body(model, entity_id, *found))


async def _wait(
    process: ApiProcess, model: str, entity_id: str, asked_at: float, wait_s: float
) -> tuple[ForgottenEntity | None, ForgetReport | None]:
    """Return the entry and the report, once it was made after `asked_at` or the time is up."""
    loop = asyncio.get_running_loop()
    end, pause_s = loop.time() + wait_s, _FIRST_LOOK_S
    while True:
        entry, report = await process.in_thread(lambda: process.deployment.forgetting.find(model, entity_id))
        if report is not None and report.made_at >= asked_at:
            return entry, report
        if loop.time() + pause_s > end:
            return entry, None
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_LOOK_S)


def _body(model: str, entity_id: str, entry: ForgottenEntity | None, report: ForgetReport | None) -> dict[str, Any]:
    return {
        "entity_id": entity_id,
        "model": model,
        "forgotten": entry is not None,
        "at": None if entry is None else to_iso(entry.at),
        "until": None if entry is None or entry.until is None else to_iso(entry.until),
        "done": report is not None and report.done,
        "items": [] if report is None else [asdict(item) for item in report.items],
        "stays": [] if report is None else list(report.stays),
    }


def _shown(entry: ForgottenEntity) -> dict[str, Any]:
    until = None if entry.until is None else to_iso(entry.until)
    return {"digest": entry.digest, "at": to_iso(entry.at), "until": until, "done": entry.done_at is not None}
