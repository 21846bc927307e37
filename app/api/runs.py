"""Batch runs: `/runs`, and going back to the previous generation."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel

from app.api.bodies import JsonResponse, PublishBody, RollbackBody, RunBody
from app.api.parts import Parts, parts_of
from app.api.paths import without_folders
from app.api.problems import documented
from app.api.request_bodies import JsonRoute
from inference.batch import RunDetails, RunView, Serving, Trigger
from inference.failures import Failures

_hurry = Failures(__name__, "run.hurry")
router = APIRouter(tags=["runs"], route_class=JsonRoute)

PREPARE_RUN = "forecache.prepare_run"


class RunListBody(BaseModel):
    """Runs, the newest first."""

    runs: list[RunView]


@router.post("/runs", status_code=202, response_model=RunView, responses=documented(400, 404, 409, 413, 503))
async def start(parts: Annotated[Parts, Depends(parts_of)], body: RunBody | None = None) -> Response:
    """Start a run of a model. One run of a model at a time."""
    wanted = body or RunBody()
    view = await parts.in_thread(
        lambda: parts.deployment.runs.request(
            wanted.model,
            trigger=Trigger.API,
            source=wanted.source,
            entities=wanted.entities,
            since=wanted.since,
            engine=wanted.engine,
        )
    )
    return await _accepted(view, parts)


@router.get("/runs", response_model=RunListBody, responses=documented(400, 404, 503))
async def list_runs(
    parts: Annotated[Parts, Depends(parts_of)],
    model: str | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Return the newest runs, the newest first."""
    views = await parts.in_thread(lambda: parts.deployment.runs.list(model, limit))
    return JsonResponse({"runs": [without_folders(view.to_json(), parts.settings) for view in views]})


@router.get("/runs/{run_id}", response_model=RunDetails, responses=documented(404, 503))
async def show(run_id: str, parts: Annotated[Parts, Depends(parts_of)]) -> Response:
    """Return one run: how far it is, its chunks and phases, its gates, what it left out."""
    details = await parts.in_thread(lambda: parts.deployment.runs.details(run_id))
    return JsonResponse(without_folders(details.to_json(), parts.settings))


@router.post("/runs/{run_id}/cancel", status_code=202, response_model=RunView, responses=documented(404, 409, 503))
async def cancel(run_id: str, parts: Annotated[Parts, Depends(parts_of)]) -> Response:
    """Stop a run; what serves goes on serving."""
    view = await parts.in_thread(lambda: parts.deployment.runs.cancel(run_id))
    return JsonResponse(without_folders(view.to_json(), parts.settings), 202)


@router.post("/runs/{run_id}/resume", status_code=202, response_model=RunView, responses=documented(400, 404, 409, 503))
async def resume(run_id: str, parts: Annotated[Parts, Depends(parts_of)]) -> Response:
    """Take up a failed or cancelled run: only what is left of it is scored."""
    view = await parts.in_thread(lambda: parts.deployment.runs.resume(run_id))
    return await _accepted(view, parts)


@router.post(
    "/runs/{run_id}/publish", status_code=202, response_model=RunView, responses=documented(400, 404, 409, 503)
)
async def publish(run_id: str, parts: Annotated[Parts, Depends(parts_of)], body: PublishBody) -> Response:
    """Publish a run that its gates refused; `force` must be true, and stays in the run."""
    view = await parts.in_thread(lambda: parts.deployment.runs.publish(run_id, force=body.force, by="api"))
    return await _accepted(view, parts)


@router.post("/models/{model}/rollback", response_model=Serving, responses=documented(400, 404, 409, 503))
async def rollback(
    model: str, parts: Annotated[Parts, Depends(parts_of)], body: RollbackBody | None = None
) -> Response:
    """Serve the model's previous generation again; with `generation`, only if that one serves now."""
    wanted = body or RollbackBody()
    done = await parts.in_thread(lambda: parts.deployment.runs.rollback(model, generation=wanted.generation))
    return JsonResponse(done.to_json())


async def _accepted(view: RunView, parts: Parts) -> Response:
    """Hurry the run on; if that fails, the reconciler finds it by itself within seconds."""
    with _hurry.kept_here():
        await parts.enqueue(PREPARE_RUN, [{"run_id": view.run_id}])
    location = f"{parts.settings.api.root_path}/runs/{view.run_id}"
    return JsonResponse(without_folders(view.to_json(), parts.settings), 202, headers={"Location": location})
