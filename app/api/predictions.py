"""Predictions later: `/predictions`, jobs that are enqueued and fetched."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from app.api.bodies import (
    MAX_JOB_ROWS,
    EnqueueBody,
    JobAcceptedBody,
    JobBody,
    JsonResponse,
    item_of,
)
from app.api.parts import Parts, parts_of
from app.api.problems import documented, problem_of
from app.api.request_bodies import JsonRoute, beside_loop
from inference.serving.job_queue import JobRow, JobView
from inference.serving.jobs import PART_ROWS, JobRequest, JobState

router = APIRouter(prefix="/predictions", tags=["jobs"], route_class=JsonRoute)

MAX_WAIT_S = 60


@router.post("", status_code=202, response_model=JobAcceptedBody, responses=documented(400, 404, 413, 503))
async def enqueue(
    body: EnqueueBody,
    parts: Annotated[Parts, Depends(parts_of)],
    request: Request,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> Response:
    """Enqueue up to 100 000 predictions. All are computed anew, so any `max_staleness_hours` is kept.

    `timeout_ms`: what no worker has begun by then fails with `deadline-exceeded`; left out, nothing does.
    `Idempotency-Key`: a client that does not know whether its request arrived sends it again under the same key, and
    gets the same job.
    """
    await beside_loop(len(await request.body()), body.check_rows, MAX_JOB_ROWS)
    body.check_overrides(PART_ROWS)
    model, _ = parts.settings.model(body.model)
    job_id = await parts.jobs.create(
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
    url = f"{parts.settings.api.root_path}/predictions/{job_id}"
    return JsonResponse({"task_id": job_id, "status_url": url}, 202, headers={"Location": url})


@router.get("/{task_id}", response_model=JobBody, responses=documented(400, 404, 503))
async def show(
    task_id: str,
    parts: Annotated[Parts, Depends(parts_of)],
    wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0,
) -> Response:
    """Return a job as it stands; with `wait_s`, as soon as it is over, or when the time is up."""
    view = await parts.jobs.wait(task_id, wait_s)
    body: dict[str, Any] = {"task_id": task_id, "state": view.state.value}
    if view.error is not None:
        body["error"] = problem_of(view.error)
    if view.state is JobState.DONE:
        rows = await parts.jobs.rows(view)
        return await asyncio.to_thread(_with_result, body, rows)
    return JsonResponse(body)


@router.delete("/{task_id}", status_code=202, response_model=JobBody, responses=documented(404, 503))
async def cancel(task_id: str, parts: Annotated[Parts, Depends(parts_of)]) -> Response:
    """Cancel a job: what is left of it is not computed. One that is over stays as it is."""
    view: JobView = await parts.jobs.cancel(task_id)
    return JsonResponse({"task_id": task_id, "state": view.state.value}, 202)


def _with_result(body: dict[str, Any], rows: list[JobRow]) -> Response:
    """Spell a hundred thousand items: too long for the loop that serves requests."""
    return JsonResponse({**body, "result": {"predictions": [item_of(r.entity_id, r.answer) for r in rows]}})
