"""Predictions now and later: `POST /predict`, and `/predictions`, whose jobs clients enqueue and fetch."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from app.api.problems import documented, problem_of
from app.api.process import Process
from app.api.request_bodies import JsonRoute, beside_loop, operation_id
from app.api.requests import ClientWatch
from app.api.schemas import (
    MAX_JOB_ROWS,
    MAX_ROWS,
    EnqueueBody,
    JobAcceptedBody,
    JobBody,
    JsonResponse,
    PredictBody,
    PredictionsBody,
    item_of,
)
from inference.serving import PredictionService
from inference.serving.job_queue import JobRow
from inference.serving.jobs import PART_ROWS, JobRequest, JobState

router = APIRouter(route_class=JsonRoute, generate_unique_id_function=operation_id)

MAX_WAIT_S = 60


@router.post(
    "/predict", response_model=PredictionsBody, responses=documented(400, 404, 413, 500, 503), tags=["predict"]
)
async def predict_many(body: PredictBody, process: Process, request: Request) -> Response:
    """Return predictions of up to 1 000 entities or instances, in order; a failed item has an `error`."""
    body.check_rows(MAX_ROWS)
    _, model = process.settings.model(body.model)
    body.check_overrides(model.realtime.max_micro_batch)
    items: list[Any] = []
    with ClientWatch(request.receive):
        items = await _predict(body, process.service)
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


@router.post(
    "/predictions",
    status_code=202,
    response_model=JobAcceptedBody,
    responses=documented(400, 404, 413, 503),
    tags=["jobs"],
)
async def enqueue_predictions(
    body: EnqueueBody,
    process: Process,
    request: Request,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> Response:
    """Enqueue up to 100 000 predictions. Workers compute all of them anew, whatever `max_staleness_hours` says.

    `timeout_ms`: rows that no worker has begun by then fail with `deadline-exceeded`; left out, none does.
    `Idempotency-Key`: a client that does not know whether its request arrived sends it again with the same key, and
    gets the same job.
    """
    await beside_loop(len(await request.body()), body.check_rows, MAX_JOB_ROWS)
    body.check_overrides(PART_ROWS)
    model, _ = process.settings.model(body.model)
    job_id = await process.jobs.create(
        JobRequest(
            model=model,
            entity_ids=body.entity_ids,
            instances=body.instances,
            overrides=body.overrides,
            timeout_s=body.timeout_s,
            priority=body.priority,
        ),
        idempotency_key=idempotency_key,
    )
    url = f"{process.settings.api.root_path}/predictions/{job_id}"
    return JsonResponse({"task_id": job_id, "status_url": url}, 202, headers={"Location": url})


@router.get("/predictions/{task_id}", response_model=JobBody, responses=documented(400, 404, 503), tags=["jobs"])
async def get_job(task_id: str, process: Process, wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0) -> Response:
    """Return the state of a job; with `wait_s`, wait until the job is over or the time is up."""
    view = await process.jobs.wait(task_id, wait_s)
    body: dict[str, Any] = {"task_id": task_id, "state": view.state.value}
    if view.error is not None:
        body["error"] = problem_of(view.error)
    if view.state is JobState.DONE:
        rows = await process.jobs.rows(view)
        return await asyncio.to_thread(_with_result, body, rows)
    return JsonResponse(body)


@router.delete(
    "/predictions/{task_id}", status_code=202, response_model=JobBody, responses=documented(404, 503), tags=["jobs"]
)
async def cancel_job(task_id: str, process: Process) -> Response:
    """Cancel a job: workers compute no more of it. A job that is over stays as it is."""
    view = await process.jobs.cancel(task_id)
    return JsonResponse({"task_id": task_id, "state": view.state.value}, 202)


def _with_result(body: dict[str, Any], rows: list[JobRow]) -> Response:
    """Encode a hundred thousand items, which would hold up the event loop."""
    return JsonResponse({**body, "result": {"predictions": [item_of(r.entity_id, r.answer) for r in rows]}})
