"""`predict` and `enqueue`: request predictions from the API, now or as a job."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from app.cli.context import ModelOption, load_settings
from app.cli.output import AsJson, note, print_fields, print_json, print_rows
from inference.errors import PredictionFailed, Unavailable
from inference.monitoring.queues import JobPriority
from inference.wording import counted

#: seconds of one long poll
_POLL_S = 20.0
#: the API's longest timeout, and an age that stands for "any", since JSON has no infinity
_MOST_MS, _MOST_HOURS = 600_000, 1e6


def predict(
    entity: Annotated[
        str, typer.Argument(metavar="ENTITY", help="The entity id; one that begins with - after a lone --.")
    ],
    model: ModelOption = None,
    max_staleness_hours: Annotated[
        float | None,
        typer.Option(min=0, max=_MOST_HOURS, metavar="HOURS", help="Maximum age of the answer; 0 forces computing."),
    ] = None,
    timeout_ms: Annotated[
        int | None, typer.Option(min=1, max=_MOST_MS, metavar="MS", help="How long a miss may take.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the prediction for one entity."""
    from app.cli.api_client import Api, problem_text

    settings = load_settings()
    body = {
        "model": settings.model(model)[0],
        # in a URL, some ids would need quoting
        "entity_ids": [entity],
        "max_staleness_hours": max_staleness_hours,
        "timeout_ms": timeout_ms,
    }
    answer = Api(settings.api).call("POST", "/predict", _given(body), timeout_s=(timeout_ms or 0) / 1000)
    item: dict[str, Any] = answer["predictions"][0]
    if as_json:
        print_json(item)
    elif "error" not in item:
        print_fields(item)
    if "error" in item:
        if not as_json:
            note(f"forecache: {problem_text(item['error'])}")
        raise typer.Exit(1)


def enqueue(
    entities: Annotated[list[str], typer.Argument(metavar="ENTITY", help="Entity ids.")],
    model: ModelOption = None,
    priority: Annotated[
        JobPriority, typer.Option(help="Jobs of a higher priority go first; requests go before all jobs.")
    ] = JobPriority.NORMAL,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the result and print it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Enqueue predictions for a worker to compute; print the job's id.

    With --wait, print its result; exit 1 if the job or one of its predictions failed.
    """
    from app.cli.api_client import Api

    settings = load_settings()
    api = Api(settings.api)
    body = {"model": settings.model(model)[0], "entity_ids": entities, "priority": priority.value}
    job = api.call("POST", "/predictions", body)
    if not wait:
        if as_json:
            print_json(job)
        else:
            typer.echo(job["task_id"])
        return
    _print_job(job_once_over(api, job["task_id"]), as_json=as_json)


def job_once_over(api: Any, task_id: str) -> dict[str, Any]:
    """Poll the API until the job is over, and return the job."""
    from inference.serving.jobs import JobState

    noted = False
    while True:
        path = f"/predictions/{task_id}?wait_s={_POLL_S:g}"
        job: dict[str, Any] = api.call("GET", path, timeout_s=_POLL_S)
        state = JobState(job["state"])
        if state.is_over:
            return job
        if state is JobState.QUEUED and not noted:
            note("no worker has taken it up yet: is `forecache up`, or a real-time worker, running?")
            noted = True


def _print_job(job: dict[str, Any], *, as_json: bool) -> None:
    from app.cli.api_client import problem_text

    items = (job.get("result") or {}).get("predictions", [])
    if as_json:
        print_json(job)
    elif items:
        rows = [
            (
                item["entity_id"],
                item.get("prediction"),
                problem_text(item["error"]) if "error" in item else None,
            )
            for item in items
        ]
        print_rows(("entity_id", "prediction", "error"), rows)
    if job["state"] != "done":
        detail = problem_text(job["error"]) if job.get("error") else job["state"]
        raise Unavailable(f"job {job['task_id']} is {job['state']}: {detail}")
    failed = sum("error" in item for item in items)
    if failed:
        raise PredictionFailed(f"{failed} of {counted(len(items), 'prediction')} failed: see their errors")


def _given(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}
