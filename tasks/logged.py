"""Tasks whose log lines say which task they belong to, and for which requests it works."""

from __future__ import annotations

from typing import Any

from celery import Task

from inference.logs import bound
from inference.request_ids import REQUEST_IDS_HEADER, from_message, work_for


class LoggedTask(Task):  # type: ignore[misc]  # celery has no types
    """A task as all of ours are."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task's function, every line within it with `task_id` and the ids of its requests."""
        work_for(from_message(self.request.get(REQUEST_IDS_HEADER)))
        try:
            with bound(task_id=self.request.id):
                return self.run(*args, **kwargs)
        finally:
            work_for(())
