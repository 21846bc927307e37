"""What a task's own lines say of it, whatever its message holds."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
from celery import Celery

from inference.logs import REQUEST_IDS_HEADER, requests_behind
from tasks.celery_app import DeploymentTask


@pytest.fixture
def told() -> Any:
    """A task that returns the fields of its lines and the requests that it works for, and its request stack."""
    application = Celery("test", task_cls=DeploymentTask, set_as_current=False)

    @application.task(name="test.told", shared=False)  # type: ignore[untyped-decorator]  # celery has no types
    def told() -> tuple[dict[str, Any], list[str]]:
        return structlog.contextvars.get_contextvars(), [str(one) for one in requests_behind()]

    return told


@pytest.mark.parametrize(
    ("header", "requests"),
    [(["checkout-7", "cart"], ["checkout-7", "cart"]), (["a b", 7], []), ("checkout-7", []), (None, [])],
)
def test_within_a_task_lines_name_it_and_the_requests_of_its_message(
    told: Any, header: Any, requests: list[str]
) -> None:
    told.push_request(id="t1", **({} if header is None else {REQUEST_IDS_HEADER: header}))
    try:
        assert told() == ({"task_id": "t1"}, requests)
    finally:
        told.pop_request()
    assert structlog.contextvars.get_contextvars() == {}
    assert requests_behind() == ()
