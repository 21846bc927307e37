"""The class of all our tasks: each knows its deployment, and its log lines say for which requests it works."""

from __future__ import annotations

from typing import Any

from celery import Task

from inference.deployment import Deployment
from inference.logs import bound
from inference.request_ids import REQUEST_IDS_HEADER, from_message, work_for


class DeploymentTask(Task):  # type: ignore[misc]  # celery has no types
    """A task of an application that `make_worker_app` made."""

    abstract = True

    @property
    def deployment(self) -> Deployment:
        """What the task works on: its application's, whatever else this process may serve."""
        deployment: Deployment = self.app.deployment
        return deployment

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task's function, every line within it with `task_id` and the ids of its requests."""
        work_for(from_message(self.request.get(REQUEST_IDS_HEADER)))
        try:
            with bound(task_id=self.request.id):
                return self.run(*args, **kwargs)
        finally:
            work_for(())
