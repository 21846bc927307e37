"""What a real-time task does before it reaches the scorer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from inference.errors import DeadlineExceeded
from tasks.realtime import predict_entities, predict_instances, predict_tensors


@contextmanager
def delivered(task: Any, *, again: bool) -> Iterator[None]:
    task.push_request(delivery_info={"redelivered": again})
    try:
        yield
    finally:
        task.pop_request()


@pytest.mark.parametrize(
    ("task", "arguments"),
    [(predict_entities, {}), (predict_instances, {}), (predict_tensors, {"model": "m", "inputs": {}})],
    ids=["entities", "instances", "tensors"],
)
def test_what_may_have_killed_a_worker_is_not_given_to_another(task: Any, arguments: dict[str, Any]) -> None:
    with delivered(task, again=True), pytest.raises(DeadlineExceeded, match="ended"):
        task.run(**arguments)
