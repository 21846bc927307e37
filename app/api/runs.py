"""Batch runs: `/runs`, and the rollback to the previous generation."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel

from app.api.problems import documented, without_folders
from app.api.process import ApiProcess, Process
from app.api.request_bodies import JsonRoute, operation_id
from app.api.schemas import DiffBody, JsonResponse, PublishBody, RollbackBody, RunBody
from inference.batch import DiffOptions, RunDetails, RunDiff, RunView, Serving, Trigger
from inference.errors import NotFound, quoted
from inference.failures import Failures

_hurry = Failures(__name__, "run.hurry")
router = APIRouter(tags=["runs"], route_class=JsonRoute, generate_unique_id_function=operation_id)

PREPARE_RUN = "forecache.prepare_run"
COMPARE_RUN = "forecache.compare_run"


class RunListBody(BaseModel):
    """Runs, newest first."""

    runs: list[RunView]


@router.post("/runs", status_code=202, response_model=RunView, responses=documented(400, 404, 409, 413, 503))
async def start_run(process: Process, body: RunBody | None = None) -> Response:
    """Start a run of a model; a model has one run at a time."""
    wanted = body or RunBody()
    view = await process.in_thread(
        lambda: process.deployment.runs.request(
            wanted.model,
            trigger=Trigger.API,
            source=wanted.source,
            entities=wanted.entities,
            since=wanted.since,
            engine=wanted.engine,
            delta=wanted.delta,
            hold=wanted.hold,
            model_version=wanted.model_version,
            shadow=wanted.shadow,
        )
    )
    return await _accepted(view, process)


@router.get("/runs", response_model=RunListBody, responses=documented(400, 404, 503))
async def list_runs(
    process: Process,
    model: str | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Return the last runs, newest first."""
    views = await process.in_thread(lambda: process.deployment.runs.list(model, limit))
    return JsonResponse({"runs": [without_folders(view.to_json(), process.settings) for view in views]})


@router.get("/runs/{run_id}", response_model=RunDetails, responses=documented(404, 503))
async def get_run(run_id: str, process: Process) -> Response:
    """Return one run: its progress, chunks, phases and gates, and the rows that it left out."""
    details = await process.in_thread(lambda: process.deployment.runs.details(run_id))
    return JsonResponse(without_folders(details.to_json(), process.settings))


@router.post("/runs/{run_id}/cancel", status_code=202, response_model=RunView, responses=documented(404, 409, 503))
async def cancel_run(run_id: str, process: Process) -> Response:
    """Stop a run; the current generation goes on serving."""
    view = await process.in_thread(lambda: process.deployment.runs.cancel(run_id))
    return JsonResponse(without_folders(view.to_json(), process.settings), 202)


@router.post("/runs/{run_id}/resume", status_code=202, response_model=RunView, responses=documented(400, 404, 409, 503))
async def resume_run(run_id: str, process: Process) -> Response:
    """Resume a failed or cancelled run; workers score only the rest of it."""
    view = await process.in_thread(lambda: process.deployment.runs.resume(run_id))
    return await _accepted(view, process)


@router.post(
    "/runs/{run_id}/publish", status_code=202, response_model=RunView, responses=documented(400, 404, 409, 503)
)
async def publish_run(run_id: str, process: Process, body: PublishBody | None = None) -> Response:
    """Publish a held run or, with `force`, one that its gates refused; the run's record keeps it."""
    force = body is not None and body.force
    view = await process.in_thread(lambda: process.deployment.runs.publish(run_id, force=force, by="api"))
    return await _accepted(view, process)


@router.get("/runs/{run_id}/diff", response_model=RunDiff, responses=documented(404, 503))
async def get_run_diff(run_id: str, process: Process) -> Response:
    """Return the last comparison of a run with what serves, or served before it."""
    found = await process.in_thread(lambda: process.deployment.runs.kept_diff(run_id))
    if found is None:
        raise NotFound(f"run {quoted(run_id)} was not compared yet: POST to this path", field="run_id")
    return JsonResponse(without_folders(found.to_json(), process.settings))


@router.post("/runs/{run_id}/diff", status_code=202, response_model=RunView, responses=documented(400, 404, 409, 503))
async def compare_run(run_id: str, process: Process, body: DiffBody | None = None) -> Response:
    """Let the maintenance worker compare a run with what serves; GET returns the result seconds later."""
    options = DiffOptions(**(body or DiffBody()).model_dump())
    view = await process.in_thread(lambda: process.deployment.runs.check_diff(run_id, options))
    await process.enqueue(COMPARE_RUN, [{"run_id": view.run_id, "options": options.to_json()}])
    location = f"{process.settings.api.root_path}/runs/{view.run_id}/diff"
    return JsonResponse(without_folders(view.to_json(), process.settings), 202, headers={"Location": location})


@router.post("/models/{model}/rollback", response_model=Serving, responses=documented(400, 404, 409, 503))
async def rollback_model(model: str, process: Process, body: RollbackBody | None = None) -> Response:
    """Serve the model's previous generation again; with `generation`, only if that one still serves."""
    wanted = body or RollbackBody()
    done = await process.in_thread(lambda: process.deployment.runs.rollback(model, generation=wanted.generation))
    return JsonResponse(done.to_json())


async def _accepted(view: RunView, process: ApiProcess) -> Response:
    """Wake the maintenance worker for a run; if that fails, its reconciler finds the run within seconds."""
    with _hurry.kept_here():
        await process.enqueue(PREPARE_RUN, [{"run_id": view.run_id}])
    location = f"{process.settings.api.root_path}/runs/{view.run_id}"
    return JsonResponse(without_folders(view.to_json(), process.settings), 202, headers={"Location": location})
