"""Tasks of the real-time queue. Other applications send them too: `docs/existing.md` is the contract.

Workers acknowledge early: if a worker dies, the API has long answered the request without it.
"""

from __future__ import annotations

from typing import Any

from celery import shared_task

from inference.errors import DeadlineExceeded
from inference.logs import bound
from inference.monitoring.queues import SENT_AT_HEADER
from inference.serving.jobs import run_part
from tasks.celery_app import DeploymentTask


def _refuse_redelivered(task: DeploymentTask) -> None:
    """Refuse a request that another worker had before: it may have killed that worker, and would kill the next.

    The solo pool acknowledges at the end, whatever `acks_late` says. So RabbitMQ redelivers a dying worker's messages
    at once. The client has a degraded answer or an error by then.
    """
    if (task.request.delivery_info or {}).get("redelivered"):
        raise DeadlineExceeded("the worker that took this task ended")


def _log_accesses(task: DeploymentTask, result: dict[str, Any]) -> None:
    """Log the entities that were answered, unless the API sent the message: it logs its own requests."""
    if task.request.get(SENT_AT_HEADER) is not None:
        return
    answered = [one["entity_id"] for one in result["predictions"] if "error" not in one]
    if answered:
        task.deployment.recorder.record_asked(result["model"], answered)


@shared_task(name="forecache.predict_entities", acks_late=False, bind=True, named_only=True)  # type: ignore[untyped-decorator]
def predict_entities(
    self: DeploymentTask,
    model: str | None = None,
    entity_ids: list[str] | None = None,
    deadline: float | None = None,
    overrides: dict[str, Any] | None = None,
    recompute: bool = True,
) -> dict[str, Any]:
    """Compute entities' predictions from their stored features, and store them unless there are overrides."""
    _refuse_redelivered(self)
    result = self.deployment.scorer.predict_entities(
        model, [] if entity_ids is None else entity_ids, overrides=overrides, deadline=deadline, recompute=recompute
    )
    _log_accesses(self, result)
    return result


@shared_task(name="forecache.predict_instances", acks_late=False, bind=True, named_only=True)  # type: ignore[untyped-decorator]
def predict_instances(
    self: DeploymentTask, model: str | None = None, instances: list[Any] | None = None, deadline: float | None = None
) -> dict[str, Any]:
    """Compute the predictions of a request's own feature rows."""
    _refuse_redelivered(self)
    return self.deployment.scorer.predict_instances(model, [] if instances is None else instances, deadline=deadline)


@shared_task(name="forecache.predict_explained", acks_late=False, bind=True)  # type: ignore[untyped-decorator]
def predict_explained(
    self: DeploymentTask,
    model: str | None = None,
    entity_ids: list[str] | None = None,
    deadline: float | None = None,
    predict: bool = True,
) -> dict[str, Any]:
    """Explain one entity's features and their sources; with `predict`, also compute its prediction."""
    _refuse_redelivered(self)
    return self.deployment.scorer.explain_entity(
        model, [] if entity_ids is None else entity_ids, deadline=deadline, predict=predict
    )


@shared_task(name="forecache.predict_tensors", acks_late=False, bind=True)  # type: ignore[untyped-decorator]
def predict_tensors(
    self: DeploymentTask,
    model: str,
    inputs: dict[str, Any],
    version: int | None = None,
    deadline: float | None = None,
    signature: str | None = None,
    more: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Compute a model's own input tensors, for clients of another serving protocol. `more`: further calls."""
    _refuse_redelivered(self)
    return self.deployment.tensor_scorer.predict_tensors(
        model, inputs, version=version, deadline=deadline, signature=signature, more=more
    )


@shared_task(name="forecache.predict_job_part", acks_late=False, ignore_result=True, bind=True)  # type: ignore[untyped-decorator]
def predict_job_part(self: DeploymentTask, job_id: str, part: int) -> None:
    """Compute one part of an enqueued job. Safe to run twice."""
    deployment = self.deployment
    with bound(job_id=job_id, part=part):
        run_part(deployment.cache, deployment.keys, deployment.scorer, job_id, part)
